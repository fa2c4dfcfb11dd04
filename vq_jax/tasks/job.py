"""What the training loop is told of the thing it trains, a tokenizer or a prior."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from vq_jax.data.sources import Splits
from vq_jax.training.steps import Phase
from vq_jax.training.watch import Watch


@dataclasses.dataclass(frozen=True)
class Job:
    """A training, but for the loop.

    Attributes:
      config: the run's.
      workdir: its folder.
      phases: the schedule, without empty phases.
      splits: the data.
      batches: () -> the endless iterator of this process's batches, on its devices.
      init: () -> a fresh state, on all devices.
      step: phase -> its pure step(state, batch, key, *, axis_name=None).
      prepare: (state, step, key) -> the state to take that step from.
      networks: state -> name -> params, for the table of parameters.
      watch: (state, warn) -> what reads the metrics of every step.
      measure: (state, console) -> held-out figures; writes evaluation.json last. All processes
        call it, and the first measures.
      check: raises UserError for a restored state that is not this training's.
      places: what a finished run leaves in `workdir`: what it is -> name.
    """

    config: ConfigDict
    workdir: Path
    phases: list[Phase]
    splits: Splits
    batches: Callable[[], Any]
    init: Callable[[], Any]
    step: Callable[[Phase], Callable]
    prepare: Callable[[Any, int, Any], Any]
    networks: Callable[[Any], dict[str, Any]]
    watch: Callable[[Any, Callable[[str], None]], Watch]
    measure: Callable[[Any, Console], dict[str, Any]]
    places: dict[str, str]
    check: Callable[[Any], None] = lambda state: None

    @property
    def total(self) -> int:
        """Steps of all phases."""
        return sum(self.config.phases.values())
