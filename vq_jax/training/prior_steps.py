"""A prior's training step, a pure function of state, batch and key as `steps.py`'s is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vq_jax.collectives import first_row, pmean
from vq_jax.models import Tokenizer, Transformer
from vq_jax.models.transformer import init_params
from vq_jax.sampling import log_probability, row_keys
from vq_jax.training.state import PriorState, TrainState
from vq_jax.training.update import close_step, moving_average, update

Batch = Mapping[str, jax.Array]

# Folded into a step's key for dropout; no row has this number.
_DROPOUT = 2**32 - 2


@dataclasses.dataclass(frozen=True)
class PriorRecipe:
    """Everything a prior's step needs that no step changes.

    Attributes:
      prior: the module.
      tokenizer: makes codes of images in the step, or None where batches are codes.
      optimizer: its Optax chain.
      label_smoothing: share of the target's probability that is spread over all codes.
      label_dropout: share of images whose label is left out.
      least_masked: for a masked prior, the least share of an image's codes that is masked.
      permute: step -> share of images in an order of their own, for a prior that can.
      ema_decay: of the params kept for sampling.
    """

    prior: Transformer
    tokenizer: Tokenizer | None
    optimizer: optax.GradientTransformation
    label_smoothing: float = 0.0
    label_dropout: float = 0.1
    least_masked: float = 0.0
    permute: optax.Schedule = lambda step: 1.0
    ema_decay: float = 0.999


def init_prior_state(
    recipe: PriorRecipe, key: jax.Array, fingerprint: np.ndarray, tokenizer: Any
) -> PriorState:
    """A fresh state.

    Args:
      recipe: what is to be trained.
      key: PRNG key.
      fingerprint: uint8 [32], the tokenizer's.
      tokenizer: its variables, or {}.
    """
    params = init_params(recipe.prior, key)
    return PriorState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        prior=TrainState(
            params=params,
            opt_state=recipe.optimizer.init(params),
            ema_params=jax.tree.map(jnp.copy, params),
            stats={},
        ),
        fingerprint=jnp.asarray(fingerprint, jnp.uint8),
        tokenizer=tokenizer,
    )


def codes_of(
    tokenizer: Tokenizer | None, variables: Any, batch: Batch
) -> tuple[jax.Array, jax.Array | None]:
    """A batch's codes, int32 [B, N], and its condition's [B, M] or None, made of images if need be."""

    def encode(images):
        assert tokenizer is not None
        z = tokenizer.apply(variables, images, method="encode")
        codes: Any = tokenizer.apply(variables, z, method="quantize")[1]
        return codes.reshape(codes.shape[0], -1)

    codes = batch["codes"] if "codes" in batch else encode(batch["image"])
    return codes, encode(batch["condition"]) if "condition" in batch else None


def mask_codes(key: jax.Array, length: int, share: jax.Array) -> jax.Array:
    """bool [length], True at ceil(share * length) places drawn without replacement, at least one."""
    count = jnp.maximum(1, jnp.ceil(share * length - 1e-4).astype(jnp.int32))
    return jnp.argsort(jax.random.uniform(key, (length,))).argsort() < count


def draw_masks(keys_B: jax.Array, length: int, least: float = 0.0) -> jax.Array:
    """bool [B, length], what a masked prior is to predict: a share cos(pi u / 2) of each image's
    codes with u uniform in [0, 1] (Chang et al. 2022, sec. 3.1), never less than `least`."""

    def of_row(key):
        u = jax.random.uniform(jax.random.fold_in(key, 0))
        share = jnp.maximum(jnp.cos(jnp.pi / 2 * u), least)
        return mask_codes(jax.random.fold_in(key, 1), length, share)

    return jax.vmap(of_row)(keys_B)


def draw_orders(keys_B: jax.Array, positions: int, share: jax.Array | float) -> jax.Array:
    """int32 [B, positions]: a random order in about `share` of the rows, row by row in the others."""

    def of_row(key):
        order = jax.random.permutation(jax.random.fold_in(key, 0), positions)
        permuted = jax.random.uniform(jax.random.fold_in(key, 1)) < share
        return jnp.where(permuted, order, jnp.arange(positions))

    return jax.vmap(of_row)(keys_B)


def prior_step(
    state: PriorState,
    batch: Batch,
    key: jax.Array,
    *,
    recipe: PriorRecipe,
    axis_name: str | None = None,
) -> tuple[PriorState, dict[str, jax.Array]]:
    """One update of a prior by cross-entropy, of all codes or of the masked ones.

    What is drawn for an image (its mask, order, whether its label is left out) depends on its place
    in the batch of all devices; dropout alone depends on the device.

    Args:
      state: before the step.
      batch: this device's share: `codes` int32 [B, N], or `image` float32 [B, H, W, C]; `label`
        int32 [B]; `condition`, images, where the prior has one.
      key: the run's PRNG key; the step's own is fold_in(key, state.step).
      recipe: static.
      axis_name: mapped axis, or None.

    Returns:
      the state after the step, and metrics: float32 scalars, over all devices.
    """
    prior = recipe.prior
    codes_BN, condition_BM = codes_of(recipe.tokenizer, state.tokenizer, batch)
    codes_BN, condition_BM = jax.lax.stop_gradient((codes_BN, condition_BM))
    rows = codes_BN.shape[0]
    key = jax.random.fold_in(key, state.step)
    start = first_row(rows, axis_name)
    keys_B = row_keys(key, start, rows)

    def keyed(n):
        return jax.vmap(lambda k: jax.random.fold_in(k, n))(keys_B)

    dropped_B = jax.vmap(jax.random.uniform)(keyed(0)) < recipe.label_dropout
    label_B = jnp.where(dropped_B, prior.classes, jnp.minimum(batch["label"], prior.classes))
    order_BP = None
    inputs_BN, wanted_BN = codes_BN, jnp.ones_like(codes_BN, bool)
    if not prior.causal:
        wanted_BN = draw_masks(keyed(1), prior.length, recipe.least_masked)
        inputs_BN = jnp.where(wanted_BN, -1, codes_BN)
    elif prior.target_aware:
        positions = prior.length // prior.books
        order_BP = draw_orders(keyed(1), positions, recipe.permute(state.step))
    share_BN = wanted_BN / pmean(wanted_BN.sum(), axis_name)
    dropout_key = jax.random.fold_in(jax.random.fold_in(key, _DROPOUT), start)

    def loss(params):
        logits_BNK: Any = prior.apply(
            {"params": params},
            inputs_BN,
            label_B,
            condition_BM,
            order_BP,
            True,
            rngs={"dropout": dropout_key},
        )
        log_p_BN = log_probability(logits_BNK, codes_BN)
        nats = -jnp.sum(share_BN * log_p_BN)
        objective = (1.0 - recipe.label_smoothing) * nats
        if recipe.label_smoothing:
            uniform = jax.nn.log_softmax(logits_BNK).mean(-1)
            objective -= recipe.label_smoothing * jnp.sum(share_BN * uniform)
        right = jnp.sum(share_BN * (logits_BNK.argmax(-1) == codes_BN))
        return objective, {"bits_per_code": nats / jnp.log(2.0), "accuracy": right}

    (objective, report), grads = jax.value_and_grad(loss, has_aux=True)(state.prior.params)
    grads = pmean(grads, axis_name)
    report = pmean(report | {"loss": objective}, axis_name)
    report["grad_norm"] = optax.tree.norm(grads)
    trained = update(state.prior, grads, recipe.optimizer)
    ema_params = moving_average(
        trained.params, state.prior.ema_params, state.step, recipe.ema_decay
    )
    after = state.replace(prior=trained.replace(ema_params=ema_params))
    return close_step(state, after, report)
