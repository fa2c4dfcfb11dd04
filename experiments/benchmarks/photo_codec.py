"""Speed of the photo codec beside Pillow's AVIF and WebP, in one run.

    python -m experiments.benchmarks.photo_codec kodak --output=experiments/benchmarks/photo_codec.json

The images of a folder make a mosaic of 1, 6 and 24 megapixels. Times are medians of three, after one call that
compiles; encoding begins with the pixels in memory and ends with the bytes of a file, decoding the other way round. Peak memory
is that of the process. AVIF has Pillow's default speed, WebP method 4 (the default).
"""

import argparse
import io
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from vq_jax import codec
from vq_jax.data.images import decode

SIZES = {"1": (816, 1224), "6": (2000, 3000), "24": (4000, 6000)}  # megapixels -> height and width
QUALITIES = {"AVIF": 50, "WebP": 60}


def mosaic(images: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Repeats images row by row to fill a large one."""
    images = [x if x.shape[0] < x.shape[1] else x.swapaxes(0, 1) for x in images]
    h, w = images[0].shape[:2]
    rows = [
        np.concatenate([images[(r * 7 + c) % len(images)] for c in range(-(-width // w))], axis=1)
        for r in range(-(-height // h))
    ]
    return np.ascontiguousarray(np.concatenate(rows)[:height, :width])


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    result, seconds = run(), []
    for _ in range(3):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds)


def by_pillow(name: str, image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, name, quality=QUALITIES[name])
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workdir", default="photo-codec")
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    images = [decode(p) for p in sorted(arguments.folder.iterdir()) if p.is_file()]
    opened = codec.load(arguments.workdir)
    found: dict[str, Any] = {}
    for megapixels, size in SIZES.items():
        image = mosaic(images, *size)
        count = image.shape[0] * image.shape[1] / 1e6
        data, encode = timed(lambda image=image: opened.compress(image, quality=arguments.quality))
        _, back = timed(lambda data=data: opened.decompress(data))
        row = {"vq_jax": {"encode_s": encode, "decode_s": back, "bpp": 8 * len(data) / count / 1e6}}
        row["vq_jax"]["peak_MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        for name in QUALITIES:
            data, encode = timed(lambda name=name, image=image: by_pillow(name, image))
            _, back = timed(lambda data=data: np.asarray(Image.open(io.BytesIO(data))))
            row[name] = {"encode_s": encode, "decode_s": back, "bpp": 8 * len(data) / count / 1e6}
        for line in row.values():
            line |= {
                "encode_MP/s": count / line["encode_s"],
                "decode_MP/s": count / line["decode_s"],
            }
        found[megapixels] = {
            name: {k: round(v, 3) for k, v in line.items()} for name, line in row.items()
        }
        print(megapixels, found[megapixels], flush=True)
    result = {
        "device": jax.default_backend(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "megapixels": found,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
