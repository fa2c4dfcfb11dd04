"""Quantizers whose choice is a softmax's in the gradient: `gumbel` and `ibq`."""

import math

import jax
import jax.numpy as jnp

from vq_jax import losses
from vq_jax.collectives import pmean
from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer, pull


class _SoftQuantizer(Quantizer):
    """What the two share: a codebook trained through the soft choice, revived where it is dead."""

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
        return self.prepare(z).reshape(-1, self.dim)


class GumbelQuantizer(_SoftQuantizer):
    """A categorical choice by Gumbel-softmax (Jang et al. 2017; Esser et al. 2021's Gumbel VQGAN).

    Each code has a key and a bias that score a latent (a linear layer, logits = z . key + bias) and
    an entry that stands for it. In training the code is drawn with Gumbel noise and the gradient is
    that of softmax((logits + noise) / temperature); without a key it is the likeliest code.
    The loss is kl_weight * KL(softmax(logits) | uniform). `initialise` puts the entries on latents by
    k-means and makes the logits -|z - e|^2 over its mean to the nearest entry.

    Attributes:
      num_codes: K.
      dim: D.
      temperature: of the softmax in the gradient.
      kl_weight: of the KL term.
      decay, kmeans_iterations, revive_below: see `base.Codebook`.
    """

    num_codes: int = 512
    dim: int = 64
    temperature: float = 1.0
    kl_weight: float = 5e-4
    decay: float = 0.99
    kmeans_iterations: int = 10
    revive_below: float = 0.01

    def setup(self):
        self.book = self.make_book(dim=self.dim, rule="gradient")
        normal = jax.nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        self.keys = self.param("codebook_keys", normal, (self.num_codes, self.dim))
        self.bias = self.param("codebook_bias", jax.nn.initializers.zeros, (self.num_codes,))

    def assign(self, y, *, key, now, axis_name):
        y_ND = y.reshape(-1, self.dim)
        z_q_ND, codes_N = functions.soft_lookup(
            y_ND,
            self.keys,
            self.bias,
            self.book.entries()[0],
            functions.row_keys(key, y_ND.shape[0], axis_name),
            self.value(now, "temperature"),
        )
        per_latent, _ = functions.assignments(y_ND, self.keys, self.bias, axis_name)
        kl = math.log(self.num_codes) - per_latent
        aux = {
            "loss": self.value(now, "kl_weight") * kl,
            "kl": kl,
            "counts": self.count(codes_N, axis_name),
        }
        return z_q_ND.reshape(y.shape), codes_N.reshape(y.shape[:-1]), aux

    def _spread(self, rows_ND):
        """Mean squared distance of this device's latents to the entry nearest to each."""
        entries_KD = self.book.entries()[0]
        error = losses.l2(rows_ND, entries_KD[functions.nearest_codes(rows_ND, entries_KD)])
        # As many entries as latents lie right on them; logits that sharp would have no gradient.
        return jnp.maximum(error.sum(1).mean(), 0.01 * rows_ND.var(0).sum() + 1e-6)

    def initialise(self, z, key, batches=1, *, axis_name=None):
        super().initialise(z, key, batches, axis_name=axis_name)
        spread = pmean(self._spread(self._rows(z)), axis_name)
        keys_KD, bias_K = functions.distance_logits(self.book.entries()[0], spread)
        self.put_variable("params", "codebook_keys", keys_KD)
        self.put_variable("params", "codebook_bias", bias_K)

    def update(self, z, codes, key, *, axis_name=None):
        # Noise draws every code now and then: dead is one that is never the likeliest.
        rows_ND = self._rows(z)
        _, codes_N = functions.soft_lookup(rows_ND, self.keys, self.bias, self.keys)
        new = super().update(z, codes_N, key, axis_name=axis_name)
        if not new["book"]:
            return new
        dead_K1 = new["book"]["codebook"]
        entries_KD = self.book.entries()[0]

        def living_length(rows_KD):
            length_K1 = jnp.linalg.norm(rows_KD, axis=1, keepdims=True)
            return jnp.mean(length_K1, where=~dead_K1)

        # A revived code's logit is as sharp as what the living have learned, or it wins nowhere.
        dead_K = dead_K1[:, 0]
        spread = jax.lax.cond(dead_K.any(), self._spread, lambda _: jnp.ones(()), rows_ND)
        learned = living_length(self.keys) / (2.0 * living_length(entries_KD))
        temperature = 1.0 / jnp.fmax(learned, 1.0 / pmean(spread, axis_name))
        keys_KD, bias_K = functions.distance_logits(entries_KD, temperature)
        self.put_variable("params", "codebook_keys", jnp.where(dead_K1, keys_KD, self.keys))
        self.put_variable("params", "codebook_bias", jnp.where(dead_K, bias_K, self.bias))
        return new | {"codebook_keys": dead_K1, "codebook_bias": dead_K}


class IBQ(_SoftQuantizer):
    """Index backpropagation: all entries learn from every latent (Shi et al. 2024, sec. 3.2).

    The code is argmax_k z . e_k and the gradient that of the softmax of these products (eq. 5), to
    the latent and to every entry. The loss is |z_q - z|^2 + |e - sg z|^2 * beta + |sg e - z|^2
    (eq. 6: the first through the soft choice) + entropy_weight * (E[H(p)] - H(E[p])) with
    p = softmax(z . e / temperature) (eq. 7).

    Attributes:
      num_codes: K.
      dim: D.
      beta: weight of the term that moves the entry to the latent.
      entropy_weight: of the entropy terms.
      temperature: of the softmax they are about.
      decay, kmeans_iterations, revive_below: see `base.Codebook`.
    """

    num_codes: int = 512
    dim: int = 64
    beta: float = 0.25
    entropy_weight: float = 0.05
    temperature: float = 0.01
    decay: float = 0.99
    kmeans_iterations: int = 10
    revive_below: float = 0.01

    def setup(self):
        self.book = self.make_book(dim=self.dim, rule="gradient")

    def assign(self, y, *, key, now, axis_name):
        del key
        y_ND = y.reshape(-1, self.dim)
        entries_KD = self.book.entries()[0]
        no_bias_K = jnp.zeros((self.num_codes,))
        z_q_ND, codes_N = functions.soft_lookup(y_ND, entries_KD, no_bias_K, entries_KD)
        chosen_ND = entries_KD[codes_N]
        to_entries, to_latents = pull(y_ND, chosen_ND), pull(chosen_ND, y_ND)
        loss = jnp.mean(losses.l2(z_q_ND, y_ND)) + to_entries
        loss += self.value(now, "beta") * to_latents
        aux = {"commitment": to_entries, "codebook": to_latents}
        if self.wants(now, "entropy_weight"):
            keys_KD = entries_KD / self.value(now, "temperature")
            per_latent, mean_K = functions.assignments(y_ND, keys_KD, no_bias_K, axis_name)
            extra, terms = self.entropy_loss(now, per_latent, losses.entropy(mean_K))
            loss += extra
            aux |= terms
        aux |= {"loss": loss, "counts": self.count(codes_N, axis_name)}
        return z_q_ND.reshape(y.shape), codes_N.reshape(y.shape[:-1]), aux

    def initialise(self, z, key, batches=1, *, axis_name=None):
        # Of entries with different lengths a product chooses the longest: they start on a sphere.
        rows_ND = self._rows(z)
        length = pmean(jnp.linalg.norm(rows_ND, axis=1).mean(), axis_name)
        super().initialise(functions.normalise(rows_ND), key, batches, axis_name=axis_name)
        self.book.set_entries(length * functions.normalise(self.book.entries()))

    def update(self, z, codes, key, *, axis_name=None):
        # A revived entry must win the product with its own latent, so it is as long as the longest.
        length = jnp.linalg.norm(self.book.entries(), axis=-1).max()
        rows = length * functions.normalise(self._rows(z))
        return super().update(rows, codes, key, axis_name=axis_name)
