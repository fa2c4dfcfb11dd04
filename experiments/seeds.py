"""Measures priors' samples over three sampling seeds: mean, minimum and maximum of each metric.

    python -m experiments.seeds draw --output=experiments/prior_default/figures.json
    python -m experiments.seeds improve --workdir=runs/prior_upscale \\
        --output=experiments/upscale/by_4.json

`draw` measures the runs of `configs/prior_default.py` with several sampling options: the default
run, `:causal` (trained from codes with flips) and `:masked`. It skips runs that do not exist.
`improve` measures a prior with a condition, as `--mode=evaluate` does. The metrics are those of
`vq_jax.tasks.evaluate_prior`.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vq_jax.files import write
from vq_jax.modalities import open_source
from vq_jax.runs import load_prior
from vq_jax.tasks import evaluate_prior
from vq_jax.tasks.evaluate import measure
from vq_jax.tasks.job import Evaluation

SEEDS = (0, 1, 2)
# run name -> sampling options of each row
DRAWS: dict[str, list[dict[str, float]]] = {
    "prior_default": [
        {"temperature": 1.0},
        {"temperature": 1.0, "guidance": 2.0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.9, "guidance": 1.5},
        {"temperature": 0.8},
        {"temperature": 0.8, "guidance": 1.5},
    ],
    "prior_default-causal": [{"temperature": 1.0}, {"temperature": 0.8}],
    "prior_default-masked": [
        {"temperature": 1.0},
        {"temperature": 1.0, "choice_temperature": 2.0},
    ],
}


def spread(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Returns the mean, minimum and maximum of each metric over the seeds."""
    return {
        name: {
            "mean": float(np.mean([one[name] for one in found])),
            "least": min(one[name] for one in found),
            "most": max(one[name] for one in found),
        }
        for name in found[0]
    }


def draw(runs: Path) -> dict[str, Any]:
    """Measures the rows of `DRAWS`, all against the same real images."""
    against, rows = None, []
    bits: dict[str, float] = {}
    for run, draws in DRAWS.items():
        if not (runs / run / "config.json").exists():
            continue
        prior = load_prior(runs / run)
        if against is None:
            splits = open_source(prior.config)
            (network,) = prior.modality.networks()
            count = prior.config.eval_samples
            held_out = list(
                evaluate_prior.labelled_examples(
                    evaluate_prior.spread_over(splits.val, count), prior
                )
            )
            against = evaluate_prior.references(prior, splits, network, held_out)
            labels = evaluate_prior.sample_labels(prior, held_out)
        bits[run] = json.loads((runs / run / "evaluation.json").read_text())["bits_per_code"]
        for how in draws:
            found = []
            for seed in SEEDS:
                samples = prior.sample(len(labels), label=labels, seed=seed, **how)
                features = network.features(samples)
                found.append(evaluate_prior.compare_features(network, against, features))
            rows.append({"run": run, "how": how, **spread(found)})
            print(run, how, json.dumps(rows[-1]["efficientnet_frechet"]), flush=True)
    assert against is not None, f"{runs}: has none of the runs {', '.join(DRAWS)}"
    return {"seeds": SEEDS, "references": against.figures, "bits_per_code": bits, "rows": rows}


def improve(workdir: Path) -> dict[str, Any]:
    """Measures a prior that upscales or restores images."""
    prior = load_prior(workdir)
    splits = open_source(prior.config)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            evaluation = Evaluation(prior, splits, Path(folder), Console(quiet=True), seed=seed)
            found.append(measure(evaluation))
    numbers = [{k: v for k, v in one.items() if isinstance(v, float)} for one in found]
    return {"seeds": SEEDS, "images": found[0]["images"], "step": prior.step, **spread(numbers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["draw", "improve"])
    parser.add_argument("--workdir", type=Path, help="improve: the run of the prior")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="draw: the folder of runs")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    figures = draw(arguments.runs) if arguments.what == "draw" else improve(arguments.workdir)
    write((json.dumps(figures, indent=1) + "\n").encode(), arguments.output)


if __name__ == "__main__":
    main()
