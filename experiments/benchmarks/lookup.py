"""Times nearest-code search and quantizer training steps against the PyTorch alternatives.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.lookup --output=lookup.json

The forward search is timed for several sizes (tokens x codes x dimensions) against:

  - the bare matrix product in JAX, which holds the whole [tokens, codes] array,
  - PyTorch's `cdist().argmin()`,
  - taming-transformers' expanded form in PyTorch,
  - vector-quantize-pytorch.

The training step consists of quantization, losses, the gradient to the latents and moving averages.
It is timed against vector-quantize-pytorch. All contenders run once per round. The medians over the
rounds and their ratios are printed.

Where a [tokens, codes] array does not fit, the bare product and PyTorch's training step are left
out, and the PyTorch searches process blocks of 1,024 tokens. At the largest size,
65536 x 262144 x 8, the search runs on an eighth of the tokens. Only vq_jax's training step also
runs on all of them.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from vector_quantize_pytorch import FSQ, LFQ, VectorQuantize

from experiments.benchmarks.turns import in_turns
from vq_jax.quantizers import QUANTIZERS
from vq_jax.quantizers.functions import nearest_codes

SIZES = ((8192, 1024, 256), (8192, 16384, 8), (8192, 16384, 256), (8192, 262144, 8))
_LARGEST = 2**32  # bytes of the largest [tokens, codes] array to hold in memory
MUTABLE = ["params", "codebook"]


def forward(n: int, k: int, d: int, device: str) -> dict[str, Callable[[], object]]:
    """Returns the contenders for the codes of `n` latents and a codebook [k, d]."""
    rng = np.random.default_rng(0)
    z, codebook = (rng.normal(size=(m, d)).astype(np.float32) for m in (n, k))
    jax_z, jax_codebook = jnp.asarray(z), jnp.asarray(codebook)
    torch_z, torch_codebook = (torch.from_numpy(a).to(device) for a in (z, codebook))
    rows = n if 4 * n * k <= _LARGEST else 1024
    search = jax.jit(nearest_codes)
    product = jax.jit(lambda z, c: jnp.matmul(z, c.T, precision="highest"))
    module = VectorQuantize(d, k).to(device).eval()
    module._codebook.embed.data.copy_(torch_codebook)

    def torch_blocks(f):
        def run():
            with torch.no_grad():
                codes = torch.cat([f(block) for block in torch_z.split(rows)])
            if device == "cuda":
                torch.cuda.synchronize()
            return codes

        return run

    def expanded(z):
        distances = (
            (z**2).sum(1, keepdim=True)
            + (torch_codebook**2).sum(1)
            - 2 * torch.einsum("bd,dn->bn", z, torch_codebook.T)
        )
        return distances.argmin(1)

    contenders = {
        "vq_jax": lambda: jax.block_until_ready(search(jax_z, jax_codebook)),
        "PyTorch cdist().argmin()": torch_blocks(
            lambda z: torch.cdist(z, torch_codebook).argmin(1)
        ),
        "taming's form in PyTorch": torch_blocks(expanded),
        "VectorQuantize": torch_blocks(lambda z: module(z[None])[1][0]),
    }
    if rows == n:
        bare = {"bare product": lambda: jax.block_until_ready(product(jax_z, jax_codebook))}
        contenders = bare | contenders
    ours, theirs = (
        np.asarray(contenders["vq_jax"]()),
        contenders["taming's form in PyTorch"]().cpu(),
    )
    same = float(np.mean(ours == theirs.numpy()))
    assert same > 0.999, f"only {same:.4%} of the codes agree with PyTorch; expected > 99.9%"
    return contenders


def jax_step(quantizer, z: jax.Array) -> Callable[[], object]:
    """Returns a training step: quantization, gradients to latents and params, codebook update."""
    variables = jax.jit(quantizer.init)(jax.random.key(0), z)

    def step(variables, z):
        def loss(params, z):
            z_q, codes, aux = quantizer.apply({**variables, "params": params}, z)
            return jnp.sum(z_q) + aux["loss"], codes

        params = variables.get("params", {})
        (_, codes), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, z)
        _, changed = quantizer.apply(
            variables, z, codes, jax.random.key(0), method="update", mutable=MUTABLE
        )
        return gradient, changed

    compiled = jax.jit(step)
    return lambda: jax.block_until_ready(compiled(variables, z))


def torch_step(module: torch.nn.Module, z: np.ndarray, device: str) -> Callable[[], object]:
    """Returns the same step for a module of vector-quantize-pytorch in training mode."""
    module = module.to(device).train()
    x = torch.from_numpy(z)[None].to(device).requires_grad_()

    def run():
        x.grad = None
        z_q, _, *loss = module(x)
        (z_q.sum() + sum(part.sum() for part in loss)).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return x.grad

    return run


def training(n: int, k: int, d: int, device: str) -> dict[str, Callable[[], object]]:
    """Returns the contenders for a training step with a codebook."""
    z = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    # Revival is off on both sides: VectorQuantize would need to hold the distances for it.
    ours = QUANTIZERS["vq"](num_codes=k, dim=d, decay=0.9, revive_below=0.0)
    contenders = {"vq_jax vq": jax_step(ours, jnp.asarray(z))}
    if 4 * n * k <= _LARGEST:
        theirs = VectorQuantize(d, k, decay=0.9, rotation_trick=False)
        contenders["VectorQuantize"] = torch_step(theirs, z, device)
    return contenders


def implicit(n: int, device: str) -> dict[str, Callable[[], object]]:
    """Returns the contenders for a training step without a codebook, with about 2^14 codes."""
    rng = np.random.default_rng(0)
    bits, levels = 14, (8, 8, 8, 6, 5)
    z_bits = rng.normal(size=(n, bits)).astype(np.float32)
    z_levels = rng.normal(size=(n, len(levels))).astype(np.float32)
    lfq, fsq = QUANTIZERS["lfq"](bits=bits), QUANTIZERS["fsq"](levels=levels)
    return {
        "vq_jax lfq": jax_step(lfq, jnp.asarray(z_bits)),
        "LFQ": torch_step(LFQ(dim=bits, codebook_size=2**bits), z_bits, device),
        "vq_jax fsq": jax_step(fsq, jnp.asarray(z_levels)),
        "FSQ": torch_step(FSQ(list(levels)), z_levels, device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for all times")
    options = parser.parse_args()
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    print(f"{platform.machine()}, {jax.devices()[0].device_kind}, torch on {device}")
    measured: dict[str, dict[str, list[float]]] = {}

    def take(title: str, contenders: dict[str, Callable[[], object]], rounds: int) -> None:
        times = in_turns(contenders, rounds)
        measured[title] = times
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(f"\n{title}")
        for name, median in medians.items():
            ours = medians[
                "vq_jax lfq" if name == "LFQ" else next(o for o in medians if "vq_jax" in o)
            ]
            if name == "FSQ":
                ours = medians["vq_jax fsq"]
            ratio = "" if "vq_jax" in name else f"{median / ours:8.2f}x vq_jax"
            spread = f"{min(times[name]):.1f} to {max(times[name]):.1f}"
            print(f"  {name:<26}{median:10.1f} ms  ({spread}){ratio}", flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(measured, indent=1) + "\n")

    for n, k, d in SIZES:
        rounds = options.rounds if n * k < 2**30 else 2
        take(f"forward, {n} x {k} x {d}", forward(n, k, d, device), rounds)
    for n, k, d in (*SIZES, (65536, 262144, 8)):
        rounds = options.rounds if n * k < 2**30 else 1
        take(f"training step, {n} x {k} x {d}", training(n, k, d, device), rounds)
    take("training step, 8192 tokens, about 2^14 codes", implicit(8192, device), options.rounds)


if __name__ == "__main__":
    main()
