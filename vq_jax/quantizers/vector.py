"""Quantizers that send a latent to the nearest entry of a codebook: `vq` and `simvq`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax import losses
from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer, per_book, pull


class VectorQuantizer(Quantizer):
    """The nearest entry of a codebook (van den Oord et al. 2017, eq. 1-3).

    Attributes:
      num_codes: K, entries of a codebook.
      dim: D, the size of a latent.
      code_dim: size of the space the codes live in, behind a linear projection in and another out
        (Yu et al. 2021, "factorized codes"); 0 is `dim`, without projections.
      heads: parts a (projected) latent is cut into, each with a code of its own: product quantization
        (Jegou et al. 2011).
      shared_heads: one codebook for all heads instead of one each.
      distance: "l2", or "cosine": latents and entries at length 1 (Yu et al. 2021).
      codebook: "ema", entries follow moving averages of their latents; "gradient", they are trained
        by the codebook loss; "mapped", see `SimVQ`.
      estimator: of the gradient through the lookup: "straight_through"; "rotation" (Fifty et al.
        2024); "gumbel", a code drawn in training from softmax_k(-|z - e_k|^2 / temperature) and the
        gradient of that softmax with its noise (Jang et al. 2017's at their tau = 1); commitment and
        codebook loss are then those of the code drawn.
      beta: weight of the commitment loss (1.0 on the codebook loss).
      temperature: of the soft assignment softmax_k(-|z - e_k|^2 / temperature), which the estimator
        "gumbel" and the entropy and usage terms are about.
      entropy_weight: of E[H(p)] - H(E[p]), p the soft assignment: sure of each latent, even over
        the batch (Chang et al. 2022's quantizer; .1 at temperature .01 there).
      usage_weight: of `losses.code_usage` of the average soft assignment.
      variance_weight: of `losses.latent_variance`.
      orthogonal_weight: of `functions.orthogonality`; not for "ema".
      decay, kmeans_iterations, revive_below: see `base.Codebook`.
    """

    num_codes: int = 512
    dim: int = 64
    code_dim: int = 0
    heads: int = 1
    shared_heads: bool = False
    distance: str = "l2"
    codebook: str = "ema"
    estimator: str = "straight_through"
    beta: float = 0.25
    temperature: float = 1.0
    entropy_weight: float = 0.0
    usage_weight: float = 0.0
    variance_weight: float = 0.0
    orthogonal_weight: float = 0.0
    decay: float = 0.99
    kmeans_iterations: int = 10
    revive_below: float = 0.01

    def setup(self):
        self.check_choices(
            codebook=("ema", "gradient", "mapped"),
            distance=("l2", "cosine"),
            estimator=(*functions.ESTIMATORS, "gumbel"),
        )
        size = self.code_dim or self.dim
        if self.heads < 1 or size % self.heads:
            raise ValueError(
                f"quantizer.heads is {self.heads}: it must divide the {size} dimensions of a code"
            )
        if self.orthogonal_weight and self.codebook == "ema":
            raise ValueError(
                "quantizer.orthogonal_weight needs quantizer.codebook='gradient': moving averages "
                "do not follow it"
            )
        self.book = self.make_book(
            dim=size // self.heads,
            books=1 if self.shared_heads else self.heads,
            rule=self.codebook,
            unit=self.distance == "cosine",
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
        """[..., heads * d] -> [C, M, d]: a head's rows for its codebook, or all for the one."""
        y_NHd = y.reshape(-1, self.heads, self.book.dim)
        if self.book.books == 1:
            return y_NHd.reshape(1, -1, self.book.dim)
        return y_NHd.transpose(1, 0, 2)

    def _unrows(self, rows_CM: jax.Array, grid: tuple[int, ...]) -> jax.Array:
        """[C, M, ...] -> [*grid, heads, ...], back from `_rows`."""
        if self.book.books > 1:
            rows_CM = rows_CM.swapaxes(0, 1)
        return rows_CM.reshape(*grid, self.heads, *rows_CM.shape[2:])

    def _latents(self, rows_CMd: jax.Array, grid: tuple[int, ...]) -> jax.Array:
        y = self._unrows(rows_CMd, grid).reshape(*grid, -1)
        return self.project_out(y) if self.code_dim else y

    def _code_rows(self, codes: jax.Array) -> jax.Array:
        """[..., *code_shape] -> [C, M]."""
        if self.book.books == 1:
            return codes.reshape(1, -1)
        return codes.reshape(-1, self.heads).T

    def lookup(self, codes: jax.Array) -> jax.Array:
        grid = codes.shape[: codes.ndim - len(self.code_shape)]
        return self._latents(self.book.lookup(self._code_rows(codes)), grid)

    def codebooks(self) -> jax.Array:
        entries_CKd = self.book.entries()
        shape = (*self.code_shape, *entries_CKd.shape[1:])
        return jnp.broadcast_to(entries_CKd, shape) if self.code_shape else entries_CKd[0]

    def assign(self, y, *, key, now, axis_name):
        rows_CMd = self._rows(y)
        if self.estimator == "gumbel":
            z_q_CMd, codes_CM = self._sample(rows_CMd, key, now, axis_name)
            entries_CMd = self.book.lookup(codes_CM)
        else:
            codes_CM = self.book.nearest(rows_CMd)
            entries_CMd = self.book.lookup(codes_CM)
            z_q_CMd = functions.ESTIMATORS[self.estimator](rows_CMd, entries_CMd)

        to_entries, to_latents = pull(rows_CMd, entries_CMd), pull(entries_CMd, rows_CMd)
        loss = self.value(now, "beta") * to_entries
        if self.codebook != "ema":
            loss += to_latents
        aux = {"commitment": to_entries, "codebook": to_latents}
        if self.wants(now, "entropy_weight") or self.wants(now, "usage_weight"):
            extra, terms = self._spread(rows_CMd, now, axis_name)
            loss += extra
            aux |= terms
        if self.variance_weight:
            variance_D = functions.variance(y.reshape(-1, y.shape[-1]), axis_name)
            loss += self.variance_weight * losses.latent_variance(variance_D).mean()
        if self.orthogonal_weight:
            aux["orthogonality"] = per_book(functions.orthogonality, self.book.entries()).mean()
            loss += self.orthogonal_weight * aux["orthogonality"]

        grid = y.shape[:-1]
        codes = self._unrows(codes_CM, grid)
        codes = codes if self.code_shape else codes[..., 0]
        aux |= {"loss": loss, "counts": self.count(codes, axis_name)}
        return self._latents(z_q_CMd, grid), codes, aux

    def _entries(self) -> jax.Array:
        """Entries as the entropy terms and the soft choice see them: moving averages get no gradient."""
        entries_CKd = self.book.entries()
        return jax.lax.stop_gradient(entries_CKd) if self.codebook == "ema" else entries_CKd

    def _sample(self, rows_CMd, key, now, axis_name):
        books, rows, _ = rows_CMd.shape
        temperature, all_CKd = self.value(now, "temperature"), self._entries()
        # The noise of a token is the token's own, however many devices share the batch.
        keys = functions.row_keys(key, books * rows, axis_name)

        def choose(c):
            entries_Kd = all_CKd[c]
            logits = functions.distance_logits(entries_Kd, temperature)
            mine = None if keys is None else keys.reshape(rows, books)[:, c]
            return functions.soft_lookup(rows_CMd[c], *logits, entries_Kd, mine)

        return per_book(choose, jnp.arange(books))

    def _spread(self, rows_CMd, now, axis_name):
        """The entropy and usage terms: their weighted sum, and the parts."""
        temperature = self.value(now, "temperature")

        def measure(rows_Md, entries_Kd):
            logits = functions.distance_logits(entries_Kd, temperature)
            per_latent, mean_K = functions.assignments(rows_Md, *logits, axis_name)
            return per_latent, losses.entropy(mean_K), losses.code_usage(mean_K)

        per_latent, average, usage = (
            term.mean() for term in per_book(measure, rows_CMd, self._entries())
        )
        extra, terms = self.entropy_loss(now, per_latent, average)
        return extra + self.value(now, "usage_weight") * usage, terms

    def initialise(self, z, key, batches=1, *, axis_name=None):
        self.book.initialise(self._rows(self.prepare(z)), key, batches, axis_name)

    def update(self, z, codes, key, *, axis_name=None):
        rows_CMd = self._rows(self.prepare(z))
        codes_CM = self._code_rows(codes)
        if self.estimator == "gumbel":  # what was drawn is nothing to follow
            codes_CM = self.book.nearest(rows_CMd)
        return {"book": self.book.update(rows_CMd, codes_CM, key, axis_name)}


class SimVQ(VectorQuantizer):
    """A frozen codebook under a trained linear map: e_k = c_k W (Zhu et al. 2024, eq. 7-8).

    All entries move when one is used, so none is left behind. `initialise` freezes latents, and W
    starts as the identity; without it the entries are normal. A dead entry is revived where W takes
    it to a latent (or as near to one as a W without full rank can). The other attributes are
    `VectorQuantizer`'s; the loss is that of a codebook trained by gradient.
    """

    codebook: str = "mapped"
