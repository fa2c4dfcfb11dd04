"""The strided convolutional encoder and decoder of VQ-VAE (van den Oord et al. 2017, sec. 4.1)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models.layers import TransposedConv, conv, remat_if


class ResidualStack(nn.Module):
    """ReLU, 3x3, ReLU, 1x1, plus the input, `num_res_blocks` times; a last ReLU."""

    hidden: int
    res_hidden: int
    num_res_blocks: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_res_blocks):
            h = conv(self.res_hidden, 3, dtype=self.dtype, name=f"conv3_{i}")(nn.relu(x))
            x = x + conv(self.hidden, 1, dtype=self.dtype, name=f"conv1_{i}")(nn.relu(h))
        return nn.relu(x)


def halve(x: jax.Array, hidden: int, times: int, dtype: Any) -> jax.Array:
    """Halves images `times` times; call it inside a module's compact method."""
    for i in range(times):
        width = hidden // 2 if i == 0 else hidden
        x = nn.relu(conv(width, 4, stride=2, dtype=dtype, name=f"down_{i}")(x))
    return x


def enlarge(x: jax.Array, hidden: int, downsamples: int, dtype: Any) -> jax.Array:
    """Inverts all but the last of `downsamples` halvings; call it inside a module's compact method."""
    for i in range(downsamples - 1):
        width = hidden // 2 if i == downsamples - 2 else hidden
        x = nn.relu(TransposedConv(width, dtype, name=f"up_{i}")(x))
    return x


class Encoder(nn.Module):
    """Images float [B, H, W, C] to latents float32 [B, H/f, W/f, dim], f = 2^downsamples."""

    dim: int
    hidden: int
    res_hidden: int
    num_res_blocks: int
    downsamples: int
    dtype: Any
    remat: bool = False

    @property
    def strides(self) -> tuple[int, int]:
        return (2**self.downsamples,) * 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = halve(x, self.hidden, self.downsamples, self.dtype)
        x = conv(self.hidden, 3, dtype=self.dtype, name="conv")(x)
        x = remat_if(self.remat, ResidualStack)(
            self.hidden, self.res_hidden, self.num_res_blocks, self.dtype, name="residual"
        )(x)
        return conv(self.dim, 1, dtype=self.dtype, name="to_latent")(x).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, h, w, dim] to images float32 [B, h f, w f, channels]."""

    channels: int
    hidden: int
    res_hidden: int
    num_res_blocks: int
    downsamples: int
    dtype: Any
    remat: bool = False

    def setup(self):
        self.conv_out = TransposedConv(self.channels, self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last transposed convolution: [B, h f/2, w f/2, hidden/2]."""
        x = conv(self.hidden, 3, dtype=self.dtype, name="conv")(z)
        x = remat_if(self.remat, ResidualStack)(
            self.hidden, self.res_hidden, self.num_res_blocks, self.dtype, name="residual"
        )(x)
        return enlarge(x, self.hidden, self.downsamples, self.dtype)

    def head(self, h: jax.Array) -> jax.Array:
        """The last transposed convolution."""
        return self.conv_out(h).astype(jnp.float32)


def vqvae(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    hidden: int = 128,
    res_hidden: int = 32,
    num_res_blocks: int = 2,
    downsamples: int = 2,
    remat_encoder: bool = False,
    remat_decoder: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder after van den Oord et al. 2017, sized by default as Sonnet's example.

    Args:
      spec: shape (H, W, C) of an image.
      dim: size of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      hidden: width of the body; the outermost convolutions have half of it.
      res_hidden: width inside a residual block.
      num_res_blocks: number of residual blocks in the encoder, and in the decoder.
      downsamples: number of convolutions of stride 2.
      remat_encoder, remat_decoder: recompute activations of residual blocks in the backward pass.

    Raises:
      ValueError: the image does not halve `downsamples` times.
    """
    resolution, _, channels = spec.shape
    if resolution % 2**downsamples:
        raise ValueError(
            f"data.resolution {resolution} does not halve model.downsamples={downsamples} times"
        )
    shared = {
        "hidden": hidden,
        "res_hidden": res_hidden,
        "num_res_blocks": num_res_blocks,
        "downsamples": downsamples,
        "dtype": dtype,
    }
    return (
        Encoder(dim=dim, remat=remat_encoder, **shared),
        Decoder(channels=channels, remat=remat_decoder, **shared),
    )
