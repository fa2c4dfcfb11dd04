"""Inception-v3 of the Frechet Inception distance (Szegedy et al. 2015; Heusel et al. 2017).

This is the network of 2015-12-05, the standard one for FID. Its average pools exclude the padding,
and its last block has a max pool. Batch norms are folded into the convolutions.
"""

import jax
import jax.numpy as jnp
import numpy as np

# layer -> (kernel [h, w, in, out], bias [out]), from `interop.inception.load_inception`
Params = dict[str, tuple[jax.Array, jax.Array]]

SIDE = 299
FEATURES = 2048


def _conv(
    params: Params,
    name: str,
    x: jax.Array,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> jax.Array:
    kernel, bias = params[name]
    x = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",  # Published figures must not depend on the device.
    )
    return jax.nn.relu(x + bias)


def _max_pool(x: jax.Array, stride: int, padding: int) -> jax.Array:
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), pads
    )


def _average_pool(x: jax.Array) -> jax.Array:
    """Computes 3x3 means without the padding."""
    window, strides, pads = (1, 3, 3, 1), (1, 1, 1, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, pads)
    ones = np.ones((1, *x.shape[1:3], 1), np.float32)
    return sums / jax.lax.reduce_window(ones, 0.0, jax.lax.add, window, strides, pads)


def _a(params: Params, name: str, x: jax.Array) -> jax.Array:
    b5 = _conv(params, f"{name}.branch5x5_1", x)
    b5 = _conv(params, f"{name}.branch5x5_2", b5, padding=(2, 2))
    b3 = _conv(params, f"{name}.branch3x3dbl_1", x)
    b3 = _conv(params, f"{name}.branch3x3dbl_2", b3, padding=(1, 1))
    b3 = _conv(params, f"{name}.branch3x3dbl_3", b3, padding=(1, 1))
    pool = _conv(params, f"{name}.branch_pool", _average_pool(x))
    return jnp.concatenate([_conv(params, f"{name}.branch1x1", x), b5, b3, pool], axis=-1)


def _b(params: Params, name: str, x: jax.Array) -> jax.Array:
    b3 = _conv(params, f"{name}.branch3x3dbl_1", x)
    b3 = _conv(params, f"{name}.branch3x3dbl_2", b3, padding=(1, 1))
    b3 = _conv(params, f"{name}.branch3x3dbl_3", b3, 2)
    return jnp.concatenate(
        [_conv(params, f"{name}.branch3x3", x, 2), b3, _max_pool(x, 2, 0)], axis=-1
    )


def _c(params: Params, name: str, x: jax.Array) -> jax.Array:
    row, column = (0, 3), (3, 0)
    b7 = _conv(params, f"{name}.branch7x7_1", x)
    b7 = _conv(params, f"{name}.branch7x7_2", b7, padding=row)
    b7 = _conv(params, f"{name}.branch7x7_3", b7, padding=column)
    bd = _conv(params, f"{name}.branch7x7dbl_1", x)
    for i, padding in ((2, column), (3, row), (4, column), (5, row)):
        bd = _conv(params, f"{name}.branch7x7dbl_{i}", bd, padding=padding)
    pool = _conv(params, f"{name}.branch_pool", _average_pool(x))
    return jnp.concatenate([_conv(params, f"{name}.branch1x1", x), b7, bd, pool], axis=-1)


def _d(params: Params, name: str, x: jax.Array) -> jax.Array:
    b3 = _conv(params, f"{name}.branch3x3_2", _conv(params, f"{name}.branch3x3_1", x), 2)
    b7 = _conv(params, f"{name}.branch7x7x3_1", x)
    b7 = _conv(params, f"{name}.branch7x7x3_2", b7, padding=(0, 3))
    b7 = _conv(params, f"{name}.branch7x7x3_3", b7, padding=(3, 0))
    b7 = _conv(params, f"{name}.branch7x7x3_4", b7, 2)
    return jnp.concatenate([b3, b7, _max_pool(x, 2, 0)], axis=-1)


def _e(params: Params, name: str, x: jax.Array, pool: jax.Array) -> jax.Array:
    def fork(stem: str, h: jax.Array) -> jax.Array:
        row = _conv(params, f"{name}.{stem}a", h, padding=(0, 1))
        return jnp.concatenate([row, _conv(params, f"{name}.{stem}b", h, padding=(1, 0))], axis=-1)

    b3 = fork("branch3x3_2", _conv(params, f"{name}.branch3x3_1", x))
    bd = _conv(params, f"{name}.branch3x3dbl_1", x)
    bd = fork("branch3x3dbl_3", _conv(params, f"{name}.branch3x3dbl_2", bd, padding=(1, 1)))
    pool = _conv(params, f"{name}.branch_pool", pool)
    return jnp.concatenate([_conv(params, f"{name}.branch1x1", x), b3, bd, pool], axis=-1)


def features(params: Params, images: jax.Array) -> jax.Array:
    """Computes the last feature map of Inception-v3, averaged over positions.

    Args:
      params: weights of the network.
      images: float32 [B, 299, 299, 3] in [0, 255]; see `resize_bilinear`.

    Returns:
      float32 [B, 2048].
    """
    x = (images.astype(jnp.float32) - 128.0) / 128.0
    x = _conv(params, "Conv2d_1a_3x3", x, 2)
    x = _conv(params, "Conv2d_2a_3x3", x)
    x = _max_pool(_conv(params, "Conv2d_2b_3x3", x, padding=(1, 1)), 2, 0)
    x = _conv(params, "Conv2d_3b_1x1", x)
    x = _max_pool(_conv(params, "Conv2d_4a_3x3", x), 2, 0)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _a(params, name, x)
    x = _b(params, "Mixed_6a", x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _c(params, name, x)
    x = _d(params, "Mixed_7a", x)
    x = _e(params, "Mixed_7b", x, _average_pool(x))
    x = _e(params, "Mixed_7c", x, _max_pool(x, 1, 1))
    return x.mean((1, 2))


def class_probabilities(params: Params, features_BF: jax.Array) -> jax.Array:
    """Computes the probabilities of the 1,008 classes, float32 [B, 1008], for the Inception score.

    The last layer has no bias, as in the graph that the score is defined with.
    """
    kernel, _ = params["fc"]
    return jax.nn.softmax(jnp.matmul(features_BF, kernel, precision="highest"), axis=-1)


def resize_bilinear(images: jax.Array) -> jax.Array:
    """Resizes images to 299x299 pixels by bilinear interpolation, as TensorFlow 1 does.

    Pixel i of the result is at position i * scale of the input. There is no antialiasing.

    Args:
      images: float [B, H, W, C], in any range.

    Returns:
      float32 [B, 299, 299, C].
    """
    x = images.astype(jnp.float32)
    for axis in (1, 2):
        side = x.shape[axis]
        position = np.arange(SIDE) * (np.float32(side) / np.float32(SIDE))
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, side - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = SIDE
        weight = (position - low).astype(np.float32).reshape(shape)
        first = jnp.take(x, low, axis=axis)
        x = first + (jnp.take(x, high, axis=axis) - first) * weight
    return x
