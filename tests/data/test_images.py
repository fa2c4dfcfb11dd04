import io

import numpy as np
import pytest
from PIL import Image

from vq_jax.data import images
from vq_jax.errors import UserError


def encoded(image: Image.Image, form: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def test_transparency_becomes_white():
    array = np.zeros((4, 4, 4), np.uint8)
    array[:2, :, 3] = 255  # black above, nothing below
    decoded = images.decode(encoded(Image.fromarray(array), "PNG"))
    assert decoded.shape == (4, 4, 3)
    assert (decoded[:2] == 0).all() and (decoded[2:] == 255).all()


def test_palettes_with_transparency_too():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 1), 1)
    decoded = images.decode(encoded(image, "PNG", transparency=0))
    assert (decoded[0, 0] == 255).all() and decoded[1, 1].tolist() == [0, 255, 0]


def test_pictures_stand_upright():
    array = np.zeros((4, 8, 3), np.uint8)
    array[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    decoded = images.decode(encoded(Image.fromarray(array), "PNG", exif=exif.tobytes()))
    assert decoded.shape == (8, 4, 3)
    assert (decoded[:4] == 255).all() and (decoded[4:] == 0).all()


def test_sixteen_bits_are_scaled_not_clipped():
    array = np.array([[0, 257 * 100, 65535]], np.uint16)
    decoded = images.decode(encoded(Image.fromarray(array), "PNG"))
    assert decoded[0, :, 0].tolist() == [0, 100, 255]


def test_a_jpeg_may_be_decoded_small_but_not_smaller_than_asked(rng):
    file = encoded(Image.fromarray(rng.integers(0, 255, (256, 320, 3), np.uint8)), "JPEG")
    assert images.decode(file, min_side=64).shape == (64, 80, 3)
    file.seek(0)
    assert images.decode(file).shape == (256, 320, 3)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.png"):
        images.read_image(tmp_path / "a.png")


def test_channels():
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[..., 0] = 255
    grey = images.with_channels(rgb, 1)
    assert grey.shape == (2, 2, 1) and grey[0, 0, 0] == 76  # luma of red
    assert images.with_channels(grey[..., 0], 3).shape == (2, 2, 3)
    assert images.with_channels(rgb, 3) is rgb


@pytest.mark.parametrize("size", [(32, 32), (40, 90), (17, 300), (500, 33)])
def test_fit_always_gives_the_square(size, rng):
    image = rng.integers(0, 255, (*size, 3), np.uint8)
    for resize in (0, 32, 48):
        assert images.fit(image, 32, resize).shape == (32, 32, 3)
        assert images.fit(image, 32, resize, rng, True, True).shape == (32, 32, 3)


def test_crops_are_what_they_say(rng):
    image = np.arange(100, dtype=np.uint8).reshape(10, 10, 1)
    assert (images.fit(image, 4, 0) == image[3:7, 3:7]).all()
    seen = {images.fit(image, 4, 0, rng, random_crop=True)[0, 0, 0] for _ in range(300)}
    assert len(seen) == 49
    flipped = [
        (images.fit(image, 10, 0, rng, flip=True) == image[:, ::-1]).all() for _ in range(50)
    ]
    assert 5 < sum(flipped) < 45


def test_bytes_survive_the_trip_through_floats(rng):
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    x = images.to_float(image)
    assert x.dtype == np.float32 and x.min() >= -1 and x.max() <= 1
    assert (images.to_uint8(x) == image).all()
    assert images.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        images.save_image(np.zeros((2, 2, 3), np.uint8), tmp_path / "a.nosuchformat")
    assert not list(tmp_path.iterdir())


def test_rows_of_lays_images_out():
    first, second = np.zeros((3, 4, 4, 3), np.uint8), np.full((3, 4, 4, 3), 7, np.uint8)
    picture = images.rows_of(first, second)
    assert picture.shape == (4 + 2 + 4, 3 * 4 + 2 * 2, 3)
    assert (picture[:4, :4] == 0).all() and (picture[6:, :4] == 7).all()
    assert (picture[4:6] == 255).all()
