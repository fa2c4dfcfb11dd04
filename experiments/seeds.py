"""What priors draw, measured with three sampling seeds: the mean, and the least and the most beside it.

    python -m experiments.seeds draw --output=experiments/prior_default/figures.json
    python -m experiments.seeds improve --workdir=runs/prior_upscale --output=experiments/upscale/by_4.json

`draw` measures the runs of `configs/prior_default.py` (`:causal`, from codes with flips, and `:masked` where they
are there) at several ways of drawing; `improve` a prior with a condition, as `--mode=evaluate` does. The
figures are those of `vq_jax.tasks.evaluate_prior`.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vq_jax.data.sources import open_source
from vq_jax.files import write
from vq_jax.prior import load_prior
from vq_jax.tasks import evaluate_prior

SEEDS = (0, 1, 2)
# run -> how it is drawn from, by row
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
    """Mean, least and most of each figure over seeds."""
    return {
        name: {
            "mean": float(np.mean([one[name] for one in found])),
            "least": min(one[name] for one in found),
            "most": max(one[name] for one in found),
        }
        for name in found[0]
    }


def draw(runs: Path) -> dict[str, Any]:
    """The rows of `DRAWS`, held against the same real images."""
    features = evaluate_prior.make_features()
    against, rows = None, []
    bits: dict[str, float] = {}
    for run, draws in DRAWS.items():
        if not (runs / run / "config.json").exists():
            continue
        prior = load_prior(runs / run)
        if against is None:
            splits = open_source(prior.config.data, prior.config.seed)
            count = prior.config.eval_samples
            held_out = list(
                evaluate_prior.labelled_images(evaluate_prior.spread_over(splits.val, count), prior)
            )
            against = evaluate_prior.references(prior, splits, features, held_out)
            labels = evaluate_prior.sample_labels(prior, held_out)
        bits[run] = json.loads((runs / run / "evaluation.json").read_text())["bits_per_code"]
        for how in draws:
            found = []
            for seed in SEEDS:
                samples = prior.sample(len(labels), label=labels, seed=seed, **how)
                found.append(evaluate_prior.judge(against, features(samples)))
            rows.append({"run": run, "how": how, **spread(found)})
            print(run, how, json.dumps(rows[-1]["efficientnet_frechet"]), flush=True)
    assert against is not None, f"no run of {', '.join(DRAWS)} in {runs}"
    return {"seeds": SEEDS, "references": against.figures, "bits_per_code": bits, "rows": rows}


def improve(workdir: Path) -> dict[str, Any]:
    """The figures of a prior that makes given images better."""
    prior = load_prior(workdir)
    splits = open_source(prior.config.data, prior.config.seed)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            found.append(
                evaluate_prior.measure(prior, splits, Path(folder), Console(quiet=True), seed=seed)
            )
    numbers = [{k: v for k, v in one.items() if isinstance(v, float)} for one in found]
    return {"seeds": SEEDS, "images": found[0]["images"], "step": prior.step, **spread(numbers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["draw", "improve"])
    parser.add_argument("--workdir", type=Path, help="improve: the prior's run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="draw: the folder of runs")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    figures = draw(arguments.runs) if arguments.what == "draw" else improve(arguments.workdir)
    write((json.dumps(figures, indent=1) + "\n").encode(), arguments.output)


if __name__ == "__main__":
    main()
