"""Quantizers that keep the sign of each dimension: `lfq` and `bsq`."""

from typing import Any

import jax
import jax.numpy as jnp

from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer, pull


class _SignQuantizer(Quantizer):
    """Signs at a fixed size, an entropy loss on the soft choice of each bit, a commitment loss.

    The soft choice is softmax_c(-|y - c|^2 / temperature) over all 2^bits codes c: a bit is on with
    log-odds 4 y c / temperature, independent of the others given the latent.
    """

    @property
    def num_codes(self) -> int:
        return 2**self.bits

    @property
    def dim(self) -> int:
        return self.bits

    @property
    def residual_scale(self) -> Any:
        return 0.5

    def setup(self):
        if not 1 <= self.bits <= 24:
            raise ValueError(f"quantizer.bits is {self.bits}: use 1 to 24")

    def _size(self) -> float:
        """Of a dimension of a code: c is -size or size."""
        return 1.0

    def _places(self) -> jax.Array:
        """The place of each dimension's bit in the code."""
        return jnp.arange(self.bits, dtype=jnp.int32)

    def assign(self, y, *, key, now, axis_name):
        del key
        on = jax.lax.stop_gradient(y) > 0
        entries = jnp.where(on, self._size(), -self._size()).astype(jnp.float32)
        codes = jnp.sum(on.astype(jnp.int32) << self._places(), axis=-1, dtype=jnp.int32)
        aux = {"commitment": pull(y, entries)}
        loss = self.value(now, "beta") * aux["commitment"]
        if self.wants(now, "entropy_weight"):
            logits = 4.0 * self._size() * y / self.value(now, "temperature")
            logits_ND = logits.reshape(-1, self.bits)
            entropies = functions.binary_entropies(logits_ND, self.entropy_group, axis_name)
            extra, terms = self.entropy_loss(now, *entropies)
            loss += extra
            aux |= terms
        aux |= {"loss": loss, "counts": self.count(codes, axis_name)}
        return functions.straight_through(y, entries), codes, aux

    def lookup(self, codes: jax.Array) -> jax.Array:
        on = (codes[..., None] >> self._places()) & 1
        return jnp.where(on == 1, self._size(), -self._size()).astype(jnp.float32)


class LFQ(_SignQuantizer):
    """Lookup-free quantization: the sign of each dimension (Yu et al. 2023, eq. 3-4).

    The entropy loss E[H(p)] - H(E[p]) makes each bit sure and all codes even; it is exact over all
    2^bits codes without a [tokens, codes] array (`functions.binary_entropies`). Dimension 0 is the
    lowest bit of the code.

    Attributes:
      bits: dimensions of a latent.
      beta: weight of the commitment loss.
      entropy_weight: of the entropy loss.
      temperature: of the soft choice it is about.
      entropy_group: bits taken together in H(E[p]); 0 takes all.
    """

    bits: int = 9
    beta: float = 0.25
    entropy_weight: float = 0.1
    temperature: float = 0.01
    entropy_group: int = 0


class BSQ(_SignQuantizer):
    """Binary spherical quantization: latents on the unit sphere, then signs (Zhao et al. 2024, sec.
    3.2-3.3).

    Codes are corners of the cube inside the sphere, +-1 / sqrt(bits) in each dimension, so the error
    is bounded and the soft choice is a fixed temperature's. H(E[p]) takes the bits as independent
    (the paper's approximation) unless `entropy_group` joins them. Dimension 0 is the highest bit.

    Attributes:
      bits: dimensions of a latent.
      beta: weight of the commitment loss.
      entropy_weight: of the entropy loss.
      temperature: of the soft choice; the paper's tau is 2 / temperature.
      entropy_group: bits taken together in H(E[p]); 1 in the paper, 0 takes all.
    """

    bits: int = 9
    beta: float = 0.25
    entropy_weight: float = 0.1
    temperature: float = 0.1
    entropy_group: int = 1

    def prepare(self, z: jax.Array) -> jax.Array:
        return functions.normalise(z.astype(jnp.float32))

    def _size(self) -> float:
        return self.bits**-0.5

    def _places(self) -> jax.Array:
        return jnp.arange(self.bits - 1, -1, -1, dtype=jnp.int32)
