"""Training states: pytrees of arrays only."""

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
      ema_params: moving average of `params`, for evaluation; an empty dict if none is kept.
      stats: variables that are not trained by gradient (codebook statistics); may be empty.
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
      skipped: int32 [], number of steps skipped because of NaN or infinite values.
      generator: encoder, quantizer and decoder.
      discriminator: empty trees if the recipe has none.
      lecam: float32 `real` [] and `fake` [], moving averages of the discriminator's logits.
    """

    step: jax.Array
    skipped: jax.Array
    generator: TrainState
    discriminator: TrainState
    lecam: dict[str, jax.Array]

    def split(self) -> dict[str, Any]:
        """Splits the state in two trees for a checkpoint.

        Returns:
          `tokenizer`, all that using the tokenizer needs ({"params": averaged params, "stats"}), and
          `training`, the rest.
        """
        tokenizer = {"params": self.generator.ema_params, "stats": self.generator.stats}
        generator = self.generator.replace(ema_params={}, stats={})
        return {"tokenizer": tokenizer, "training": self.replace(generator=generator)}

    def join(self, parts: dict[str, Any]) -> "GanState":
        """Inverts `split`; `self` is a state of the same run."""
        training, tokenizer = parts["training"], parts["tokenizer"]
        generator = training.generator.replace(
            ema_params=tokenizer["params"], stats=tokenizer["stats"]
        )
        return training.replace(generator=generator)


@struct.dataclass
class PriorState:
    """A prior under training.

    Attributes:
      step, skipped: as in `GanState`.
      prior: the transformer.
      fingerprint: uint8 [32], of the tokenizer whose codes it learns.
      tokenizer: the frozen variables of that tokenizer if the step encodes examples, else empty. They
        are not part of a checkpoint.
    """

    step: jax.Array
    skipped: jax.Array
    prior: TrainState
    fingerprint: jax.Array
    tokenizer: Tree

    def split(self) -> dict[str, Any]:
        """Splits the state in two trees for a checkpoint.

        Returns:
          `prior`, all that using the prior needs ({"params": averaged params, "fingerprint"}), and
          `training`, the rest.
        """
        prior = {"params": self.prior.ema_params, "fingerprint": self.fingerprint}
        training = self.replace(
            prior=self.prior.replace(ema_params={}), fingerprint=(), tokenizer={}
        )
        return {"prior": prior, "training": training}

    def join(self, parts: dict[str, Any]) -> "PriorState":
        """Inverts `split`; `self` is a state of the same run, whose tokenizer is kept."""
        training = parts["training"]
        prior = training.prior.replace(ema_params=parts["prior"]["params"])
        fingerprint = parts["prior"]["fingerprint"]
        return training.replace(prior=prior, fingerprint=fingerprint, tokenizer=self.tokenizer)
