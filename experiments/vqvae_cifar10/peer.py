"""Trains the same VQ-VAE in plain PyTorch, with the same batches, losses, Adam and moving averages.

    pip install -e '.[bench]'
    python -m experiments.vqvae_cifar10.peer --folder=FOLDER --output=FILE.json

Reads configs/vqvae_cifar10.py and the training batches of vq_jax's pipeline, in the same order.
Only the framework, its default initialisation and its arithmetic differ. Writes the metrics of the
held-out images, as `--mode=evaluate` defines them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from configs.vqvae_cifar10 import get_config
from vq_jax.config import make_prepare
from vq_jax.data.pipeline import eval_batches, train_batches
from vq_jax.modalities import open_source


class Residual(nn.Module):
    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.conv3 = nn.Conv2d(hidden, inner, 3, padding=1)
        self.conv1 = nn.Conv2d(inner, hidden, 1)

    def forward(self, x):
        return x + self.conv1(functional.relu(self.conv3(functional.relu(x))))


def make_network(config) -> tuple[nn.Module, nn.Module]:
    hidden, inner = config.model.hidden, config.model.res_hidden
    blocks = range(config.model.num_res_blocks)
    encoder = nn.Sequential(
        nn.Conv2d(config.data.channels, hidden // 2, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(hidden // 2, hidden, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        *[Residual(hidden, inner) for _ in blocks],
        nn.ReLU(),
        nn.Conv2d(hidden, config.quantizer.dim, 1),
    )
    decoder = nn.Sequential(
        nn.Conv2d(config.quantizer.dim, hidden, 3, padding=1),
        *[Residual(hidden, inner) for _ in blocks],
        nn.ReLU(),
        nn.ConvTranspose2d(hidden, hidden // 2, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(hidden // 2, config.data.channels, 4, 2, 1),
    )
    return encoder, decoder


class Quantizer(nn.Module):
    """Nearest-entry quantizer with a codebook of moving averages (EMA)."""

    def __init__(self, num_codes: int, dim: int, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("entries", (torch.rand(num_codes, dim) * 2 - 1) / num_codes)
        self.register_buffer("sizes", torch.ones(num_codes))
        self.register_buffer("sums", self.entries.clone())

    def forward(self, z):
        """Maps [B, D, H, W] to straight-through latents, codes [N] and the commitment loss."""
        b, d, h, w = z.shape
        flat = z.permute(0, 2, 3, 1).reshape(-1, d)
        with torch.no_grad():
            codes = (self.entries.square().sum(1) - 2 * flat @ self.entries.T).argmin(1)
        quantized = self.entries[codes].reshape(b, h, w, d).permute(0, 3, 1, 2)
        commitment = functional.mse_loss(z, quantized)
        if self.training:
            self._follow(flat.detach(), codes)
        return z + (quantized - z).detach(), codes, commitment

    @torch.no_grad()
    def _follow(self, flat, codes):
        counts = torch.bincount(codes, minlength=len(self.sizes)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, flat)
        self.sizes.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total, k = self.sizes.sum(), len(self.sizes)
        smoothed = (self.sizes + 1e-5) / (total + k * 1e-5) * total
        self.entries = self.sums / smoothed[:, None]


def perplexity(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def run(config) -> dict[str, float]:
    torch.manual_seed(config.seed)
    splits = open_source(config)
    encoder, decoder = make_network(config)
    k = config.quantizer.num_codes
    quantizer = Quantizer(k, config.quantizer.dim, config.quantizer.decay)
    params = [*encoder.parameters(), *decoder.parameters()]
    betas = (config.optim.b1, config.optim.b2)
    optimizer = torch.optim.Adam(params, lr=config.optim.lr, betas=betas)
    batches = train_batches(
        splits.train, config.data, config.seed, make_prepare(config, train=True)
    )
    steps, late = config.phases.joint, []
    for step in range(1, steps + 1):
        x = to_torch(next(batches)["x"])
        z_q, codes, commitment = quantizer(encoder(x))
        error = functional.mse_loss(decoder(z_q), x) / config.loss.data_variance
        optimizer.zero_grad()
        (error + config.quantizer.beta * commitment).backward()
        optimizer.step()
        if step % 100 == 0:
            of_batch = perplexity(np.bincount(codes.numpy(), minlength=k))
            print(f"{step}/{steps}  rec {error.item():.4f}  perplexity {of_batch:.1f}", flush=True)
            if step > steps - 1000:
                late.append((error.item(), of_batch))

    quantizer.eval()
    counts, images, squared, first, second = np.zeros(k), 0, 0.0, 0.0, 0.0
    with torch.no_grad():
        for batch in eval_batches(splits.val, config.data, make_prepare(config)):
            x = to_torch(batch["x"][batch["valid"]])
            z_q, codes, _ = quantizer(encoder(x))
            y = decoder(z_q).clamp(-1, 1)
            squared += (x - y).double().square().sum().item()
            first += x.double().sum().item()
            second += x.double().square().sum().item()
            counts += np.bincount(codes.numpy(), minlength=k)
            images += len(x)
    pixels = images * x[0].numel()
    variance = second / pixels - (first / pixels) ** 2
    return {
        "nmse": squared / pixels / variance,
        "perplexity": perplexity(counts),
        "usage": float((counts > 0).mean()),
        "train_nmse_last_1000": float(np.mean([error for error, _ in late])),
        "train_batch_perplexity_last_1000": float(np.mean([p for _, p in late])),
        "images": images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="folder written by prepare.py")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument(
        "--steps", type=int, default=0, help="train for fewer steps, for a quick test"
    )
    arguments = parser.parse_args()
    config = get_config()
    config.data.source, config.data.folder = "folder", arguments.folder
    config.phases.joint = arguments.steps or config.phases.joint
    figures = run(config)
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
