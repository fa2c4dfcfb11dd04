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


def split(state: GanState) -> dict[str, Any]:
    """The state in two parts for a checkpoint: `tokenizer`, all that using it takes, and the rest.

    The first is {"params": averaged params, "stats": statistics}; `join` puts the two together.
    """
    tokenizer = {"params": state.generator.ema_params, "stats": state.generator.stats}
    generator = state.generator.replace(ema_params={}, stats={})
    return {"tokenizer": tokenizer, "training": state.replace(generator=generator)}


def join(parts: dict[str, Any]) -> GanState:
    """The state that `split` took apart."""
    tokenizer, training = parts["tokenizer"], parts["training"]
    generator = training.generator.replace(ema_params=tokenizer["params"], stats=tokenizer["stats"])
    return training.replace(generator=generator)
