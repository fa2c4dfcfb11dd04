"""The training step of a prior, a pure function of state, batch and key."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vq_jax.collectives import first_row, pmean
from vq_jax.models import Prior, Tokenizer
from vq_jax.models.transformer import init_params
from vq_jax.sampling import Radices, likeliest, log_probability, row_keys, split_digits
from vq_jax.training.state import PriorState, TrainState
from vq_jax.training.update import finalize_step, moving_average, update

Batch = Mapping[str, jax.Array]

# Folded into a step's key for dropout; no row of a batch has this number.
_DROPOUT = 2**32 - 2


@dataclasses.dataclass(frozen=True)
class PriorRecipe:
    """What is fixed for all steps of a prior's run.

    Attributes:
      prior: the module.
      tokenizer: encodes examples in the step; None if batches are codes.
      optimizer: its Optax chain.
      constants: its collections besides `params`; see `NextScale.constants`.
      label_smoothing: share of the target's probability that is spread over all codes.
      label_dropout: share of examples whose label is dropped.
      least_masked: for a masked prior, the smallest share of an example's codes that is masked.
      permute: step -> share of examples in a random order, for a target-aware prior.
      ema_decay: decay of the averaged params used in sampling.
    """

    prior: Prior
    tokenizer: Tokenizer | None
    optimizer: optax.GradientTransformation
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label_smoothing: float = 0.0
    label_dropout: float = 0.1
    least_masked: float = 0.0
    permute: optax.Schedule = lambda step: 1.0
    ema_decay: float = 0.999


def init_prior_state(
    recipe: PriorRecipe, key: jax.Array, fingerprint: np.ndarray, tokenizer: Any
) -> PriorState:
    """Initialises the state.

    Args:
      recipe: what is trained.
      key: PRNG key.
      fingerprint: uint8 [32], of the tokenizer.
      tokenizer: variables of the tokenizer, or {}.
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
    """Returns a batch's codes int32 [B, N], and those of its condition [B, M] or None.

    Examples are encoded, unless the batch has codes already.
    """

    def encode(x):
        assert tokenizer is not None
        codes: Any = tokenizer.apply(variables, x, method="encode_to_codes")
        return codes.reshape(codes.shape[0], -1)

    codes = batch["codes"] if "codes" in batch else encode(batch["x"])
    return codes, encode(batch["condition"]) if "condition" in batch else None


def _mean_log_probability(logits: jax.Array, radices: Radices) -> jax.Array:
    """The mean of the log-probabilities of all codes, of logits [..., K]: [...]."""
    means = (jax.nn.log_softmax(part).mean(-1) for part in split_digits(logits, radices))
    return functools.reduce(jnp.add, means)


def mask_codes(key: jax.Array, length: int, share: jax.Array) -> jax.Array:
    """Draws bool [length], True at ceil(share * length) random places, at least one."""
    count = jnp.maximum(1, jnp.ceil(share * length - 1e-4).astype(jnp.int32))
    return jnp.argsort(jax.random.uniform(key, (length,))).argsort() < count


def draw_masks(keys_B: jax.Array, length: int, least: float = 0.0) -> jax.Array:
    """Draws bool [B, length], the codes that a masked prior predicts.

    The share of each example is cos(pi u / 2) with u uniform in [0, 1] (Chang et al. 2022, sec. 3.1), and
    never less than `least`.
    """

    def of_row(key):
        u = jax.random.uniform(jax.random.fold_in(key, 0))
        share = jnp.maximum(jnp.cos(jnp.pi / 2 * u), least)
        return mask_codes(jax.random.fold_in(key, 1), length, share)

    return jax.vmap(of_row)(keys_B)


def draw_orders(keys_B: jax.Array, positions: int, share: jax.Array | float) -> jax.Array:
    """Draws orders int32 [B, positions]: random in about `share` of the rows, else ascending."""

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
    """Updates a prior by the cross-entropy of all codes, or of the masked ones.

    The mask, order and label dropout of an example depend on its index in the batch of all devices.
    Only dropout depends on the device.

    Args:
      state: before the step.
      batch: this device's share: `codes` int32 [B, N], or examples `x`; `label` int32 [B]; and
        `condition` if the prior has one.
      key: the run's PRNG key; the step uses fold_in(key, state.step).
      recipe: static.
      axis_name: mapped axis, or None.

    Returns:
      the state after the step, and metrics: float32 scalars, averaged over devices.
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
            {"params": params, **recipe.constants},
            inputs_BN,
            label_B,
            condition_BM,
            order_BP,
            True,
            rngs={"dropout": dropout_key},
        )
        log_p_BN = log_probability(logits_BNK, codes_BN, prior.radices)
        nats = -jnp.sum(share_BN * log_p_BN)
        objective = (1.0 - recipe.label_smoothing) * nats
        if recipe.label_smoothing:
            uniform = _mean_log_probability(logits_BNK, prior.radices)
            objective -= recipe.label_smoothing * jnp.sum(share_BN * uniform)
        right = jnp.sum(share_BN * (likeliest(logits_BNK, prior.radices) == codes_BN))
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
    return finalize_step(state, after, report)
