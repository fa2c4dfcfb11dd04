"""TiTok: an image as a short sequence of latent tokens (Yu et al. 2024, "An image is worth 32 tokens").

The encoder reads patches and learned tokens, and keeps the latter. The decoder reads the latents and mask
tokens, one a patch, and makes from these the pixels (single-stage), or probabilities of the codes of
another tokenizer, MaskGIT's, whose decoder makes the pixels (two-stage).

Shape suffixes: B examples, N latent tokens, S tokens of a sequence, W width.
"""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.bounds import Bounds
from vq_jax.models.blocks import Dtype, LayerNorm
from vq_jax.models.layers import check_halves, conv
from vq_jax.models.maskgit import Decoder as PixelDecoder
from vq_jax.models.transforms import from_patches, to_patches
from vq_jax.models.vit import patch_grid, run_blocks


class Sequence(nn.Module):
    """Norm, blocks of attention over all tokens, norm; TiTok's transformer.

    Attributes: see `vit.Trunk`.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    dtype: Dtype
    remat: bool = False
    norm: str = "layer"
    activation: str = "gelu_erf"

    @nn.compact
    def __call__(self, x_BSW: jax.Array) -> jax.Array:
        x_BSW = LayerNorm(self.dtype, name="norm_in")(x_BSW.astype(self.dtype))
        return run_blocks(self, x_BSW, None)


def _embedding(module: nn.Module, name: str, *shape: int) -> jax.Array:
    return module.param(name, nn.initializers.normal(shape[-1] ** -0.5), shape)


def _as_batch(x: jax.Array, batch: int) -> jax.Array:
    return jnp.broadcast_to(x, (batch, *x.shape))


class Encoder(nn.Module):
    """Images float [B, H, W, C] to latents float32 [B, N, dim].

    Attributes:
      dim: size of a latent.
      patch: side of a patch in pixels.
      tokens: N.
      sequence: the transformer.
      dtype: of the computation.
      legacy: whether the latents are read in another order than they were made, as in the first released
        weights: [N, W] as [W, N].
    """

    dim: int
    patch: int
    tokens: int
    sequence: Sequence
    dtype: Dtype
    legacy: bool = False

    @property
    def strides(self) -> None:
        """The model takes images of one size only."""
        return None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, width = x.shape[0], self.sequence.width
        patches = to_patches((x + 1) / 2, self.patch)  # TiTok's images are in [0, 1]
        h = nn.Dense(width, dtype=self.dtype, name="patches")(patches).reshape(b, -1, width)
        first = _as_batch(_embedding(self, "class_embedding", 1, width), b)
        h = jnp.concatenate([first, h], axis=1)
        h += _embedding(self, "places", h.shape[1], width)
        latent = _embedding(self, "latent_tokens", self.tokens, width)
        latent += _embedding(self, "latent_places", self.tokens, width)
        h = self.sequence(jnp.concatenate([h, _as_batch(latent, b)], axis=1))
        z = h[:, -self.tokens :]
        if self.legacy:
            z = z.reshape(b, width, self.tokens).swapaxes(1, 2)
        return nn.Dense(self.dim, dtype=self.dtype, name="to_latent")(z).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, n, dim], n up to N, to images float32 [B, H, W, channels].

    Missing latents at the end are taken as 0, as in training with `nested_dropout`.

    Attributes:
      channels: of an image.
      patch: side of a patch in pixels.
      grid: number of patches along each side.
      tokens: N.
      sequence: the transformer.
      dtype: of the computation.
      nested_dropout: share of the training examples whose last latents are dropped.
      pixel_codes, pixel_dim: codebook of the tokenizer whose codes are predicted; 0 for none.
      pixel_decoder: its decoder, or None.
    """

    channels: int
    patch: int
    grid: tuple[int, int]
    tokens: int
    sequence: Sequence
    dtype: Dtype
    nested_dropout: float = 0.0
    pixel_codes: int = 0
    pixel_dim: int = 0
    pixel_decoder: nn.Module | None = None

    @property
    def takes_first_codes(self) -> bool:
        """Whether the first codes of an image alone can be decoded."""
        return True

    def setup(self):
        if self.pixel_decoder is None:
            self.pixels = nn.Dense(self.patch**2 * self.channels, dtype=self.dtype)
            self.conv_out = conv(self.channels, 3, dtype=self.dtype)
        else:
            width = self.sequence.width
            self.logits_hidden = nn.Dense(2 * width, dtype=self.dtype)
            self.logits_out = nn.Dense(self.pixel_codes, dtype=self.dtype)
            init = nn.initializers.normal(1.0)
            self.pixel_codebook = self.param(
                "pixel_codebook", init, (self.pixel_codes, self.pixel_dim)
            )

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last layer."""
        b, n, _ = z.shape
        z = jnp.pad(z, ((0, 0), (0, self.tokens - n), (0, 0)))
        width, patches = self.sequence.width, self.grid[0] * self.grid[1]
        h = nn.Dense(width, dtype=self.dtype, name="from_latent")(z)
        h += _embedding(self, "latent_places", self.tokens, width)
        first = _embedding(self, "class_embedding", 1, width)
        masks = jnp.broadcast_to(_embedding(self, "mask_token", width), (patches, width))
        masks = jnp.concatenate([first, masks]) + _embedding(self, "places", 1 + patches, width)
        h = self.sequence(jnp.concatenate([_as_batch(masks, b), h], axis=1))
        h = h[:, 1 : 1 + patches].reshape(b, *self.grid, width)
        if self.pixel_decoder is None:
            return h
        logits = self.logits_out(jnp.tanh(self.logits_hidden(h))).astype(jnp.float32)
        mixed = jnp.matmul(jax.nn.softmax(logits), self.pixel_codebook, precision="highest")
        return self.pixel_decoder.features(mixed)

    def head(self, h: jax.Array) -> jax.Array:
        """The last layers: the pixels of each patch and a convolution, or the last one of MaskGIT."""
        if self.pixel_decoder is not None:
            return self.pixel_decoder.head(h)
        x = self.conv_out(from_patches(self.pixels(h), self.patch))
        return 2.0 * x.astype(jnp.float32) - 1.0


def start_pixel_decoder(variables: Any, wanted: Any) -> Any:
    """Starts the second half of a two-stage model from MaskGIT's tokenizer: its codebook and its decoder.

    Args:
      variables: of the other tokenizer, nested dicts.
      wanted: arrays or shapes of this model's variables.

    Returns:
      the variables of a TiTok unchanged; of another tokenizer those that this model has.
    """
    decoder = wanted["params"]["decoder"]
    if "latent_tokens" in variables["params"]["encoder"] or "pixel_decoder" not in decoder:
        return variables
    entries = variables["params"].get("quantizer", {}).get("book", {}).get("codebook", {})
    part = {"pixel_decoder": variables["params"]["decoder"], "pixel_codebook": entries}
    return {"params": {"decoder": part}}


def titok(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    patch: Annotated[int, Bounds(1)] = 16,
    tokens: Annotated[int, Bounds(1)] = 32,
    layers: Annotated[int, Bounds(1)] = 12,
    width: Annotated[int, Bounds(4)] = 768,
    heads: Annotated[int, Bounds(1)] = 12,
    hidden: Annotated[int, Bounds(0)] = 0,
    decoder_layers: Annotated[int, Bounds(0)] = 0,
    decoder_width: Annotated[int, Bounds(0)] = 0,
    decoder_heads: Annotated[int, Bounds(0)] = 0,
    nested_dropout: Annotated[float, Bounds(0, 1)] = 0.0,
    pixel_codes: Annotated[int, Bounds(0)] = 0,
    pixel_dim: Annotated[int, Bounds(1)] = 256,
    pixel_ch: Annotated[int, Bounds(1)] = 128,
    pixel_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4),
    pixel_blocks: Annotated[int, Bounds(1)] = 2,
    legacy: bool = False,
    remat_encoder: bool = False,
    remat_decoder: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder after Yu et al. 2024 (bytedance/1d-tokenizer), for images of one size.

    It is one function because its arguments are the fields of a config.

    Args:
      spec: shape (H, W, C) of an image.
      dim: size of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      patch: side of a patch in pixels.
      tokens: number of latents, and so of codes, an image has.
      layers, width, heads: of the encoder.
      hidden: width of the encoder's feed-forward layers; 0 is four times the width, as in the decoder.
      decoder_layers, decoder_width, decoder_heads: of the decoder; 0 is as the encoder.
      nested_dropout: share of the training examples of which only the first latents are kept, a random
        number of them (Bachmann et al. 2025, FlexTok): the first codes then tell most.
      pixel_codes: number of codes of MaskGIT's tokenizer, whose decoder makes the pixels; 0 makes them
        without it.
      pixel_dim, pixel_ch, pixel_ch_mult, pixel_blocks: of that tokenizer; see `maskgit`.
      legacy: order of the encoder's output; see `Encoder`.
      remat_encoder, remat_decoder: recompute activations of blocks in the backward pass.

    Raises:
      ValueError: the fields do not fit the image or each other.
    """
    decoder_layers, decoder_width = decoder_layers or layers, decoder_width or width
    decoder_heads = decoder_heads or heads
    grid = patch_grid(spec, patch)
    for side, wide, count in (("", width, heads), ("decoder_", decoder_width, decoder_heads)):
        if wide % count:
            raise ValueError(
                f"model.{side}width {wide} must be a multiple of model.{side}heads, {count}"
            )
    channels, pixel_decoder = spec.shape[-1], None
    if pixel_codes:
        check_halves(spec.shape[0], len(pixel_ch_mult) - 1)
        if 2 ** (len(pixel_ch_mult) - 1) != patch:
            raise ValueError(
                f"model.pixel_ch_mult enlarges by {2 ** (len(pixel_ch_mult) - 1)}: make it model.patch, {patch}"
            )
        pixel_decoder = PixelDecoder(
            channels, pixel_ch, tuple(pixel_ch_mult), pixel_blocks, dtype, remat_decoder
        )
    encoder = Sequence(layers, width, heads, hidden or 4 * width, dtype, remat_encoder)
    decoder = Sequence(
        decoder_layers, decoder_width, decoder_heads, 4 * decoder_width, dtype, remat_decoder
    )
    return (
        Encoder(dim, patch, tokens, encoder, dtype, legacy),
        Decoder(
            channels,
            patch,
            grid,
            tokens,
            decoder,
            dtype,
            nested_dropout,
            pixel_codes,
            pixel_dim if pixel_codes else 0,
            pixel_decoder,
        ),
    )
