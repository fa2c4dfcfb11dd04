"""Measures the peak memory of taming's f16 step at 256x256 by batch size, dtype and remat.

    pip install -e '.[demo,tpu]'
    python -m experiments.benchmarks.memory --device=tpu-v5e --output=memory.json

Compiles `configs/vqgan_imagenet256.py` (including LPIPS and the discriminator) for the device and
reads the compiler's memory analysis. The device itself is not needed. Without --device it compiles
for the local device. XLA's CPU compiler undoes rematerialisation, so "remat" has no effect there.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

from configs.vqgan_imagenet256 import get_config
from vq_jax.tasks.plan import DEVICES, step_cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default="", choices=["", *(d for d in DEVICES if DEVICES[d].tpu)]
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--remat", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to append to")
    options = parser.parse_args()
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    for dtype, remat, batch in itertools.product(options.dtypes, options.remat, options.batches):
        config = get_config()
        config.dtype = dtype
        config.model.remat_encoder = config.model.remat_decoder = bool(remat)
        config.discriminator.remat = bool(remat)
        started = time.perf_counter()
        cost = step_cost(config, batch, options.device or None)
        row = {
            "device": options.device or "cpu",
            "dtype": dtype,
            "remat": bool(remat),
            "batch": batch,
            "peak_gb": cost.peak_bytes / 1e9,
            "state_gb": cost.state_bytes / 1e9,
            "tflop": cost.flops / 1e12,
            "compile_seconds": time.perf_counter() - started,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
        options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
