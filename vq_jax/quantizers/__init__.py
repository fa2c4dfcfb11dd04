"""Quantizers: pure functions, thin Flax modules over them, and the table of their names."""

from vq_jax.quantizers.vector import VectorQuantizer

QUANTIZERS = {"vq": VectorQuantizer}

__all__ = ["QUANTIZERS", "VectorQuantizer"]
