"""Encoding and decoding images of any size in tiles."""

import chex
import numpy as np
import pytest
from scipy import ndimage
from small import make_tokenizer

from vq_jax.codec.image_tiler import ImageTiler, cut
from vq_jax.data.images import mirror_pad, to_float, to_uint8


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def picture(rng, height, width):
    """Returns uint8 [H, W, 3], smooth enough that rounding errors do not change a code."""
    noise = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (2, 2, 0))
    return to_uint8(np.tanh(noise / noise.std()))


@pytest.mark.parametrize("step", [1, 4, 5])
@pytest.mark.parametrize("codes", [1, 7, 31, 32, 33, 47, 48, 49, 100, 1000])
def test_tiles_cover_the_axis_and_overlap_by_twice_the_margin(codes, step):
    axis = cut(codes, 32, 8, step)
    assert axis.starts[0] == 0 and axis.starts[-1] + axis.size == codes
    assert axis.size <= min(codes, 32)
    assert codes <= 32 or axis.size % step == 0 or axis.size == 32
    ends = [start + axis.size for start in axis.starts]
    for end, start, seam in zip(ends, axis.starts[1:], axis.seams, strict=False):
        assert end - start >= 16 and start + 8 <= seam <= end - 8
    # The number of tiles is the smallest possible.
    assert codes <= 32 or len(axis.starts) == 1 + -(-(codes - 32) // 16)


@pytest.mark.parametrize(
    ("height", "width"), [(132, 300), (520, 64), (300, 140), (13, 21), (100, 100)]
)
def test_tiles_give_the_codes_and_pixels_of_the_whole_image(tokenizer, rng, height, width):
    image = picture(rng, height, width)
    tiler = ImageTiler(tokenizer, side=128)
    (codes,) = tiler.encode([image])
    chex.assert_shape(codes, tiler.grid((height, width)))
    # Encode the whole image with the same mirrored padding.
    padded = mirror_pad(image, 4)
    rows, columns = tiler._cuts((height, width))
    sides = [4 * (side.starts[-1] + side.size) for side in (rows, columns)]
    padding = [(0, s - old) for s, old in zip(sides, padded.shape, strict=False)]
    padded = np.pad(padded, [*padding, (0, 0)], mode="symmetric")
    whole = np.asarray(tokenizer.encode(to_float(padded)[None]))[0]
    np.testing.assert_array_equal(codes, whole[: codes.shape[0], : codes.shape[1]])
    code_padding = [(0, s // 4 - old) for s, old in zip(sides, codes.shape, strict=True)]
    expected = tokenizer.decode(np.pad(codes, code_padding, mode="symmetric")[None])
    (decoded,) = tiler.decode([codes], [(height, width)])
    chex.assert_shape(decoded, image.shape)
    error = np.abs(decoded.astype(int) - to_uint8(np.asarray(expected))[0, :height, :width])
    assert error.max() <= 1 and (error > 0).mean() < 1e-3


def test_blending_weights_sum_to_one_at_every_pixel(tokenizer):
    tiler = ImageTiler(tokenizer, side=128)
    for side in (128, 132, 200, 512, 1000):
        axis = tiler._cuts((side, side))[0]
        total = np.zeros(4 * (axis.starts[-1] + axis.size))
        for start, weight in zip(axis.starts, axis.weights(), strict=True):
            total[4 * start : 4 * start + len(weight)] += weight
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_images_of_a_batch_do_not_affect_each_other(tokenizer, rng):
    shapes = [(16, 16), (16, 16), (20, 30), (16, 16), (200, 150), (150, 200)] + [(16, 16)] * 70
    images = [picture(rng, *shape) for shape in shapes]
    tiler = ImageTiler(tokenizer, side=128)
    together = tiler.encode(images)
    alone = [tiler.encode([image])[0] for image in images[:8]]
    chex.assert_trees_all_equal(together[:8], alone)
    decoded = list(tiler.decode(together, shapes))
    assert [image.shape for image in decoded] == [(*shape, 3) for shape in shapes]
    for codes, shape, image in zip(together[:8], shapes, decoded, strict=False):
        (decoded_alone,) = tiler.decode([codes], [shape])
        assert np.abs(decoded_alone.astype(int) - image).max() <= 1


@pytest.mark.parametrize("quantizer", ["multiscale", "residual"])
def test_multiscale_and_residual_codes_are_encoded_and_decoded(quantizer, rng):
    """Tiles of a multi-scale tokenizer have the training size and do not overlap."""
    tokenizer = make_tokenizer(quantizer)
    tiler, image = ImageTiler(tokenizer), picture(rng, 40, 21)
    (codes,) = tiler.encode([image])
    shape = (*tiler.grid((40, 21)), *tokenizer.codes.code_shape)
    assert codes.shape == shape == ((6, 21) if quantizer == "multiscale" else (10, 6, 2))
    (decoded,) = tiler.decode([codes], [(40, 21)])
    chex.assert_shape(decoded, image.shape)
    if quantizer == "multiscale":
        corner = tokenizer.reconstruct(to_float(image)[None, :16, :16])
        np.testing.assert_allclose(decoded[:16, :16], to_uint8(np.asarray(corner))[0], atol=1)


def test_arrays_that_are_not_images_are_refused(tokenizer):
    tiler = ImageTiler(tokenizer)
    for invalid in (
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        "image.png",
    ):
        with pytest.raises(ValueError, match="make it uint8"):
            tiler.encode([invalid])
