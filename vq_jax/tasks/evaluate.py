"""Evaluates a run on its held-out split: figures of examples, then of sets, then the report.

A tokenizer and a prior differ in what they compute (`evaluate_tokenizer`, `evaluate_prior`). What is
printed and written is the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from vq_jax import config as configs
from vq_jax import modalities, runs
from vq_jax.errors import UserError
from vq_jax.files import ships
from vq_jax.modalities import Network
from vq_jax.tasks.job import Evaluation
from vq_jax.tasks.kinds import KINDS
from vq_jax.tasks.sets import KEPT, with_prefix
from vq_jax.training.report import save_figures, show_figures


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
    """`--mode=evaluate`: computes the held-out figures of a run, prints them and writes them as JSON.

    Args:
      workdir: the run's folder.
      data: a section `data` that names other examples than the run's own.
      tokenizer: a prior's tokenizer, if it is not the one in its config.
      inception: file of FID's Inception weights, or "download"; None leaves FID out.
      protocol: how FID prepares images, "adm" or "clean"; "adm" by default.
      count: number of a prior's samples for FID.
      seed: of a prior's samples.

    Raises:
      UserError: there is no run, or an argument does not apply to it.
    """
    for name, of_fid in (("protocol", protocol), ("count", count)):
        if of_fid is not None and inception is None:
            raise UserError(
                f"{name} is for FID: give inception, the file of its weights or 'download'"
            )
    folder = runs.find(workdir)
    if ships(folder):
        raise UserError(
            f"{workdir} ships with the package, where nothing is written: evaluate an export"
        )
    if runs.is_built_in(folder):
        raise UserError(f"tokenizer {folder} has no folder for figures: its codes are the bytes")
    kind = configs.kind_of_run(folder)
    given: dict[str, Any] = {"tokenizer": tokenizer, "count": count, "seed": seed}
    for name, value in given.items():
        if value is not None and kind != "prior":
            raise UserError(f"{name} is for priors: {workdir} holds a {kind}")
    model: Any = runs.load_prior(folder, tokenizer) if kind == "prior" else runs.load(folder)
    networks = model.modality.networks(str(inception or ""), protocol or "adm")
    configs.use_data(model.config, data)
    splits = modalities.open_source(model.config)
    evaluation = Evaluation(
        model, splits, folder, Console(highlight=False), networks, count=count, seed=seed or 0
    )
    measure(evaluation)


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """Computes all figures, prints the table, and writes evaluation.json and pictures.

    Returns:
      the figures, by their names in evaluation.json.
    """
    model = evaluation.model
    kind = KINDS[configs.kind_of(model.config)]
    kind.check(evaluation)
    figures = kind.measure_examples(evaluation)
    of_sets, lines = kind.measure_sets(evaluation)
    figures |= of_sets
    used = [
        network
        for network in evaluation.networks
        if with_prefix(network.key, kind.prefix) in figures
    ]
    protocol = _protocol(model.config, figures, used) | lines
    figures |= {"protocol": protocol, "step": model.step}
    show_figures(evaluation.console, figures, kind.rows(evaluation))
    evaluation.console.print("\n".join(protocol.values()), style="dim")
    save_figures(figures, evaluation.workdir)
    return figures


def _protocol(
    config: ConfigDict, figures: dict[str, Any], networks: Sequence[Network]
) -> dict[str, str]:
    """The evaluation protocol, one line for each part of it."""
    data, modality = config.data, modalities.of(config)
    noun = f"{modality.noun}s"
    lines = {noun: f"{figures[noun]:,} held-out {noun} of {data.source} {data.folder}".strip()}
    if data.source == "codes":
        lines["preparation"] = "decoded from codes, prepared when these were written"
    else:
        lines["preparation"] = modality.preparation(data)
    for network in networks:
        lines[network.key] = f"{network.heading}: {network.description}"
        if network.probabilities is not None:
            lines["precision"] = (
                f"precision and recall: 3 neighbours, up to {KEPT:,} random {noun} of each side"
            )
            if network.note:
                lines["precision"] += f"; {network.note}"
    return lines
