"""Quantizers trained through the softmax over all codes: `gumbel` and `ibq`."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp

from vq_jax import losses
from vq_jax.bounds import Bounds
from vq_jax.collectives import pmean
from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer, l2_to_constant
from vq_jax.quantizers.soft_assignments import (
    assignment_statistics,
    distance_logits,
    soft_lookup,
)


class _SoftQuantizer(Quantizer):
    """Base class: a codebook trained through the soft assignment, with revival of dead entries."""

    def lookup(self, codes: jax.Array) -> jax.Array:
        return self.book.entries()[0][codes]

    def codebooks(self) -> jax.Array:
        return self.book.entries()[0]

    def initialise(self, z, key, batches=1, *, axis_name=None):
        self.book.initialise(self._rows(z)[None], key, batches, axis_name)

    def update(self, z, codes, key, *, axis_name=None):
        codes_CM = codes.reshape(1, -1)
        return {"book": self.book.update(self._rows(z)[None], codes_CM, key, axis_name)}

    def _rows(self, z: jax.Array) -> jax.Array:
        """Returns the prepared latents as rows [N, D]."""
        return self.prepare(z).reshape(-1, self.dim)


class GumbelQuantizer(_SoftQuantizer):
    """A categorical choice by Gumbel-softmax (Jang et al. 2017; Esser et al. 2021's Gumbel VQGAN).

    Each code has a key and a bias, which score a latent (a linear layer, logits = z . key + bias),
    and an entry, which is its quantized latent. In training, codes are sampled with Gumbel noise,
    and the gradient is that of softmax((logits + noise) / temperature). Without a PRNG key, the
    code is the most likely one. The loss is kl_weight * KL(softmax(logits) | uniform).

    `initialise` sets the entries by k-means. It sets the logits to -|z - e|^2 divided by the mean
    squared distance of a latent to its nearest entry.

    Attributes:
      num_codes: K.
      dim: D.
      temperature: softmax temperature in the gradient.
      kl_weight: weight of the KL term.
      decay, kmeans_iterations, revive_below: see `base.Codebook`.
    """

    num_codes: Annotated[int, Bounds(2)] = 512
    dim: Annotated[int, Bounds(1)] = 64
    temperature: Annotated[float, Bounds(1e-6)] = 1.0
    kl_weight: float = 5e-4
    decay: Annotated[float, Bounds(0, 1)] = 0.99
    kmeans_iterations: Annotated[int, Bounds(0)] = 10
    revive_below: Annotated[float, Bounds(0, 1)] = 0.01

    def setup(self):
        self.book = self.make_codebook(dim=self.dim, rule="gradient")
        normal = jax.nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        self.keys = self.param("codebook_keys", normal, (self.num_codes, self.dim))
        self.bias = self.param("codebook_bias", jax.nn.initializers.zeros, (self.num_codes,))

    def assign(self, y, *, key, scheduled, axis_name):
        y_ND = y.reshape(-1, self.dim)
        z_q_ND, codes_N = soft_lookup(
            y_ND,
            self.keys,
            self.bias,
            self.book.entries()[0],
            functions.row_keys(key, y_ND.shape[0], axis_name),
            self.value(scheduled, "temperature"),
        )
        mean_entropy, _ = assignment_statistics(y_ND, self.keys, self.bias, axis_name)
        kl = math.log(self.num_codes) - mean_entropy
        aux = {
            "loss": self.value(scheduled, "kl_weight") * kl,
            "kl": kl,
            "counts": self.count(codes_N, axis_name),
        }
        return z_q_ND.reshape(y.shape), codes_N.reshape(y.shape[:-1]), aux

    def _mean_squared_distance(self, rows_ND):
        """Computes the mean squared distance of this device's latents to their nearest entries."""
        entries_KD = self.book.entries()[0]
        error = losses.l2(rows_ND, entries_KD[functions.nearest_codes(rows_ND, entries_KD)])
        # With as many entries as latents, every latent is itself an entry and all distances are 0.
        # The lower bound avoids logits that are too sharp to have a gradient.
        return jnp.maximum(error.sum(1).mean(), 0.01 * rows_ND.var(0).sum() + 1e-6)

    def initialise(self, z, key, batches=1, *, axis_name=None):
        super().initialise(z, key, batches, axis_name=axis_name)
        distance = pmean(self._mean_squared_distance(self._rows(z)), axis_name)
        keys_KD, bias_K = distance_logits(self.book.entries()[0], distance)
        self.put_variable("params", "codebook_keys", keys_KD)
        self.put_variable("params", "codebook_bias", bias_K)

    def update(self, z, codes, key, *, axis_name=None):
        # With noise every code is sampled occasionally. A dead code is one that is never the most
        # likely, so count the most likely codes instead of the sampled ones.
        rows_ND = self._rows(z)
        _, codes_N = soft_lookup(rows_ND, self.keys, self.bias, self.keys)
        masks = super().update(z, codes_N, key, axis_name=axis_name)
        if not masks["book"]:
            return masks
        dead_K1 = masks["book"]["codebook"]
        entries_KD = self.book.entries()[0]

        def mean_length_of_living(rows_KD):
            length_K1 = jnp.linalg.norm(rows_KD, axis=1, keepdims=True)
            return jnp.mean(length_K1, where=~dead_K1)

        # The logits of a revived code must be as sharp as the trained logits of the living codes.
        # Otherwise no latent would choose it.
        dead_K = dead_K1[:, 0]
        distance = jax.lax.cond(
            dead_K.any(), self._mean_squared_distance, lambda _: jnp.ones(()), rows_ND
        )
        # The inverse temperature at which `distance_logits` gives keys of the trained keys' length.
        trained = mean_length_of_living(self.keys) / (2.0 * mean_length_of_living(entries_KD))
        temperature = 1.0 / jnp.fmax(trained, 1.0 / pmean(distance, axis_name))
        keys_KD, bias_K = distance_logits(entries_KD, temperature)
        self.put_variable("params", "codebook_keys", jnp.where(dead_K1, keys_KD, self.keys))
        self.put_variable("params", "codebook_bias", jnp.where(dead_K, bias_K, self.bias))
        return masks | {"codebook_keys": dead_K1, "codebook_bias": dead_K}


class IBQ(_SoftQuantizer):
    """Index backpropagation: every latent trains all entries (Shi et al. 2024, sec. 3.2).

    The code is argmax_k z . e_k. The gradient is that of the softmax of these products (eq. 5), for
    the latent and for every entry. The loss is
    |z_q - z|^2 + |e - sg z|^2 * beta + |sg e - z|^2 (eq. 6)
    + entropy_weight * (E[H(p)] - H(E[p])) with p = softmax(z . e / temperature) (eq. 7).
    The gradient of the first term goes through the soft assignment.

    Attributes:
      num_codes: K.
      dim: D.
      beta: weight of the term that moves the entry to the latent.
      entropy_weight: weight of the entropy terms.
      temperature: softmax temperature in the entropy terms.
      decay, kmeans_iterations, revive_below: see `base.Codebook`.
    """

    num_codes: Annotated[int, Bounds(2)] = 512
    dim: Annotated[int, Bounds(1)] = 64
    beta: Annotated[float, Bounds(0)] = 0.25
    entropy_weight: float = 0.05
    temperature: Annotated[float, Bounds(1e-6)] = 0.01
    decay: Annotated[float, Bounds(0, 1)] = 0.99
    kmeans_iterations: Annotated[int, Bounds(0)] = 10
    revive_below: Annotated[float, Bounds(0, 1)] = 0.01

    def setup(self):
        self.book = self.make_codebook(dim=self.dim, rule="gradient")

    def assign(self, y, *, key, scheduled, axis_name):
        del key
        y_ND = y.reshape(-1, self.dim)
        entries_KD = self.book.entries()[0]
        no_bias_K = jnp.zeros((self.num_codes,))
        z_q_ND, codes_N = soft_lookup(y_ND, entries_KD, no_bias_K, entries_KD)
        chosen_ND = entries_KD[codes_N]
        commitment_loss = l2_to_constant(y_ND, chosen_ND)
        codebook_loss = l2_to_constant(chosen_ND, y_ND)
        loss = jnp.mean(losses.l2(z_q_ND, y_ND)) + commitment_loss
        loss += self.value(scheduled, "beta") * codebook_loss
        aux = {"commitment": commitment_loss, "codebook": codebook_loss}
        if self.uses_term(scheduled, "entropy_weight"):
            keys_KD = entries_KD / self.value(scheduled, "temperature")
            mean_entropy, mean_K = assignment_statistics(y_ND, keys_KD, no_bias_K, axis_name)
            entropy_loss, terms = self.entropy_loss(scheduled, mean_entropy, losses.entropy(mean_K))
            loss += entropy_loss
            aux |= terms
        aux |= {"loss": loss, "counts": self.count(codes_N, axis_name)}
        return z_q_ND.reshape(y.shape), codes_N.reshape(y.shape[:-1]), aux

    def initialise(self, z, key, batches=1, *, axis_name=None):
        # The inner product favours long entries, so all entries start with the same length.
        rows_ND = self._rows(z)
        length = pmean(jnp.linalg.norm(rows_ND, axis=1).mean(), axis_name)
        super().initialise(functions.normalise(rows_ND), key, batches, axis_name=axis_name)
        self.book.store_entries(length * functions.normalise(self.book.entries()))

    def update(self, z, codes, key, *, axis_name=None):
        # A revived entry is as long as the longest one, so that its own latent chooses it.
        length = jnp.linalg.norm(self.book.entries(), axis=-1).max()
        rows = length * functions.normalise(self._rows(z))
        return super().update(rows, codes, key, axis_name=axis_name)
