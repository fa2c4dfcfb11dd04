"""Discriminators: images or clips float [B, ..., C] in [-1, 1] to float32 logits, one or more each."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models.layers import BatchNorm, GroupNorm, conv, remat_if


class PatchGAN(nn.Module):
    """Classifies overlapping patches as real or fake (Isola et al. 2017, sec. 3.2.2).

    Kernels are initialised from a normal distribution with standard deviation 0.02.

    Attributes:
      ndf: width of the first convolution; it doubles with each layer, up to 8 * ndf.
      n_layers: number of convolutions of stride 2.
      norm: "batch" (statistics over all devices), "group" or "none".
      remat: whether to store only the outputs of the convolutions, and to compute norms and
        activations again for the gradient.
      dtype: dtype of the computation; params are float32.
    """

    ndf: int = 64
    n_layers: int = 3
    norm: str = "batch"
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, axis_name: str | None = None) -> jax.Array:
        """Returns logits float32 [B, h, w, 1]."""
        if self.norm not in ("batch", "group", "none"):
            raise ValueError(f"discriminator.norm is {self.norm!r}: use 'batch', 'group' or 'none'")
        kwargs = {"dtype": self.dtype, "padding": 1, "kernel_init": nn.initializers.normal(0.02)}
        h = nn.leaky_relu(conv(self.ndf, 4, stride=2, name="conv_0", **kwargs)(x), 0.2)
        for i in range(1, self.n_layers + 1):
            width = self.ndf * min(2**i, 8)
            stride = 2 if i < self.n_layers else 1
            use_bias = self.norm != "batch"
            h = conv(width, 4, stride=stride, use_bias=use_bias, name=f"conv_{i}", **kwargs)(h)

            def activate(self, h, i=i):
                if self.norm == "batch":
                    h = BatchNorm(dtype=self.dtype, name=f"norm_{i}")(h, axis_name=axis_name)
                elif self.norm == "group":
                    h = GroupNorm(dtype=self.dtype, name=f"norm_{i}")(h)
                return nn.leaky_relu(h, 0.2)

            h = remat_if(self.remat, activate)(self, h)
        return conv(1, 4, name="conv_out", **kwargs)(h).astype(jnp.float32)


class PatchGAN3D(nn.Module):
    """`PatchGAN` for clips [B, T, H, W, C]: patches of frames and pixels (Yu et al. 2023, MAGVIT).

    Attributes:
      ndf, n_layers, norm, dtype: as for `PatchGAN`.
      time_layers: number of the first convolutions that also have stride 2 in time.
    """

    ndf: int = 64
    n_layers: int = 3
    time_layers: int = 2
    norm: str = "group"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, axis_name: str | None = None) -> jax.Array:
        """Returns logits float32 [B, t, h, w, 1]."""
        if self.norm not in ("batch", "group", "none"):
            raise ValueError(f"discriminator.norm is {self.norm!r}: use 'batch', 'group' or 'none'")

        def convolve(h, features, stride, i, name, use_bias=True):
            strides = (2 if i < self.time_layers else 1, stride, stride)
            return nn.Conv(
                features,
                (3, 4, 4),
                strides,
                padding=1,
                use_bias=use_bias,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.02),
                name=name,
            )(h)

        h = nn.leaky_relu(convolve(x, self.ndf, 2, 0, "conv_0"), 0.2)
        for i in range(1, self.n_layers + 1):
            stride = 2 if i < self.n_layers else 1
            use_bias = self.norm != "batch"
            h = convolve(h, self.ndf * min(2**i, 8), stride, i, f"conv_{i}", use_bias)
            if self.norm == "batch":
                h = BatchNorm(dtype=self.dtype, name=f"norm_{i}")(h, axis_name=axis_name)
            elif self.norm == "group":
                norm = GroupNorm(dtype=self.dtype, name=f"norm_{i}")
                b, t, height, *rest = h.shape
                h = norm(h.reshape(b, t * height, *rest)).reshape(h.shape)
            h = nn.leaky_relu(h, 0.2)
        return convolve(h, 1, 1, self.n_layers + 1, "conv_out").astype(jnp.float32)


class MLPDiscriminator(nn.Module):
    """A discriminator of dense layers: 784-128-64-1 for grey images of 28x28 pixels.

    Attributes:
      hidden: widths of the hidden layers.
      dtype: dtype of the computation; params are float32.
    """

    hidden: tuple[int, ...] = (128, 64)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, axis_name: str | None = None) -> jax.Array:
        """Returns logits float32 [B, 1]."""
        del axis_name  # No layer combines images.
        h = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            h = nn.leaky_relu(nn.Dense(width, dtype=self.dtype)(h), 0.2)
        return nn.Dense(1, dtype=self.dtype)(h).astype(jnp.float32)
