"""LPIPS: a perceptual distance between images (Zhang et al. 2018)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# conv_j [h, w, in, out] and bias_j [out] for each convolution, linear_i [channels] for each
# activation that is compared
Params = dict[str, jax.Array]

# Convolutions of VGG16 up to relu5_3, by block, with a 2x2 max-pool between blocks. The last
# activation of each block is compared (Zhang et al. 2018, sec. 3.2).
_BLOCKS = ((0, 1), (2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))
# Convolutions of AlexNet: stride, padding, and whether a 3x3 max-pool of stride 2 precedes. The
# activations of all are compared.
_ALEX = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))
CONVOLUTIONS = {"vgg": 13, "alex": 5}  # number of convolutions
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


def _conv(params: Params, j: int, x: jax.Array, stride: int, padding: int) -> jax.Array:
    x = jax.lax.conv_general_dilated(
        x,
        params[f"conv_{j}"],
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(x + params[f"bias_{j}"])


def _max_pool(x: jax.Array, size: int) -> jax.Array:
    window, strides = (1, size, size, 1), (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")


def _vgg(params: Params, x: jax.Array) -> list[jax.Array]:
    taps = []
    for i, block in enumerate(_BLOCKS):
        x = _max_pool(x, 2) if i else x
        for j in block:
            x = _conv(params, j, x, 1, 1)
        taps.append(x)
    return taps


def _alex(params: Params, x: jax.Array) -> list[jax.Array]:
    taps = []
    for j, (stride, padding, pool) in enumerate(_ALEX):
        x = _conv(params, j, _max_pool(x, 3) if pool else x, stride, padding)
        taps.append(x)
    return taps


_NETS: dict[str, Callable[[Params, jax.Array], list[jax.Array]]] = {"vgg": _vgg, "alex": _alex}
# Smallest side of an image for which no compared activation is empty.
LEAST_SIDE = {"vgg": 16, "alex": 31}


def _activations(params: Params, x: jax.Array, net: str) -> list[jax.Array]:
    if x.shape[-1] == 1:
        x = jnp.repeat(x, 3, axis=-1)
    return _NETS[net](params, (x.astype(jnp.float32) - _SHIFT) / _SCALE)


def _unit(x: jax.Array) -> jax.Array:
    # The published form adds 1e-10 outside the root. The 1e-20 inside makes the gradient finite for
    # an activation of zeros.
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-20)
    return x / (norm + 1e-10)


def lpips(params: Params, a: jax.Array, b: jax.Array, net: str = "vgg") -> jax.Array:
    """Computes the LPIPS distance of each pair of images (Zhang et al. 2018, eq. 1, version 0.1).

    Args:
      params: weights from `interop.lpips.load_lpips`.
      a, b: float [B, H, W, C] in [-1, 1], with 1 or 3 channels, and sides of at least
        `LEAST_SIDE[net]` pixels.
      net: network whose activations are compared: "vgg" (VGG16) or "alex" (AlexNet).

    Returns:
      float32 [B], 0 for equal images.
    """
    distance = jnp.zeros((a.shape[0],), jnp.float32)
    for i, (tap_a, tap_b) in enumerate(
        zip(_activations(params, a, net), _activations(params, b, net), strict=True)
    ):
        difference = jnp.square(_unit(tap_a) - _unit(tap_b))
        distance += jnp.mean(difference @ params[f"linear_{i}"], axis=(1, 2))
    return distance
