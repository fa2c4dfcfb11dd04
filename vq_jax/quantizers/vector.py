"""Quantizers that choose the nearest entry of a codebook: `vq` and `simvq`."""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax import losses
from vq_jax.bounds import Bounds
from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer, l2_to_constant, map_books
from vq_jax.quantizers.soft_assignments import (
    assignment_statistics,
    distance_logits,
    soft_lookup,
)


class VectorQuantizer(Quantizer):
    """The nearest entry of a codebook (van den Oord et al. 2017, eq. 1-3).

    The soft assignment of a latent is p_k = softmax_k(-|z - e_k|^2 / temperature). The estimator
    "gumbel" and the entropy and usage terms use it.

    Attributes:
      num_codes: K, number of entries of a codebook.
      dim: D, the size of a latent.
      code_dim: size of the space in which latents are quantized. Linear layers project latents to
        this size and back (Yu et al. 2021, "factorized codes"). 0 means `dim` without projections.
      heads: number of parts of a (projected) latent. Each part has its own code: product
        quantization (Jegou et al. 2011).
      shared_heads: whether all heads share one codebook instead of having one each.
      distance: "l2", or "cosine": latents and entries are scaled to length 1 (Yu et al. 2021).
      codebook: "ema": entries follow moving averages of their latents. "gradient": entries are
        trained by the codebook loss. "mapped": see `SimVQ`.
      estimator: gradient through the lookup. "straight_through". "rotation" (Fifty et al. 2024).
        "gumbel": in training the code is sampled from the soft assignment p, and the gradient is
        that of the softmax with its noise (Jang et al. 2017, at their tau = 1); the commitment and
        codebook losses are those of the sampled code.
      beta: weight of the commitment loss; the weight of the codebook loss is 1.0.
      temperature: softmax temperature of the soft assignment.
      entropy_weight: weight of E[H(p)] - H(E[p]). It favours confident assignments that are spread
        evenly over the batch (the quantizer of Chang et al. 2022; 0.1 at temperature 0.01 there).
      usage_weight: weight of `losses.code_usage` of the average soft assignment.
      variance_weight: weight of `losses.latent_variance`.
      orthogonal_weight: weight of `functions.orthogonality`; must be 0 with codebook "ema".
      rate_weight: lambda of entropy-constrained quantization (Chou et al. 1989): a latent takes the
        entry with the least |z - e_k|^2 + lambda bits_k, where bits_k = -log2 of the entry's share of
        the moving counts. A frequent entry gets more latents, and the codes need fewer bits. If it
        changes over the steps, this is its value after training.
      initial, decay, kmeans_iterations, revive_below: see `base.Codebook`.
    """

    num_codes: Annotated[int, Bounds(2)] = 512
    dim: Annotated[int, Bounds(1)] = 64
    code_dim: Annotated[int, Bounds(0)] = 0
    heads: Annotated[int, Bounds(1)] = 1
    shared_heads: bool = False
    distance: str = "l2"
    codebook: str = "ema"
    estimator: str = "straight_through"
    beta: Annotated[float, Bounds(0)] = 0.25
    temperature: Annotated[float, Bounds(1e-6)] = 1.0
    entropy_weight: float = 0.0
    usage_weight: float = 0.0
    variance_weight: float = 0.0
    orthogonal_weight: float = 0.0
    rate_weight: Annotated[float, Bounds(0)] = 0.0
    initial: str = "kmeans"
    decay: Annotated[float, Bounds(0, 1)] = 0.99
    kmeans_iterations: Annotated[int, Bounds(0)] = 10
    revive_below: Annotated[float, Bounds(0, 1)] = 0.01

    def setup(self):
        self.check_choices(
            codebook=("ema", "gradient", "mapped"),
            distance=("l2", "cosine"),
            estimator=(*functions.ESTIMATORS, "gumbel"),
            initial=("kmeans", "gaussian"),
        )
        size = self.code_dim or self.dim
        if self.heads < 1 or size % self.heads:
            raise ValueError(
                f"quantizer.heads is {self.heads}: it must divide the {size} dimensions of a code"
            )
        if self.rate_weight and self.estimator == "gumbel":
            raise ValueError(
                f"quantizer.rate_weight is {self.rate_weight}: the estimator 'gumbel' samples codes, and "
                "cannot choose them by their rate"
            )
        if self.orthogonal_weight and self.codebook == "ema":
            raise ValueError(
                f"quantizer.orthogonal_weight is {self.orthogonal_weight}, but an EMA codebook is "
                "not trained by a loss: set it to 0 or set quantizer.codebook='gradient'"
            )
        self.book = self.make_codebook(
            dim=size // self.heads,
            num_books=1 if self.shared_heads else self.heads,
            rule=self.codebook,
            unit_norm=self.distance == "cosine",
            initial=self.initial,
        )
        if self.code_dim:
            self.project_in = nn.Dense(self.code_dim, precision="highest")
            self.project_out = nn.Dense(self.dim, precision="highest")

    @property
    def code_shape(self) -> tuple[int, ...]:
        return (self.heads,) if self.heads > 1 else ()

    @property
    def residual_scale(self) -> Any:
        plain = self.heads == 1 and not self.code_dim and self.distance == "l2"
        return 1.0 if plain else None

    def prepare(self, z: jax.Array) -> jax.Array:
        z = z.astype(jnp.float32)
        y = self.project_in(z) if self.code_dim else z
        if self.distance == "cosine":
            y = functions.normalise(y.reshape(*y.shape[:-1], self.heads, -1)).reshape(y.shape)
        return y

    def pass_through(self, z: jax.Array) -> jax.Array:
        y = self.prepare(z)
        return self.project_out(y) if self.code_dim else y

    def _rows(self, y: jax.Array) -> jax.Array:
        """Reshapes prepared latents [..., heads * d] to rows [C, M, d] of each codebook.

        A shared codebook gets the rows of all heads, M = N * heads for N latents.
        """
        y_NHd = y.reshape(-1, self.heads, self.book.dim)
        if self.book.num_books == 1:
            return y_NHd.reshape(1, -1, self.book.dim)
        return y_NHd.transpose(1, 0, 2)

    def _unrows(self, rows_CM: jax.Array, grid: tuple[int, ...]) -> jax.Array:
        """Inverts `_rows`: [C, M, ...] -> [*grid, heads, ...]."""
        if self.book.num_books > 1:
            rows_CM = rows_CM.swapaxes(0, 1)
        return rows_CM.reshape(*grid, self.heads, *rows_CM.shape[2:])

    def _latents(self, rows_CMd: jax.Array, grid: tuple[int, ...]) -> jax.Array:
        """Joins the heads and projects out: rows [C, M, d] -> latents [*grid, D]."""
        y = self._unrows(rows_CMd, grid).reshape(*grid, -1)
        return self.project_out(y) if self.code_dim else y

    def _code_rows(self, codes: jax.Array) -> jax.Array:
        """Reshapes codes [..., *code_shape] to [C, M], in the order of `_rows`."""
        if self.book.num_books == 1:
            return codes.reshape(1, -1)
        return codes.reshape(-1, self.heads).T

    def lookup(self, codes: jax.Array) -> jax.Array:
        grid = codes.shape[: codes.ndim - len(self.code_shape)]
        return self._latents(self.book.lookup(self._code_rows(codes)), grid)

    def codebooks(self) -> jax.Array:
        entries_CKd = self.book.entries()
        shape = (*self.code_shape, *entries_CKd.shape[1:])
        return jnp.broadcast_to(entries_CKd, shape) if self.code_shape else entries_CKd[0]

    def assign(self, y, *, key, scheduled, axis_name):
        rows_CMd = self._rows(y)
        if self.estimator == "gumbel":
            z_q_CMd, codes_CM = self._sample(rows_CMd, key, scheduled, axis_name)
            entries_CMd = self.book.lookup(codes_CM)
        else:
            charged = self.uses_term(scheduled, "rate_weight")
            rate_weight = self.value(scheduled, "rate_weight") if charged else None
            codes_CM = self.book.nearest(rows_CMd, rate_weight)
            entries_CMd = self.book.lookup(codes_CM)
            z_q_CMd = functions.ESTIMATORS[self.estimator](rows_CMd, entries_CMd)

        commitment_loss = l2_to_constant(rows_CMd, entries_CMd)
        codebook_loss = l2_to_constant(entries_CMd, rows_CMd)
        loss = self.value(scheduled, "beta") * commitment_loss
        if self.codebook != "ema":
            loss += codebook_loss
        aux = {"commitment": commitment_loss, "codebook": codebook_loss}
        if self.uses_term(scheduled, "entropy_weight") or self.uses_term(scheduled, "usage_weight"):
            diversity_loss, terms = self._diversity_loss(rows_CMd, scheduled, axis_name)
            loss += diversity_loss
            aux |= terms
        if self.variance_weight:
            variance_D = functions.variance(y.reshape(-1, y.shape[-1]), axis_name)
            loss += self.variance_weight * losses.latent_variance(variance_D).mean()
        if self.orthogonal_weight:
            aux["orthogonality"] = map_books(functions.orthogonality, self.book.entries()).mean()
            loss += self.orthogonal_weight * aux["orthogonality"]

        if self.uses_term(scheduled, "rate_weight"):
            bits = map_books(
                lambda bits_K, codes_M: bits_K[codes_M], self.book.code_bits(), codes_CM
            )
            aux["rate"] = bits.mean()

        grid = y.shape[:-1]
        codes = self._unrows(codes_CM, grid)
        codes = codes if self.code_shape else codes[..., 0]
        aux |= {"loss": loss, "counts": self.count(codes, axis_name)}
        return self._latents(z_q_CMd, grid), codes, aux

    def _soft_entries(self) -> jax.Array:
        """Returns the entries for soft assignments. EMA entries get no gradient."""
        entries_CKd = self.book.entries()
        return jax.lax.stop_gradient(entries_CKd) if self.codebook == "ema" else entries_CKd

    def _sample(self, rows_CMd, key, scheduled, axis_name):
        """Applies the estimator "gumbel": returns z_q [C, M, d] and codes [C, M]."""
        books, rows, _ = rows_CMd.shape
        temperature, entries_CKd = self.value(scheduled, "temperature"), self._soft_entries()
        # Keys are ordered by token, so that the noise does not depend on the number of devices.
        keys = functions.row_keys(key, books * rows, axis_name)

        def sample(c):
            entries_Kd = entries_CKd[c]
            logits = distance_logits(entries_Kd, temperature)
            row_keys = None if keys is None else keys.reshape(rows, books)[:, c]
            return soft_lookup(rows_CMd[c], *logits, entries_Kd, row_keys)

        return map_books(sample, jnp.arange(books))

    def _diversity_loss(self, rows_CMd, scheduled, axis_name):
        """Computes the weighted sum of the entropy and usage terms, and the entropies for `aux`."""
        temperature = self.value(scheduled, "temperature")

        def measure(rows_Md, entries_Kd):
            logits = distance_logits(entries_Kd, temperature)
            mean_entropy, mean_K = assignment_statistics(rows_Md, *logits, axis_name)
            return mean_entropy, losses.entropy(mean_K), losses.code_usage(mean_K)

        mean_entropy, entropy_of_mean, usage = (
            term.mean() for term in map_books(measure, rows_CMd, self._soft_entries())
        )
        entropy_loss, terms = self.entropy_loss(scheduled, mean_entropy, entropy_of_mean)
        return entropy_loss + self.value(scheduled, "usage_weight") * usage, terms

    def initialise(self, z, key, batches=1, *, axis_name=None):
        self.book.initialise(self._rows(self.prepare(z)), key, batches, axis_name)

    def update(self, z, codes, key, *, axis_name=None):
        rows_CMd = self._rows(self.prepare(z))
        codes_CM = self._code_rows(codes)
        if self.estimator == "gumbel":
            # The codes were sampled. The statistics must follow the nearest entries instead.
            codes_CM = self.book.nearest(rows_CMd)
        return {"book": self.book.update(rows_CMd, codes_CM, key, axis_name)}


class SimVQ(VectorQuantizer):
    """A frozen codebook under a trained linear map: e_k = c_k W (Zhu et al. 2024, eq. 7-8).

    W moves all entries when any of them is used, so unused entries are not left behind.
    `initialise` sets the frozen codebook from latents and W to the identity. Without `initialise`,
    the frozen entries are normally distributed. A dead entry is moved to the point that W maps to a
    latent, or as near to one as possible if W does not have full rank. The loss is that of a
    codebook trained by gradient. The other attributes are those of `VectorQuantizer`.
    """

    codebook: str = "mapped"
