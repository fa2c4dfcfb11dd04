"""Other formats at equal bytes."""

import numpy as np
import pytest

from vq_jax.codec import peers
from vq_jax.data.images import psnr
from vq_jax.errors import UserError


@pytest.fixture(scope="module")
def image():
    y, x = np.mgrid[:64, :96]
    noise = np.random.default_rng(0).integers(0, 40, (64, 96, 3))
    return (np.stack([2 * x, 3 * y, x + y], axis=-1) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", peers.available())
def test_the_best_file_that_fits(name, image):
    quality, data = peers.at_most(name, image, 2000)
    assert len(data) <= 2000
    assert len(peers.encode(name, image, quality + 1)) > 2000
    assert psnr(image, peers.decode(data)) > 20
    grey = image[..., :1]
    assert peers.decode(peers.encode(name, grey, 90), 1).shape == grey.shape


@pytest.mark.parametrize("name", peers.available())
def test_the_smallest_file_where_none_fits(name, image):
    quality, data = peers.at_most(name, image, 10)
    assert quality == 0 and len(data) > 10


def test_a_size_that_a_format_lacks_is_one_line():
    with pytest.raises(UserError, match="WebP cannot have an image of 17000x2"):
        peers.encode("WebP", np.zeros((2, 17000, 3), np.uint8), 50)
