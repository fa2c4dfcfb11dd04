"""Images of any size through a tokenizer, in tiles."""

import chex
import numpy as np
import pytest
from scipy import ndimage
from small import make_tokenizer

from vq_jax.data.images import mirror_pad, to_float, to_uint8
from vq_jax.tiles import ImageTiles, cut


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def picture(rng, height, width):
    """uint8 [H, W, 3], smooth enough that rounding does not decide between two codes."""
    noise = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (2, 2, 0))
    return to_uint8(np.tanh(noise / noise.std()))


@pytest.mark.parametrize("step", [1, 4, 5])
@pytest.mark.parametrize("codes", [1, 7, 31, 32, 33, 47, 48, 49, 100, 1000])
def test_a_cut_covers_all_and_tiles_overlap_by_twice_the_margin(codes, step):
    side = cut(codes, 32, 8, step)
    assert side.starts[0] == 0 and side.starts[-1] + side.size == codes
    assert side.size <= min(codes, 32)
    assert codes <= 32 or side.size % step == 0 or side.size == 32
    ends = [start + side.size for start in side.starts]
    for end, start, seam in zip(ends, side.starts[1:], side.seams, strict=False):
        assert end - start >= 16 and start + 8 <= seam <= end - 8
    # No more tiles than that takes.
    assert codes <= 32 or len(side.starts) == 1 + -(-(codes - 32) // 16)


@pytest.mark.parametrize(
    ("height", "width"), [(132, 300), (520, 64), (300, 140), (13, 21), (100, 100)]
)
def test_tiles_of_a_convolutional_tokenizer_are_the_image_at_once(tokenizer, rng, height, width):
    image = picture(rng, height, width)
    tiles = ImageTiles(tokenizer, side=128)
    (codes,) = tiles.encode([image])
    chex.assert_shape(codes, tiles.grid((height, width)))
    # At once, with the same mirrored edge.
    padded = mirror_pad(image, 4)
    rows, columns = tiles._cuts((height, width))
    size = [4 * (side.starts[-1] + side.size) for side in (rows, columns)]
    more = [(0, s - old) for s, old in zip(size, padded.shape, strict=False)]
    padded = np.pad(padded, [*more, (0, 0)], mode="symmetric")
    whole = np.asarray(tokenizer.encode(to_float(padded)[None]))[0]
    np.testing.assert_array_equal(codes, whole[: codes.shape[0], : codes.shape[1]])
    grown = [(0, s // 4 - old) for s, old in zip(size, codes.shape, strict=True)]
    expected = tokenizer.decode(np.pad(codes, grown, mode="symmetric")[None])
    (decoded,) = tiles.decode([codes], [(height, width)])
    chex.assert_shape(decoded, image.shape)
    off = np.abs(decoded.astype(int) - to_uint8(np.asarray(expected))[0, :height, :width])
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


def test_weights_of_tiles_add_up_to_one_everywhere(tokenizer):
    tiles = ImageTiles(tokenizer, side=128)
    for side in (128, 132, 200, 512, 1000):
        of_side = tiles._cuts((side, side))[0]
        total = np.zeros(4 * (of_side.starts[-1] + of_side.size))
        for start, weight in zip(of_side.starts, tiles._weights(of_side), strict=True):
            total[4 * start : 4 * start + len(weight)] += weight
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_many_images_in_batches_are_each_by_itself(tokenizer, rng):
    shapes = [(16, 16), (16, 16), (20, 30), (16, 16), (200, 150), (150, 200)] + [(16, 16)] * 70
    images = [picture(rng, *shape) for shape in shapes]
    tiles = ImageTiles(tokenizer, side=128)
    together = tiles.encode(images)
    alone = [tiles.encode([image])[0] for image in images[:8]]
    chex.assert_trees_all_equal(together[:8], alone)
    decoded = list(tiles.decode(together, shapes))
    assert [image.shape for image in decoded] == [(*shape, 3) for shape in shapes]
    for codes, shape, image in zip(together[:8], shapes, decoded, strict=False):
        (by_itself,) = tiles.decode([codes], [shape])
        assert np.abs(by_itself.astype(int) - image).max() <= 1


@pytest.mark.parametrize("quantizer", ["multiscale", "residual"])
def test_codes_of_other_shapes(quantizer, rng):
    """Without a grid an image is cut into tiles of the training size, which do not overlap."""
    tokenizer = make_tokenizer(quantizer)
    tiles, image = ImageTiles(tokenizer), picture(rng, 40, 21)
    (codes,) = tiles.encode([image])
    shape = (*tiles.grid((40, 21)), *tokenizer.code_shape)
    assert codes.shape == shape == ((6, 21) if quantizer == "multiscale" else (10, 6, 2))
    (decoded,) = tiles.decode([codes], [(40, 21)])
    chex.assert_shape(decoded, image.shape)
    if quantizer == "multiscale":
        corner = tokenizer.reconstruct(to_float(image)[None, :16, :16])
        np.testing.assert_allclose(decoded[:16, :16], to_uint8(np.asarray(corner))[0], atol=1)


def test_what_is_no_image_is_refused(tokenizer):
    tiles = ImageTiles(tokenizer)
    for wrong in (
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        "image.png",
    ):
        with pytest.raises(ValueError, match="make it uint8"):
            tiles.encode([wrong])
