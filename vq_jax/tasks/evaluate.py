"""Measures what a run's folder holds, a tokenizer or a prior."""

from pathlib import Path

from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax.errors import UserError
from vq_jax.tasks.evaluate_prior import evaluate_prior
from vq_jax.tasks.evaluate_tokenizer import evaluate_tokenizer


def evaluate(
    workdir: Path,
    *,
    data: ConfigDict | None = None,
    tokenizer: Path | None = None,
    inception: Path | None = None,
    protocol: str | None = None,
    count: int | None = None,
    seed: int | None = None,
) -> None:
    """`--mode=evaluate`: the held-out figures of a run, printed and kept as JSON.

    Args:
      workdir: the run's folder.
      data: a section `data` that names the images; by default the run's own.
      tokenizer: of a prior, where it is elsewhere than the prior's config says.
      inception: the file of Inception's weights, or "download", for FID; None leaves it out.
      protocol: how FID sees images, in `frechet.PROTOCOLS`; "adm" where there is `inception`.
      count: of a prior, how many samples FID gets.
      seed: of a prior, decides which samples are drawn.

    Raises:
      UserError: there is no run, or an argument has no use for what it holds.
    """
    if protocol is not None and inception is None:
        raise UserError(
            "--protocol is FID's: it needs --inception, its weights' file or 'download'"
        )
    if count is not None and inception is None:
        raise UserError("--count is of FID's samples: it needs --inception")
    how = {"inception": str(inception or ""), "protocol": protocol or "adm"}
    if configs.holds_prior(workdir):
        evaluate_prior(workdir, tokenizer, data, **how, count=count, seed=seed or 0)
        return
    for name, value in (("tokenizer", tokenizer), ("count", count), ("seed", seed)):
        if value is not None:
            raise UserError(f"--{name} is for priors: {workdir} holds a tokenizer")
    evaluate_tokenizer(workdir, data, **how)
