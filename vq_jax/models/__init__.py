"""Models: Flax modules, and the tables of their names."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from vq_jax.models.bytes import bytes_identity
from vq_jax.models.causal3d import causal3d, inflate
from vq_jax.models.cosine import cosine
from vq_jax.models.discriminator import MLPDiscriminator, PatchGAN, PatchGAN3D
from vq_jax.models.magvit2 import magvit2
from vq_jax.models.maskgit import maskgit
from vq_jax.models.mlp import mlp
from vq_jax.models.priors import PRIORS, Prior
from vq_jax.models.text_conv import text_conv
from vq_jax.models.titok import start_pixel_decoder, titok
from vq_jax.models.tokenizer import Tokenizer
from vq_jax.models.transformer import Transformer
from vq_jax.models.vector_mlp import vector_mlp
from vq_jax.models.vit import vit
from vq_jax.models.vqgan import vqgan
from vq_jax.models.vqvae import vqvae
from vq_jax.models.vqvae2 import vqvae2


class Model(NamedTuple):
    """An encoder and a decoder that a config can name.

    Attributes:
      make: function of (spec, dim, dtype, **config.model) to (encoder, decoder). The encoder declares
        `strides`: how many elements of the example a latent spans along each axis, or None if the
        model takes examples of one size only.
      modality: the kind of data it serves, a name in `modalities.MODALITIES`.
      start_from: (variables of another tokenizer, shapes of this one's) -> variables to start from. Those
        that it leaves out of a tokenizer with another model start as usual.
    """

    make: Callable[..., tuple[nn.Module, nn.Module]]
    modality: str
    start_from: Callable[[Any, Any], Any] = lambda variables, wanted: variables


MODELS: dict[str, Model] = {
    "vqgan": Model(vqgan, "image"),
    "vqvae": Model(vqvae, "image"),
    "maskgit": Model(maskgit, "image"),
    "magvit2": Model(magvit2, "image"),
    "vqvae2": Model(vqvae2, "image"),
    "mlp": Model(mlp, "image"),
    "vit": Model(vit, "image"),
    "titok": Model(titok, "image", start_pixel_decoder),
    "cosine": Model(cosine, "image"),
    "vector_mlp": Model(vector_mlp, "vector"),
    "text_conv": Model(text_conv, "text"),
    "bytes": Model(bytes_identity, "text"),
    "causal3d": Model(causal3d, "video", inflate),
}
DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "patchgan": PatchGAN,
    "patchgan3d": PatchGAN3D,
    "mlp": MLPDiscriminator,
}

__all__ = [
    "DISCRIMINATORS",
    "MODELS",
    "PRIORS",
    "MLPDiscriminator",
    "Model",
    "PatchGAN",
    "PatchGAN3D",
    "Prior",
    "Tokenizer",
    "Transformer",
]
