"""Image files and arrays: decoding, masks, resizing, cropping and writing."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from vq_jax.data import images
from vq_jax.errors import UserError


def encoded(image: Image.Image, form: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def test_transparency_becomes_white():
    array = np.zeros((4, 4, 4), np.uint8)
    array[:2, :, 3] = 255  # opaque black in the upper half, transparent in the lower one
    decoded = images.decode(encoded(Image.fromarray(array), "PNG"))
    assert decoded.shape == (4, 4, 3)
    assert (decoded[:2] == 0).all() and (decoded[2:] == 255).all()


def test_transparent_palette_colours_become_white():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 1), 1)
    decoded = images.decode(encoded(image, "PNG", transparency=0))
    assert (decoded[0, 0] == 255).all() and decoded[1, 1].tolist() == [0, 255, 0]


def test_exif_orientation_is_applied():
    array = np.zeros((4, 8, 3), np.uint8)
    array[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    decoded = images.decode(encoded(Image.fromarray(array), "PNG", exif=exif.tobytes()))
    assert decoded.shape == (8, 4, 3)
    assert (decoded[:4] == 255).all() and (decoded[4:] == 0).all()


def test_16_bit_integers_are_scaled_not_clipped():
    array = np.array([[0, 257 * 100, 65535]], np.uint16)
    decoded = images.decode(encoded(Image.fromarray(array), "PNG"))
    assert decoded[0, :, 0].tolist() == [0, 100, 255]


def test_jpeg_may_be_decoded_at_a_smaller_size_but_not_below_min_side(rng):
    file = encoded(Image.fromarray(rng.integers(0, 255, (256, 320, 3), np.uint8)), "JPEG")
    assert images.decode(file, min_side=64).shape == (64, 80, 3)
    file.seek(0)
    assert images.decode(file).shape == (256, 320, 3)


def test_error_names_the_unreadable_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"a\.png"):
        images.read_image(tmp_path / "a.png")


def test_with_channels_converts_between_grey_and_colour():
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[..., 0] = 255
    grey = images.with_channels(rgb, 1)
    assert grey.shape == (2, 2, 1) and grey[0, 0, 0] == 76  # luma of red
    assert images.with_channels(grey[..., 0], 3).shape == (2, 2, 3)
    assert images.with_channels(rgb, 3) is rgb


@pytest.mark.parametrize("size", [(32, 32), (40, 90), (17, 300), (500, 33)])
def test_fit_returns_a_square_of_the_resolution(size, rng):
    image = rng.integers(0, 255, (*size, 3), np.uint8)
    for resize in (0, 32, 48):
        assert images.fit(image, 32, resize).shape == (32, 32, 3)
        assert images.fit(image, 32, resize, rng, True, True).shape == (32, 32, 3)


def test_fit_crops_and_flips_as_requested(rng):
    image = np.arange(100, dtype=np.uint8).reshape(10, 10, 1)
    assert (images.fit(image, 4, 0) == image[3:7, 3:7]).all()
    seen = {images.fit(image, 4, 0, rng, random_crop=True)[0, 0, 0] for _ in range(300)}
    assert len(seen) == 49
    flipped = [
        (images.fit(image, 10, 0, rng, flip=True) == image[:, ::-1]).all() for _ in range(50)
    ]
    assert 5 < sum(flipped) < 45


def test_conversion_to_float_and_back_is_exact(rng):
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    x = images.to_float(image)
    assert x.dtype == np.float32 and x.min() >= -1 and x.max() <= 1
    assert (images.to_uint8(x) == image).all()
    assert images.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        images.save_image(np.zeros((2, 2, 3), np.uint8), tmp_path / "a.nosuchformat")
    assert not list(tmp_path.iterdir())


def test_rows_of_arranges_images():
    first, second = np.zeros((3, 4, 4, 3), np.uint8), np.full((3, 4, 4, 3), 7, np.uint8)
    picture = images.rows_of(first, second)
    assert picture.shape == (4 + 2 + 4, 3 * 4 + 2 * 2, 3)
    assert (picture[:4, :4] == 0).all() and (picture[6:, :4] == 7).all()
    assert (picture[4:6] == 255).all()


@pytest.mark.parametrize(
    "largest,scale", [(1.0, 255.0), (1.04, 255.0), (255.0, 1.0), (65535.0, 1 / 257)]
)
def test_floats_of_any_range_are_scaled(largest, scale):
    array = np.array([[0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]], np.float32) * largest
    decoded = images.decode(encoded(Image.fromarray(array), "TIFF"))
    expected = np.round((np.array([0, 0.5, 1, 0, 1, 0]) * largest * scale).clip(0, 255))
    assert decoded[0, :, 0].tolist() == expected.tolist()


def test_32_bit_integers_in_the_range_of_uint8_are_not_scaled():
    array = np.array([[0, 100, 255]], np.int32)
    decoded = images.decode(encoded(Image.fromarray(array), "TIFF"))
    assert decoded[0, :, 0].tolist() == [0, 100, 255]


def test_icc_profile_is_converted_to_srgb(rng):
    """A colour that is in both Display P3 and sRGB is converted by the matrices of these spaces."""
    array = np.tile(np.array([[[200, 100, 50]]], np.uint8), (4, 4, 1))
    profile = p3_profile()
    for form in ("PNG", "JPEG"):
        options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
        file = encoded(Image.fromarray(array), form, icc_profile=profile, **options)
        found = images.decode(file)[0, 0].astype(int)
        assert np.abs(found - p3_to_srgb(array[0, 0])).max() <= 2
    plain = images.decode(encoded(Image.fromarray(array), "PNG", icc_profile=b"not a profile"))
    assert (plain == array).all()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (images.decode(encoded(Image.fromarray(array), "PNG", icc_profile=srgb)) == array).all()


def test_icc_profile_does_not_change_transparency():
    array = np.zeros((2, 2, 4), np.uint8)
    array[..., :3], array[0, 0, 3], array[1, 1, 3] = (200, 100, 50), 255, 128
    file = encoded(Image.fromarray(array), "PNG", icc_profile=p3_profile())
    decoded = images.decode(file, alpha=True)
    assert (decoded[..., 3] == array[..., 3]).all()
    assert np.abs(decoded[0, 0, :3].astype(int) - p3_to_srgb(array[0, 0, :3])).max() <= 2


def p3_profile():
    """Makes a matrix profile of ICC version 2 for Display P3.

    It has the primaries of SMPTE RP 431-2, the white point D65 and the curve of sRGB.
    """
    to_xyz = P3_TO_XYZ_D50

    def fixed(values):
        return b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)

    xyz = {name: b"XYZ \0\0\0\0" + fixed(to_xyz[:, i]) for i, name in enumerate("rgb")}
    t = np.linspace(0, 1, 1024)
    curve = np.where(t <= 0.04045, t / 12.92, ((t + 0.055) / 1.055) ** 2.4)
    points = b"".join(struct.pack(">H", round(float(v) * 65535)) for v in curve)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + points
    name = b"P3 of a test"
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + bytes(1 + 8 + 3 + 67)
    tags = {
        b"desc": text, b"wtpt": b"XYZ \0\0\0\0" + fixed([0.9642, 1.0, 0.8249]),
        **{f"{n}XYZ".encode(): xyz[n] for n in "rgb"}, **{f"{n}TRC".encode(): curve for n in "rgb"},
    }  # fmt: skip
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += tag + struct.pack(">II", place + len(body), len(content))
        body += content
    head = struct.pack(
        ">I4sI4s4s4s", place + len(body), b"test", 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + fixed([0.9642, 1.0, 0.8249])
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


# Linear Display P3 and sRGB to XYZ, adapted to D50 (Lindbloom's Bradford matrices).
P3_TO_XYZ_D50 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
SRGB_TO_XYZ_D50 = np.array(
    [[0.43607, 0.38515, 0.14308], [0.22249, 0.71687, 0.06061], [0.01393, 0.09710, 0.71419]]
)


def p3_to_srgb(colour):
    t = colour / 255.0
    linear = np.where(t <= 0.04045, t / 12.92, ((t + 0.055) / 1.055) ** 2.4)
    linear = np.linalg.solve(SRGB_TO_XYZ_D50, P3_TO_XYZ_D50 @ linear).clip(0, 1)
    back = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * back)


def test_fit_of_a_thin_image_takes_little_memory(rng):
    thin = rng.integers(0, 256, (1, 10_000, 3), np.uint8)
    tracemalloc.start()
    for axis in (0, 1):
        image = thin if axis == 0 else thin.transpose(1, 0, 2)
        for chance in (None, rng):
            square = images.fit(image, 256, 256, chance, random_crop=True)
            assert square.shape == (256, 256, 3)
            middle = square[100] if axis == 0 else square[:, 100]
            assert middle.std() > 10  # an enlarged part of the image
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_images_above_pillows_limit_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(images, "_STRIP", 80)  # Before Pillow 13, crops are limited, too.
    Image.new("RGB", (40, 50), (9, 8, 7)).save(tmp_path / "large.png")
    assert images.read_image(tmp_path / "large.png").shape == (50, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100  # unchanged for other code


def test_images_above_the_free_memory_are_rejected_by_their_header():
    png = encoded(Image.new("1", (8, 8)), "PNG").getvalue()
    size = struct.pack(">II", 2**20, 2**20)  # takes 8 TiB
    header = b"IHDR" + size + png[24:29]
    huge = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    with pytest.raises(ValueError, match="1048576x1048576 pixels takes 8192.0 GiB"):
        images.decode(io.BytesIO(huge))


@pytest.mark.parametrize(
    "case,kind",
    [
        ("white on black", "white"),
        ("white on transparent", "painted white"),
        ("transparent hole", "transparent"),
    ],
)
def test_read_mask_recognises_white_and_transparent_masks(tmp_path, rng, case, kind):
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:7] = True
    alpha = np.full((8, 8), 255, np.uint8)
    colours = np.zeros((8, 8, 3), np.uint8)
    if case == "transparent hole":
        colours = rng.integers(0, 256, (8, 8, 3), np.uint8)  # with light pixels outside the hole
        alpha[mask] = 0
    else:
        colours[mask] = 255
        alpha[~mask] = 0 if case == "white on transparent" else 255
    rgba = np.concatenate([colours, alpha[..., None]], axis=-1)
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    found, found_kind = images.read_mask(tmp_path / "mask.png")
    np.testing.assert_array_equal(found, mask)
    assert found_kind == kind


@pytest.mark.parametrize("suffix", [".jpg", ".jfif", ".bmp", ".png", ".webp"])
def test_transparency_is_written_if_the_format_has_it(tmp_path, suffix):
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2, :, 3] = 255
    images.save_image(image, tmp_path / f"a{suffix}")
    read = images.read_image(tmp_path / f"a{suffix}", alpha=True)
    assert read.shape[-1] == (4 if suffix in (".png", ".webp") else 3)
    on_white = images.read_image(tmp_path / f"a{suffix}")
    assert (on_white[:2] < 8).all() and (on_white[2:] > 247).all()
