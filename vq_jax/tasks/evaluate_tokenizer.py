"""Measures a tokenizer on the whole held-out split."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from vq_jax import config as configs
from vq_jax import metrics
from vq_jax.data.images import rows_of as rows_of_images
from vq_jax.data.images import save_image, to_uint8
from vq_jax.data.pipeline import eval_batches
from vq_jax.data.sources import Source, open_source
from vq_jax.errors import UserError
from vq_jax.interop.lpips import load_lpips
from vq_jax.models.perceptual import LEAST_SIDE, lpips
from vq_jax.quantizers.functions import nearest_other
from vq_jax.tasks.frechet import (
    KEPT,
    Network,
    compare,
    efficientnet_network,
    inception_network,
    look,
    look_once,
    rows_of,
)
from vq_jax.tokenizer import TrainedTokenizer, load
from vq_jax.training.report import plot_codebook, save_figures, show_figures, stderr
from vq_jax.training.watch import what_to_turn

# name -> (heading, format) of the printed table
_ROWS = {
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "ms_ssim": ("MS-SSIM", ".4f"),
    "lpips": ("LPIPS (VGG16)", ".4f"),
    "lpips_alex": ("LPIPS (AlexNet)", ".4f"),
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


def evaluate_tokenizer(
    workdir: Path, data: ConfigDict | None = None, inception: str = "", protocol: str = "adm"
) -> None:
    """`--mode=evaluate`: the held-out figures of the run in `workdir`, printed and kept as JSON.

    Args:
      workdir: the run's folder.
      data: a section `data` that names the images; by default the tokenizer's own. Resolution and
        channels are the tokenizer's.
      inception: the file of Inception's weights, or "download", for the rFID; "" leaves it out.
      protocol: in `frechet.PROTOCOLS`.
    """
    networks = judges(inception, protocol)
    tokenizer = load(workdir)
    config = tokenizer.config
    configs.use_data(config, data)
    source = open_source(config.data, config.seed).val
    console = Console(highlight=False)
    measure(tokenizer, source, workdir, console, networks)


def judges(inception: str, protocol: str) -> list[Network]:
    """The networks that sets of images are compared by: those whose weights there are."""
    networks = [inception_network(inception, protocol)] if inception else []
    try:
        networks.append(efficientnet_network())
    except UserError as e:
        stderr(f"the Frechet distance is left out: {e}")
    return networks


def measure(
    tokenizer: TrainedTokenizer,
    source: Source,
    workdir: Path,
    console: Console,
    networks: Sequence[Network] = (),
) -> dict[str, Any]:
    """Measures on a split, prints the table, and writes evaluation.json and its pictures.

    Args:
      tokenizer: to measure.
      source: the split.
      workdir: where the files go.
      console: where the table goes.
      networks: what compares reconstructions with originals as sets.

    Returns:
      the figures, by the names in evaluation.json.
    """
    perceptual = perceptual_nets(tokenizer.config)
    figures, counts, shown = measure_split(tokenizer, source, perceptual)
    for network in networks:
        figures |= _as_sets(tokenizer, source, network)
    figures["protocol"] = told(tokenizer.config, figures["images"], networks)

    show_figures(console, figures, _ROWS | rows_of_networks(networks, "r"))
    console.print("\n".join(figures["protocol"].values()), style="dim")
    save_image(rows_of_images(*shown), workdir / "reconstructions.png")
    plot_codes(tokenizer, counts, workdir / "codebook.png")
    if figures["usage"] < _LOW_USAGE and counts.sum() > 4 * counts.size:
        turn = what_to_turn(tokenizer.config)
        stderr(f"only {figures['usage']:.1%} of the codes are in use on the held-out split. {turn}")
    save_figures(figures, workdir)
    return figures


def perceptual_or_none(net: str = "vgg") -> Callable | None:
    """LPIPS of images and images -> [B], compiled; or None, and a word, where it is not installed."""
    try:
        params = load_lpips(net)
    except UserError as e:
        stderr(f"LPIPS ({net}) is left out: {e}")
        return None
    return jax.jit(lambda a, b: lpips(params, a, b, net))


def perceptual_nets(config: ConfigDict) -> dict[str, Callable]:
    """Those of `lpips` and `lpips_alex` that a run's evaluation has."""
    if not config.eval_lpips:
        return {}
    wanted = {"lpips": "vgg", "lpips_alex": "alex"}
    fitting = {k: n for k, n in wanted.items() if config.data.resolution >= LEAST_SIDE[n]}
    found = {key: perceptual_or_none(net) for key, net in fitting.items()}
    return {key: function for key, function in found.items() if function is not None}


def _as_sets(tokenizer: TrainedTokenizer, source: Source, network: Network) -> dict[str, float]:
    """A split's reconstructions against its originals, as sets."""
    config = tokenizer.config

    def originals() -> Iterator[np.ndarray]:
        for batch in eval_batches(source, config.data):
            yield to_uint8(batch["image"][batch["valid"]])

    def reconstructions() -> Iterator[np.ndarray]:
        for batch in eval_batches(source, config.data):
            y = np.asarray(tokenizer.reconstruct(batch["image"]))
            yield to_uint8(y[batch["valid"]])

    found = compare(
        network, look_once(network, originals), look(network, reconstructions(), classes=True)
    )
    return {f"r{name}" if name.startswith("fid") else name: v for name, v in found.items()}


def rows_of_networks(networks: Sequence[Network], which: str) -> dict[str, tuple[str, str]]:
    """The table's rows of set figures; FID is rFID of reconstructions, gFID of samples."""
    return {
        f"{which}{name}" if name.startswith("fid") else name: (
            heading.replace("FID (", f"{which}FID ("),
            form,
        )
        for name, (heading, form) in rows_of(networks).items()
    }


def told(config: ConfigDict, count: int, networks: Sequence[Network]) -> dict[str, str]:
    """What a reader has to know of how images were come by, a line each."""
    data = config.data
    lines = {"images": f"{count:,} held-out images of {data.source} {data.folder}".strip()}
    if data.source == "codes":
        lines["preparation"] = "decoded from their codes, as those were made"
    else:
        side = data.resolution if data.resize is None else data.resize
        size = f"shorter side to {side} by Lanczos" if side else "as large as they are"
        lines["preparation"] = f"{size}, centre crop to {data.resolution}"
    lines["preparation"] += ", range [-1, 1], outputs clipped"
    for network in networks:
        lines[network.key] = f"{network.heading}: {network.about}"
        if network.probabilities is not None:
            lines["precision"] = (
                f"precision and recall: 3 neighbours, up to {KEPT:,} images of each side, at random"
            )
            if network.key == "fid_adm":
                lines["precision"] += (
                    "; ADM's published ones take all images, with distances in float16: these are "
                    "near them, not equal"
                )
    return lines


def measure_split(
    tokenizer: TrainedTokenizer, source: Source, perceptual: Mapping[str, Callable]
) -> tuple[dict[str, Any], np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Every image of a split once, through the tokenizer.

    Reconstructions are clipped to [-1, 1]. PSNR, SSIM, MS-SSIM (of images large enough for it), LPIPS
    and L1 are means over images; `nmse` is
    the squared error over the variance of the split's pixels; usage and perplexity are of the codes
    of the whole split, means where there are several codebooks (`usage_by_level` and
    `perplexity_by_level` have each); `bits_per_pixel` counts log2(num_codes) bits a code,
    `entropy_bits_per_pixel` the entropy of the split's codes.

    Args:
      tokenizer: to measure.
      source: the split.
      perceptual: name -> LPIPS of images and images -> [B].

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
        if config.data.resolution >= metrics.MS_SSIM_SIDE:
            values["ms_ssim"] = metrics.ms_ssim(x, y)
        return values | {name: distance(x, y) for name, distance in perceptual.items()}

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
    error = figures.pop("squared_error")
    if variance > 1e-6:  # images of one colour have none to compare with
        figures["nmse"] = error / variance
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
