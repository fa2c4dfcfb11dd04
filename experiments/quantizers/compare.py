"""Compares all quantizers in the same small tokenizer, with the same data, steps and seeds.

    pip install -e '.[demo]'
    python -m experiments.vqvae_cifar10.prepare cifar10_train.zip /tmp/cifar10
    python -m experiments.quantizers.compare --cifar=/tmp/cifar10 --output=runs/quantizers
    python -m experiments.quantizers.compare --cifar=/tmp/cifar10 --output=runs/quantizers --rates

Trains each of `VARIANTS` on emoji and on CIFAR-10 (250 held-out images) with two seeds, and
measures it on the held-out split. Writes results.json, table.md and comparison.png. After an
interruption, the same command reads the finished runs and resumes the current one from its
checkpoint. The last command adds images/s of the training step. It times one quantizer after
another and needs otherwise idle cores.
"""

import argparse
import json
import shutil
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from vq_jax import config as configs
from vq_jax.data.pipeline import train_batches
from vq_jax.modalities import open_source
from vq_jax.tasks.train import train
from vq_jax.tasks.train_tokenizer import make_phases, make_recipe
from vq_jax.training.steps import init_state, train_step

# name -> (quantizer, fields). Nine bits per position, then fourteen for some.
# lfq and bsq use an entropy weight of .01 here. With .1, as in their papers, they lost 1 to 2 dB,
# because the squared error is only about .03.
VARIANTS = {
    "vq": ("vq", {"num_codes": 512}),
    "vq, rotation": ("vq", {"num_codes": 512, "estimator": "rotation"}),
    "vq, cosine, 8 dims": ("vq", {"num_codes": 512, "distance": "cosine", "code_dim": 8}),
    "vq, 3 heads": ("vq", {"num_codes": 8, "heads": 3, "dim": 18}),
    "gumbel": ("gumbel", {"num_codes": 512}),
    "residual, 3 levels": ("residual/vq", {"levels": 3, "inner.num_codes": 8}),
    "fsq": ("fsq", {"levels": (8, 8, 8)}),
    "lfq": ("lfq", {"bits": 9, "entropy_weight": 0.01}),
    "bsq": ("bsq", {"bits": 9, "entropy_weight": 0.01, "temperature": 0.5}),
    "ibq": ("ibq", {"num_codes": 512}),
    "simvq": ("simvq", {"num_codes": 512}),
    "multiscale": ("multiscale", {"num_codes": 512}),
    "vq 2^14": ("vq", {"num_codes": 16384}),
    "fsq 2^14": ("fsq", {"levels": (8, 8, 8, 6, 5)}),
    "simvq 2^14": ("simvq", {"num_codes": 16384}),
}
DATA = ("emoji", "cifar10")
SEEDS = (0, 1)
HELD_BACK = 25  # held-out CIFAR-10 images per class


def make_config(variant: str, data: str, seed: int, folder: Path):
    """Returns the config of one run."""
    name, fields = VARIANTS[variant]
    config = configs.base(model="vqvae", quantizer=name)
    config.seed = seed
    config.data.resolution, config.data.batch_size = 32, 16
    if data == "cifar10":
        config.data.source, config.data.folder = "folder", str(folder)
    config.model.hidden, config.model.res_hidden = 64, 32
    for section in (config.quantizer, config.quantizer.get("inner", {})):
        if "dim" in section:
            section.dim = 16
    config.quantizer.update_from_flattened_dict(fields)
    config.phases.autoencoder, config.phases.quantizer, config.phases.joint = 100, 20, 580
    config.kmeans_batches = 32
    config.loss.reconstruction, config.loss.perceptual_weight = "l2", 0.0
    config.optim.update(lr=2e-3, lr_end=5e-5, schedule="cosine", warmup_steps=50, clip_norm=1.0)
    config.ema_decay = 0.99
    config.save_every, config.keep, config.tensorboard = 500, 1, False
    configs.check(config)
    return config


def small_split(cifar: Path, folder: Path) -> None:
    """Copies CIFAR-10 with all training images and `HELD_BACK` held-out images per class."""
    if folder.exists():
        return
    making = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    (making / "train").symlink_to((cifar / "train").resolve())
    for images in sorted((cifar / "val").iterdir()):
        target = making / "val" / images.name
        target.mkdir(parents=True)
        for image in sorted(images.iterdir())[:HELD_BACK]:
            shutil.copy(image, target)
    making.rename(folder)


def last_step(config):
    """Returns the training step of a config's last phase, its first state and a batch."""
    recipe, phase = make_recipe(config), make_phases(config)[-1]
    init = jax.jit(partial(init_state, recipe, spec=configs.spec_of(config)))
    step = jax.jit(partial(train_step, recipe=recipe, phase=phase), donate_argnums=0)
    return step, init(jax.random.key(0)), {"x": first_batch(config)["x"]}


def first_batch(config) -> dict[str, jax.Array]:
    """Returns the first training batch of a config: examples and labels."""
    prepare = configs.make_prepare(config, train=True)
    batch = next(train_batches(open_source(config).train, config.data, 0, prepare))
    return {name: jax.numpy.asarray(batch[name]) for name in ("x", "label")}


def step_rate(config, seconds: float = 3.0) -> float:
    """Returns the images/s of a joint training step (median, without data loading)."""
    step, state, batch = last_step(config)
    key = jax.random.key(0)
    jax.block_until_ready(jax.tree.leaves(state))
    state, _ = jax.block_until_ready(step(state, batch, key))  # compiles
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        started = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, key))
        times.append(time.perf_counter() - started)
    return config.data.batch_size / statistics.median(times)


def write_table(results: dict, path: Path) -> None:
    """Writes a row per variant and data set: means over the seeds, and the spread of the PSNR."""
    columns = {
        "psnr": ("PSNR, dB", "{:.2f}"),
        "lpips": ("LPIPS", "{:.3f}"),
        "usage": ("in use", "{:.0%}"),
        "perplexity": ("perplexity", "{:.0f}"),
        "bits_per_pixel": ("bits per pixel", "{:.3f}"),
        "entropy_bits_per_pixel": ("by entropy", "{:.3f}"),
    }
    lines = []
    for data in DATA:
        heads = [f"{data}: quantizer", *(h for h, _ in columns.values()), "images/s"]
        lines += ["| " + " | ".join(heads) + " |", "|---|" + "---|" * (len(heads) - 1)]
        for variant in VARIANTS:
            runs = [results["runs"].get(f"{variant}/{data}/{seed}") for seed in SEEDS]
            runs = [run for run in runs if run]
            if not runs:
                continue
            cells = [variant]
            for name, (_, form) in columns.items():
                values = [run[name] for run in runs]
                cell = form.format(np.mean(values))
                if name == "psnr" and len(values) > 1:
                    cell += f" ±{np.ptp(values) / 2:.2f}"
                cells.append(cell)
            rate = results["images_per_second"].get(variant)
            cells.append(f"{rate:.0f}" if rate else "")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    path.write_text("\n".join(lines))


def plot(results: dict, path: Path) -> None:
    """Plots held-out PSNR over the bits per pixel by the entropy of the codes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(DATA), figsize=(13, 5.5), layout="constrained")
    colours = pyplot.get_cmap("tab20")
    names = list(dict.fromkeys(v.removesuffix(" 2^14") for v in VARIANTS))
    for axis, data in zip(axes, DATA, strict=True):
        for variant in VARIANTS:
            runs = [results["runs"].get(f"{variant}/{data}/{seed}") for seed in SEEDS]
            runs = [run for run in runs if run]
            if not runs:
                continue
            x = [run["entropy_bits_per_pixel"] for run in runs]
            y = [run["psnr"] for run in runs]
            big = variant.endswith("2^14")
            name = variant.removesuffix(" 2^14")
            place = (float(np.mean(x)), float(np.mean(y)))
            colour = colours(names.index(name) % 20)
            axis.plot(x, y, color=colour, linewidth=1)
            axis.scatter(*place, color=colour, marker="s" if big else "o", s=36)
            axis.annotate(name, place, xytext=(4, 3), textcoords="offset points", fontsize=7)
        axis.set_title(
            f"{data}: circles 2^9 codes, squares 2^14 (a bar joins two seeds)", fontsize=9
        )
        axis.set_xlabel("bits per pixel, by the entropy of the held-out codes")
        axis.set_ylabel("held-out PSNR, dB")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--output", type=Path, default=Path("runs/quantizers"))
    parser.add_argument("--only", default="", help="run only variants whose name contains this")
    parser.add_argument("--rates", action="store_true", help="measure images/s only")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str((options.output / "compiled").resolve()))
    folder = options.output / "cifar10"
    small_split(options.cifar, folder)

    path = options.output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results = {"runs": {}, "images_per_second": {}, **results}

    def keep() -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(path)
        write_table(results, options.output / "table.md")
        plot(results, options.output / "comparison.png")

    wanted = [variant for variant in VARIANTS if options.only in variant]
    if options.rates:
        for variant in wanted:
            rate = step_rate(make_config(variant, "emoji", 0, folder))
            results["images_per_second"][variant] = rate
            print(f"{variant:<28}{rate:8.0f} images/s", flush=True)
            keep()
        return
    for data in DATA:
        for seed in SEEDS:
            for variant in wanted:
                name = f"{variant}/{data}/{seed}"
                if name in results["runs"]:
                    continue
                print(f"--- {name}", flush=True)
                workdir = options.output / name.replace(" ", "_").replace(",", "")
                train(make_config(variant, data, seed, folder), workdir)
                if not (workdir / "evaluation.json").exists():
                    return  # stopped by a signal; the same command resumes here
                results["runs"][name] = json.loads((workdir / "evaluation.json").read_text())
                keep()
                shutil.rmtree(workdir / "checkpoints")
                jax.clear_caches()


if __name__ == "__main__":
    main()
