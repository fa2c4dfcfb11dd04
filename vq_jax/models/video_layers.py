"""Layers of video models. Feature maps are [B, T, H, W, C], and params are float32.

Only `CausalConv`, `UpsampleTime` and the layers that group frames combine frames, each with those before it. All
other layers work on frames. A model can therefore stream: with a mutable collection "stream", these layers keep what the next frames need, and
read it if it is there (see `stream`).

Shape suffixes: B clips, T frames, H and W pixels, C channels.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vq_jax.models.blocks import RMSNorm
from vq_jax.models.convolution import conv_general_dilated
from vq_jax.models.layers import Dtype, GroupNorm, conv

STREAM = "stream"
_DIMENSIONS = ("NDHWC", "DHWIO", "NDHWC")


def stream(
    module: nn.Module, variables: dict[str, Any], x: jax.Array, state: Any, method: str
) -> tuple[jax.Array, Any]:
    """Applies a module to the next frames of a clip.

    Args:
      module: with layers of this file.
      variables: its variables.
      x: the frames, or their latents or codes [B, T, ...]. The first frame of a clip must come in the first
        call; the others in groups that the strides divide.
      state: what the last call returned; None in the first.
      method: of the module.

    Returns:
      what the method returns for these frames, and the state.
    """
    given = variables if state is None else {**variables, STREAM: state}
    found, changed = module.apply(given, x, method=method, mutable=[STREAM])
    return found, changed.get(STREAM, {})


def per_frame(layer: Callable[[jax.Array], jax.Array], x_BTHWC: jax.Array) -> jax.Array:
    """Applies a layer of images to each frame."""
    b, t, *rest = x_BTHWC.shape
    y = layer(x_BTHWC.reshape(b * t, *rest))
    return y.reshape(b, t, *y.shape[1:])


def causal_conv(x_BTHWC: jax.Array, kernel: jax.Array, strides: tuple[int, int, int], padding: Any):
    """Convolves frames in space and time, without padding in time.

    On a CPU, the frames that an output depends on are joined along the channels, and convolved in two
    dimensions: XLA's gradients of convolutions in three are many times slower there.

    Args:
      x_BTHWC: float.
      kernel: [t, k, k, C, F], in the dtype of x.
      strides: along time, height and width.
      padding: of height and width, see `jax.lax.conv_general_dilated`.

    Returns:
      float [B, T', H', W', F].
    """
    taps, size, _, channels, features = kernel.shape
    if taps == 1 and strides[0] == 1:
        flat = kernel[0]
        return per_frame(
            lambda x: conv_general_dilated(x, flat, strides[1:], padding, **_2D), x_BTHWC
        )

    def joined(x, kernel):
        count = (x.shape[1] - taps) // strides[0] + 1
        last = (count - 1) * strides[0] + 1
        x = jnp.concatenate([x[:, i : i + last : strides[0]] for i in range(taps)], axis=-1)
        flat = kernel.transpose(1, 2, 0, 3, 4).reshape(size, size, taps * channels, features)
        return per_frame(lambda x: conv_general_dilated(x, flat, strides[1:], padding, **_2D), x)

    def direct(x, kernel):
        height_width = lax.padtype_to_pads(x.shape[2:4], kernel.shape[1:3], strides[1:], padding) \
            if isinstance(padding, str) else padding  # fmt: skip
        return lax.conv_general_dilated(
            x, kernel, strides, [(0, 0), *height_width], dimension_numbers=_DIMENSIONS
        )

    return lax.platform_dependent(x_BTHWC, kernel, cpu=joined, default=direct)


_2D = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


class CausalConv(nn.Module):
    """A convolution in space and time that sees no later frames (Yu et al. 2023, MAGVIT-v2, sec. 3.2).

    Before the first frame of a clip, copies of it are the padding. With a stride of s in time, frame k of the
    result depends on frames up to s k.

    Attributes:
      features: number of output channels.
      kernel: its sizes along time, and along height and width.
      strides: the same.
      padding: of height and width.
      use_bias: whether each output channel has a bias.
      dtype: dtype of the computation.
    """

    features: int
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Any = "SAME"
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        taps, size = self.kernel
        shape = (taps, size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        x = self._after_earlier_frames(x)
        step, stride = self.strides
        y = causal_conv(x, kernel, (step, stride, stride), self.padding)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        return y

    def _after_earlier_frames(self, x: jax.Array) -> jax.Array:
        """Puts the frames that the kernel needs before those given."""
        taps, step = self.kernel[0], self.strides[0]
        if taps == 1 and step == 1:
            return x
        if self.has_variable(STREAM, "before"):
            before: jax.Array = self.get_variable(STREAM, "before").astype(x.dtype)
        else:
            before = jnp.repeat(x[:, :1], taps - 1, axis=1)
        x = jnp.concatenate([before, x], axis=1)
        if streams(self):
            self.put_variable(STREAM, "before", x[:, x.shape[1] - (taps - step) :])
        return x


def streams(module: nn.Module) -> bool:
    """Returns whether a module is to keep what the next frames of a clip need."""
    return module.is_mutable_collection(STREAM) and not module.is_initializing()


def continues(module: nn.Module) -> bool:
    """Returns whether frames of the clip came before; notes that some have come, for the next call."""
    continued = module.has_variable(STREAM, "started")
    if streams(module):
        module.put_variable(STREAM, "started", jnp.zeros((), jnp.int32))
    return continued


class UpsampleTime(nn.Module):
    """Repeats each frame but the first of a clip; it has no params."""

    @nn.compact
    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        continued = continues(self)
        x = jnp.repeat(x_BTHWC, 2, axis=1)
        return x if continued else x[:, 1:]


class GroupFrames(nn.Module):
    """Joins groups of frames along the channels, the first frame of a clip with copies of itself; no params.

    Attributes:
      size: number of frames of a group.
    """

    size: int

    @nn.compact
    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        continued = continues(self)
        copies = 0 if continued else self.size - 1
        x = jnp.concatenate([jnp.repeat(x_BTHWC[:, :1], copies, axis=1), x_BTHWC], axis=1)
        b, t, h, w, c = x.shape
        x = x.reshape(b, t // self.size, self.size, h, w, c).transpose(0, 1, 3, 4, 2, 5)
        return x.reshape(b, t // self.size, h, w, self.size * c)


class UngroupFrames(nn.Module):
    """Inverts `GroupFrames`."""

    size: int

    @nn.compact
    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        continued = continues(self)
        b, t, h, w, c = x_BTHWC.shape
        x = x_BTHWC.reshape(b, t, h, w, self.size, c // self.size).transpose(0, 1, 4, 2, 3, 5)
        x = x.reshape(b, t * self.size, h, w, c // self.size)
        return x if continued else x[:, self.size - 1 :]


class FrameNorm(nn.Module):
    """Normalises each frame ("group"), each position ("rms"), or nothing ("none").

    "group" is GroupNorm, as in `vqgan`. With "rms" (Zhang & Sennrich 2019) and "none", a position does not depend
    on all others, so that tiles of a large frame give what the whole frame does.
    """

    norm: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.norm == "none":
            return x
        if self.norm == "rms":
            return RMSNorm(self.dtype, name="rms")(x)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        normed = per_frame(GroupNorm(dtype=jnp.float32, affine=False), x)
        return (normed * scale + bias).astype(self.dtype)


class CausalResidualBlock(nn.Module):
    """`layers.ResidualBlock` with causal convolutions; for `norm` see `FrameNorm`."""

    features: int
    norm: str = "group"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.swish(FrameNorm(self.norm, self.dtype, name="norm1")(x))
        h = CausalConv(self.features, dtype=self.dtype, name="conv1")(h)
        h = nn.swish(FrameNorm(self.norm, self.dtype, name="norm2")(h))
        # At the start, a block is the identity, or its shortcut.
        zeros = nn.initializers.zeros
        h = CausalConv(self.features, kernel_init=zeros, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = per_frame(conv(self.features, 1, dtype=self.dtype, name="shortcut"), x)
        return x + h


class Downsample(nn.Module):
    """A convolution that halves time, height and width, or some of them.

    In space it is `layers.Downsample`. In time it keeps the first frame and every second one after it.

    Attributes:
      features: number of output channels.
      time, space: whether to halve time, and height and width.
      dtype: dtype of the computation.
    """

    features: int
    time: bool
    space: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return CausalConv(
            self.features,
            (3 if self.time else 1, 3),
            (1 + self.time, 1 + self.space),
            ((0, 1), (0, 1)) if self.space else "SAME",
            dtype=self.dtype,
            name="conv",
        )(x)


class Upsample(nn.Module):
    """Repeats frames, pixels, or both, and convolves them; the reverse of `Downsample`."""

    features: int
    time: bool
    space: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.time:
            x = UpsampleTime(name="time")(x)
        if self.space:
            x = x.repeat(2, axis=2).repeat(2, axis=3)
        kernel = (3 if self.time else 1, 3)
        return CausalConv(self.features, kernel, dtype=self.dtype, name="conv")(x)
