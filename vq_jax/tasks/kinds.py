"""The kinds of models that can be trained and evaluated: `KINDS`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vq_jax.modalities.base import Rows
from vq_jax.tasks import evaluate_prior, evaluate_tokenizer
from vq_jax.tasks.job import Evaluation, Job
from vq_jax.tasks.train_prior import prior_job
from vq_jax.tasks.train_tokenizer import tokenizer_job
from vq_jax.training import parallel


@dataclasses.dataclass(frozen=True)
class Kind:
    """What commands know of a kind of model.

    Attributes:
      job: (config, workdir, key) -> its training run.
      measure_examples: evaluation -> figures of held-out examples.
      measure_sets: evaluation -> figures of sets, and lines of the protocol about them.
      prefix: of FID among the figures: "r" of reconstructions, "g" of samples.
      rows: evaluation -> headings and formats of all its figures.
      sets_in_training: whether evaluations during training compare sets, too.
      check: raises UserError for an evaluation that cannot be computed.
      before_training: called before JAX starts its threads.
    """

    job: Callable[[ConfigDict, Path, jax.Array], Job]
    measure_examples: Callable[[Evaluation], dict[str, Any]]
    measure_sets: Callable[[Evaluation], tuple[dict[str, Any], dict[str, str]]]
    prefix: str
    rows: Callable[[Evaluation], Rows]
    sets_in_training: bool
    check: Callable[[Evaluation], None] = lambda evaluation: None
    before_training: Callable[[], None] = lambda: None


KINDS: dict[str, Kind] = {
    "tokenizer": Kind(
        job=tokenizer_job,
        measure_examples=evaluate_tokenizer.measure_examples,
        measure_sets=evaluate_tokenizer.measure_sets,
        prefix=evaluate_tokenizer.PREFIX,
        rows=evaluate_tokenizer.rows,
        sets_in_training=False,
    ),
    "prior": Kind(
        job=prior_job,
        measure_examples=evaluate_prior.measure_examples,
        measure_sets=evaluate_prior.measure_sets,
        prefix=evaluate_prior.PREFIX,
        rows=evaluate_prior.rows,
        sets_in_training=True,
        check=evaluate_prior.check,
        before_training=parallel.disable_malloc_trim,
    ),
}
