"""Quantizers: pure functions, thin Flax modules over them, and the table of their names."""

from vq_jax.quantizers.base import SCHEDULED, Quantizer
from vq_jax.quantizers.binary import BSQ, LFQ
from vq_jax.quantizers.residual import MultiscaleQuantizer, ResidualQuantizer
from vq_jax.quantizers.scalar import FSQ
from vq_jax.quantizers.soft import IBQ, GumbelQuantizer
from vq_jax.quantizers.vector import SimVQ, VectorQuantizer

# A quantizer with a field `inner` is named with it: "residual/fsq"; without, it takes "vq".
QUANTIZERS = {
    "vq": VectorQuantizer,
    "gumbel": GumbelQuantizer,
    "residual": ResidualQuantizer,
    "fsq": FSQ,
    "lfq": LFQ,
    "bsq": BSQ,
    "ibq": IBQ,
    "simvq": SimVQ,
    "multiscale": MultiscaleQuantizer,
}

__all__ = ["QUANTIZERS", "SCHEDULED", "Quantizer", "VectorQuantizer"]
