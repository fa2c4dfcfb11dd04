"""Convolutions with faster algorithms for the CPU.

XLA's CPU backend takes several times as long for the weight gradient of a 3x3 or 1x1 convolution as
for its output. On a CPU, 3x3 convolutions use Winograd's minimal filtering F(4x4, 3x3) (Lavin &
Gray 2016, "Fast algorithms for convolutional neural networks", sec. 4.3): 36 multiplications for 16
outputs instead of 144. It is used in both gradients and, with many channels, in the output. 1x1
convolutions are matrix products on every backend. All others are `jax.lax.conv_general_dilated`.

The choice is made when a program is compiled for a platform (`jax.lax.platform_dependent`), not when
it is traced.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Y = At [(G g Gt) * (Bt d B)] A, for 6x6 inputs d, the 3x3 kernel g and 4x4 outputs Y.
_BT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_AT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
# Smallest number of channels for which Winograd's algorithm is faster: in gradients, in the output.
_LEAST_CHANNELS, _LEAST_FOR_VALUE = 32, 64
# Number of tiles transformed at a time, small enough that their 36 coefficients stay in the cache.
_TILES = 512
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **kwargs: Any
) -> jax.Array:
    """Computes `jax.lax.conv_general_dilated` with channels last; for use in `flax.linen.Conv`.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C, F], in the dtype of x.
      strides, padding, **kwargs: see `jax.lax.conv_general_dilated`.

    Returns:
      [B, H', W', F].
    """
    size, (_, height, width, channels) = kernel.shape[:2], x.shape
    ordinary = (
        tuple(strides) == (1, 1)
        and _ones(kwargs.get("lhs_dilation"))
        and _ones(kwargs.get("rhs_dilation"))
        and kwargs.get("feature_group_count", 1) == 1
    )
    if ordinary and size == (1, 1) and padding in ("SAME", "VALID"):
        return jnp.matmul(x, kernel[0, 0])
    same = padding == "SAME" or [tuple(p) for p in padding] == [(1, 1), (1, 1)]
    wide = min(channels, kernel.shape[-1]) >= _LEAST_CHANNELS
    fixed = isinstance(x.shape[0], int)  # an exported program may take any batch size
    fits = fixed and height % 4 == width % 4 == 0 and x.size > 0
    if ordinary and size == (3, 3) and same:
        if wide and fits:
            return conv3x3(x, kernel)
        if channels == 3 and kernel.shape[-1] < _LEAST_FOR_VALUE:
            return lax.platform_dependent(x, kernel, cpu=_of_four_channels, default=_xla)
    return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


def _ones(dilation: Any) -> bool:
    return dilation is None or all(d == 1 for d in dilation)


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a 3x3 convolution of stride 1, padded with zeros to the same size.

    Args:
      x: [B, H, W, C], where H and W are multiples of 4.
      kernel: [3, 3, C, F].

    Returns:
      [B, H, W, F].
    """
    wide = min(x.shape[-1], kernel.shape[-1]) >= _LEAST_FOR_VALUE
    return lax.platform_dependent(x, kernel, cpu=_winograd if wide else _xla, default=_xla)


def _forward(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


def _backward(residuals, dy):
    return lax.platform_dependent(*residuals, dy, cpu=_winograd_backward, default=_xla_backward)


conv3x3.defvjp(_forward, _backward)


def _xla(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_DIMENSIONS)


def _of_four_channels(x, kernel):
    """Pads three channels to four, with which XLA on the CPU is three times as fast."""
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 0)))
    return _xla(x, kernel)


def _xla_backward(x, kernel, dy):
    return jax.vjp(_xla, x, kernel)[1](dy)


def _winograd(x, kernel):
    u = _kernel_coefficients(kernel)

    def convolve(x):
        return _output(jnp.matmul(_input_tiles(x), u), x.shape)

    blocks = _blocks(x)
    y = convolve(x) if blocks == 1 else _join(lax.map(convolve, _split(x, blocks)))
    return y.astype(x.dtype)


def _winograd_backward(x, kernel, dy):
    """Computes the gradients of `_winograd` for both arguments, as the transpose of each step."""
    ut = _kernel_coefficients(kernel).swapaxes(1, 2)

    def gradients(x, dy):
        m = _gradient_tiles(dy)
        du = lax.dot_general(_input_tiles(x), m, (((1,), (1,)), ((0,), (0,))))
        return du, _input_gradient(jnp.matmul(m, ut), x.shape)

    blocks = _blocks(x)
    if blocks == 1:
        du, dx = gradients(x, dy)
    else:

        def add(total, block):
            du, dx = gradients(*block)
            return total + du, dx

        zeros = jnp.zeros((36, *kernel.shape[2:]), jnp.float32)
        du, dx = lax.scan(add, zeros, (_split(x, blocks), _split(dy, blocks)))
        dx = _join(dx)
    return dx.astype(x.dtype), _kernel_gradient(du).astype(kernel.dtype)


def _blocks(x) -> int:
    """Returns the number of parts to split a batch into, with about `_TILES` tiles each."""
    batch, height, width, _ = x.shape
    if jax.device_count() > 1:  # A loop over a sharded batch would gather it.
        return 1
    images = max(1, _TILES * 16 // (height * width))
    return next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= images)


def _split(x, blocks):
    return x.reshape(blocks, -1, *x.shape[1:])


def _join(x):
    return x.reshape(-1, *x.shape[2:])


def _combine(matrix, terms):
    """Multiplies `matrix` with a list of arrays; skips zeros, and multiplications by 1 and -1."""

    def times(factor, term):
        return term if factor == 1 else -term if factor == -1 else float(factor) * term

    rows = [[times(f, t) for f, t in zip(row, terms, strict=True) if f] for row in matrix]
    return [sum(row[1:], row[0]) for row in rows]


def _transform(matrix, first, second_of):
    """Applies `matrix` along one axis, given as a list, and then along another.

    Returns:
      [second axis, first axis, ...].
    """
    half = jnp.stack(_combine(matrix, first))
    return jnp.stack(_combine(matrix, [second_of(half, k) for k in range(len(first))]))


def _input_tiles(x):
    """Computes Bt d B of all 6x6 tiles, at a stride of 4: [B, H, W, C] to [36, tiles, C]."""
    b, h, w, c = x.shape
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 3), (1, 3), (0, 0)))
    x = x.reshape(b, h // 4 + 1, 4, w // 4 + 1, 4, c)
    rows = [x[:, k // 4 : h // 4 + k // 4, k % 4] for k in range(6)]
    tiles = _transform(_BT, rows, lambda r, k: r[:, :, :, k // 4 : w // 4 + k // 4, k % 4])
    return tiles.reshape(36, -1, c)


def _gradient_tiles(dy):
    """Computes A dY At of all 4x4 tiles: [B, H, W, F] to [36, tiles, F]."""
    b, h, w, f = dy.shape
    dy = dy.astype(jnp.float32).reshape(b, h // 4, 4, w // 4, 4, f)
    tiles = _transform(_AT.T, [dy[:, :, k] for k in range(4)], lambda r, k: r[:, :, :, :, k])
    return tiles.reshape(36, -1, f)


def _output(products, shape):
    """Computes At m A of all tiles, and joins them: [36, tiles, F] to [B, H, W, F]."""
    b, h, w, _ = shape
    m = products.reshape(6, 6, b, h // 4, w // 4, -1)
    columns = jnp.stack(_combine(_AT, [m[j] for j in range(6)]), axis=-2)
    rows = jnp.stack(_combine(_AT, [columns[i] for i in range(6)]), axis=2)
    return rows.reshape(b, h, w, -1)


def _input_gradient(products, shape):
    """Computes the transpose of `_input_tiles`: sums values where tiles overlap, which is by 2."""
    b, h, w, _ = shape
    m = products.reshape(6, 6, b, h // 4, w // 4, -1)

    def overlap(parts, axis):
        def pad(part, before):
            widths = [(0, 0)] * part.ndim
            widths[axis] = (1, 0) if before else (0, 1)
            return jnp.pad(part, widths)

        own = [pad(part, before=False) for part in parts]
        return [own[k] + pad(parts[k + 4], before=True) if k < 2 else own[k] for k in range(4)]

    columns = jnp.stack(overlap(_combine(_BT.T, [m[j] for j in range(6)]), axis=3), axis=-2)
    rows = jnp.stack(overlap(_combine(_BT.T, [columns[i] for i in range(6)]), axis=1), axis=2)
    return rows.reshape(b, h + 4, w + 4, -1)[:, 1 : h + 1, 1 : w + 1]


def _kernel_coefficients(kernel):
    """Computes G g Gt: [3, 3, C, F] to [36, C, F], with columns before rows, as in the tiles."""
    both = jnp.asarray(np.einsum("ik,jl->jikl", _G, _G).reshape(36, 9), jnp.float32)
    u = jnp.matmul(both, kernel.astype(jnp.float32).reshape(9, -1), precision="highest")
    return u.reshape(36, *kernel.shape[2:])


def _kernel_gradient(du):
    """Computes the transpose of `_kernel_coefficients`."""
    both = jnp.asarray(np.einsum("ik,jl->klji", _G, _G).reshape(9, 36), jnp.float32)
    dk = jnp.matmul(both, du.reshape(36, -1), precision="highest")
    return dk.reshape(3, 3, *du.shape[1:])
