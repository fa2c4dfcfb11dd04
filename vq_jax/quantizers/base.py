"""What every quantizer answers to, and the codebook that several of them hold."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax import collectives, losses, metrics
from vq_jax.quantizers import functions

Aux = dict[str, jax.Array]
Now = Mapping[str, Any]

# Fields of quantizers that may change over the steps: see `config.anneal`.
SCHEDULED = ("beta", "entropy_weight", "temperature", "usage_weight", "kl_weight")


class Quantizer(nn.Module):
    """The interface, with what a quantizer without a codebook does.

    A subclass defines `num_codes` and `dim` (fields or properties), `assign` and `lookup`; the
    contract tests run over all of `QUANTIZERS`.

    Attributes:
      num_codes: K; codes lie in [0, K).
      dim: D, the size of a latent.
      code_shape: the shape of one latent's codes: () for one, (Q,) for Q of them.
      residual_scale: how much smaller than the latent is what quantizing leaves: a residual
        quantizer's levels are scaled by its powers. A float, or float32 [D]; None where it cannot be
        a level: its latents have several codes, or are not compared as they are.
    """

    @property
    def code_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def residual_scale(self) -> Any:
        return 1.0

    def __call__(
        self,
        z: jax.Array,
        *,
        key: jax.Array | None = None,
        now: Now | None = None,
        axis_name: str | None = None,
    ) -> tuple[jax.Array, jax.Array, Aux]:
        """Quantizes latents.

        Args:
          z: float [..., D].
          key: PRNG key of this step, the same on every device, for what is random in training; None
            leaves the randomness out.
          now: values at this step of the `SCHEDULED` fields that change; the others are as set.
          axis_name: mapped axis whose devices share the batch, or None.

        Returns:
          z_q: float32 [..., D], equal to `lookup(codes)`, with a gradient for z;
          codes: int32 [..., *code_shape];
          aux: `loss` [], what the quantizer adds to the training loss; `counts` [*code_shape, K],
            float32, over all devices; the loss's parts, unweighted, by name.
        """
        return self.assign(self.prepare(z), key=key, now=now or {}, axis_name=axis_name)

    def prepare(self, z: jax.Array) -> jax.Array:
        """What is quantized of the latents, float32: bounded, normalised or projected ones.

        Of a quantizer that can be a residual level and has an `update`, the latents as they are.
        """
        return z.astype(jnp.float32)

    def pass_through(self, z: jax.Array) -> jax.Array:
        """What a decoder is given of the latents while nothing is quantized yet, float32 [..., D]."""
        return self.prepare(z)

    def assign(
        self, y: jax.Array, *, key: jax.Array | None, now: Now, axis_name: str | None
    ) -> tuple[jax.Array, jax.Array, Aux]:
        """As `__call__`, of what `prepare` returns."""
        raise NotImplementedError

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Quantized latents, float32 [..., D], of codes int [..., *code_shape]."""
        raise NotImplementedError

    def codebooks(self) -> jax.Array | None:
        """Learned entries, float32 [*code_shape, K, d], or None where codes mean fixed points."""
        return None

    def initialise(
        self, z: jax.Array, key: jax.Array, batches: int = 1, *, axis_name: str | None = None
    ) -> None:
        """Sets codebooks from latents (apply with ``mutable=["params", "codebook"]``).

        Args:
          z: float [..., D], the latents of this device.
          key: PRNG key, the same on every device.
          batches: how many batches `z` holds; statistics are those of one.
          axis_name: mapped axis, or None.
        """

    def update(
        self, z: jax.Array, codes: jax.Array, key: jax.Array, *, axis_name: str | None = None
    ) -> dict[str, Any]:
        """Follows one batch, after the optimizer (apply with ``mutable=["params", "codebook"]``).

        Args:
          z: float [..., D], the latents of this device.
          codes: int32 [..., *code_shape], what they were quantized to.
          key: PRNG key, the same on every device.
          axis_name: mapped axis, or None.

        Returns:
          what was set anew: bool masks under the names of the params they broadcast to.
        """
        return {}

    @property
    def takes_fewer_codes(self) -> bool:
        """Whether `lookup` takes the first of a latent's codes alone."""
        return False

    # For subclasses.

    def value(self, now: Now, name: str) -> Any:
        """A scheduled field's value at this step."""
        return now.get(name, getattr(self, name))

    def wants(self, now: Now, name: str) -> bool:
        """Whether a loss's weight is not fixed at 0."""
        return name in now or bool(getattr(self, name))

    def check_choices(self, **known: tuple[str, ...]) -> None:
        """Raises ValueError, in one line, where a field's value is none of those known."""
        for field, values in known.items():
            if getattr(self, field) not in values:
                raise ValueError(
                    f"quantizer.{field} is {getattr(self, field)!r}: use "
                    f"{', '.join(map(repr, values))}"
                )

    def entropy_loss(
        self, now: Now, per_latent: jax.Array, average: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """entropy_weight * (E[H(p)] - H(E[p])) of the two entropies, and these by their names."""
        loss = self.value(now, "entropy_weight") * (per_latent - average)
        return loss, {"code_entropy": per_latent, "batch_entropy": average}

    def make_book(self, **fields: Any) -> "Codebook":
        """A codebook with the quantizer's own fields for its upkeep."""
        return Codebook(
            num_codes=self.num_codes,
            decay=self.decay,
            kmeans_iterations=self.kmeans_iterations,
            revive_below=self.revive_below,
            **fields,
        )

    def count(self, codes: jax.Array, axis_name: str | None) -> jax.Array:
        """Occurrences of each code, float32 [*code_shape, K], over all devices."""
        count = metrics.code_counts
        if self.code_shape:
            counts = jax.vmap(lambda c: count(c, self.num_codes), in_axes=-1)(codes)
        else:
            counts = count(codes, self.num_codes)
        return collectives.psum(counts, axis_name)


def pull(moved: jax.Array, target: jax.Array) -> jax.Array:
    """mean |moved - stop_gradient(target)|^2, float32 []: the commitment loss of latents towards
    entries, the codebook loss the other way (van den Oord et al. 2017, eq. 3)."""
    return jnp.mean(losses.l2(moved, jax.lax.stop_gradient(target)))


class Codebook(nn.Module):
    """Entries and their statistics: `C` codebooks of K entries, latents in rows [C, M, d].

    The entries lie in `params`, [K, d] or [C, K, d]; collection `codebook` holds, in float32,
    `cluster_size` [C, K] and `embed_sum` [C, K, d], moving averages of each code's count and of the
    sum of its latents.

    Attributes:
      num_codes: K.
      dim: d.
      books: C.
      rule: "ema", entries follow the moving averages; "gradient", they are trained; "mapped", they
        stay in collection `codebook` as `frozen` [C, K, d], and a linear map of them is trained (Zhu
        et al. 2024, eq. 7).
      unit: entries have length 1.
      decay: of the moving averages.
      kmeans_iterations: rounds of k-means in `initialise`; 0 takes sampled latents as they are.
      revive_below: an entry whose moving count falls below this share of the mean count moves onto a
        random latent, its statistics reset with it; 0 never revives.
    """

    num_codes: int
    dim: int
    books: int = 1
    rule: str = "ema"
    unit: bool = False
    decay: float = 0.99
    kmeans_iterations: int = 10
    revive_below: float = 0.01

    def setup(self):
        size = (self.books, self.num_codes)
        shape = (*size, self.dim)

        def uniform(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -1 / shape[-2], 1 / shape[-2])

        if self.rule == "mapped":

            def normal():
                return self.dim**-0.5 * jax.random.normal(self.make_rng("params"), shape)

            self.variable("codebook", "frozen", normal)
            self.param("codebook_map", lambda _: jnp.eye(self.dim))
        else:
            self.param("codebook", uniform, shape if self.books > 1 else shape[1:])
        self.variable("codebook", "cluster_size", jnp.ones, size)
        if self.rule == "ema":
            self.variable("codebook", "embed_sum", lambda: self._raw_entries() + 0.0)

    def entries(self) -> jax.Array:
        """float32 [C, K, d], as latents are compared with them."""
        entries_CKd = self._raw_entries()
        if self.rule == "mapped":
            codebook_map_dd: jax.Array = self.get_variable("params", "codebook_map")
            entries_CKd = jnp.matmul(entries_CKd, codebook_map_dd, precision="highest")
        return functions.normalise(entries_CKd) if self.unit else entries_CKd

    def lookup(self, codes_CM: jax.Array) -> jax.Array:
        """Entries [C, M, d] of codes [C, M]."""
        return per_book(lambda entries_Kd, codes_M: entries_Kd[codes_M], self.entries(), codes_CM)

    def nearest(self, rows_CMd: jax.Array) -> jax.Array:
        """The nearest entry of each row: int32 [C, M]."""
        return per_book(functions.nearest_codes, rows_CMd, self.entries())

    def initialise(
        self, rows_CMd: jax.Array, key: jax.Array, batches: int, axis_name: str | None
    ) -> None:
        """Sets entries and statistics by k-means; see `Quantizer.initialise`."""

        def centroids(key, rows_Md):
            return functions.kmeans(
                key, rows_Md, self.num_codes, self.kmeans_iterations, self.unit, axis_name
            )

        entries_CKd, size_CK = per_book(centroids, self._keys(key), rows_CMd)
        size_CK = jnp.maximum(size_CK, 1.0) / batches
        self.put_variable("codebook", "cluster_size", size_CK)
        if self.rule == "ema":
            self.put_variable("codebook", "embed_sum", entries_CKd * size_CK[..., None])
        if self.rule == "mapped":
            self.put_variable("params", "codebook_map", jnp.eye(self.dim))
        self.set_entries(entries_CKd)

    def update(
        self, rows_CMd: jax.Array, codes_CM: jax.Array, key: jax.Array, axis_name: str | None
    ) -> dict[str, jax.Array]:
        """Moving averages, the EMA codebook, revival of dead entries; see `Quantizer.update`."""

        def sums(rows_Md, codes_M):
            return functions.code_sums(rows_Md, codes_M, self.num_codes, axis_name)

        def follow(name, now):
            return self.decay * self.get_variable("codebook", name) + (1 - self.decay) * now

        counts_CK, sums_CKd = per_book(sums, rows_CMd, codes_CM)
        size_CK = follow("cluster_size", counts_CK)
        self.put_variable("codebook", "cluster_size", size_CK)
        if self.rule == "ema":
            embed_sum_CKd = follow("embed_sum", sums_CKd)
            self.put_variable("codebook", "embed_sum", embed_sum_CKd)
            self.set_entries(per_book(functions.ema_codebook, size_CK, embed_sum_CKd))
        return self._revive(rows_CMd, key, axis_name) if self.revive_below else {}

    def _revive(
        self, rows_CMd: jax.Array, key: jax.Array, axis_name: str | None
    ) -> dict[str, jax.Array]:
        """Moves dead entries onto latents, and their statistics with them."""

        size_CK: jax.Array = self.get_variable("codebook", "cluster_size")
        mean_C1 = size_CK.mean(axis=1, keepdims=True)
        dead_CK = size_CK < self.revive_below * mean_C1
        tokens = rows_CMd.shape[1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        if tokens < self.num_codes:
            # No latent twice: of equal entries all but the first would stay dead. The rest wait.
            dead_CK &= jnp.cumsum(dead_CK, axis=1) <= tokens

        def fresh(key, rows_Md, dead_K):
            drawn = min(tokens, self.num_codes)
            rows = collectives.sample_rows(key, rows_Md, drawn, axis_name)
            if drawn == self.num_codes:
                return rows
            return rows[jnp.clip(jnp.cumsum(dead_K) - 1, 0, drawn - 1)]

        fresh_CKd = per_book(fresh, self._keys(key), rows_CMd, dead_CK)
        dead_CK1 = dead_CK[..., None]
        # A revived entry starts with an average share, or its old emptiness kills it again.
        size_CK = jnp.where(dead_CK, mean_C1, size_CK)
        self.put_variable("codebook", "cluster_size", size_CK)
        if self.rule == "ema":
            embed_sum_CKd: jax.Array = self.get_variable("codebook", "embed_sum")
            embed_sum_CKd = jnp.where(dead_CK1, fresh_CKd * size_CK[..., None], embed_sum_CKd)
            self.put_variable("codebook", "embed_sum", embed_sum_CKd)
        entries_CKd = self._raw_entries()
        if self.rule == "mapped":
            # The map takes the new frozen entry to the latent.
            codebook_map_dd: jax.Array = self.get_variable("params", "codebook_map")
            fresh_CKd = jax.lax.cond(
                dead_CK.any(),
                lambda: jnp.matmul(
                    fresh_CKd, jnp.linalg.pinv(codebook_map_dd, rtol=1e-3), precision="highest"
                ),
                lambda: entries_CKd,
            )
        self.set_entries(jnp.where(dead_CK1, fresh_CKd, entries_CKd))
        return {"codebook": dead_CK1 if self.books > 1 else dead_CK1[0]}

    def _keys(self, key: jax.Array) -> jax.Array:
        return key[None] if self.books == 1 else jax.random.split(key, self.books)

    def _raw_entries(self) -> jax.Array:
        """[C, K, d] as stored: before the map, before normalising."""
        if self.rule == "mapped":
            return self.get_variable("codebook", "frozen")
        stored: jax.Array = self.get_variable("params", "codebook")
        return stored.reshape(self.books, self.num_codes, self.dim)

    def set_entries(self, raw_CKd: jax.Array) -> None:
        """Puts entries [C, K, d] where they are stored: as they are before a map and normalising."""
        if self.rule == "mapped":
            self.put_variable("codebook", "frozen", raw_CKd)
        else:
            self.put_variable("params", "codebook", raw_CKd if self.books > 1 else raw_CKd[0])


def per_book(f: Callable, *arrays_C: jax.Array) -> Any:
    """`f` of each of C codebooks' arrays, stacked."""
    # Not vmap: on the CPU a batched product is slower than the products one by one.
    results = [f(*(a[c] for a in arrays_C)) for c in range(arrays_C[0].shape[0])]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
