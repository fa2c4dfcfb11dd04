"""Measures a prior: the bits it needs for held-out codes, and the images it draws."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from vq_jax import config as configs
from vq_jax import metrics
from vq_jax.data.images import rows_of, save_image, to_uint8
from vq_jax.data.pipeline import eval_batches
from vq_jax.data.sources import Source, Splits, Subset, open_source
from vq_jax.errors import UserError
from vq_jax.interop.efficientnet import load_efficientnet
from vq_jax.models import efficientnet
from vq_jax.prior import TrainedPrior, load_prior
from vq_jax.sampling import log_probability, row_keys
from vq_jax.tasks.evaluate_tokenizer import perceptual_or_none, rows_of_networks, told
from vq_jax.tasks.frechet import (
    Network,
    compare,
    in_batches,
    inception_network,
    look,
    look_once,
)
from vq_jax.training.prior_steps import codes_of, mask_codes
from vq_jax.training.report import save_figures, show_figures, stderr, track

# name -> (heading, format) of the printed table
_ROWS = {
    "bits_per_code": ("bits per code", ".3f"),
    "bits_per_pixel": ("bits per pixel", ".4f"),
    "uniform_bits_per_code": ("bits per code, all alike", ".3f"),
    "efficientnet_frechet": ("Frechet distance (EfficientNet-lite0; not FID)", ".1f"),
    "efficientnet_frechet_reconstructed": ("  of held-out images through the tokenizer", ".1f"),
    "efficientnet_frechet_floor": ("  of held-out images", ".1f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "precision_floor": ("  precision of held-out images", ".3f"),
    "recall_floor": ("  recall of held-out images", ".3f"),
    "nearest": ("distance to the nearest training image", ".2f"),
    "nearest_floor": ("  of held-out images", ".2f"),
    **{
        name + which: (heading + after, ".2f" if name == "psnr" else ".4f")
        for which, after in (("", ""), ("_before", ", as given"), ("_ceiling", ", tokenizer alone"))
        for name, heading in (("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("lpips", "LPIPS (VGG16)"))
    },
    "samples": ("samples judged", ",d"),
    "images": ("held-out images", ",d"),
}
_SHOWN = 12
_AT_ONCE = 64  # samples
_ORDERS = 8  # shares of masked codes that a masked prior's bound is taken over


def evaluate_prior(
    workdir: Path,
    tokenizer: Path | None,
    data: ConfigDict | None = None,
    inception: str = "",
    protocol: str = "adm",
    count: int | None = None,
    seed: int = 0,
) -> None:
    """`--mode=evaluate` of a prior: its figures and pictures, printed and kept.

    Args:
      workdir: the prior's run.
      tokenizer: the tokenizer's, where it is elsewhere than the prior's config says.
      data: a section `data` that names the images; by default the prior's own.
      inception: the file of Inception's weights, or "download", for the gFID; "" leaves it out.
      protocol: in `frechet.PROTOCOLS`.
      count: samples of the gFID; by default `config.eval_samples`.
      seed: of what is drawn.
    """
    networks = [inception_network(inception, protocol)] if inception else []
    prior = load_prior(workdir, tokenizer)
    if networks and prior.module.condition:
        raise UserError("gFID is of images from noise: this prior makes better ones of given ones")
    configs.use_data(prior.config, data)
    splits = open_source(prior.config.data, prior.config.seed)
    measure(prior, splits, workdir, Console(highlight=False), networks, count, seed)


def measure(
    prior: TrainedPrior,
    splits: Splits,
    workdir: Path,
    console: Console,
    networks: Sequence[Network] = (),
    count: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures on the held-out split, prints the table, and writes evaluation.json and pictures.

    Args:
      prior: to measure.
      splits: the data.
      workdir: where the files go.
      console: where the table goes.
      networks: what compares samples with the whole training split as sets.
      count: how many samples these get; by default `config.eval_samples`.
      seed: of what is drawn.

    Returns:
      the figures, by the names in evaluation.json.
    """
    figures = code_bits(prior, splits.val)
    config = prior.config
    if config.eval_samples:
        draw = _improve if prior.module.condition else _draw_and_judge
        figures |= draw(prior, splits, workdir, seed)
    count = config.eval_samples if count is None else count
    protocol = told(config, figures["images"], networks)
    if "efficientnet_frechet" in figures:
        protocol["samples"] = (
            "{samples:,} samples of seed {seed} against {references:,} {references_are}; {network}".format(
                **figures, network="EfficientNet-lite0, to 224x224, bicubic, smoothed"
            )
        )
    for network in networks:
        found, real = _as_sets(prior, splits.train, network, count, seed)
        figures |= found
        decoded = ", decoded from codes" if config.data.source == "codes" else ""
        protocol[f"{network.key}_samples"] = (
            f"gFID: {count:,} samples against {real:,} training images{decoded}"
        )
    figures |= {"protocol": protocol, "step": prior.step}

    show_figures(console, figures, _ROWS | rows_of_networks(networks, "g"))
    console.print("\n".join(protocol.values()), style="dim")
    save_figures(figures, workdir)
    return figures


def _as_sets(
    prior: TrainedPrior, train: Source, network: Network, count: int, seed: int
) -> tuple[dict[str, float], int]:
    """Samples, with the training images' labels, against all training images, as sets; and how many
    of those there were."""
    if not 2 <= count <= 1_000_000:
        raise UserError(f"gFID takes 2 to 1,000,000 samples, not {count:,}: --count=50000, say")
    places = np.linspace(0, len(train) - 1, count).round().astype(int)

    def real() -> Iterator[np.ndarray]:
        for batch in _batches(train, prior):
            yield to_uint8(batch[0])

    def samples() -> Iterator[np.ndarray]:
        for start in track(range(0, count, _AT_ONCE), "drawing"):
            part = places[start : start + _AT_ONCE]
            labels = [int((train[int(i)] or {}).get("label", 0)) for i in part]
            how: dict[str, Any] = {"label": labels} if prior.class_names else {}
            yield to_uint8(prior.sample(len(part), first=start, seed=seed, **how))

    of_real = look_once(network, real)
    found = compare(network, of_real, look(network, samples(), classes=True))
    return {f"g{name}": value for name, value in found.items()}, of_real.statistics.count


def code_bits(prior: TrainedPrior, source: Source) -> dict[str, Any]:
    """Cross-entropy of a split's codes, with their labels.

    Exact for a prior that reads codes one by one, row by row. For a masked one it is the bound of an
    order drawn at random (Hoogeboom et al. 2022, eq. 3): the mean, over how many codes are masked,
    of the mean cross-entropy of those that are; estimated with eight such numbers an image, one from
    each eighth of the range.
    """
    module, config, tokenizer = prior.module, prior.config, prior.tokenizer
    variables = {} if config.data.source == "codes" else tokenizer.variables

    @jax.jit
    def nats(params, variables, batch, keys_B, part):
        codes_BN, condition_BM = codes_of(tokenizer.module, variables, batch)
        label_B = jnp.minimum(batch["label"], module.classes)
        inputs_BN, wanted_BN = codes_BN, jnp.ones_like(codes_BN, bool)
        if not module.causal:

            def of_row(key):
                u = jax.random.uniform(jax.random.fold_in(key, 0))
                count = jnp.floor((part + u) / _ORDERS * module.length) + 1
                return mask_codes(jax.random.fold_in(key, 1), module.length, count / module.length)

            wanted_BN = jax.vmap(of_row)(keys_B)
            inputs_BN = jnp.where(wanted_BN, -1, codes_BN)
        logits: Any = module.apply({"params": params}, inputs_BN, label_B, condition_BM)
        log_p_BN = log_probability(logits, codes_BN) * wanted_BN
        return -log_p_BN.sum(1) / wanted_BN.sum(1)

    total, images = 0.0, 0
    degrade = configs.make_condition(config)
    for batch in eval_batches(source, config.data, degrade):
        valid = batch.pop("valid")
        for part in range(1 if module.causal else _ORDERS):
            keys_B = row_keys(jax.random.key(part), images, len(valid))
            found = nats(prior.params, variables, batch, keys_B, part)
            total += float(np.asarray(found)[valid].sum()) / (1 if module.causal else _ORDERS)
        images += int(valid.sum())
    if not images:
        raise UserError("nothing held out could be read")
    height, width, _ = config.codes.image
    bits = total / images / math.log(2)
    return {
        "bits_per_code": bits,
        "bits_per_pixel": bits * module.length / (height * width),
        "uniform_bits_per_code": math.log2(module.num_codes),
        "bits_are": "exact" if module.causal else "an upper bound, over random orders",
        "images": images,
    }


# --- samples --------------------------------------------------------------------------------------


def spread_over(source: Source, count: int) -> Source:
    """`count` examples from all over a source, which may be sorted by class; all, if it has no more."""
    places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    return Subset(source, places.tolist())


def labelled_images(source: Source, prior: TrainedPrior) -> Iterator[tuple[np.ndarray, int]]:
    """The images of a source, float32 [H, W, C], with their labels; of codes, what they decode to."""
    for images, labels in _batches(source, prior):
        yield from zip(images, labels.tolist(), strict=True)


def _batches(source: Source, prior: TrainedPrior) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same, in batches."""
    for batch in eval_batches(source, prior.config.data):
        if (images := batch.get("image")) is None:
            codes = batch["codes"].reshape(-1, *prior.tokenizer.grid)
            images = np.clip(np.asarray(prior.tokenizer.decode(codes)), -1, 1)
        yield images[batch["valid"]], batch["label"][batch["valid"]]


def make_features() -> Callable[[np.ndarray], np.ndarray]:
    """EfficientNet-lite0 from images float32 [N, H, W, C] to float32 [N, 1280].

    Raises:
      UserError: the weights are not installed.
    """
    return in_batches(efficientnet.features, load_efficientnet())


@dataclasses.dataclass(frozen=True)
class References:
    """What samples are held against.

    Attributes:
      real: training images, float32 [N, H, W, C].
      of_real: their features.
      figures: how the held-out images themselves fare.
    """

    real: np.ndarray
    of_real: np.ndarray
    figures: dict[str, Any]


def sample_labels(prior: TrainedPrior, held_out: Sequence[tuple[np.ndarray, int]]) -> list[int]:
    """The labels of samples to draw: those of held-out images, as often as it takes."""
    count = prior.config.eval_samples
    labels = [label for _, label in held_out]
    return (labels * -(-count // len(labels)))[:count]


def references(
    prior: TrainedPrior,
    splits: Splits,
    features: Callable[[np.ndarray], np.ndarray],
    held_out: Sequence[tuple[np.ndarray, int]],
) -> References:
    """Training images and what held-out images have to do with them.

    Args:
      prior: whose config says how many.
      splits: the data.
      features: from `make_features`.
      held_out: images with their labels.
    """
    subset = spread_over(splits.train, prior.config.eval_references)
    real = np.stack([image for image, _ in labelled_images(subset, prior)])
    held = np.stack([image for image, _ in held_out])
    of_real, of_held = features(real), features(held)
    # As many as there are samples: the distance of few is larger.
    same = min(len(of_held), prior.config.eval_samples)
    precision, recall = metrics.precision_recall(of_real, of_held[:same])
    figures = {
        "efficientnet_frechet_floor": metrics.frechet_distance(of_held[:same], of_real),
        "precision_floor": precision,
        "recall_floor": recall,
        "nearest_floor": float(metrics.distances(of_held, of_real).min(axis=1).mean()),
        "samples": same,
        "references": len(real),
        "references_are": "training images",
    }
    if prior.config.data.source == "codes":
        figures["references_are"] = "decoded codes"
    else:
        parts = [prior.tokenizer.reconstruct(held[i : i + 64]) for i in range(0, len(held), 64)]
        through = features(np.clip(np.concatenate(parts), -1, 1))[:same]
        figures["efficientnet_frechet_reconstructed"] = metrics.frechet_distance(through, of_real)
    return References(real, of_real, figures)


def judge(against: References, of_samples: np.ndarray) -> dict[str, float]:
    """How samples' features lie among those of training images."""
    of_real = against.of_real
    same = of_samples[: against.figures["samples"]]
    precision, recall = metrics.precision_recall(of_real, same)
    return {
        "efficientnet_frechet": metrics.frechet_distance(same, of_real),
        "precision": precision,
        "recall": recall,
        "nearest": float(metrics.distances(of_samples, of_real).min(axis=1).mean()),
    }


def _draw_and_judge(
    prior: TrainedPrior, splits: Splits, workdir: Path, seed: int
) -> dict[str, Any]:
    """Draws images with the held-out images' labels, and holds them against training images."""
    count = prior.config.eval_samples
    held_out = list(labelled_images(spread_over(splits.val, count), prior))
    labels = sample_labels(prior, held_out)
    samples = prior.sample(count, label=labels if prior.class_names else None, seed=seed)
    save_image(_by_class(prior, to_uint8(samples), labels), workdir / "samples.png")
    try:
        features = make_features()
    except UserError as e:
        stderr(f"the Frechet distance is left out: {e}")
        return {}
    if min(len(held_out), len(splits.train)) < 8:
        stderr("samples are not judged: that takes 8 held-out images")
        return {}
    against = references(prior, splits, features, held_out)
    of_samples = features(samples)
    shown = np.linspace(0, count - 1, _SHOWN).astype(int)
    twins = against.real[metrics.distances(of_samples[shown], against.of_real).argmin(axis=1)]
    save_image(rows_of(to_uint8(samples[shown]), to_uint8(twins)), workdir / "nearest.png")
    return judge(against, of_samples) | against.figures | {"seed": seed}


def _by_class(prior: TrainedPrior, samples: np.ndarray, labels: list[int]) -> np.ndarray:
    """Samples as a picture, a row for each of up to ten classes, or in rows as they come."""
    wide = 12
    numbers = sorted(set(labels))[:10] if prior.class_names else []
    rows = [samples[[i for i, one in enumerate(labels) if one == n][:wide]] for n in numbers]
    rows = [row for row in rows if len(row) == wide]
    if not rows:
        rows = [samples[i : i + wide] for i in range(0, min(len(samples), 96), wide)]
        rows = [row for row in rows if len(row) == len(rows[0])]
    return rows_of(*rows)


# --- images made better ---------------------------------------------------------------------------


def _improve(prior: TrainedPrior, splits: Splits, workdir: Path, seed: int) -> dict[str, Any]:
    """Makes the held-out images of a condition, and holds them against what they were made from."""
    config = prior.config
    perceptual = perceptual_or_none()
    sums: dict[str, float] = {}
    source = spread_over(splits.val, config.eval_samples)
    places = set(np.linspace(0, len(source) - 1, _SHOWN).astype(int).tolist())
    shown: list[tuple[np.ndarray, ...]] = []
    images = 0
    for batch in eval_batches(source, config.data, configs.make_condition(config)):
        x, worse, valid = jnp.asarray(batch["image"]), batch["condition"], batch["valid"]
        condition = prior.tokenizer.encode(worse)
        shape = (len(x), *prior.tokenizer.grid)
        codes, _ = prior.fill(
            np.zeros(shape, np.int32),
            np.ones(shape, bool),
            condition=condition,
            label=batch["label"].tolist() if prior.class_names else None,
            first=images,
            seed=seed,
        )
        better = np.clip(np.asarray(prior.tokenizer.decode(codes)), -1, 1)
        shown_worse = worse
        if worse.shape != x.shape:
            shown_worse = np.asarray(jax.image.resize(worse, x.shape, "cubic"))
        ceiling = np.clip(np.asarray(prior.tokenizer.reconstruct(x)), -1, 1)
        for name, y in (("", better), ("_before", shown_worse), ("_ceiling", ceiling)):
            y = jnp.asarray(y)
            values = {"psnr": metrics.psnr(x, y), "ssim": metrics.ssim(x, y)}
            if perceptual is not None:
                values["lpips"] = perceptual(x, y)
            for key, value in values.items():
                sums[key + name] = sums.get(key + name, 0.0) + float(np.asarray(value)[valid].sum())
        kept = [i for n, i in enumerate(np.flatnonzero(valid)) if images + n in places]
        shown += [(shown_worse[i], better[i], np.asarray(x[i])) for i in kept]
        images += int(valid.sum())
    rows = [to_uint8(np.stack(row)) for row in zip(*shown, strict=True)]
    save_image(rows_of(*rows), workdir / "samples.png")
    return {name: value / images for name, value in sums.items()}
