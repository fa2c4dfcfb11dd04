"""What training carries from step to step: arrays only."""

from typing import Any

import jax
from flax import struct

Tree = Any


@struct.dataclass
class TrainState:
    """One network under training.

    Attributes:
      params: float32 params.
      opt_state: its Optax state.
      ema_params: moving average of `params`, for evaluation; an empty dict where none is kept.
      stats: the variables that are not trained by gradient (codebook statistics); may be empty.
    """

    params: Tree
    opt_state: Tree
    ema_params: Tree
    stats: Tree


@struct.dataclass
class GanState:
    """A tokenizer and its discriminator, each a network of its own.

    Attributes:
      step: int32 [], steps taken.
      skipped: int32 [], how many of them changed nothing because a number in them was not finite.
      generator: encoder, quantizer and decoder.
      discriminator: empty trees where the recipe has none.
      lecam: float32 `real` [] and `fake` [], moving averages of the discriminator's logits.
    """

    step: jax.Array
    skipped: jax.Array
    generator: TrainState
    discriminator: TrainState
    lecam: dict[str, jax.Array]


@struct.dataclass
class PriorState:
    """A prior under training.

    Attributes:
      step, skipped: as a tokenizer's.
      prior: the transformer.
      fingerprint: uint8 [32], of the tokenizer whose codes it learns.
      tokenizer: that tokenizer's variables, fixed, where codes are made in the step; else empty.
        It is no part of a checkpoint.
    """

    step: jax.Array
    skipped: jax.Array
    prior: TrainState
    fingerprint: jax.Array
    tokenizer: Tree


def split(state: GanState | PriorState) -> dict[str, Any]:
    """The state in two parts for a checkpoint: all that using the network takes, and the rest.

    The first, `tokenizer` or `prior`, is {"params": averaged params, ...}: with a tokenizer's
    statistics (`stats`), or a prior's `fingerprint`. `join` puts the two together.
    """
    if isinstance(state, PriorState):
        prior = {"params": state.prior.ema_params, "fingerprint": state.fingerprint}
        training = state.replace(
            prior=state.prior.replace(ema_params={}), fingerprint=(), tokenizer={}
        )
        return {"prior": prior, "training": training}
    tokenizer = {"params": state.generator.ema_params, "stats": state.generator.stats}
    generator = state.generator.replace(ema_params={}, stats={})
    return {"tokenizer": tokenizer, "training": state.replace(generator=generator)}


def join(parts: dict[str, Any], like: Any) -> Any:
    """The state that `split` took apart; `like` has what a checkpoint does not."""
    training = parts["training"]
    if isinstance(like, PriorState):
        prior = training.prior.replace(ema_params=parts["prior"]["params"])
        fingerprint = parts["prior"]["fingerprint"]
        return training.replace(prior=prior, fingerprint=fingerprint, tokenizer=like.tokenizer)
    tokenizer = parts["tokenizer"]
    generator = training.generator.replace(ema_params=tokenizer["params"], stats=tokenizer["stats"])
    return training.replace(generator=generator)
