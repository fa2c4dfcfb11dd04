"""Measures a tokenizer on the whole held-out split."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from vq_jax import metrics
from vq_jax.data.images import rows_of, save_image, to_uint8
from vq_jax.data.pipeline import eval_batches
from vq_jax.data.sources import Source, open_source
from vq_jax.errors import UserError
from vq_jax.interop.lpips import load_lpips
from vq_jax.models.perceptual import lpips
from vq_jax.quantizers.functions import nearest_other
from vq_jax.tokenizer import TrainedTokenizer, load
from vq_jax.training.report import plot_codebook, save_figures, show_figures, stderr
from vq_jax.training.watch import what_to_turn

# name -> (heading, format) of the printed table
_ROWS = {
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS (VGG16)", ".4f"),
    "l1": ("L1 on [-1, 1]", ".4f"),
    "nmse": ("squared error over variance", ".4f"),
    "usage": ("codebook in use", ".1%"),
    "perplexity": ("perplexity", ".1f"),
    "bits_per_pixel": ("bits per pixel", ".4f"),
    "entropy_bits_per_pixel": ("bits per pixel, entropy", ".4f"),
    "images": ("held-out images", ",d"),
}
# Using less of its codes than this on a split, a tokenizer is worth a word about it.
_LOW_USAGE = 0.5
_SHOWN = 12  # images in reconstructions.png


def evaluate(workdir: Path) -> None:
    """`--mode=evaluate`: the held-out figures of the run in `workdir`, printed and kept as JSON."""
    tokenizer = load(workdir)
    config = tokenizer.config
    source = open_source(config.data, config.seed).val
    console = Console(highlight=False)
    measure(tokenizer, source, workdir, console)


def measure(
    tokenizer: TrainedTokenizer, source: Source, workdir: Path, console: Console
) -> dict[str, Any]:
    """Measures on a split, prints the table, and writes evaluation.json and its pictures.

    Returns:
      the figures, by the names in evaluation.json.
    """
    perceptual = perceptual_or_none() if tokenizer.config.eval_lpips else None
    figures, counts, shown = measure_split(tokenizer, source, perceptual)

    show_figures(console, figures, _ROWS)
    save_image(rows_of(*shown), workdir / "reconstructions.png")
    plot_codes(tokenizer, counts, workdir / "codebook.png")
    if figures["usage"] < _LOW_USAGE and counts.sum() > 4 * counts.size:
        turn = what_to_turn(tokenizer.config)
        stderr(f"only {figures['usage']:.1%} of the codes are in use on the held-out split. {turn}")
    save_figures(figures, workdir)
    return figures


def perceptual_or_none() -> Callable | None:
    """LPIPS of images and images -> [B], compiled; or None, and a word, where it is not installed."""
    try:
        params = load_lpips()
    except UserError as e:
        stderr(f"LPIPS is left out: {e}")
        return None
    return jax.jit(lambda a, b: lpips(params, a, b))


def measure_split(
    tokenizer: TrainedTokenizer, source: Source, perceptual: Callable | None
) -> tuple[dict[str, Any], np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Every image of a split once, through the tokenizer.

    Reconstructions are clipped to [-1, 1]. PSNR, SSIM, LPIPS and L1 are means over images; `nmse` is
    the squared error over the variance of the split's pixels; usage and perplexity are of the codes
    of the whole split, means where there are several codebooks (`usage_by_level` and
    `perplexity_by_level` have each); `bits_per_pixel` counts log2(num_codes) bits a code,
    `entropy_bits_per_pixel` the entropy of the split's codes.

    Args:
      tokenizer: to measure.
      source: the split.
      perceptual: LPIPS of images and images -> [B], or None.

    Returns:
      the figures; the codes' counts [*code_shape, num_codes]; some originals and their reconstructions, uint8
      [N, H, W, C] each.
    """
    config = tokenizer.config

    @jax.jit
    def per_image(x, y):
        values = {
            "psnr": metrics.psnr(x, y),
            "ssim": metrics.ssim(x, y),
            "l1": metrics.l1(x, y),
            "squared_error": jnp.square(x - y).mean((1, 2, 3)),
            "mean": x.mean((1, 2, 3)),
            "mean_square": jnp.square(x).mean((1, 2, 3)),
        }
        if perceptual is not None:
            values["lpips"] = perceptual(x, y)
        return values

    sums: dict[str, float] = {}
    books, num_codes = math.prod(tokenizer.code_shape), tokenizer.num_codes
    counts = np.zeros((books, num_codes), np.int64)
    images = 0
    originals, outputs = [], []
    stride = max(1, len(source) // _SHOWN)
    for batch in eval_batches(source, config.data):
        x, valid = batch["image"], batch["valid"]
        y, codes = tokenizer.reconstruct_with_codes(x)
        y = jnp.clip(y, -1.0, 1.0)
        for name, value in per_image(x, y).items():
            sums[name] = sums.get(name, 0.0) + float(np.asarray(value)[valid].sum())
        for q, of_book in enumerate(np.asarray(codes)[valid].reshape(-1, books).T):
            counts[q] += np.bincount(of_book, minlength=num_codes)
        wanted = [i for i in np.flatnonzero(valid) if (images + i) % stride == 0]
        originals += list(to_uint8(x[wanted]))
        outputs += list(to_uint8(np.asarray(y)[wanted]))
        images += int(valid.sum())
    if not images:
        raise UserError("no held-out image could be read")

    figures: dict[str, Any] = {name: value / images for name, value in sums.items()}
    variance = figures.pop("mean_square") - figures.pop("mean") ** 2
    figures["nmse"] = figures.pop("squared_error") / max(variance, 1e-12)
    pixels = config.data.resolution**2
    codes_per_image = math.prod(tokenizer.grid)
    perplexities = np.asarray(metrics.perplexity(jnp.asarray(counts, jnp.float32)))
    usages = np.mean(counts > 0, axis=1)
    bits = float(np.mean(np.log2(perplexities)))  # a code's, by its own level's entropy
    figures |= {
        "usage": float(usages.mean()),
        "perplexity": float(perplexities.mean()),
        "bits_per_pixel": metrics.bits_per_pixel(num_codes, codes_per_image, pixels),
        "entropy_bits_per_pixel": codes_per_image * bits / pixels,
        "codes_per_image": codes_per_image,
        "num_codes": num_codes,
        "images": images,
        "step": tokenizer.step,
    }
    if tokenizer.code_shape:
        figures["usage_by_level"] = usages.tolist()
        figures["perplexity_by_level"] = perplexities.tolist()
    counts = counts.reshape(*tokenizer.code_shape, num_codes)
    return figures, counts, (np.stack(originals[:_SHOWN]), np.stack(outputs[:_SHOWN]))


def plot_codes(tokenizer: TrainedTokenizer, counts: np.ndarray, path: Path) -> None:
    """Draws how a split's codes are used and how the entries lie; see `report.plot_codebook`."""
    counts_QK = counts.reshape(-1, tokenizer.num_codes)
    entries, distances_QK = tokenizer.codebooks(), None
    if entries is not None:
        nearest = jax.jit(nearest_other)
        distances_QK = np.stack(
            [nearest(e_Kd) for e_Kd in entries.reshape(len(counts_QK), *entries.shape[-2:])]
        )
    plot_codebook(counts_QK, distances_QK, path)
