"""Compression with trained tokenizers: `load` opens a run's codec."""

from vq_jax.codec.codec import Codec, load

__all__ = ["Codec", "load"]
