"""Layers of the convolutional models. Feature maps are [B, H, W, C], and params are float32."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.collectives import pmean
from vq_jax.models.attention import attend
from vq_jax.models.convolution import conv_general_dilated

Dtype = Any


def _normalize(x, mean, variance, scale, bias, epsilon):
    """Computes (x - mean) / std * scale + bias in float32, as one multiply-add per element."""
    slope = scale * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + epsilon)
    return x.astype(jnp.float32) * slope + (bias - mean * slope)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), computed in float32.

    Means and mean squares are first computed for each channel, and then averaged over the channels
    of each group. With XLA on the CPU, this is several times faster than reducing the reshaped map.

    Attributes:
      groups: largest number of groups; the largest divisor of the channels up to it is used.
      epsilon: added to the variance.
      dtype: dtype of the result.
      affine: whether each channel has a trained scale and bias.
    """

    groups: int = 32
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32
    affine: bool = True

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        channels = x_BHWC.shape[-1]
        groups = next(g for g in range(min(self.groups, channels), 0, -1) if channels % g == 0)
        scale, bias = jnp.ones((channels,)), jnp.zeros((channels,))
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (channels,))
            bias = self.param("bias", nn.initializers.zeros, (channels,))
        x32 = x_BHWC.astype(jnp.float32)

        def join(stat_BC):  # Averages over each group, and repeats the result for its channels.
            stat_BG = stat_BC.reshape(-1, groups, channels // groups).mean(-1)
            return jnp.repeat(stat_BG, channels // groups, axis=-1)[:, None, None, :]

        mean = join(x32.mean((1, 2)))
        mean_square = join(jnp.square(x32).mean((1, 2)))
        variance = mean_square - jnp.square(mean)
        return _normalize(x32, mean, variance, scale, bias, self.epsilon).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015), with statistics of the batch on all devices.

    It has no moving averages, because the PatchGAN is used only in training.

    Attributes:
      epsilon: added to the variance.
      dtype: dtype of the result.
    """

    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, axis_name: str | None = None) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", _near_one, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x32 = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        mean = pmean(x32.mean(axes), axis_name)
        variance = pmean(jnp.square(x32 - mean).mean(axes), axis_name)
        return _normalize(x32, mean, variance, scale, bias, self.epsilon).astype(self.dtype)


def _near_one(key, shape):
    return 1.0 + 0.02 * jax.random.normal(key, shape, jnp.float32)


def conv(features: int, kernel: int, *, dtype: Dtype, stride: int = 1, **kwargs: Any) -> nn.Conv:
    """Makes a square convolution; the default padding is 'SAME'."""
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        **kwargs,
    )


def dense_layers(x: jax.Array, widths: Sequence[int], dtype: Dtype) -> jax.Array:
    """Applies dense layers with ReLU, named `dense_{i}`; call it inside a module's compact method."""
    for i, width in enumerate(widths):
        x = nn.relu(nn.Dense(width, dtype=dtype, name=f"dense_{i}")(x))
    return x


def remat_if(on: bool, module: Callable[..., Any]) -> Callable[..., Any]:
    """Rematerialises a module if `on`: its gradient recomputes the activations.

    Params, values and gradients do not change (Chen et al. 2016, "Training deep nets with sublinear
    memory cost").

    Args:
      on: whether to rematerialise.
      module: a Flax module class, or a function of (module, x).
    """
    return nn.remat(module) if on else module


def check_halves(resolution: int, times: int) -> None:
    """Raises ValueError if the side of the training images does not halve `times` times."""
    if resolution % 2**times:
        raise ValueError(
            f"data.resolution {resolution} does not halve {times} times: model.ch_mult needs a "
            f"multiple of {2**times}"
        )


class ResidualBlock(nn.Module):
    """Residual block of two times GroupNorm, swish and 3x3 convolution (Esser et al. 2021).

    If the number of channels changes, the input goes through a 1x1 convolution.
    """

    features: int
    dtype: Dtype = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kwargs = {"dtype": self.dtype, "use_bias": self.use_bias}
        h = nn.swish(GroupNorm(dtype=self.dtype, name="norm1")(x))
        h = conv(self.features, 3, name="conv1", **kwargs)(h)
        h = nn.swish(GroupNorm(dtype=self.dtype, name="norm2")(h))
        h = conv(self.features, 3, name="conv2", **kwargs)(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="shortcut", **kwargs)(x)
        return x + h


class Attention(nn.Module):
    """Residual single-head self-attention over all positions of a map (Esser et al. 2021)."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        b, h, w, c = x_BHWC.shape
        normed = GroupNorm(dtype=self.dtype, name="norm")(x_BHWC)
        q, k, v = (
            conv(c, 1, dtype=self.dtype, name=name)(normed).reshape(b, 1, h * w, c)
            for name in ("q", "k", "v")
        )
        attended = attend(q, k, v, None).reshape(b, h, w, c)
        return x_BHWC + conv(c, 1, dtype=self.dtype, name="out")(attended)


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded only at the bottom and the right (Esser et al. 2021)."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((0, 1), (0, 1))
        return conv(self.features, 3, stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution (Esser et al. 2021)."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return conv(self.features, 3, dtype=self.dtype, name="conv")(x)


class TransposedConv(nn.Module):
    """4x4 transposed convolution of stride 2, equal to `flax.linen.ConvTranspose`.

    An output pixel depends on 2x2 inputs. One 2x2 convolution therefore computes the four phases of
    the output, which are then interleaved. XLA's gradient of a transposed convolution is ten times
    slower on the CPU.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
        b, h, w, c = x.shape
        f = self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, 4, c, f))
        bias = self.param("bias", nn.initializers.zeros, (f,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        taps = kernel.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * f)
        # With padding inside the convolution, XLA's gradient of the kernel is slow.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = jax.lax.conv_general_dilated(
            x, taps, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(b, h + 1, w + 1, 2, 2, f)
        y = jnp.stack([y[:, i : i + h, :, i] for i in (0, 1)], axis=2)
        y = jnp.stack([y[:, :, :, i : i + w, i] for i in (0, 1)], axis=4)
        return y.reshape(b, 2 * h, 2 * w, f) + bias
