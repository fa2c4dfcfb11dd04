"""EfficientNet-lite0 (Tan & Le 2019, and its lite variant), for features of images."""

from typing import Any

import jax
import jax.numpy as jnp

# layer -> (kernel [h, w, in, out], bias [out]), from `interop.efficientnet.load_efficientnet`
Params = dict[str, tuple[jax.Array, jax.Array]]

EPSILON = 1e-3  # of the batch norms
SIDE = 224
FEATURES = 1280
# Strides of the 16 blocks.
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


def _conv(params: Params, name: str, x: jax.Array, stride: int = 1, *, act: bool = True):
    kernel, bias = params[name]
    if kernel.shape[2] == 1:
        x = _depthwise(x, kernel[:, :, 0], stride)
    else:
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    x = x + bias
    return jnp.clip(x, 0.0, 6.0) if act else x


def _depthwise(x: jax.Array, kernel_hwC: jax.Array, stride: int) -> jax.Array:
    """Computes a depthwise convolution as a sum over taps; on CPU, XLA's is many times slower.

    Args:
      x: float [B, H, W, C].
      kernel_hwC: float [h, w, C].
      stride: the stride of both axes. The padding is 'SAME'.
    """
    taps, height, width = kernel_hwC.shape[0], *x.shape[1:3]
    out = -(-height // stride), -(-width // stride)
    pads = [(n - 1) * stride + taps - side for n, side in zip(out, (height, width), strict=True)]
    widths = [(max(0, pad) // 2, max(0, pad) - max(0, pad) // 2) for pad in pads]
    x = jnp.pad(x, ((0, 0), *widths, (0, 0)))
    summed: Any = sum(
        x[:, i : i + stride * (out[0] - 1) + 1 : stride, j : j + stride * (out[1] - 1) + 1 : stride]
        * kernel_hwC[i, j]
        for i in range(taps)
        for j in range(taps)
    )
    return summed


def features(params: Params, images: jax.Array) -> jax.Array:
    """Computes the last feature map of EfficientNet-lite0, averaged over positions.

    Args:
      params: weights of the network.
      images: float32 [B, H, W, 3] in [-1, 1], of any size; they are resized to 224x224 pixels by
        antialiased cubic interpolation.

    Returns:
      float32 [B, 1280].
    """
    x = jax.image.resize(images, (images.shape[0], SIDE, SIDE, 3), "cubic")
    x = (x * 127.5 + 0.5) / 128.0  # (uint8 value - 127) / 128
    x = _conv(params, "_conv_stem", x, 2)
    for i, stride in enumerate(_STRIDES):
        name, before = f"_blocks.{i}.", x
        if f"{name}_expand_conv" in params:
            x = _conv(params, f"{name}_expand_conv", x)
        x = _conv(params, f"{name}_depthwise_conv", x, stride)
        x = _conv(params, f"{name}_project_conv", x, act=False)
        if x.shape == before.shape:
            x = x + before
    return _conv(params, "_conv_head", x).mean((1, 2))


def class_logits(params: Params, features_BF: jax.Array) -> jax.Array:
    """Computes logits of the ImageNet classes, float32 [B, 1000], from features."""
    kernel, bias = params["_fc"]
    return features_BF @ kernel + bias
