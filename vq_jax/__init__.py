"""vq_jax: VQ-VAE and VQ-GAN tokenizers, and priors over their codes, in JAX and Flax.

>>> tok = vq_jax.load("runs/default")
>>> codes = tok.encode(images)    # float32 [B, H, W, C] in [-1, 1] -> int32 [B, *grid]
>>> images = tok.decode(codes)
>>> prior = vq_jax.load("runs/prior_default")
>>> images = prior.sample(16, label="Food & Drink")
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["UserError", "load"]


def __getattr__(name: str) -> Any:  # Importing the package must not import JAX.
    if name == "load":
        from vq_jax.runs import load

        return load
    if name == "UserError":
        from vq_jax.errors import UserError

        return UserError
    raise AttributeError(f"module 'vq_jax' has no attribute {name!r}")
