"""What the training loop and the evaluation know of a tokenizer or a prior: `Job`, `Evaluation`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from vq_jax.data.sources import Splits
from vq_jax.modalities import Network
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
