"""Times the video tokenizer: against an image tokenizer frame by frame, and its training against PyTorch.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.video --output=experiments/benchmarks/video.json

`frames` encodes and decodes clips of 17 frames of 64x64 pixels with `causal3d`, and the same frames one by one, in
one batch, with `vqgan` of the same widths and blocks. A latent of the video model spans 4 frames, and its kernels
3. `step` is a training step of the model of configs/video_moving_emoji.py as an autoencoder: forward, squared error,
backward, Adam. PyTorch has the same layers as `torch.nn.Conv3d`, eager and compiled; the numbers of params are
equal. All sides run in this process, on the same batch, in turns; results are medians over rounds.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from configs import video_moving_emoji
from experiments.benchmarks.turns import in_turns
from vq_jax import config as configs
from vq_jax.tasks.train_tokenizer import make_phases, make_recipe
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.training import parallel
from vq_jax.training.steps import init_state, train_step

SIDE, FRAMES = 64, 17


# --- PyTorch's side -------------------------------------------------------------------------------


class Conv(nn.Module):
    """A causal convolution, padded with copies of the first frame."""

    def __init__(self, cin: int, cout: int, kt: int = 3, st: int = 1, ss: int = 1):
        super().__init__()
        self.before, self.down = kt - 1, ss == 2
        self.conv = nn.Conv3d(cin, cout, (kt, 3, 3), (st, ss, ss), (0, 0 if self.down else 1, 0 if self.down else 1))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x[:, :, :1]] * self.before + [x], dim=2)
        return self.conv(functional.pad(x, (0, 1, 0, 1)) if self.down else x)


class Block(nn.Module):
    """A residual block without norms."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv1, self.conv2 = Conv(cin, cout), Conv(cout, cout)
        self.short = nn.Conv3d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(x))
        return self.short(x) + self.conv2(functional.silu(h))


def to_patches(x: torch.Tensor, s: int) -> torch.Tensor:
    b, c, t, h, w = x.shape
    x = x.reshape(b, c, t, h // s, s, w // s, s).permute(0, 4, 6, 1, 2, 3, 5)
    return x.reshape(b, s * s * c, t, h // s, w // s)


def from_patches(x: torch.Tensor, s: int) -> torch.Tensor:
    b, c, t, h, w = x.shape
    x = x.reshape(b, s, s, c // s**2, t, h, w).permute(0, 3, 4, 5, 1, 6, 2)
    return x.reshape(b, c // s**2, t, h * s, w * s)


class Autoencoder(nn.Module):
    """The model of configs/video_moving_emoji.py: widths 32, 96, 96 and strides (4, 4, 4)."""

    def __init__(self, widths: tuple[int, int, int], z: int, dim: int):
        super().__init__()
        a, b, c = widths
        self.encoder = nn.Sequential(
            Conv(12, a), Block(a, a), Conv(a, a, 3, 2, 2), Block(a, b), Conv(b, b, 3, 2, 1),
            Block(b, c), Block(c, c), Block(c, c), nn.SiLU(), Conv(c, z), nn.Conv3d(z, dim, 1),
        )  # fmt: skip
        self.into = nn.Sequential(nn.Conv3d(dim, z, 1), Conv(z, c), Block(c, c), Block(c, c), Block(c, c), Block(c, c))  # fmt: skip
        self.up = nn.ModuleList([Conv(c, c), Conv(b, b)])
        self.level1 = nn.Sequential(Block(c, b), Block(b, b))
        self.level0 = nn.Sequential(Block(b, a), Block(a, a))
        self.in_short, self.out_short = nn.Linear(192, dim), nn.Linear(dim, 16 * a)
        self.out, self.width = Conv(a, 12), a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.encoder(to_patches(x, 2))
        p = to_patches(x, 4)
        p = torch.cat([p[:, :, :1]] * 3 + [p], dim=2)
        b, c, t, s, _ = p.shape
        p = (
            p.reshape(b, c, t // 4, 4, s, s)
            .permute(0, 2, 4, 5, 3, 1)
            .reshape(b, t // 4, s, s, 4 * c)
        )
        z = h + self.in_short(p).permute(0, 4, 1, 2, 3)
        h = self.into(z)
        h = h.repeat_interleave(2, 2)[:, :, 1:]
        h = self.level1(self.up[0](h))
        h = h.repeat_interleave(2, 2)[:, :, 1:].repeat_interleave(2, 3).repeat_interleave(2, 4)
        h = functional.silu(self.level0(self.up[1](h)))
        g = self.out_short(z.permute(0, 2, 3, 4, 1))
        b, t, s, _, _ = g.shape
        g = g.reshape(b, t, s, s, 4, -1).permute(0, 5, 1, 4, 2, 3).reshape(b, -1, 4 * t, s, s)
        return from_patches(self.out(h + from_patches(g[:, :, 3:], 2)), 2)


def torch_step(x: np.ndarray, config: Any, compiled: bool) -> tuple[Callable[[], None], int]:
    widths = tuple(round(config.model.ch * mult) for mult in config.model.ch_mult)
    model: Any = Autoencoder(widths, config.model.z_channels, config.quantizer.inner.dim)  # type: ignore[arg-type]
    params = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    clip = torch.from_numpy(x).permute(0, 4, 1, 2, 3).contiguous()
    model = torch.compile(model) if compiled else model

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.mse_loss(model(clip), clip).backward()
        optimizer.step()

    return run, params


# --- our side -------------------------------------------------------------------------------------


def our_step(x: np.ndarray, config: Any) -> tuple[Callable[[], None], int]:
    recipe, phase = make_recipe(config), make_phases(config)[0]
    init = partial(init_state, recipe, spec=jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    state = parallel.make_state(init, jax.random.key(0))
    step = parallel.compile_step(partial(train_step, recipe=recipe, phase=phase), "pmap", state)
    batch, key = parallel.shard_batch({"x": x}, "pmap"), jax.random.key(1)
    params = state.generator.params
    count = sum(a.size for name in ("encoder", "decoder") for a in jax.tree.leaves(params[name]))

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return run, count


def tokenizer(name: str, **fields: Any) -> TrainedTokenizer:
    """Returns a tokenizer with random weights."""
    config = configs.base(name)
    config.data.resolution = SIDE
    config.model.update(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=64, **fields)
    config.model.mid_attention = False
    module = configs.make_tokenizer(config)
    spec = configs.spec_of(config)
    init = jax.jit(module.init)
    return TrainedTokenizer(
        config, module, init(jax.random.key(0), np.zeros((1, *spec.shape), np.float32)), 0
    )


def medians(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of a call of each side; they take turns."""
    return {name: statistics.median(ms) / 1e3 for name, ms in in_turns(sides, rounds).items()}


def main() -> None:
    """Runs both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)

    video = tokenizer("causal3d", halve_time=(0, 1), halve_space=(0, 1))
    image = tokenizer("vqgan", attn_resolutions=())
    clips = rng.uniform(-1, 1, (2, FRAMES, SIDE, SIDE, 3)).astype(np.float32)
    frames = clips.reshape(-1, SIDE, SIDE, 3)
    of_clips, of_frames = video.encode(clips), image.encode(frames)
    seconds = medians(
        {
            "video, encode": lambda: jax.block_until_ready(video.encode_unchecked(clips)),
            "images, encode": lambda: jax.block_until_ready(image.encode_unchecked(frames)),
            "video, decode": lambda: jax.block_until_ready(video.decode_unchecked(of_clips)),
            "images, decode": lambda: jax.block_until_ready(image.decode_unchecked(of_frames)),
        },
        options.rounds,
    )
    found: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "frames_per_second": {name: len(frames) / s for name, s in seconds.items()},
    }

    config = video_moving_emoji.get_config()
    config.optim.muon_lr = 0.0
    x = rng.uniform(-1, 1, (config.data.batch_size, 17, 32, 32, 3)).astype(np.float32)
    ours, ours_params = our_step(x, config)
    theirs, torch_params = torch_step(x, config, compiled=False)
    compiled, _ = torch_step(x, config, compiled=True)
    if ours_params != torch_params:
        raise SystemExit(f"the models differ: {ours_params} params and {torch_params}")
    sides = {"vq_jax": ours, "PyTorch": theirs, "PyTorch, compiled": compiled}
    seconds = medians(sides, options.rounds)
    found["step_seconds"] = seconds
    found["params"] = ours_params
    found["faster_than_pytorch"] = seconds["PyTorch"] / seconds["vq_jax"]
    found["faster_than_compiled"] = seconds["PyTorch, compiled"] / seconds["vq_jax"]
    text = json.dumps(found, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
