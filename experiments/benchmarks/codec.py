"""Compares compression speed with PyTorch and zlib, and measures how it scales with image size.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.codec sides --output=codec.json
    python -m experiments.benchmarks.codec growth --output=codec_growth.json

`sides` times uint8 images to bytes and back. One side is `vq_jax.codec`. The other is diffusers'
`VQModel` with the same weights (written by `--mode=export`); it stores its codes as int16,
compressed with `zlib`. Each side runs in its own process, as a user would run it, and the sides
alternate. The results are medians over the rounds. vq_jax keeps the memory it frees, as
--mode=compress does. PyTorch does not do this by default, so it is timed both ways. The weights are
random (the model of configs/vqgan_photos.py), which does not change the amount of computation.
PyTorch processes an image as a whole. The codec processes an image of more than 576 pixels in
overlapping tiles.

`growth` compresses images of .1 to 100 megapixels from a PNG file to a `.vqz` file and back. It
uses the model of configs/codec.py with 8x8 pixels per position and 8 levels, and one process per
size. It reports seconds and the peak memory of the process, including compilation, reading and
writing.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import codec as codec_config
from configs import vqgan_photos
from vq_jax import codec
from vq_jax import config as configs
from vq_jax.codec.counts import count_codes
from vq_jax.data.images import read_image, save_image
from vq_jax.interop.weights import ARRAYS, CONFIG, save_arrays
from vq_jax.tasks.export import export
from vq_jax.tasks.model_files import own_arrays
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.training import parallel

# name -> (images per call, height, width)
CASES = {
    "1 of 256x256": (1, 256, 256),
    "16 of 256x256": (16, 256, 256),
    "64 of 64x64": (64, 64, 64),
    "1 of 1024x1024": (1, 1024, 1024),
}
MEGAPIXELS = (0.1, 0.4, 1, 4, 10, 40, 100)


def random_tokenizer(config) -> TrainedTokenizer:
    """Returns a tokenizer with random params whose latents use many codes."""
    config.phases = configs.ConfigDict({"joint": 1})
    module = configs.make_tokenizer(config)
    x = jnp.zeros((1, *configs.spec_of(config).shape))
    variables = jax.jit(module.init)(jax.random.key(0), x)
    variables["params"]["quantizer"] = jax.tree.map(
        lambda p: 100 * p, variables["params"]["quantizer"]
    )
    return TrainedTokenizer(config, module, variables, 1)


def write(tokenizer: TrainedTokenizer, folder: Path) -> Path:
    """Writes a tokenizer to a folder that every mode can open, and returns the folder."""
    folder.mkdir(parents=True)
    config, arrays, step = own_arrays(tokenizer, folder)
    save_arrays(arrays, folder / ARRAYS, step=str(step))
    configs.save(config, folder / CONFIG)
    return folder


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns a synthetic image of smooth shapes with grain, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:height, :width]
    waves = [
        np.sin(y / a + i) + np.cos(x / b) for i, (a, b) in enumerate(rng.uniform(5, 90, (3, 2)))
    ]
    smooth = np.stack(waves, -1).astype(np.float32)
    grain = rng.integers(-12, 13, (height, width, 1), np.int8)
    return np.clip(128 + 50 * smooth + grain, 0, 255).astype(np.uint8)


# --- vq_jax and diffusers -------------------------------------------------------------------------


def ours(folder: Path) -> tuple[Callable, Callable]:
    """Returns the two functions to time, with vq_jax.

    Returns:
      compress: images -> bytes of each image.
      decompress: (bytes of each image, shape) -> images.
    """
    opened = codec.load(folder / "run")
    opened.add_counts(count_codes(opened.tokenizer, opened.tiler.encode([image(512, 512, 99)])))

    def decompress(data, shape):
        del shape  # the bytes contain it
        return list(opened.tiler.decode(*zip(*(opened.read(d) for d in data), strict=True)))

    return opened.compress_all, decompress


def theirs(folder: Path) -> tuple[Callable, Callable]:
    """Returns the functions of `ours`, with diffusers and zlib."""
    import torch
    from diffusers import VQModel

    model = VQModel.from_pretrained(folder / "theirs", low_cpu_mem_usage=False).eval()
    factor = 2 ** (len(model.config.block_out_channels) - 1)

    @torch.inference_mode()
    def compress(images):
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        _, _, (_, _, codes) = model.quantize(model.encode(x).latents)
        codes = codes.reshape(len(images), -1).numpy().astype(np.int16)
        return [zlib.compress(c.tobytes()) for c in codes]

    @torch.inference_mode()
    def decompress(data, shape):
        codes = np.stack([np.frombuffer(zlib.decompress(d), np.int16) for d in data])
        rows, columns = (side // factor for side in shape)
        size = (len(data), rows, columns, model.config.vq_embed_dim)
        z = model.quantize.get_codebook_entry(torch.from_numpy(codes.astype(np.int64)), size)
        x = model.decode(z, force_not_quantize=True).sample
        x = (x.clamp(-1, 1) + 1) * 127.5
        return x.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    return compress, decompress


# name -> (function that makes the side, whether its process keeps the memory it frees)
SIDES = {
    "vq_jax": (ours, True),
    "diffusers": (theirs, False),
    "diffusers, memory kept": (theirs, True),
}


def serve(side: str, folder: Path, pipe: Connection) -> None:
    """Serves one side in its own process: receives case names, sends times, sizes and an image."""
    make, keep = SIDES[side]
    if keep:
        parallel.disable_malloc_trim()
    compress, decompress = make(folder)
    while name := pipe.recv():
        count, height, width = CASES[name]
        images = [image(height, width, seed) for seed in range(count)]
        started = time.perf_counter()
        data = compress(images)
        compressed = time.perf_counter()
        back = decompress(data, (height, width))
        ended = time.perf_counter()
        milliseconds = 1e3 * (compressed - started), 1e3 * (ended - compressed)
        pipe.send((*milliseconds, sum(map(len, data)), back[0]))


def sides(rounds: int) -> dict:
    result: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(random_tokenizer(vqgan_photos.get_config()), folder / "run")
        export(folder / "run", folder / "theirs", "diffusers")
        processes = multiprocessing.get_context("spawn")
        pipes = {}
        for side in SIDES:
            pipes[side], other = processes.Pipe()
            processes.Process(target=serve, args=(side, folder, other), daemon=True).start()
        for name, (count, height, width) in CASES.items():
            megapixels = count * height * width / 1e6
            times: dict[str, list] = {side: [] for side in SIDES}
            said = {}
            for _ in range(rounds + 1):  # the first round compiles and is discarded
                for side, pipe in pipes.items():
                    pipe.send(name)
                    *milliseconds, size, back = pipe.recv()
                    times[side].append(milliseconds)
                    said[side] = size, back
            row = result[name] = {}
            for side, taken in times.items():
                row[side] = {"bytes": said[side][0]}
                for what, of in zip(
                    ("compress", "decompress"), zip(*taken[1:], strict=True), strict=True
                ):
                    median = statistics.median(of)
                    row[side][what] = {
                        "milliseconds": round(median, 1),
                        "range": [round(min(of), 1), round(max(of), 1)],
                        "megapixels_per_s": round(1e3 * megapixels / median, 3),
                        "megabytes_per_s": round(3e3 * megapixels / median, 2),
                        "times_as_fast": round(median / statistics.median(
                            m[["compress", "decompress"].index(what)] for m in times["vq_jax"][1:]
                        ), 2),
                    }  # fmt: skip
            apart = np.abs(said["vq_jax"][1].astype(int) - said["diffusers"][1])
            row["mean_difference"] = round(float(apart.mean()), 4)
            print(name, json.dumps(row), flush=True)
        for pipe in pipes.values():
            pipe.send("")
    return {
        "jax": jax.__version__,
        "torch": version("torch"),
        "diffusers": version("diffusers"),
        "rounds": rounds,
        "cases": result,
    }


# --- growth ---------------------------------------------------------------------------------------


def one_size(run: Path, source: Path, folder: Path) -> dict:
    """Compresses and decompresses one file; returns the time and memory this process needed."""
    parallel.disable_malloc_trim()
    opened = codec.load(run)
    started = time.perf_counter()
    data = opened.compress(read_image(source, 3), entropy="fixed")
    (folder / "x.vqz").write_bytes(data)
    compressed = time.perf_counter()
    save_image(opened.decompress(data), folder / "x.png")
    ended = time.perf_counter()
    return {
        "bytes": len(data),
        "compress_s": round(compressed - started, 2),
        "decompress_s": round(ended - compressed, 2),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def growth() -> dict:
    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = codec_config.get_config()
        config.model.downsamples, config.quantizer.levels = 3, 8
        run = write(random_tokenizer(config), folder / "run")
        for size in MEGAPIXELS:
            height = round((size * 1e6 / 1.5) ** 0.5)
            width = round(size * 1e6 / height)
            rows = [image(min(1000, height - y), width, y) for y in range(0, height, 1000)]
            save_image(np.concatenate(rows), folder / "in.png")
            del rows
            program = [sys.executable, "-m", "experiments.benchmarks.codec", "one"]
            program += [f"--run={run}", f"--source={folder / 'in.png'}", f"--folder={folder}"]
            done = subprocess.run(program, capture_output=True, text=True, check=True)
            result[f"{size} megapixels"] = json.loads(done.stdout.splitlines()[-1])
            print(size, result[f"{size} megapixels"], flush=True)
    return {"jax": jax.__version__, "sizes": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["sides", "growth", "one"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    for name in ("run", "source", "folder"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "one":
        print(json.dumps(one_size(args.run, args.source, args.folder)))
        return
    result = sides(args.rounds) if args.what == "sides" else growth()
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
