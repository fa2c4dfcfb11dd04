"""Quantizers as Flax modules, the pure functions behind them, and the registry of their names."""

from vq_jax.quantizers.base import SCHEDULED, Quantizer
from vq_jax.quantizers.binary import BSQ, LFQ
from vq_jax.quantizers.hierarchy import HierarchyQuantizer
from vq_jax.quantizers.integer import IntegerQuantizer
from vq_jax.quantizers.lattice import LatticeQuantizer
from vq_jax.quantizers.multiscale import MultiscaleQuantizer
from vq_jax.quantizers.residual import ResidualQuantizer
from vq_jax.quantizers.scalar import FSQ
from vq_jax.quantizers.soft import IBQ, GumbelQuantizer
from vq_jax.quantizers.vector import SimVQ, VectorQuantizer

# The name of a quantizer with a field `inner` can include the inner one, as in "residual/fsq". The
# default inner quantizer is "vq".
QUANTIZERS = {
    "vq": VectorQuantizer,
    "gumbel": GumbelQuantizer,
    "residual": ResidualQuantizer,
    "fsq": FSQ,
    "lfq": LFQ,
    "bsq": BSQ,
    "integer": IntegerQuantizer,
    "lattice": LatticeQuantizer,
    "ibq": IBQ,
    "simvq": SimVQ,
    "multiscale": MultiscaleQuantizer,
    "hierarchy": HierarchyQuantizer,
}

__all__ = ["QUANTIZERS", "SCHEDULED", "Quantizer", "VectorQuantizer"]
