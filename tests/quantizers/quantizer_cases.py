"""Small test cases: every quantizer in `QUANTIZERS`, and options that change one's behaviour."""

import jax
import jax.numpy as jnp

from vq_jax.config import make_quantizer, section
from vq_jax.quantizers import QUANTIZERS
from vq_jax.quantizers.hierarchy import HierarchyQuantizer

MUTABLE = ["params", "codebook"]
GRID = (8, 8)

# Every name in QUANTIZERS is a case. Add cases with other options here.
OPTIONS = {
    "vq cosine": ("vq", {"distance": "cosine", "codebook": "gradient", "orthogonal_weight": 0.5}),
    "vq projected": ("vq", {"code_dim": 4, "distance": "cosine", "estimator": "rotation"}),
    "vq heads": ("vq", {"heads": 3}),
    "vq shared heads": ("vq", {"heads": 2, "shared_heads": True, "codebook": "gradient"}),
    "vq gumbel": ("vq", {"estimator": "gumbel", "codebook": "gradient", "heads": 2}),
    "vq entropy": ("vq", {"entropy_weight": 0.1, "usage_weight": 0.1, "variance_weight": 0.1}),
    "vq rate": ("vq", {"rate_weight": 0.05}),
    "vq gaussian": ("vq", {"initial": "gaussian"}),
    "residual/vq shared": ("residual/vq", {"shared": True}),
    "residual/fsq": ("residual/fsq", {"levels": 2}),
    "residual/simvq": ("residual/simvq", {"levels": 2, "dropout": 0.5}),
    "hierarchy/fsq": ("hierarchy/fsq", {"sides": (2, 4, 8)}),
    "residual/gumbel": ("residual/gumbel", {"levels": 2}),
}
_FIELDS = {"integer": {"num_codes": 7, "first": 2, "width": 8}}
CASES = {**{name: (name, _FIELDS.get(name, {})) for name in QUANTIZERS}, **OPTIONS}
_SMALL = {
    "num_codes": 24,
    "dim": 6,
    "bits": 5,
    "levels": (5, 4, 3),
    "temperature": 0.5,
    "revive_below": 0.1,
}


def make(case: str, **changes):
    """Makes the quantizer of a case, with `changes` to its config fields."""
    name, fields = CASES[case]
    config = section(QUANTIZERS, name)
    for part in (config, config.get("inner", {})):
        for field, value in _SMALL.items():
            if field in part and not (field == "levels" and "inner" in part):
                part[field] = value
    config.update({**fields, **changes})
    return make_quantizer(config)


def latents(rng, quantizer, batch=4):
    """Draws normal latents [batch, *GRID, D], or [batch, L, D] of all levels."""
    grid = GRID
    if isinstance(quantizer, HierarchyQuantizer):
        grid = (sum(side**2 for side in quantizer.sides),)
    return jnp.asarray(rng.normal(size=(batch, *grid, quantizer.dim)), jnp.float32)


def init_variables(quantizer, z, key=0):
    """Returns the quantizer's variables after `initialise` on the latents `z`."""
    variables = quantizer.init(jax.random.key(key), z)
    _, changed = quantizer.apply(
        variables, z, jax.random.key(key + 1), method="initialise", mutable=MUTABLE
    )
    return {**variables, **changed}
