"""The interface of every quantizer, and the codebook that several of them share."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax import collectives, losses, metrics
from vq_jax.quantizers import functions

Aux = dict[str, jax.Array]
Scheduled = Mapping[str, Any]

# Names of the quantizer fields whose values can change over the steps: see `config.anneal`.
SCHEDULED = ("beta", "entropy_weight", "temperature", "usage_weight", "kl_weight", "rate_weight")


class Quantizer(nn.Module):
    """The interface of a quantizer, with defaults for a quantizer without a codebook.

    A subclass defines `num_codes` and `dim` (fields or properties), `assign` and `lookup`. The
    contract tests run over all of `QUANTIZERS`.

    Attributes:
      num_codes: K; codes lie in [0, K).
      dim: D, the size of a latent.
      code_shape: shape of the codes of one latent: () for one code, (Q,) for Q codes.
      residual_scale: ratio of the residual's size to the latent's size. Level i of a residual
        quantizer works on the residual divided by `residual_scale`^i. A float, or float32 [D]. None
        if the quantizer cannot be a level: it gives a latent several codes, or compares transformed
        latents instead of the latents themselves.
      grids: those of the levels of a pyramid, coarse to fine, whose codes follow each other along one
        axis; () if codes are on the grid of the latents.
      radices: of codes that are numbers, the number of values of each digit, the lowest first; () of others.
      takes_quality: whether `__call__` has an argument `quality`, float32 [B] in [0, 1].
    """

    takes_quality = False

    @property
    def code_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def radices(self) -> tuple[int, ...]:
        return ()

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        return ()

    @property
    def residual_scale(self) -> Any:
        return 1.0

    def __call__(
        self,
        z: jax.Array,
        *,
        key: jax.Array | None = None,
        scheduled: Scheduled | None = None,
        axis_name: str | None = None,
    ) -> tuple[jax.Array, jax.Array, Aux]:
        """Quantizes latents.

        Args:
          z: float [..., D].
          key: PRNG key of the training step, the same on every device. None turns off all
            randomness.
          scheduled: values, at this step, of the `SCHEDULED` fields that change over the steps. The
            other fields keep their configured values.
          axis_name: mapped axis whose devices share the batch, or None.

        Returns:
          z_q: float32 [..., D], equal to `lookup(codes)`, with a gradient for z.
          codes: int32 [..., *code_shape].
          aux: `loss` [], the quantizer's term of the training loss; `counts` [*code_shape, K],
            float32, the count of each code over all devices; and the parts of the loss by name,
            without their weights.
        """
        return self.assign(self.prepare(z), key=key, scheduled=scheduled or {}, axis_name=axis_name)

    def prepare(self, z: jax.Array) -> jax.Array:
        """Bounds, normalises or projects latents before `assign`; returns float32.

        A quantizer that can be a residual level and has an `update` must return the latents
        unchanged in float32.
        """
        return z.astype(jnp.float32)

    def pass_through(self, z: jax.Array) -> jax.Array:
        """Returns the decoder's input, float32 [..., D], for training without quantization."""
        return self.prepare(z)

    def assign(
        self, y: jax.Array, *, key: jax.Array | None, scheduled: Scheduled, axis_name: str | None
    ) -> tuple[jax.Array, jax.Array, Aux]:
        """Quantizes the output of `prepare`. The results are those of `__call__`."""
        raise NotImplementedError

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the quantized latents, float32 [..., D], of codes int [..., *code_shape]."""
        raise NotImplementedError

    def codebooks(self) -> jax.Array | None:
        """Returns the learned entries, float32 [*code_shape, K, d].

        Returns None if the codes stand for fixed points.
        """
        return None

    def initialise(
        self, z: jax.Array, key: jax.Array, batches: int = 1, *, axis_name: str | None = None
    ) -> None:
        """Initialises the codebooks from latents.

        Apply it with ``mutable=["params", "codebook"]``.

        Args:
          z: float [..., D], the latents of this device.
          key: PRNG key, the same on every device.
          batches: number of batches in `z`. The statistics are scaled to one batch.
          axis_name: mapped axis, or None.
        """

    def update(
        self, z: jax.Array, codes: jax.Array, key: jax.Array, *, axis_name: str | None = None
    ) -> dict[str, Any]:
        """Updates the codebooks from one batch, after the optimizer's update.

        Apply it with ``mutable=["params", "codebook"]``.

        Args:
          z: float [..., D], the latents of this device.
          codes: int32 [..., *code_shape], the codes of these latents.
          key: PRNG key, the same on every device.
          axis_name: mapped axis, or None.

        Returns:
          Bool masks of the values that were replaced by new ones. Each mask has the name of a param
          and broadcasts to it.
        """
        return {}

    @property
    def takes_fewer_codes(self) -> bool:
        """Whether `lookup` also accepts only the first codes of each latent."""
        return False

    # For subclasses.

    def value(self, scheduled: Scheduled, name: str) -> Any:
        """Returns the value of a `SCHEDULED` field at this step."""
        return scheduled.get(name, getattr(self, name))

    def uses_term(self, scheduled: Scheduled, weight: str) -> bool:
        """Returns whether a loss term is needed: its weight is scheduled, or is not 0."""
        return weight in scheduled or bool(getattr(self, weight))

    def check_choices(self, **allowed: tuple[str, ...]) -> None:
        """Raises ValueError if a field's value is not one of its allowed values."""
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                raise ValueError(
                    f"quantizer.{field} is {getattr(self, field)!r}: use "
                    f"{', '.join(map(repr, values))}"
                )

    def entropy_loss(
        self, scheduled: Scheduled, mean_entropy: jax.Array, entropy_of_mean: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Computes entropy_weight * (E[H(p)] - H(E[p])).

        Args:
          scheduled: values of the `SCHEDULED` fields that change.
          mean_entropy: float32 [], E[H(p)].
          entropy_of_mean: float32 [], H(E[p]).

        Returns:
          The weighted loss, float32 [], and the two entropies by name, for `aux`.
        """
        loss = self.value(scheduled, "entropy_weight") * (mean_entropy - entropy_of_mean)
        return loss, {"code_entropy": mean_entropy, "batch_entropy": entropy_of_mean}

    def make_codebook(self, **fields: Any) -> "Codebook":
        """Makes a codebook that takes its size and its upkeep fields from this quantizer."""
        return Codebook(
            num_codes=self.num_codes,
            decay=self.decay,
            kmeans_iterations=self.kmeans_iterations,
            revive_below=self.revive_below,
            **fields,
        )

    def count(self, codes: jax.Array, axis_name: str | None) -> jax.Array:
        """Counts each code over all devices: float32 [*code_shape, K]."""
        count = metrics.code_counts
        if self.code_shape:
            counts = jax.vmap(lambda c: count(c, self.num_codes), in_axes=-1)(codes)
        else:
            counts = count(codes, self.num_codes)
        return collectives.psum(counts, axis_name)


def l2_to_constant(x: jax.Array, target: jax.Array) -> jax.Array:
    """Computes mean |x - stop_gradient(target)|^2, float32 [] (van den Oord et al. 2017, eq. 3).

    With latents as `x` and entries as `target` it is the commitment loss. With the two exchanged it
    is the codebook loss.
    """
    return jnp.mean(losses.l2(x, jax.lax.stop_gradient(target)))


class Codebook(nn.Module):
    """C codebooks of K entries and their statistics. Latents come in rows [C, M, d].

    The entries are in collection `params`, [K, d] if C is 1 and [C, K, d] otherwise. Collection
    `codebook` holds moving averages in float32: `cluster_size` [C, K] of each code's count and,
    with rule "ema", `embed_sum` [C, K, d] of the sum of its latents.

    Attributes:
      num_codes: K.
      dim: d.
      num_books: C.
      rule: "ema": the entries follow the moving averages. "gradient": the entries are trained.
        "mapped": the entries are constant in collection `codebook` as `frozen` [C, K, d], and a
        linear map of them is trained (Zhu et al. 2024, eq. 7).
      unit_norm: whether entries have length 1.
      decay: decay of the moving averages.
      initial: what `initialise` does. "kmeans", or "gaussian": entries are drawn from a normal
        distribution with the mean and the deviation of each dimension of the latents (a random codebook
        as in Xu et al. 2025, "Gaussian quantization").
      kmeans_iterations: rounds of k-means in `initialise`. With 0, the entries are sampled latents.
      revive_below: threshold of a dead entry, as a share of the mean moving count. A dead entry
        moves to a random latent, and its statistics are reset. 0 turns this off.
    """

    num_codes: int
    dim: int
    num_books: int = 1
    rule: str = "ema"
    unit_norm: bool = False
    initial: str = "kmeans"
    decay: float = 0.99
    kmeans_iterations: int = 10
    revive_below: float = 0.01

    def setup(self):
        size = (self.num_books, self.num_codes)
        shape = (*size, self.dim)

        def uniform(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -1 / shape[-2], 1 / shape[-2])

        if self.rule == "mapped":

            def normal():
                return self.dim**-0.5 * jax.random.normal(self.make_rng("params"), shape)

            self.variable("codebook", "frozen", normal)
            self.param("codebook_map", lambda _: jnp.eye(self.dim))
        else:
            self.param("codebook", uniform, shape if self.num_books > 1 else shape[1:])
        self.variable("codebook", "cluster_size", jnp.ones, size)
        if self.rule == "ema":
            self.variable("codebook", "embed_sum", lambda: self._stored_entries() + 0.0)

    def entries(self) -> jax.Array:
        """Returns the entries, float32 [C, K, d], after the map and the normalisation, if any."""
        entries_CKd = self._stored_entries()
        if self.rule == "mapped":
            codebook_map_dd: jax.Array = self.get_variable("params", "codebook_map")
            entries_CKd = jnp.matmul(entries_CKd, codebook_map_dd, precision="highest")
        return functions.normalise(entries_CKd) if self.unit_norm else entries_CKd

    def lookup(self, codes_CM: jax.Array) -> jax.Array:
        """Returns the entries [C, M, d] of codes [C, M]."""
        return map_books(lambda entries_Kd, codes_M: entries_Kd[codes_M], self.entries(), codes_CM)

    def nearest(self, rows_CMd: jax.Array, rate_weight: Any = None) -> jax.Array:
        """Returns the entry of each row with the least distance, int32 [C, M].

        Args:
          rows_CMd: latents.
          rate_weight: lambda of |z - e_k|^2 - lambda log2 p_k (Chou et al. 1989, eq. 5); None is 0.
        """
        entries_CKd = self.entries()
        if rate_weight is not None:
            # One more dimension in which all rows are 0 adds its square to the distances.
            price_CK1 = jnp.sqrt(rate_weight * self.code_bits())[..., None]
            entries_CKd = jnp.concatenate([entries_CKd, price_CK1], axis=-1)
            rows_CMd = jnp.pad(rows_CMd, ((0, 0), (0, 0), (0, 1)))
        return map_books(functions.nearest_codes, rows_CMd, entries_CKd)

    def code_bits(self) -> jax.Array:
        """Returns -log2 of the share of each entry in the moving counts, float32 [C, K]."""
        size_CK: jax.Array = self.get_variable("codebook", "cluster_size")
        share_CK = size_CK / size_CK.sum(axis=1, keepdims=True)
        return -jnp.log2(jnp.clip(share_CK, 2.0**-20, 1.0))

    def initialise(
        self, rows_CMd: jax.Array, key: jax.Array, batches: int, axis_name: str | None
    ) -> None:
        """Initialises entries and statistics; see `initial` and `Quantizer.initialise`."""

        def centroids(key, rows_Md):
            if self.initial == "gaussian":
                return functions.gaussian_entries(
                    key, rows_Md, self.num_codes, self.unit_norm, axis_name
                )
            return functions.kmeans(
                key, rows_Md, self.num_codes, self.kmeans_iterations, self.unit_norm, axis_name
            )

        entries_CKd, size_CK = map_books(centroids, self._split_key(key), rows_CMd)
        size_CK = jnp.maximum(size_CK, 1.0) / batches
        self.put_variable("codebook", "cluster_size", size_CK)
        if self.rule == "ema":
            self.put_variable("codebook", "embed_sum", entries_CKd * size_CK[..., None])
        if self.rule == "mapped":
            self.put_variable("params", "codebook_map", jnp.eye(self.dim))
        self.store_entries(entries_CKd)

    def update(
        self, rows_CMd: jax.Array, codes_CM: jax.Array, key: jax.Array, axis_name: str | None
    ) -> dict[str, jax.Array]:
        """Updates the moving averages and the EMA entries, and revives dead entries.

        See `Quantizer.update`.
        """

        def sums(rows_Md, codes_M):
            return functions.code_sums(rows_Md, codes_M, self.num_codes, axis_name)

        def moving_average(name, new):
            return self.decay * self.get_variable("codebook", name) + (1 - self.decay) * new

        counts_CK, sums_CKd = map_books(sums, rows_CMd, codes_CM)
        size_CK = moving_average("cluster_size", counts_CK)
        self.put_variable("codebook", "cluster_size", size_CK)
        if self.rule == "ema":
            embed_sum_CKd = moving_average("embed_sum", sums_CKd)
            self.put_variable("codebook", "embed_sum", embed_sum_CKd)
            self.store_entries(map_books(functions.ema_codebook, size_CK, embed_sum_CKd))
        return self._revive(rows_CMd, key, axis_name) if self.revive_below else {}

    def _revive(
        self, rows_CMd: jax.Array, key: jax.Array, axis_name: str | None
    ) -> dict[str, jax.Array]:
        """Moves dead entries to latents and resets their statistics; returns `update`'s masks."""

        size_CK: jax.Array = self.get_variable("codebook", "cluster_size")
        mean_C1 = size_CK.mean(axis=1, keepdims=True)
        dead_CK = size_CK < self.revive_below * mean_C1
        tokens = rows_CMd.shape[1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        if tokens < self.num_codes:
            # Revive one entry per latent at most, because of equal entries only the first is ever
            # chosen. The other dead entries wait for a later batch.
            dead_CK &= jnp.cumsum(dead_CK, axis=1) <= tokens

        def sample(key, rows_Md, dead_K):
            """Returns a latent for each entry; dead entries get different ones."""
            count = min(tokens, self.num_codes)
            rows = collectives.sample_rows(key, rows_Md, count, axis_name)
            if count == self.num_codes:
                return rows
            return rows[jnp.clip(jnp.cumsum(dead_K) - 1, 0, count - 1)]

        sampled_CKd = map_books(sample, self._split_key(key), rows_CMd, dead_CK)
        dead_CK1 = dead_CK[..., None]
        # A revived entry starts with the mean count. With its old count it would stay dead.
        size_CK = jnp.where(dead_CK, mean_C1, size_CK)
        self.put_variable("codebook", "cluster_size", size_CK)
        if self.rule == "ema":
            embed_sum_CKd: jax.Array = self.get_variable("codebook", "embed_sum")
            embed_sum_CKd = jnp.where(dead_CK1, sampled_CKd * size_CK[..., None], embed_sum_CKd)
            self.put_variable("codebook", "embed_sum", embed_sum_CKd)
        entries_CKd = self._stored_entries()
        if self.rule == "mapped":
            # Invert the map, so that it takes the new frozen entry to the latent.
            codebook_map_dd: jax.Array = self.get_variable("params", "codebook_map")
            sampled_CKd = jax.lax.cond(
                dead_CK.any(),
                lambda: jnp.matmul(
                    sampled_CKd, jnp.linalg.pinv(codebook_map_dd, rtol=1e-3), precision="highest"
                ),
                lambda: entries_CKd,
            )
        self.store_entries(jnp.where(dead_CK1, sampled_CKd, entries_CKd))
        return {"codebook": dead_CK1 if self.num_books > 1 else dead_CK1[0]}

    def _split_key(self, key: jax.Array) -> jax.Array:
        """Returns a PRNG key for each codebook, [C]."""
        return key[None] if self.num_books == 1 else jax.random.split(key, self.num_books)

    def _stored_entries(self) -> jax.Array:
        """Returns the entries [C, K, d] as stored, before the map and the normalisation."""
        if self.rule == "mapped":
            return self.get_variable("codebook", "frozen")
        stored: jax.Array = self.get_variable("params", "codebook")
        return stored.reshape(self.num_books, self.num_codes, self.dim)

    def store_entries(self, entries_CKd: jax.Array) -> None:
        """Stores entries [C, K, d], given before the map and the normalisation."""
        if self.rule == "mapped":
            self.put_variable("codebook", "frozen", entries_CKd)
        else:
            stored = entries_CKd if self.num_books > 1 else entries_CKd[0]
            self.put_variable("params", "codebook", stored)


def map_books(f: Callable, *arrays_C: jax.Array) -> Any:
    """Applies `f` to the arrays of each of C codebooks and stacks the results."""
    # A loop, because on the CPU vmap's batched matrix product is slower than separate products.
    results = [f(*(a[c] for a in arrays_C)) for c in range(arrays_C[0].shape[0])]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
