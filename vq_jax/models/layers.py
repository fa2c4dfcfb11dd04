"""Layers the convolutional models share. Feature maps are [B, H, W, C]; params are float32."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.collectives import pmean
from vq_jax.models.attention import attend
from vq_jax.models.convolution import conv_general_dilated

Dtype = Any


def _normalize(x, mean, variance, scale, bias, epsilon):
    """One multiply-add per element: (x - mean) / std * scale + bias, statistics in float32."""
    slope = scale * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + epsilon)
    return x.astype(jnp.float32) * slope + (bias - mean * slope)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) by per-channel sums, in float32.

    Means and mean squares are taken per channel over space first and only then joined per group:
    several times faster under XLA on the CPU than reducing the reshaped map, for the same numbers.

    Attributes:
      groups: wanted number of groups; the largest divisor of the channels up to it is used.
      affine: with a trained scale and bias a channel.
      dtype: of the result.
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

        def join(stat_BC):  # per channel -> per group, repeated for each of its channels
            stat_BG = stat_BC.reshape(-1, groups, channels // groups).mean(-1)
            return jnp.repeat(stat_BG, channels // groups, axis=-1)[:, None, None, :]

        mean = join(x32.mean((1, 2)))
        mean_square = join(jnp.square(x32).mean((1, 2)))
        variance = mean_square - jnp.square(mean)
        return _normalize(x32, mean, variance, scale, bias, self.epsilon).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with the statistics of the batch on all devices.

    It always uses the batch at hand: the PatchGAN it serves is only ever run in training.
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
    """A square convolution, 'SAME' unless `padding` says otherwise."""
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        **kwargs,
    )


def remat_if(on: bool, module: Callable[..., Any]) -> Callable[..., Any]:
    """A module whose activations are computed again for its gradient instead of kept, if asked for.

    For Flax modules and for functions of (module, x). Params, values and gradients stay the same
    (Chen et al. 2016, "Training deep nets with sublinear memory cost").
    """
    return nn.remat(module) if on else module


def check_halves(resolution: int, times: int) -> None:
    """Raises ValueError unless the training images' side halves so often."""
    if resolution % 2**times:
        raise ValueError(
            f"data.resolution {resolution} does not halve {times} times, as model.ch_mult asks"
        )


class ResidualBlock(nn.Module):
    """GroupNorm-swish-conv twice, plus the input (Esser et al. 2021; 1x1 where channels change)."""

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
    """Single-head self-attention over all positions of a map, plus the input (Esser et al. 2021)."""

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
    """3x3 convolution of stride 2, padded at the bottom and the right only (Esser et al. 2021)."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((0, 1), (0, 1))
        return conv(self.features, 3, stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution (Esser et al. 2021)."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return conv(self.features, 3, dtype=self.dtype, name="conv")(x)


class TransposedConv(nn.Module):
    """4x4 transposed convolution of stride 2, the same numbers as `flax.linen.ConvTranspose`.

    Each of the four output phases sees 2x2 inputs, so one 2x2 convolution makes all four and they
    are woven together: XLA's own gradient of the transposed form is ten times slower on the CPU.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, 2H, 2W, features]."""
        b, h, w, c = x.shape
        f = self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, 4, c, f))
        bias = self.param("bias", nn.initializers.zeros, (f,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        taps = kernel.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * f)
        # Padded by hand: told to pad, XLA takes the slow way for this kernel's gradient.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = jax.lax.conv_general_dilated(
            x, taps, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(b, h + 1, w + 1, 2, 2, f)
        y = jnp.stack([y[:, i : i + h, :, i] for i in (0, 1)], axis=2)
        y = jnp.stack([y[:, :, :, i : i + w, i] for i in (0, 1)], axis=4)
        return y.reshape(b, 2 * h, 2 * w, f) + bias
