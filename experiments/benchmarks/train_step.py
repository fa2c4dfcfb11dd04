"""Times the full VQGAN training step against the same work in PyTorch.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.train_step

Both sides use:

  - the taming-transformers architecture (in PyTorch: diffusers' `VQModel`),
  - a PatchGAN with BatchNorm,
  - L1, codebook and commitment losses, and hinge losses with the adaptive weight,
  - one generator forward for both updates, and Adam for each network,
  - float32 master weights.

vq_jax also keeps averaged params and codebook statistics. Both sides get the same batch on the same
cores or the same GPU, and alternate in rounds. The medians over the rounds and their ratio are
printed and, with --output, written as JSON.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch
from diffusers import VQModel
from torch import nn
from torch.nn import functional

from vq_jax import config as configs
from vq_jax.tasks.train_tokenizer import make_phases, make_recipe
from vq_jax.training import parallel
from vq_jax.training.steps import init_state, train_step

LR, BETAS = 1e-4, (0.5, 0.9)
NUM_CODES, DIM = 1024, 256


def make_config(options: argparse.Namespace):
    config = configs.base(model="vqgan", quantizer="vq", discriminator="patchgan")
    config.data.resolution = options.resolution
    config.data.batch_size = options.batch
    config.dtype = options.dtype
    config.model.ch = options.ch
    config.model.ch_mult = tuple(options.mult)
    config.model.attn_resolutions = ()
    config.quantizer.update(num_codes=NUM_CODES, dim=DIM, codebook="gradient", revive_below=0.0)
    config.loss.perceptual_weight = 0.0
    config.discriminator.update(ndf=64, n_layers=options.disc_layers, norm="batch")
    config.phases.adversarial = 1000
    for optim in (config.optim, config.disc_optim):
        optim.update(lr=LR, b1=BETAS[0], b2=BETAS[1])
    return config


def ours(options: argparse.Namespace, x: np.ndarray) -> Callable[[], None]:
    config = make_config(options)
    recipe, (phase,) = make_recipe(config), make_phases(config)
    init = partial(init_state, recipe, spec=jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    state = parallel.make_state(init, jax.random.key(0))
    step = parallel.compile_step(partial(train_step, recipe=recipe, phase=phase), "pmap", state)
    batch = parallel.shard_batch({"x": x}, "pmap")
    key = jax.random.key(1)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return run


def patchgan(channels: int, ndf: int, layers: int) -> nn.Module:
    stack: list[nn.Module] = [nn.Conv2d(channels, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    width = ndf
    for i in range(1, layers + 1):
        wider = ndf * min(2**i, 8)
        stack += [
            nn.Conv2d(width, wider, 4, 2 if i < layers else 1, 1, bias=False),
            nn.BatchNorm2d(wider),
            nn.LeakyReLU(0.2, True),
        ]
        width = wider
    return nn.Sequential(*stack, nn.Conv2d(width, 1, 4, 1, 1))


def torchs(options: argparse.Namespace, x: np.ndarray, *, compiled: bool, channels_last: bool):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    levels = len(options.mult)
    generator = VQModel(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(options.ch * m for m in options.mult),
        layers_per_block=2,
        latent_channels=DIM,
        num_vq_embeddings=NUM_CODES,
        vq_embed_dim=DIM,
        norm_num_groups=32,
    ).to(device, memory_format=layout)
    discriminator = patchgan(3, 64, options.disc_layers).to(device, memory_format=layout)
    last = generator.decoder.conv_out.weight
    optimizers = [
        torch.optim.Adam(m.parameters(), lr=LR, betas=BETAS) for m in (generator, discriminator)
    ]
    image = torch.from_numpy(x).permute(0, 3, 1, 2).to(device, memory_format=layout)
    autocast = partial(
        torch.autocast, device, dtype=torch.bfloat16, enabled=options.dtype == "bfloat16"
    )

    def losses():
        with autocast():
            z = generator.quant_conv(generator.encoder(image))
            z_q, quantizer_loss, _ = generator.quantize(z.float())
            output = generator.decoder(generator.post_quant_conv(z_q)).float()
            reconstruction = functional.l1_loss(output, image)
            adversarial = -discriminator(output).float().mean()
        return output, reconstruction, quantizer_loss, adversarial

    def judge(output):
        with autocast():
            real = discriminator(image).float()
            fake = discriminator(output).float()
        return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())

    if compiled:
        losses, judge = torch.compile(losses), torch.compile(judge)

    def run() -> None:
        output, reconstruction, quantizer_loss, adversarial = losses()
        (of_loss,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
        (of_adversary,) = torch.autograd.grad(adversarial, last, retain_graph=True)
        adaptive = (of_loss.norm() / (of_adversary.norm() + 1e-4)).clamp(0, 1e4).detach()
        optimizers[0].zero_grad()
        (reconstruction + quantizer_loss + 0.8 * adaptive * adversarial).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        judge(output.detach()).backward()
        optimizers[1].step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def seconds(run: Callable[[], None], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - started) / steps


def measure(options: argparse.Namespace) -> dict:
    shape = (options.batch, options.resolution, options.resolution, 3)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    runs = {
        "vq_jax": ours(options, x),
        "torch": torchs(options, x, compiled=False, channels_last=False),
    }
    if options.channels_last:
        runs["torch, channels last"] = torchs(options, x, compiled=False, channels_last=True)
    if options.compile:
        runs["torch, compiled"] = torchs(options, x, compiled=True, channels_last=True)
    for run in runs.values():
        for _ in range(2):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            run()  # untimed: allocates memory again that was freed during the other sides' turns
            times[name].append(seconds(run, options.steps))
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {
        "options": {k: v for k, v in vars(options).items() if k != "output"},
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "images_per_second": {name: options.batch / t for name, t in medians.items()},
        "milliseconds": {name: [1e3 * s for s in t] for name, t in times.items()},
        "ratio": {name: t / medians["vq_jax"] for name, t in medians.items() if name != "vq_jax"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ch", type=int, default=64)
    parser.add_argument("--mult", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--disc_layers", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps per turn")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument(
        "--channels_last", action="store_true", help="also time torch with channels-last layout"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    figures = measure(options)
    for name, rate in figures["images_per_second"].items():
        spread = figures["milliseconds"][name]
        print(f"{name:<22}{rate:7.2f} images/s   {min(spread):.0f}-{max(spread):.0f} ms per step")
    for name, ratio in figures["ratio"].items():
        print(f"vq_jax runs at {ratio:.2f}x the speed of {name}")
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
