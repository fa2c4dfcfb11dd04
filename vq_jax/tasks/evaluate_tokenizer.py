"""The figures of a tokenizer: reconstruction errors, use of the codebook, rFID."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax import metrics
from vq_jax.codec.counts import count_codes
from vq_jax.config import make_prepare
from vq_jax.console import stderr
from vq_jax.data.pipeline import eval_batches
from vq_jax.errors import UserError
from vq_jax.modalities.base import Modality, Rows
from vq_jax.quantizers.functions import nearest_other
from vq_jax.tasks.job import Evaluation
from vq_jax.tasks.sets import cached_statistics, compare, compute_statistics, rows_of, with_prefix
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.training.report import plot_codebook
from vq_jax.training.watch import usage_advice

# Below this share of codes in use, the evaluation gives advice.
_LOW_USAGE = 0.5
_SHOWN = 12  # examples in reconstructions.png
PREFIX = "r"  # of FID


def rows(evaluation: Evaluation) -> Rows:
    """Returns the table's rows: name of a figure -> (heading, format)."""
    modality = evaluation.model.modality
    unit, noun = modality.unit, f"{modality.noun}s"
    return {
        **modality.rows,
        "usage": ("codebook in use", ".1%"),
        "perplexity": ("perplexity", ".1f"),
        f"bits_per_{unit}": (f"bits per {unit}", ".4f"),
        f"entropy_bits_per_{unit}": (f"bits per {unit}, entropy", ".4f"),
        **rows_given_codes(modality),
        noun: (f"held-out {noun}", ",d"),
        **rows_of(evaluation.networks, PREFIX),
    }


def rows_given_codes(modality: Modality) -> Rows:
    """Returns the rows of the figures that a decoder with a distribution has."""
    unit = modality.unit
    return {
        f"bits_per_{unit}_given_codes": (f"bits per {unit} given the codes", ".4f"),
        f"bits_per_{unit}_sum": (f"bits per {unit}, sum", ".4f"),
    }


def measure_examples(evaluation: Evaluation) -> dict[str, Any]:
    """Runs every held-out example through the tokenizer, and writes pictures.

    Reconstructions are brought into the range of examples. The modality's metrics are means over
    examples. `usage` and `perplexity` are those of all codes of the split, means if there are several
    codebooks (`usage_by_level` and `perplexity_by_level` have each). `bits_per_UNIT` counts
    log2(num_codes) bits a code, `entropy_bits_per_UNIT` the entropy of the split's codes. If the decoder
    gives a distribution, `bits_per_UNIT_given_codes` is the cross-entropy of the examples, and
    `bits_per_UNIT_sum` adds the entropy of the codes.
    """
    tokenizer: TrainedTokenizer = evaluation.model
    config, modality, spec = tokenizer.config, tokenizer.modality, tokenizer.codes
    per_example = modality.metrics(config)
    source = evaluation.splits.val
    sums: dict[str, np.ndarray] = {}
    all_codes, originals, outputs = [], [], []
    count, nats, stride = 0, 0.0, max(1, len(source) // _SHOWN)
    for batch in eval_batches(source, config.data, make_prepare(config)):
        x, valid = batch["x"], batch["valid"]
        y, codes = tokenizer.reconstruct_with_codes(x)
        for name, value in per_example(x, y).items():
            sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)[valid].sum(0)
        if (log_p_B := tokenizer.log_likelihood(x, codes)) is not None:
            nats += float(-np.asarray(log_p_B, np.float64)[valid].sum())
        all_codes.append(np.asarray(codes)[valid])
        shown = [i for i in np.flatnonzero(valid) if (count + i) % stride == 0]
        originals += list(modality.to_raw(x[shown]))
        outputs += list(modality.to_raw(np.asarray(modality.output(y))[shown]))
        count += int(valid.sum())
    if not count:
        raise UserError(f"no held-out {modality.noun} could be read")

    figures: dict[str, Any] = modality.summarize({name: v / count for name, v in sums.items()})
    split_codes = np.concatenate(all_codes)
    counts_QK = count_codes(tokenizer, all_codes)
    figures |= _code_figures(tokenizer, counts_QK) | modality.code_figures(split_codes)
    unit = modality.unit
    if modality.distribution:
        given = nats / math.log(2) / count / modality.units(tokenizer.spec.shape)
        figures[f"bits_per_{unit}_given_codes"] = given
        figures[f"bits_per_{unit}_sum"] = figures[f"entropy_bits_per_{unit}"] + given
    figures |= {
        f"codes_per_{modality.noun}": spec.length,
        "num_codes": spec.num_codes,
        f"{modality.noun}s": count,
    }
    shown_rows = np.stack(originals[:_SHOWN]), np.stack(outputs[:_SHOWN])
    modality.preview(evaluation.workdir / f"reconstructions{modality.preview_suffix}", *shown_rows)
    plot_codes(tokenizer, counts_QK, evaluation.workdir / "codebook.png")
    if figures["usage"] < _LOW_USAGE and counts_QK.sum() > 4 * counts_QK.size:
        stderr(
            f"only {figures['usage']:.1%} of the codes are in use on the held-out split. "
            f"{usage_advice(config)}"
        )
    return figures


def _code_figures(tokenizer: TrainedTokenizer, counts_QK: np.ndarray) -> dict[str, Any]:
    """Use of the codebooks and bits, from the counts of a split's codes."""
    unit, spec = tokenizer.modality.unit, tokenizer.codes
    perplexities = np.asarray(metrics.perplexity(jnp.asarray(counts_QK, jnp.float32)))
    usages = np.mean(counts_QK > 0, axis=1)
    entropy = float(np.mean(np.log2(perplexities)))  # bits a code
    units = tokenizer.modality.units(tokenizer.spec.shape)
    figures: dict[str, Any] = {
        "usage": float(usages.mean()),
        "perplexity": float(perplexities.mean()),
        f"bits_per_{unit}": spec.bits / units,
        f"entropy_bits_per_{unit}": spec.length * entropy / units,
    }
    if spec.code_shape:
        figures["usage_by_level"] = usages.tolist()
        figures["perplexity_by_level"] = perplexities.tolist()
    return figures


def measure_sets(evaluation: Evaluation) -> tuple[dict[str, Any], dict[str, str]]:
    """Compares the split's reconstructions with its originals, as sets.

    Returns:
      figures, and lines of the protocol (none).
    """
    tokenizer: TrainedTokenizer = evaluation.model
    config, modality = tokenizer.config, tokenizer.modality

    def batches() -> Iterator[dict[str, np.ndarray]]:
        return eval_batches(evaluation.splits.val, config.data, make_prepare(config))

    def originals() -> Iterator[np.ndarray]:
        for batch in batches():
            yield modality.to_raw(batch["x"][batch["valid"]])

    def reconstructions() -> Iterator[np.ndarray]:
        for batch in batches():
            y = modality.output(tokenizer.reconstruct(batch["x"]))
            yield modality.to_raw(np.asarray(y)[batch["valid"]])

    found = {}
    for network in evaluation.networks:
        real = cached_statistics(network, originals)
        made = compute_statistics(network, reconstructions(), classes=True)
        for name, value in compare(network, real, made).items():
            found[with_prefix(name, PREFIX)] = value
    return found, {}


def plot_codes(tokenizer: TrainedTokenizer, counts_QK: np.ndarray, path: Path) -> None:
    """Plots the use of a split's codes and the distances of codebook entries to their neighbours."""
    entries, distances_QK = tokenizer.codebooks(), None
    if entries is not None:
        nearest = jax.jit(nearest_other)
        distances_QK = np.stack(
            [nearest(e_Kd) for e_Kd in entries.reshape(len(counts_QK), *entries.shape[-2:])]
        )
    plot_codebook(counts_QK, distances_QK, path)
