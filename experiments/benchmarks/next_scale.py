"""Times sampling of the next-scale prior against causal priors and VAR in PyTorch.

    git clone https://github.com/FoundationVision/VAR
    python -m experiments.benchmarks.next_scale --var=VAR --output=next_scale.json

All have 12 layers x 768, 12 heads, 4,096 codes, random params, a class and guidance (each image is computed
with and without its class). Nothing is decoded.

  next_scale        680 codes at 10 scales, one network call a scale, keys and values cached
  causal            the same 680 codes one after another, keys and values cached
  causal, 16x16     256 codes of one grid one after another
  VAR               the authors' model in PyTorch: 680 codes, its own cache, `autoregressive_infer_cfg`

The results are medians over the rounds, and ratios.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.turns import in_turns, show
from vq_jax.models import PRIORS
from vq_jax.models.fill import fill_codes
from vq_jax.models.transformer import init_params
from vq_jax.sampling import Draw, row_keys

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
CODES, LATENT, LAYERS, WIDTH, HEADS = 4096, 32, 12, 768, 12
CAUSAL = {"position": "learned", "norm": "layer", "activation": "gelu", "dropout": 0.0}


def sampler(name: str, rows: int, grids: tuple, grid: tuple, dtype: str) -> Callable[[], object]:
    """Returns a function that draws the codes of `rows` images with a prior of random params."""
    fields: dict[str, Any] = {"layers": LAYERS, "width": WIDTH, "heads": HEADS}
    if name == "causal":
        fields |= CAUSAL
    module = PRIORS[name](
        num_codes=CODES, grid=grid, grids=grids, latent=LATENT, books=1, classes=1000,
        condition=(), dtype=jnp.dtype(dtype), **fields,
    )  # fmt: skip
    variables = {"params": jax.jit(partial(init_params, module))(jax.random.key(0))}
    if name == "next_scale":
        key, scales = jax.random.key(1), len(grids)
        variables["tokenizer"] = {
            "entries": jax.random.normal(key, (CODES, LATENT)),
            "kernels": 0.1 * jax.random.normal(key, (scales, 3, 3, LATENT, LATENT)),
            "biases": jnp.zeros((scales, LATENT)),
        }
    draw = Draw(guidance=2.5, guidance_schedule="linear")
    how = {"draw": draw, "steps": 1, "choice_temperature": 4.5, "halton": False}
    fill = jax.jit(partial(fill_codes, module, **how))
    nothing = jnp.zeros((rows, module.length), jnp.int32)
    keys = row_keys(jax.random.key(0), 0, rows)
    return lambda: np.asarray(fill(variables, nothing, nothing == 0, nothing[:, 0], None, keys)[0])


def ours(rows: int, dtype: str) -> dict[str, Callable[[], object]]:
    grids = tuple((side, side) for side in SCALES)
    length = (sum(side**2 for side in SCALES),)
    return {
        "next_scale": sampler("next_scale", rows, grids, length, dtype),
        "causal": sampler("causal", rows, grids, length, dtype),
        "causal, 16x16": sampler("causal", rows, (), (16, 16), dtype),
    }


def theirs(folder: Path, rows: int, dtype: str) -> dict[str, Callable[[], object]]:
    """Returns VAR's sampler, without its tokenizer's decoder."""
    sys.path.insert(0, str(folder))
    import torch
    from models.var import VAR
    from models.vqvae import VQVAE

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = VQVAE(vocab_size=CODES, z_channels=LATENT, ch=32, v_patch_nums=SCALES)
    model = VAR(
        tokenizer, num_classes=1000, depth=LAYERS, embed_dim=WIDTH, num_heads=HEADS,
        attn_l2_norm=True, patch_nums=SCALES, flash_if_available=False, fused_if_available=False,
    )  # fmt: skip
    model.init_weights(init_std=-1)
    model = model.to(device).eval()
    tokenizer.fhat_to_img = lambda total: total.clone()
    labels = torch.zeros(rows, dtype=torch.long, device=device)

    def run():
        half = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
        with torch.inference_mode(), half:
            out = model.autoregressive_infer_cfg(rows, labels, g_seed=0, cfg=1.5)
        return out.float().sum().item()

    return {"VAR": lambda: run() and None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--var", type=Path, help="clone of FoundationVision/VAR; without it, ours only"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {jax.device_count()} {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "dtype": arguments.dtype,
    }
    for rows in arguments.batches:
        contenders = ours(rows, arguments.dtype)
        if arguments.var:
            contenders |= theirs(arguments.var, rows, arguments.dtype)
        times = in_turns(contenders, arguments.rounds)
        results[f"sampling, {rows} at a time"] = show(f"{rows} at a time", times, rows)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
