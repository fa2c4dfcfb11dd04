"""The vector quantizer: one codebook, nearest entry, trained by gradient or by moving averages."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax import collectives, losses, metrics
from vq_jax.quantizers import functions


class VectorQuantizer(nn.Module):
    """Maps every latent to its nearest codebook entry (van den Oord et al. 2017).

    The codebook lies in `params`; collection `codebook` holds its statistics, float32:
    `cluster_size` [K] and `embed_sum` [K, D], moving averages of each code's count and of the sum of
    its latents. `__call__` and `lookup` change nothing; `initialise` and `update` return the new
    codebook and statistics (apply with ``mutable=["params", "codebook"]``).

    Attributes:
      num_codes: K, the number of entries.
      dim: D, the size of one.
      codebook: "ema", entries follow the moving averages, or "gradient", entries are trained by the
        codebook loss.
      beta: weight of the commitment loss (1.0 on the codebook loss).
      decay: of the moving averages.
      kmeans_iterations: rounds of k-means in `initialise`; 0 takes sampled latents as they are.
      revive_below: an entry whose moving count falls below this share of the mean count moves onto a
        random latent, its statistics reset with it; 0 never revives.
      variance_weight, usage_weight: weights of the diversity terms (`losses.latent_variance`,
        `losses.code_usage`); 0 leaves them out.
    """

    num_codes: int = 512
    dim: int = 64
    codebook: str = "ema"
    beta: float = 0.25
    decay: float = 0.99
    kmeans_iterations: int = 10
    revive_below: float = 0.01
    variance_weight: float = 0.0
    usage_weight: float = 0.0

    def setup(self):
        if self.codebook not in ("ema", "gradient"):
            raise ValueError(f"quantizer.codebook is {self.codebook!r}: use 'ema' or 'gradient'")

        def uniform(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -1 / shape[0], 1 / shape[0])

        shape = (self.num_codes, self.dim)
        self.entries = self.param("codebook", uniform, shape)
        self.cluster_size = self.variable("codebook", "cluster_size", jnp.ones, (self.num_codes,))
        self.embed_sum = self.variable("codebook", "embed_sum", lambda: self.entries + 0.0)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Entries of `codes`: int32 [...] in [0, num_codes) -> float32 [..., dim]."""
        return self.entries[codes]

    def __call__(
        self, z: jax.Array, *, axis_name: str | None = None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Quantizes latents.

        Args:
          z: float [..., dim].
          axis_name: mapped axis whose devices share the batch, or None.

        Returns:
          z_q: float32 [..., dim], entries with the straight-through gradient;
          codes: int32 [...];
          aux: `loss` [], what the quantizer adds to the training loss (van den Oord et al. 2017,
            eq. 3, second and third terms, and the diversity terms); `commitment` [] and `codebook`
            [], its parts; `counts` [num_codes], over all devices.
        """
        z = z.astype(jnp.float32)
        codes = functions.nearest_codes(z, self.entries)
        entries = self.lookup(codes)
        commitment = jnp.mean(losses.l2(z, jax.lax.stop_gradient(entries)))
        to_codebook = jnp.mean(losses.l2(entries, jax.lax.stop_gradient(z)))
        loss = self.beta * commitment
        if self.codebook == "gradient":
            loss += to_codebook
        loss += self._diversity(z.reshape(-1, self.dim), axis_name)
        aux = {
            "loss": loss,
            "commitment": commitment,
            "codebook": to_codebook,
            "counts": collectives.psum(metrics.code_counts(codes, self.num_codes), axis_name),
        }
        return functions.straight_through(z, entries), codes, aux

    def _diversity(self, z_ND: jax.Array, axis_name: str | None) -> jax.Array:
        loss = jnp.zeros(())
        if self.variance_weight:
            variance_D = functions.variance(z_ND, axis_name)
            loss += self.variance_weight * losses.latent_variance(variance_D).mean()
        if self.usage_weight:
            assignment_K = functions.mean_assignment(z_ND, self.entries, axis_name)
            loss += self.usage_weight * losses.code_usage(assignment_K)
        return loss

    def initialise(
        self, z: jax.Array, key: jax.Array, batches: int = 1, *, axis_name: str | None = None
    ) -> None:
        """Sets codebook and statistics by k-means over latents.

        Args:
          z: float [..., dim], the latents of this device.
          key: PRNG key, the same on every device.
          batches: how many batches `z` holds; the statistics are those of one.
          axis_name: mapped axis, or None.
        """
        z_ND = z.reshape(-1, self.dim).astype(jnp.float32)
        entries, counts = functions.kmeans(
            key, z_ND, self.num_codes, self.kmeans_iterations, axis_name
        )
        counts = jnp.maximum(counts, 1.0) / batches
        self.put_variable("params", "codebook", entries)
        self.put_variable("codebook", "cluster_size", counts)
        self.put_variable("codebook", "embed_sum", entries * counts[:, None])

    def update(
        self, z: jax.Array, codes: jax.Array, key: jax.Array, *, axis_name: str | None = None
    ) -> jax.Array:
        """Follows one batch: moving averages, the EMA codebook, revival of dead entries.

        Args:
          z: float [..., dim], the latents of this device.
          codes: int32 [...], what they were quantized to.
          key: PRNG key, the same on every device.
          axis_name: mapped axis, or None.

        Returns:
          bool [num_codes]: the entries that were revived.
        """
        z_ND = z.reshape(-1, self.dim).astype(jnp.float32)
        counts, sums = functions.code_sums(z_ND, codes.reshape(-1), self.num_codes, axis_name)
        size = self.decay * self.cluster_size.value + (1 - self.decay) * counts
        embed_sum = self.decay * self.embed_sum.value + (1 - self.decay) * sums
        entries = self.entries
        if self.codebook == "ema":
            entries = functions.ema_codebook(size, embed_sum)
        dead = size < self.revive_below * size.mean()
        fresh = collectives.sample_rows(key, z_ND, self.num_codes, axis_name)
        entries = jnp.where(dead[:, None], fresh, entries)
        # A revived entry starts with an average share, or its old emptiness kills it again.
        size = jnp.where(dead, size.mean(), size)
        embed_sum = jnp.where(dead[:, None], fresh * size[:, None], embed_sum)
        self.put_variable("params", "codebook", entries)
        self.put_variable("codebook", "cluster_size", size)
        self.put_variable("codebook", "embed_sum", embed_sum)
        return dead
