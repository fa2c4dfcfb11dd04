"""Compares architectures of tokenizers: the same data, the same time of training, one seed.

    python -m experiments.quantizers.architectures --output=runs/architectures

Trains each of `VARIANTS` on 32x32 emoji, and then a small prior over its codes, each for the same time of the
CPU (`SECONDS`; two cores halve the wall time). A short trial gives the number of steps. Measures both on the
held-out split. Writes results.json and architectures.md. After an interruption, the same command goes on.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.quantizers.compare import first_batch, last_step
from vq_jax import config as configs
from vq_jax.modalities import open_source
from vq_jax.runs import load_tokenizer
from vq_jax.tasks.train import train
from vq_jax.tasks.train_prior import describe_codes, make_prior_recipe
from vq_jax.training.prior_steps import init_prior_state, prior_step

SECONDS = {"tokenizer": 180, "prior": 90}
# name -> (model, its fields, quantizer, its fields, learning rate)
VARIANTS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], float]] = {
    "vqvae": ("vqvae", {"hidden": 64, "res_hidden": 32}, "vq", {}, 2e-3),
    "vqgan": (
        "vqgan",
        {"ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1, "z_channels": 32,
         "attn_resolutions": (8,)},
        "vq", {}, 1e-3,
    ),
    "vit": ("vit", {"patch": 4, "layers": 4, "width": 128, "heads": 4}, "vq", {}, 1e-3),
    "titok": (
        "titok", {"patch": 4, "tokens": 32, "layers": 4, "width": 128, "heads": 4}, "vq", {}, 1e-3,
    ),
    "vqvae2": (
        "vqvae2", {"hidden": 64, "res_hidden": 32}, "hierarchy/vq", {"sides": (4, 8)}, 2e-3,
    ),
    "vqvae, multiscale": (
        "vqvae", {"hidden": 64, "res_hidden": 32}, "multiscale", {"scales": (1, 2, 4, 8)}, 2e-3,
    ),
}  # fmt: skip
PRIORS = {name: ("causal",) for name in VARIANTS} | {"vqvae, multiscale": ("causal", "next_scale")}


def _optimise(config, lr: float) -> None:
    config.optim.update(lr=lr, lr_end=lr / 40, schedule="cosine", warmup_steps=50, clip_norm=1.0)
    config.ema_decay = 0.99
    config.save_every, config.keep, config.tensorboard = 1000, 1, False


def tokenizer_config(variant: str):
    model, fields, quantizer, of_quantizer, lr = VARIANTS[variant]
    config = configs.base(model=model, quantizer=quantizer)
    config.data.resolution, config.data.batch_size = 32, 16
    config.model.update(fields)
    for section in (config.quantizer, config.quantizer.get("inner", {})):
        for field, value in (("num_codes", 512), ("dim", 16)):
            if field in section:
                section[field] = value
    config.quantizer.update(of_quantizer)
    config.kmeans_batches = 32
    config.phases.joint = 1
    config.loss.reconstruction, config.loss.perceptual_weight = "l2", 0.0
    _optimise(config, lr)
    if model == "titok":  # with Adam alone it learns next to nothing in this time
        config.optim.muon_lr = 0.01
    return config


def prior_config(prior: str, tokenizer: Path):
    config = configs.base_prior(prior)
    config.tokenizer = str(tokenizer)
    config.data.batch_size = 32
    config.prior.update(layers=4, width=128, heads=4, dropout=0.2)
    config.phases.prior = 1
    config.eval_samples = 253
    _optimise(config, 1e-3)
    return config


def cpu_seconds(step, state, batch) -> float:
    """Returns the CPU time of a step, the mean of twelve after two."""
    key = jax.random.key(0)
    for i in range(14):
        if i == 2:
            started = time.process_time()
        state, _ = jax.block_until_ready(step(state, batch, key))
    return (time.process_time() - started) / 12


def steps_of_tokenizer(config) -> int:
    return round(SECONDS["tokenizer"] / cpu_seconds(*last_step(config)))


def steps_of_prior(config) -> int:
    tokenizer = load_tokenizer(Path(config.tokenizer))
    config = config.copy_and_resolve_references()
    with config.unlocked():
        describe_codes(config, tokenizer, open_source(config).class_names)
    recipe = make_prior_recipe(config, tokenizer.module, tokenizer)
    state = init_prior_state(
        recipe, jax.random.key(0), jnp.zeros(32, jnp.uint8), tokenizer.variables
    )
    step = jax.jit(partial(prior_step, recipe=recipe))
    return round(SECONDS["prior"] / cpu_seconds(step, state, first_batch(config)))


def run(config, workdir: Path, count) -> dict[str, Any]:
    """Trains a config for the number of steps that `count` gives, or goes on; returns its figures."""
    done = workdir / "evaluation.json"
    if not done.exists():
        if (workdir / "config.json").exists():
            config = configs.load(workdir / "config.json")
        else:
            steps = count(config)
            if "prior" in config:
                config.phases.prior = steps
            else:
                config.phases.update(
                    autoencoder=steps // 10, quantizer=steps // 40, joint=steps - steps // 8
                )
            configs.check(config)
        train(config, workdir)
    figures = json.loads(done.read_text())
    params = configs.load(workdir / "config.json")
    return figures | {"steps": sum(params.phases.values())}


def write_table(results: dict[str, Any], path: Path) -> None:
    heads = ("architecture", "codes", "bits", "PSNR, dB", "LPIPS", "Frechet", "steps", "prior")
    heads += ("bits by it", "Frechet of samples")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for variant, of_variant in results.items():
        tokenizer = of_variant["tokenizer"]
        for prior, found in of_variant["priors"].items():
            bits = tokenizer["bits_per_pixel"] * 1024
            by_prior = found["bits_per_pixel"] * 1024
            lines.append(
                f"| {variant} | {round(bits / 9)} | {bits:.0f} | {tokenizer['psnr']:.2f} | "
                f"{tokenizer['lpips']:.3f} | {found['efficientnet_frechet_reconstructed']:.0f} | "
                f"{tokenizer['steps']:,} | {prior} | {by_prior:.0f} | "
                f"{found['efficientnet_frechet']:.0f} |"
            )
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/architectures"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for variant in VARIANTS:
        folder = options.output / variant.replace(", ", "_").replace(" ", "_")
        tokenizer = run(tokenizer_config(variant), folder / "tokenizer", steps_of_tokenizer)
        results[variant] = {"tokenizer": tokenizer, "priors": {}}
        for prior in PRIORS[variant]:
            config = prior_config(prior, folder / "tokenizer")
            found = run(config, folder / prior, steps_of_prior)
            results[variant]["priors"][prior] = found
            (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            write_table(results, options.output / "architectures.md")


if __name__ == "__main__":
    main()
