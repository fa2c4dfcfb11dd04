"""Times a prior's sampling and training step against PyTorch alternatives.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.sampling sampling --output=sampling.json
    python -m experiments.benchmarks.sampling training --output=prior_step.json

`sampling` uses a class-conditional prior of 12 layers x 768 over 1,024 codes. It draws 256 tokens
per image, one image and 16 images at a time:

  causal            one code after another, keys and values cached, one compiled loop
  masked 8, 12      MaskGIT's parallel decoding in 8 and 12 steps
  halton 12         the same in 12 steps along a Halton order
  uncached          the same causal prior, rereading all tokens so far for each token (as in taming)
  transformers      Hugging Face GPT-2 of the same shape with its own cache, `generate`
  transformers, uncached   the same with use_cache=False

The two uncached samplers are timed at 8 evenly spaced lengths, and the sum over all 256 is
extrapolated.

`training` times a step of the causal prior on 8 images of 256 tokens. The PyTorch version is
transformers' GPT-2 with AdamW and gradient clipping. Neither uses dropout. Four warm-up steps are
discarded, because the heap still grows during them. The process keeps the memory it frees, as
training with vq_jax does. PyTorch shares the process and gets faster by it, too.

The results are medians over the rounds, and ratios.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.benchmarks.turns import in_turns, show
from vq_jax.config import base_prior
from vq_jax.models import PRIORS
from vq_jax.models.fill import fill_codes
from vq_jax.models.transformer import init_params
from vq_jax.sampling import Draw, row_keys
from vq_jax.tasks.train_prior import make_prior_recipe
from vq_jax.training import parallel
from vq_jax.training.prior_steps import init_prior_state, prior_step

CODES, GRID, TOKENS = 1024, (16, 16), 256
LENGTHS = tuple(range(16, 257, 32))


def make(name: str, dtype: str):
    """Returns a prior of GPT-2's shape, and its params on the device."""
    module = PRIORS[name](
        num_codes=CODES, grid=GRID, books=1, classes=1000, condition=(), dtype=jnp.dtype(dtype),
        layers=12, width=768, heads=12, position="learned", norm="layer", activation="gelu",
    )  # fmt: skip
    params = jax.jit(partial(init_params, module))(jax.random.key(0))
    return module, params


def ours(rows: int, dtype: str) -> dict[str, Callable[[], object]]:
    """Returns vq_jax's samplers by name, each a function that draws `rows` images."""
    keys = row_keys(jax.random.key(0), 0, rows)
    nothing = jnp.zeros((rows, TOKENS), jnp.int32)
    everything, labels = nothing == 0, nothing[:, 0]
    made: dict[str, Callable[[], object]] = {}
    causal, causal_params = make("causal", dtype)
    masked, masked_params = make("masked", dtype)

    def sampler(module, params, **how):
        how = {"draw": Draw(), "steps": 1, "choice_temperature": 4.5, "halton": False, **how}
        fill = jax.jit(partial(fill_codes, module, **how))
        return lambda: np.asarray(
            fill({"params": params}, nothing, everything, labels, None, keys)[0]
        )  # fmt: skip

    made["causal"] = sampler(causal, causal_params)
    for steps in (8, 12):
        made[f"masked {steps}"] = sampler(masked, masked_params, steps=steps)
    made["halton 12"] = sampler(masked, masked_params, steps=12, halton=True)

    @partial(jax.jit, static_argnums=1)
    def reread(codes, length):
        logits = causal.apply({"params": causal_params}, codes[:, :length], labels)
        return jax.random.categorical(keys[0], logits[:, -1])

    made["uncached"] = at_lengths(lambda length: np.asarray(reread(nothing, length)))
    return made


def at_lengths(read: Callable[[int], object]) -> Callable[[], float]:
    """Returns a function that times `read` at `LENGTHS` and returns the ms for all 256 lengths."""

    def run() -> float:
        spent = 0.0
        for length in LENGTHS:
            started = time.perf_counter()
            read(length)
            spent += time.perf_counter() - started
        return 1e3 * spent * TOKENS / len(LENGTHS)

    return run


def gpt2(device: str, dtype: torch.dtype) -> GPT2LMHeadModel:
    """Returns GPT-2 of the same shape; classes are 1,000 extra tokens in its vocabulary."""
    config = GPT2Config(
        vocab_size=CODES + 1001, n_positions=TOKENS + 1, n_embd=768, n_layer=12, n_head=12,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=CODES, eos_token_id=None,
        pad_token_id=CODES,
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(device, dtype).eval()


def theirs(rows: int, device: str, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Returns transformers' samplers by name."""
    model = gpt2(device, dtype)
    prompt = torch.full((rows, 1), CODES, device=device)
    mask = torch.ones_like(prompt)

    @torch.no_grad()
    def cached():
        out = model.generate(
            prompt, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
        )  # fmt: skip
        return out.cpu()

    @torch.no_grad()
    def reread(length):
        logits = model(prompt.expand(-1, length), use_cache=False).logits[:, -1]
        return torch.multinomial(torch.softmax(logits.float(), -1), 1).cpu()

    return {"transformers": cached, "transformers, uncached": at_lengths(reread)}


def training(rows: int, device: str, dtype: str) -> dict[str, Callable[[], object]]:
    """Returns a training step of the causal prior, in vq_jax and in PyTorch."""
    config = base_prior("causal")
    config.dtype = dtype
    config.codes.update(num_codes=CODES, grid=GRID, classes=tuple(map(str, range(1000))))
    config.prior.update(layers=12, width=768, heads=12, position="learned", norm="layer",
                        activation="gelu", dropout=0.0)  # fmt: skip
    config.phases.prior = 1000
    recipe = make_prior_recipe(config)
    init = partial(init_prior_state, recipe)
    state = parallel.make_state(init, jax.random.key(0), np.zeros(32), {})
    step = parallel.compile_step(partial(prior_step, recipe=recipe), "jit", state)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (rows, TOKENS)).astype(np.int32)
    batch = {"codes": jnp.asarray(codes), "label": jnp.zeros((rows,), jnp.int32)}
    held = [state]

    def here():
        held[0], metrics = step(held[0], batch, jax.random.key(0))
        return jax.block_until_ready(metrics)

    model = gpt2(device, torch.float32).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.from_numpy(codes).long().to(device)
    tokens = torch.cat([torch.full((rows, 1), CODES, device=device), tokens], 1)
    average = [p.detach().clone() for p in model.parameters()]

    def there():
        half = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
        with half:
            logits = model(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), tokens[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, list(model.parameters()), 0.001)
        loss.item()  # waits for the device

    return {"vq_jax": here, "PyTorch": there}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["sampling", "training"])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--train_batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    if arguments.part == "training":
        parallel.disable_malloc_trim()  # must run before JAX starts
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, object] = {
        "machine": f"{platform.machine()}, {jax.device_count()} {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "torch": torch.__version__,
        "dtype": arguments.dtype,
    }
    if arguments.part == "training":
        rows = arguments.train_batch
        times = in_turns(training(rows, device, arguments.dtype), 2 * arguments.rounds, warm=4)
        results[f"training step, {rows} images"] = show(f"training step, {rows}", times, rows)
    else:
        for rows in arguments.batches:
            contenders = ours(rows, arguments.dtype)
            contenders |= theirs(rows, device, getattr(torch, arguments.dtype))
            times = in_turns(contenders, arguments.rounds)
            results[f"sampling, {rows} at a time"] = show(f"{rows} at a time", times, rows)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
