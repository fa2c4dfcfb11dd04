"""Time and memory of compressing a long clip, in processes of their own.

    python -m experiments.video.long_clip --run=runs/video_folder --output=experiments/video/long_clip.json

Makes a clip of moving stripes, 640x360 pixels at 8 frames a second, and runs `--mode=compress` and `--mode=decompress`
on it. Memory is the largest of the process, video codec included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from vq_jax.data.video import Clip, write_clip

HEIGHT, WIDTH, RATE = 360, 640, 8


def stripes(frames: int) -> Clip:
    """A clip that is drawn when it is read."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]

    def draw():
        for t in range(frames):
            yield np.stack(
                [(x + 3 * t) % 256, (2 * y + t) % 256, (x + y + 5 * t) % 256], axis=-1
            ).astype(np.uint8)

    return Clip((frames, HEIGHT, WIDTH, 3), Fraction(RATE), draw)


def run(*arguments: str) -> dict[str, float]:
    """Runs the program; returns its seconds and its largest memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "vq_jax.main", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the program failed: {' '.join(arguments)}")
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "peak_mb": round(usage.ru_maxrss / 1e3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    frames = round(60 * RATE * arguments.minutes)
    with tempfile.TemporaryDirectory() as name:
        clip, packed, back = (str(Path(name) / n) for n in ("clip.mp4", "clip.vqz", "back.mp4"))
        write_clip(stripes(frames), Path(clip))
        common = f"--workdir={arguments.run}"
        found = {
            "frames": frames,
            "compress": run(
                "--mode=compress",
                common,
                "--entropy=fixed",
                f"--input={clip}",
                f"--output={packed}",
            ),
            "bytes": Path(packed).stat().st_size,
            "decompress": run("--mode=decompress", common, f"--input={packed}", f"--output={back}"),
        }
    print(json.dumps(found))
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
