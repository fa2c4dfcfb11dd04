"""Measures the speed of the data pipeline, alone and during training.

    pip install -e '.[demo]'
    python -m experiments.benchmarks.data --output=data.json

Makes a folder of 256-pixel JPEGs (crops of the embedded photographs). Reads this folder and the
emoji of the default config through `train_batches` with 0, 1, 2, ... worker processes, and prints
images/s. Then trains on both for a short time and prints `data_wait`, the share of the time that
the step waits for data.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from configs.default import get_config
from vq_jax import config as configs
from vq_jax.data.pipeline import train_batches
from vq_jax.modalities import open_source


def make_folder(folder: Path, count: int) -> None:
    """Writes `count` 256x256 JPEGs of quality 90 from random boxes of the embedded photographs."""
    config = configs.base("vqvae")
    config.data.source = "photos"
    source = open_source(config).train
    rng = np.random.default_rng(0)
    photos = [source[i]["x"] for i in range(len(source))]
    for i in range(count):
        photo = Image.fromarray(photos[i % len(photos)]).convert("RGB")
        left, top = (int(rng.integers(0, max(1, side - 255))) for side in photo.size)
        box = (left, top, min(left + 256, photo.width), min(top + 256, photo.height))
        photo.resize((256, 256), Image.Resampling.BICUBIC, box).save(
            folder / f"{i:05d}.jpg", quality=90
        )


def images_per_second(config, seconds: float) -> float:
    prepare = configs.make_prepare(config, train=True)
    batches = train_batches(open_source(config).train, config.data, 0, prepare)
    for _ in range(4):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += len(next(batches)["label"])
    return count / (time.perf_counter() - started)


def data_wait(*arguments: str) -> float:
    """Returns the median `data_wait` of a short run, without the first quarter of its log."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "vq_jax.main", f"--workdir={workdir}", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    waits = [json.loads(line)["data_wait"] for line in lines]
    return statistics.median(waits[len(waits) // 4 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    figures: dict = {"cores": os.cpu_count(), "images_per_second": {}, "data_wait": {}}
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), options.images)
        emoji = get_config()
        jpegs = emoji.copy_and_resolve_references()
        jpegs.data.update(
            source="folder", folder=folder, resolution=256, crop="random", batch_size=8
        )
        for name, config in (("emoji, 32 pixels", emoji), ("JPEGs, 256 pixels", jpegs)):
            rates = figures["images_per_second"][name] = {}
            for workers in options.workers:
                config.data.workers = workers
                rates[workers] = images_per_second(config, options.seconds)
                print(f"{name}, {workers} workers: {rates[workers]:.0f} images/s", flush=True)
        short = [
            "--config.phases.autoencoder=0",
            "--config.phases.quantizer=0",
            "--config.phases.adversarial=0",
            "--config.loss.perceptual_weight=0.0",
            "--config.kmeans_batches=0",
        ]
        runs = {
            "emoji, 32 pixels": ["--config=configs/default.py", *short, "--config.phases.joint=400"],
            "JPEGs, 256 pixels": [
                "--config=configs/default.py", *short, "--config.phases.joint=30",
                "--config.data.source=folder", f"--config.data.folder={folder}",
                "--config.data.resolution=256", "--config.data.crop=random",
                "--config.data.batch_size=8", "--config.log_every=2",
                "--config.data.val_fraction=0.005",
            ],
        }  # fmt: skip
        for name, arguments in runs.items():
            figures["data_wait"][name] = data_wait(*arguments)
            print(f"{name}: the step waited {figures['data_wait'][name]:.2%} of the time")
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
