"""Every quantizer of the table, and the options that change what one does, made small."""

import jax
import jax.numpy as jnp

from vq_jax.config import make_quantizer, section
from vq_jax.quantizers import QUANTIZERS

MUTABLE = ["params", "codebook"]
GRID = (8, 8)

# A new line of QUANTIZERS is a case by itself; options worth a case are added here.
OPTIONS = {
    "vq cosine": ("vq", {"distance": "cosine", "codebook": "gradient", "orthogonal_weight": 0.5}),
    "vq projected": ("vq", {"code_dim": 4, "distance": "cosine", "estimator": "rotation"}),
    "vq heads": ("vq", {"heads": 3}),
    "vq shared heads": ("vq", {"heads": 2, "shared_heads": True, "codebook": "gradient"}),
    "vq gumbel": ("vq", {"estimator": "gumbel", "codebook": "gradient", "heads": 2}),
    "vq entropy": ("vq", {"entropy_weight": 0.1, "usage_weight": 0.1, "variance_weight": 0.1}),
    "residual/vq shared": ("residual/vq", {"shared": True}),
    "residual/fsq": ("residual/fsq", {"levels": 2}),
    "residual/simvq": ("residual/simvq", {"levels": 2, "dropout": 0.5}),
    "residual/gumbel": ("residual/gumbel", {"levels": 2}),
}
CASES = {**{name: (name, {}) for name in QUANTIZERS}, **OPTIONS}
_SMALL = {
    "num_codes": 24,
    "dim": 6,
    "bits": 5,
    "levels": (5, 4, 3),
    "temperature": 0.5,
    "revive_below": 0.1,
}


def make(case: str, **changes):
    """The quantizer of a case."""
    name, fields = CASES[case]
    small = section(QUANTIZERS, name)
    for part in (small, small.get("inner", {})):
        for field, value in _SMALL.items():
            if field in part and not (field == "levels" and "inner" in part):
                part[field] = value
    small.update({**fields, **changes})
    return make_quantizer(small)


def latents(rng, quantizer, batch=4):
    return jnp.asarray(rng.normal(size=(batch, *GRID, quantizer.dim)), jnp.float32)


def start(quantizer, z, key=0):
    """Variables after `initialise`."""
    variables = quantizer.init(jax.random.key(key), z)
    _, changed = quantizer.apply(
        variables, z, jax.random.key(key + 1), method="initialise", mutable=MUTABLE
    )
    return {**variables, **changed}
