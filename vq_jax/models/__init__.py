"""Models: Flax modules, and the tables of their names."""

from collections.abc import Callable

import flax.linen as nn

from vq_jax.models.discriminator import MLPDiscriminator, PatchGAN
from vq_jax.models.magvit2 import magvit2
from vq_jax.models.maskgit import maskgit
from vq_jax.models.mlp import mlp
from vq_jax.models.tokenizer import Tokenizer
from vq_jax.models.transformer import PRIORS, Transformer
from vq_jax.models.vqgan import vqgan
from vq_jax.models.vqvae import vqvae

# name -> function of (resolution, channels, dim, dtype, **config.model) to (encoder, decoder)
MODELS: dict[str, Callable[..., tuple[nn.Module, nn.Module]]] = {
    "vqgan": vqgan,
    "vqvae": vqvae,
    "maskgit": maskgit,
    "magvit2": magvit2,
    "mlp": mlp,
}
DISCRIMINATORS: dict[str, type[nn.Module]] = {"patchgan": PatchGAN, "mlp": MLPDiscriminator}

__all__ = [
    "DISCRIMINATORS",
    "MODELS",
    "PRIORS",
    "MLPDiscriminator",
    "PatchGAN",
    "Tokenizer",
    "Transformer",
]
