"""Trains the same RQ-VAE with vector-quantize-pytorch's ResidualVQ, on the same vectors.

    pip install -e '.[demo,bench]'
    python -m experiments.semantic_ids.peer --output=experiments/semantic_ids/peer.json

The encoder, decoder, batches, number of steps, learning rates, codebook size, latent size and EMA decay are those
of `configs/semantic_ids.py`. ResidualVQ starts its codebooks by k-means, and replaces entries with an
average count below 2. There is no phase without quantization.
"""

import argparse
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from vector_quantize_pytorch import ResidualVQ

from configs.semantic_ids import get_config
from vq_jax.config import make_prepare
from vq_jax.data.pipeline import train_batches
from vq_jax.modalities import open_source


def dense(widths: list[int]) -> nn.Sequential:
    """Returns dense layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(a, b), *([nn.ReLU()] if i < len(widths) - 2 else [])]
    return nn.Sequential(*layers)


def unique_share(codes_NQ: np.ndarray) -> float:
    """Returns the share of items whose codes no other item has."""
    counts = Counter(map(bytes, np.ascontiguousarray(codes_NQ)))
    return sum(n == 1 for n in counts.values()) / len(codes_NQ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = get_config()
    splits = open_source(config)
    inner, steps = config.quantizer.inner, sum(config.phases.values())
    encoder = dense([config.data.dim, *config.model.hidden, inner.dim])
    decoder = dense([inner.dim, *reversed(config.model.hidden), config.data.dim])
    quantizer = ResidualVQ(
        dim=inner.dim, num_quantizers=config.quantizer.levels, codebook_size=inner.num_codes,
        decay=inner.decay, commitment_weight=inner.beta, kmeans_init=True,
        threshold_ema_dead_code=2,
    )  # fmt: skip
    params = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(
        params, lr=config.optim.lr, weight_decay=config.optim.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, config.optim.lr_end)
    batches = train_batches(splits.train, config.data, 0, make_prepare(config, train=True))
    started = time.perf_counter()
    for _ in range(steps):
        x = torch.from_numpy(np.array(next(batches)["x"]))
        z_q, _, commitment = quantizer(encoder(x))
        loss = torch.nn.functional.mse_loss(decoder(z_q), x) + commitment.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, config.optim.clip_norm)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - started
    quantizer.eval()
    figures: dict[str, float] = {"seconds": seconds}
    all_codes = []
    with torch.no_grad():
        for name, source in (("train", splits.train), ("val", splits.val)):
            x = torch.from_numpy(np.stack([source[i]["x"] for i in range(len(source))]))
            z_q, codes, _ = quantizer(encoder(x))
            all_codes.append(codes.numpy())
            if name == "val":
                error = (decoder(z_q) - x).square().mean() / x.var(dim=0, unbiased=False).mean()
                figures["relative_error"] = float(error)
                figures["unique_share"] = unique_share(all_codes[-1])
                figures["perplexity"] = float(np.mean([perplexity(c) for c in all_codes[-1].T]))
    figures["unique_share_of_all"] = unique_share(np.concatenate(all_codes))
    print(json.dumps(figures, indent=1))
    options.output.write_text(json.dumps(figures, indent=1) + "\n")


def perplexity(codes_N: np.ndarray) -> float:
    """Returns the exponential of the entropy of codes."""
    p = np.bincount(codes_N) / len(codes_N)
    return float(np.exp(-np.sum(p * np.log(np.maximum(p, 1e-12)))))


if __name__ == "__main__":
    main()
