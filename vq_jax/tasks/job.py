"""What the training loop and the evaluation know of a tokenizer or a prior: `Job`, `Evaluation`.

`check_held_out` and `training_batches` are the parts of a job that all kinds share.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.data.pipeline import eval_batches, train_batches
from vq_jax.data.sources import Source, Splits
from vq_jax.errors import UserError
from vq_jax.modalities import Network
from vq_jax.training import parallel
from vq_jax.training.steps import Phase
from vq_jax.training.watch import Watch


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run without the loop.

    Attributes:
      config: the run's config.
      workdir: the run's folder.
      phases: the schedule, without empty phases.
      splits: the data.
      batches: () -> endless iterator of this process's batches, on its devices.
      init: () -> fresh state, on all devices.
      step: phase -> its pure step(state, batch, key, *, axis_name=None).
      before_step: (state, step, key) -> state, called before each step.
      networks: state -> name -> params, for the table of parameters.
      watch: (state, warn) -> follows the metrics of every step.
      model: (state) -> the trained model to evaluate; None except in process 0. All processes call it.
      files: what a finished run leaves in `workdir`: description -> name.
      check: raises UserError for a restored state that is not of this run.
    """

    config: ConfigDict
    workdir: Path
    phases: Sequence[Phase]
    splits: Splits
    batches: Callable[[], Any]
    init: Callable[[], Any]
    step: Callable[[Any], Callable]
    before_step: Callable[[Any, int, Any], Any]
    networks: Callable[[Any], dict[str, Any]]
    watch: Callable[[Any, Callable[[str], None]], Watch]
    model: Callable[[Any], Any]
    files: dict[str, str]
    check: Callable[[Any], None] = lambda state: None

    @property
    def total(self) -> int:
        """Number of steps of all phases."""
        return sum(self.config.phases.values())


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation of a trained model.

    Attributes:
      model: a `TrainedTokenizer` or `TrainedPrior`.
      splits: the data.
      workdir: where figures and pictures are written.
      console: where the table is printed.
      networks: the networks that compare sets of examples, see `Modality.networks`.
      count: number of a prior's samples for FID; None is `config.eval_samples`.
      seed: of a prior's samples.
    """

    model: Any
    splits: Splits
    workdir: Path
    console: Console
    networks: Sequence[Network] = ()
    count: int | None = None
    seed: int = 0


def check_held_out(config: ConfigDict, source: Source) -> None:
    """Raises UserError if no example of a held-out split can be read."""
    if next(eval_batches(source, config.data, configs.make_prepare(config)), None) is None:
        noun = modalities.of(config).noun
        raise UserError(f"no held-out {noun} could be read: see data.val_fraction and the log")


def training_batches(config: ConfigDict, source: Source, together: int = 1) -> Any:
    """Returns an endless iterator of this process's batches, on its devices.

    Args:
      config: the run's config.
      source: the training split.
      together: number of batches to join into one.
    """
    return train_batches(
        source,
        config.data,
        config.seed,
        configs.make_prepare(config, train=True),
        jax.process_index(),
        jax.process_count(),
        together=together,
        place=partial(parallel.shard_batch, parallel=config.parallel),
    )
