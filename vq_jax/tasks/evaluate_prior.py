"""The figures of a prior: bits of held-out codes, its samples as a set, what it makes of a condition."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax import metrics
from vq_jax.config import make_prepare
from vq_jax.console import stderr, track
from vq_jax.data.pipeline import eval_batches
from vq_jax.data.sources import Source, Splits, Subset
from vq_jax.errors import UserError
from vq_jax.modalities import Network
from vq_jax.modalities.base import Rows
from vq_jax.prior import BATCH, TrainedPrior
from vq_jax.sampling import log_probability, row_keys
from vq_jax.tasks.evaluate_tokenizer import rows_given_codes
from vq_jax.tasks.job import Evaluation
from vq_jax.tasks.sets import cached_statistics, compare, compute_statistics, rows_of, with_prefix
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.training.prior_steps import codes_of, mask_codes

_SHOWN = 12  # examples a row of a picture
_LEAST = 8  # examples on each side of a comparison of sets
_MASKS = 8  # shares of masked codes that the bound of a masked prior averages over
PREFIX = "g"  # of FID
# What a condition's results are compared with: suffix of the figures -> suffix of their headings.
_COMPARED = {"": "", "_before": ", as given", "_ceiling": ", tokenizer alone"}


def rows(evaluation: Evaluation) -> Rows:
    """Returns the table's rows: name of a figure -> (heading, format)."""
    modality = evaluation.model.modality
    unit, noun = modality.unit, f"{modality.noun}s"
    found = {
        "bits_per_code": ("bits per code", ".3f"),
        f"bits_per_{unit}": (f"bits per {unit}", ".4f"),
        "uniform_bits_per_code": ("bits per code, uniform", ".3f"),
        **rows_given_codes(modality),
    }
    networks = _sample_networks(evaluation)
    found |= {network.key: (network.heading, ".1f") for network in networks[:-1]}
    for network in networks[-1:]:
        key = network.key
        found[key] = (network.heading, ".1f")
        found[f"{key}_reconstructed"] = (f"  of held-out {noun} through the tokenizer", ".1f")
        found[f"{key}_floor"] = (f"  of held-out {noun}", ".1f")
    found |= {
        "precision": ("precision", ".3f"),
        "recall": ("recall", ".3f"),
        "precision_floor": (f"  precision of held-out {noun}", ".3f"),
        "recall_floor": (f"  recall of held-out {noun}", ".3f"),
        "nearest": (f"distance to the nearest training {modality.noun}", ".2f"),
        "nearest_floor": (f"  of held-out {noun}", ".2f"),
    }
    for suffix, after in _COMPARED.items():
        for name, (heading, form) in modality.rows.items():
            found[name + suffix] = (heading + after, form)
    found |= {"samples": ("samples compared", ",d"), noun: (f"held-out {noun}", ",d")}
    return found | rows_of(_fid_networks(evaluation), PREFIX)


def _sample_networks(evaluation: Evaluation) -> Sequence[Network]:
    """The networks that compare `eval_samples` samples, FID's aside; the last one gives all figures."""
    return [n for n in evaluation.networks if n.probabilities is None]


def _fid_networks(evaluation: Evaluation) -> Sequence[Network]:
    return [n for n in evaluation.networks if n.probabilities is not None]


def _fid_count(evaluation: Evaluation) -> int:
    """The number of samples for FID."""
    given = evaluation.count
    return evaluation.model.config.eval_samples if given is None else given


def check(evaluation: Evaluation) -> None:
    """Raises UserError if FID is asked for and cannot be computed."""
    if not _fid_networks(evaluation):
        return
    if evaluation.model.module.condition:
        raise UserError("FID is for samples without a condition, and this prior needs one")
    if not 2 <= (count := _fid_count(evaluation)) <= 1_000_000:
        raise UserError(f"count is {count:,}: gFID takes 2 to 1,000,000 samples")


# --- likelihood ------------------------------------------------------------------------------------


def measure_examples(evaluation: Evaluation) -> dict[str, Any]:
    """Computes the cross-entropy of the held-out codes, given their labels.

    It is exact for a prior that reads codes one by one, row by row. For a masked prior it is the bound
    of a random order (Hoogeboom et al. 2022, eq. 3): the mean, over the number of masked codes, of the
    mean cross-entropy of the masked codes. It is estimated with eight numbers an example, one from each
    eighth of the range.
    """
    prior: TrainedPrior = evaluation.model
    module, config, tokenizer = prior.module, prior.config, prior.tokenizer
    variables = {} if config.data.source == "codes" else tokenizer.variables

    @jax.jit
    def nats(of_prior, variables, batch, keys_B, part):
        codes_BN, condition_BM = codes_of(tokenizer.module, variables, batch)
        label_B = jnp.minimum(batch["label"], module.classes)
        inputs_BN, wanted_BN = codes_BN, jnp.ones_like(codes_BN, bool)
        if not module.causal:

            def of_row(key):
                u = jax.random.uniform(jax.random.fold_in(key, 0))
                count = jnp.floor((part + u) / _MASKS * module.length) + 1
                return mask_codes(jax.random.fold_in(key, 1), module.length, count / module.length)

            wanted_BN = jax.vmap(of_row)(keys_B)
            inputs_BN = jnp.where(wanted_BN, -1, codes_BN)
        logits: Any = module.apply(of_prior, inputs_BN, label_B, condition_BM)
        log_p_BN = log_probability(logits, codes_BN, module.radices) * wanted_BN
        return -log_p_BN.sum(1) / wanted_BN.sum(1)

    total, given, count = 0.0, 0.0, 0
    parts = 1 if module.causal else _MASKS
    for batch in eval_batches(evaluation.splits.val, config.data, make_prepare(config)):
        valid = batch.pop("valid")
        given += _nats_given_codes(tokenizer, batch, valid)
        for part in range(parts):
            keys_B = row_keys(jax.random.key(part), count, len(valid))
            found = nats(prior.variables, variables, batch, keys_B, part)
            total += float(np.asarray(found)[valid].sum()) / parts
        count += int(valid.sum())
    modality = prior.modality
    if not count:
        raise UserError(f"no held-out {modality.noun} could be read")
    bits = total / count / math.log(2)
    unit, units = modality.unit, modality.units(config.codes.example)
    of_codes = bits * module.length / units
    sums = {}
    if modality.distribution and config.data.source != "codes":
        of_examples = given / count / math.log(2) / units
        sums[f"bits_per_{unit}_given_codes"] = of_examples
        sums[f"bits_per_{unit}_sum"] = of_codes + of_examples
    return {
        "bits_per_code": bits,
        f"bits_per_{unit}": of_codes,
        **sums,
        "uniform_bits_per_code": math.log2(module.num_codes),
        "bits_are": "exact" if module.causal else "an upper bound, over random orders",
        f"{modality.noun}s": count,
    }


def _nats_given_codes(
    tokenizer: TrainedTokenizer, batch: dict[str, Any], valid: np.ndarray
) -> float:
    """Cross-entropy of a batch's examples given their codes; 0 if the decoder gives no distribution."""
    if "x" not in batch:
        return 0.0
    log_p_B = tokenizer.log_likelihood(
        batch["x"], tokenizer.encode_unchecked(jnp.asarray(batch["x"]))
    )
    return 0.0 if log_p_B is None else float(-np.asarray(log_p_B, np.float64)[valid].sum())


# --- sets ------------------------------------------------------------------------------------------


def measure_sets(evaluation: Evaluation) -> tuple[dict[str, Any], dict[str, str]]:
    """Compares samples with training examples; or with a condition, its results with the originals.

    Returns:
      figures, and lines of the protocol.
    """
    prior: TrainedPrior = evaluation.model
    if prior.module.condition:
        return (_improve(evaluation) if prior.config.eval_samples else {}), {}
    found: dict[str, Any] = {}
    lines = {}
    if prior.config.eval_samples:
        found = _compare_samples(evaluation)
    if "samples" in found:
        lines["samples"] = (
            "{samples:,} samples of seed {seed} against {references:,} {references_are}"
        ).format(**found)
    for network in _fid_networks(evaluation):
        compared, count, real = _compare_all(evaluation, network)
        found |= compared
        decoded = ", decoded from codes" if prior.config.data.source == "codes" else ""
        lines[f"{network.key}_samples"] = (
            f"gFID: {count:,} samples against {real:,} training {prior.modality.noun}s{decoded}"
        )
    return found, lines


def _compare_all(evaluation: Evaluation, network: Network) -> tuple[dict[str, float], int, int]:
    """Compares samples, with the labels of training examples, with all training examples.

    Returns:
      the figures, the number of samples, the number of training examples.
    """
    prior, train = evaluation.model, evaluation.splits.train
    count = _fid_count(evaluation)
    places = np.linspace(0, len(train) - 1, count).round().astype(int)

    def real() -> Iterator[np.ndarray]:
        for x, _ in _batches(train, prior):
            yield prior.modality.to_raw(x)

    def samples() -> Iterator[np.ndarray]:
        for start in track(range(0, count, BATCH), "sampling"):
            part = places[start : start + BATCH]
            labels = [int((train[int(i)] or {}).get("label", 0)) for i in part]
            how: dict[str, Any] = {"label": labels} if prior.class_names else {}
            yield prior.modality.to_raw(
                prior.sample(len(part), first=start, seed=evaluation.seed, **how)
            )

    of_real = cached_statistics(network, real)
    found = compare(network, of_real, compute_statistics(network, samples(), classes=True))
    figures = {with_prefix(name, PREFIX): value for name, value in found.items()}
    return figures, count, of_real.statistics.count


def spread_over(source: Source, count: int) -> Source:
    """Returns `count` examples spread evenly over a source, which may be sorted by class."""
    places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    return Subset(source, places.tolist())


def labelled_examples(source: Source, prior: TrainedPrior) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the examples of a source with their labels; codes are decoded."""
    for x, labels in _batches(source, prior):
        yield from zip(x, labels.tolist(), strict=True)


def _batches(source: Source, prior: TrainedPrior) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of examples and labels; codes are decoded."""
    for batch in eval_batches(source, prior.config.data, make_prepare(prior.config)):
        if (x := batch.get("x")) is None:
            x = prior.decode(batch["codes"].reshape(-1, *prior.tokenizer.codes.shape))
        yield x[batch["valid"]], batch["label"][batch["valid"]]


@dataclasses.dataclass(frozen=True)
class References:
    """The training examples that samples are compared with.

    Attributes:
      x: training examples [N, ...].
      features: their features.
      figures: the figures of held-out examples, for comparison.
    """

    x: np.ndarray
    features: np.ndarray
    figures: dict[str, Any]


def sample_labels(prior: TrainedPrior, held_out: Sequence[tuple[np.ndarray, int]]) -> list[int]:
    """Returns the labels of samples to draw: those of the held-out examples, repeated."""
    count = prior.config.eval_samples
    labels = [label for _, label in held_out]
    return (labels * -(-count // len(labels)))[:count]


def references(
    prior: TrainedPrior,
    splits: Splits,
    network: Network,
    held_out: Sequence[tuple[np.ndarray, int]],
) -> References:
    """Computes the features of training examples, and the figures of held-out examples.

    Args:
      prior: its config has the number of references.
      splits: the data.
      network: gives the features.
      held_out: examples with their labels.
    """
    subset = spread_over(splits.train, prior.config.eval_references)
    real = np.stack([x for x, _ in labelled_examples(subset, prior)])
    held = np.stack([x for x, _ in held_out])
    of_real, of_held = network.features(real), network.features(held)
    # The distance grows as sets get smaller, so both sides of a comparison have the same size.
    same = min(len(of_held), prior.config.eval_samples)
    precision, recall = metrics.precision_recall(of_real, of_held[:same])
    figures = {
        f"{network.key}_floor": metrics.frechet_distance(of_held[:same], of_real),
        "precision_floor": precision,
        "recall_floor": recall,
        "nearest_floor": float(metrics.distances(of_held, of_real).min(axis=1).mean()),
        "samples": same,
        "references": len(real),
        "references_are": f"training {prior.modality.noun}s",
    }
    if prior.config.data.source == "codes":
        figures["references_are"] = "decoded codes"
    else:
        output, reconstruct = prior.modality.output, prior.tokenizer.reconstruct
        through = np.concatenate(
            [
                np.asarray(output(reconstruct(held[i : i + BATCH])))
                for i in range(0, len(held), BATCH)
            ]
        )
        of_through = network.features(through)[:same]
        figures[f"{network.key}_reconstructed"] = metrics.frechet_distance(of_through, of_real)
    return References(real, of_real, figures)


def compare_features(
    network: Network, against: References, of_samples: np.ndarray
) -> dict[str, float]:
    """Compares the features of samples with those of training examples."""
    same = of_samples[: against.figures["samples"]]
    precision, recall = metrics.precision_recall(against.features, same)
    return {
        network.key: metrics.frechet_distance(same, against.features),
        "precision": precision,
        "recall": recall,
        "nearest": float(metrics.distances(of_samples, against.features).min(axis=1).mean()),
    }


def _compare_samples(evaluation: Evaluation) -> dict[str, Any]:
    """Samples with the labels of held-out examples, and compares with training examples."""
    prior, splits = evaluation.model, evaluation.splits
    modality, count = prior.modality, prior.config.eval_samples
    held_out = list(labelled_examples(spread_over(splits.val, count), prior))
    labels = sample_labels(prior, held_out)
    label = labels if prior.class_names else None
    samples = prior.sample(count, label=label, seed=evaluation.seed)
    _show_samples(prior, samples, labels, evaluation.workdir / f"samples{modality.preview_suffix}")
    networks = _sample_networks(evaluation)
    if not networks:
        return {}
    if min(len(held_out), len(splits.train)) < _LEAST:
        stderr(f"samples are not compared: that needs {_LEAST} held-out {modality.noun}s")
        return {}
    *others, network = networks
    against = references(prior, splits, network, held_out)
    of_samples = network.features(samples)
    shown = np.linspace(0, count - 1, _SHOWN).astype(int)
    nearest = metrics.distances(of_samples[shown], against.features).argmin(axis=1)
    rows = [modality.to_raw(x) for x in (samples[shown], against.x[nearest])]
    modality.preview(evaluation.workdir / f"nearest{modality.preview_suffix}", *rows)
    figures = compare_features(network, against, of_samples)
    for other in others:
        rows_by_side = (other.features(x) for x in (samples, against.x))
        figures[other.key] = metrics.frechet_distance(*rows_by_side)
    return figures | against.figures | {"seed": evaluation.seed}


def _show_samples(prior: TrainedPrior, samples: np.ndarray, labels: list[int], path: Path) -> None:
    """Writes samples as a picture: one row for each of up to ten classes, else in order."""
    numbers = sorted(set(labels))[:10] if prior.class_names else []
    rows = [samples[[i for i, one in enumerate(labels) if one == n][:_SHOWN]] for n in numbers]
    rows = [row for row in rows if len(row) == _SHOWN]
    if not rows:
        rows = [samples[i : i + _SHOWN] for i in range(0, min(len(samples), 96), _SHOWN)]
        rows = [row for row in rows if len(row) == len(rows[0])]
    prior.modality.preview(path, *map(prior.modality.to_raw, rows))


# --- conditions ------------------------------------------------------------------------------------


def _improve(evaluation: Evaluation) -> dict[str, Any]:
    """Samples from the conditions of held-out examples, and compares with the originals."""
    prior: TrainedPrior = evaluation.model
    config, modality, shape = prior.config, prior.modality, prior.tokenizer.codes.shape
    per_example = modality.metrics(config)
    sums: dict[str, float] = {}
    source = spread_over(evaluation.splits.val, config.eval_samples)
    places = set(np.linspace(0, len(source) - 1, _SHOWN).astype(int).tolist())
    shown: list[tuple[np.ndarray, ...]] = []
    count = 0
    for batch in eval_batches(source, config.data, make_prepare(config)):
        x, valid = batch["x"], batch["valid"]
        codes, _ = prior.fill(
            np.zeros((len(x), *shape), np.int32),
            np.ones((len(x), *shape), bool),
            condition=prior.tokenizer.encode(batch["condition"]),
            label=batch["label"].tolist() if prior.class_names else None,
            first=count,
            seed=evaluation.seed,
        )
        better = prior.decode(codes)
        given = modality.like(batch["condition"], x)
        ceiling = prior.tokenizer.reconstruct(x)
        for suffix, y in zip(_COMPARED, (better, given, ceiling), strict=True):
            for name, value in per_example(x, y).items():
                if name in modality.rows:
                    key = name + suffix
                    sums[key] = sums.get(key, 0.0) + float(np.asarray(value)[valid].sum())
        kept = [i for n, i in enumerate(np.flatnonzero(valid)) if count + n in places]
        shown += [(given[i], better[i], x[i]) for i in kept]
        count += int(valid.sum())
    picture = [modality.to_raw(np.stack(row)) for row in zip(*shown, strict=True)]
    modality.preview(evaluation.workdir / f"samples{modality.preview_suffix}", *picture)
    return {name: value / count for name, value in sums.items()}
