"""Quantizers that keep the sign of each dimension: `lfq` and `bsq`."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from vq_jax.bounds import Bounds
from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer, l2_to_constant
from vq_jax.quantizers.soft_assignments import binary_entropies


class _SignQuantizer(Quantizer):
    """Base class: quantizes each dimension to -size or size, by its sign.

    The loss is a commitment loss plus an entropy loss on the soft assignment. The soft assignment
    is softmax_c(-|y - c|^2 / temperature) over all 2^bits codes c. Under it the bits of one latent
    are independent, and the log-odds of a bit are 4 y size / temperature.
    """

    @property
    def num_codes(self) -> int:
        return 2**self.bits

    @property
    def dim(self) -> int:
        return self.bits

    @property
    def radices(self) -> tuple[int, ...]:
        return (2,) * self.bits

    @property
    def residual_scale(self) -> Any:
        return 0.5

    def setup(self):
        if not 1 <= self.bits <= 24:
            raise ValueError(f"quantizer.bits is {self.bits}: use 1 to 24")

    def _size(self) -> float:
        """Returns the absolute value of a quantized dimension."""
        return 1.0

    def _bit_positions(self) -> jax.Array:
        """Returns the position of each dimension's bit in the code, 0 for the lowest bit."""
        return jnp.arange(self.bits, dtype=jnp.int32)

    def assign(self, y, *, key, scheduled, axis_name):
        del key
        on = jax.lax.stop_gradient(y) > 0
        entries = jnp.where(on, self._size(), -self._size()).astype(jnp.float32)
        codes = jnp.sum(on.astype(jnp.int32) << self._bit_positions(), axis=-1, dtype=jnp.int32)
        aux = {"commitment": l2_to_constant(y, entries)}
        loss = self.value(scheduled, "beta") * aux["commitment"]
        if self.uses_term(scheduled, "entropy_weight"):
            logits = 4.0 * self._size() * y / self.value(scheduled, "temperature")
            logits_ND = logits.reshape(-1, self.bits)
            entropies = binary_entropies(logits_ND, self.entropy_group, axis_name)
            entropy_loss, terms = self.entropy_loss(scheduled, *entropies)
            loss += entropy_loss
            aux |= terms
        aux |= {"loss": loss, "counts": self.count(codes, axis_name)}
        return functions.straight_through(y, entries), codes, aux

    def lookup(self, codes: jax.Array) -> jax.Array:
        on = (codes[..., None] >> self._bit_positions()) & 1
        return jnp.where(on == 1, self._size(), -self._size()).astype(jnp.float32)


class LFQ(_SignQuantizer):
    """Lookup-free quantization: the sign of each dimension (Yu et al. 2023, eq. 3-4).

    The entropy loss E[H(p)] - H(E[p]) favours confident bits and equal use of all codes. It is
    exact over all 2^bits codes without a [tokens, codes] array (see `binary_entropies`).
    Dimension 0 is the lowest bit of the code.

    Attributes:
      bits: number of dimensions of a latent, 1 to 24.
      beta: weight of the commitment loss.
      entropy_weight: weight of the entropy loss.
      temperature: softmax temperature of the soft assignment in the entropy loss.
      entropy_group: number of bits per group in H(E[p]); 0 takes all bits as one group.
    """

    bits: Annotated[int, Bounds(1, 24)] = 9
    beta: Annotated[float, Bounds(0)] = 0.25
    entropy_weight: float = 0.1
    temperature: Annotated[float, Bounds(1e-6)] = 0.01
    entropy_group: Annotated[int, Bounds(0)] = 0


class BSQ(_SignQuantizer):
    """Binary spherical quantization: the signs of latents on the unit sphere.

    See Zhao et al. 2024, sec. 3.2-3.3. The codes are the corners of the cube inscribed in the unit
    sphere, +-1 / sqrt(bits) in each dimension. The quantization error is therefore bounded, and a
    fixed temperature suits the soft assignment. H(E[p]) treats the bits as independent (the paper's
    approximation) unless `entropy_group` joins them. Dimension 0 is the highest bit of the code.

    Attributes:
      bits: number of dimensions of a latent, 1 to 24.
      beta: weight of the commitment loss.
      entropy_weight: weight of the entropy loss.
      temperature: softmax temperature of the soft assignment; the paper's tau is 2 / temperature.
      entropy_group: number of bits per group in H(E[p]); 1 in the paper, 0 takes all bits as one
        group.
    """

    bits: Annotated[int, Bounds(1, 24)] = 9
    beta: Annotated[float, Bounds(0)] = 0.25
    entropy_weight: float = 0.1
    temperature: Annotated[float, Bounds(1e-6)] = 0.1
    entropy_group: Annotated[int, Bounds(0)] = 1

    def prepare(self, z: jax.Array) -> jax.Array:
        return functions.normalise(z.astype(jnp.float32))

    def _size(self) -> float:
        return self.bits**-0.5

    def _bit_positions(self) -> jax.Array:
        return jnp.arange(self.bits - 1, -1, -1, dtype=jnp.int32)
