"""Compares sets of examples by the features of a network: FID and similar distances."""

import contextlib
import dataclasses
import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from vq_jax import metrics
from vq_jax.errors import UserError
from vq_jax.files import cache_folder, writing
from vq_jax.modalities import Network

_BATCH = 32
# Features of each set kept for precision and recall, drawn from all.
KEPT = 10_000
# Changes when the preparation of examples for a network does, which invalidates cached statistics.
_VERSION = 1


def _in_batches(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Regroups batches to a fixed size, for which networks are compiled; the last may be smaller."""
    waiting: list[np.ndarray] = []
    for batch in batches:
        waiting.extend(batch)
        while len(waiting) >= size:
            yield np.stack(waiting[:size])
            waiting = waiting[size:]
    if waiting:
        yield np.stack(waiting)


@dataclasses.dataclass
class SetStatistics:
    """The features of a set of examples.

    Attributes:
      statistics: mean and covariance of all features.
      features: float32 [N, F], of up to `KEPT` examples drawn from all.
      probabilities: float32 [N, classes] of all examples, if they were asked for.
    """

    statistics: metrics.Statistics
    features: np.ndarray
    probabilities: np.ndarray | None = None


def compute_statistics(
    network: Network, batches: Iterable[np.ndarray], *, classes: bool = False
) -> SetStatistics:
    """Computes the features of a set.

    Args:
      network: gives the features.
      batches: raw examples [N, ...], in any order; a data set may be sorted by class.
      classes: whether to keep class probabilities, for the Inception score.

    Raises:
      UserError: the set has fewer than two examples.
    """
    statistics: metrics.Statistics | None = None
    kept: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    rng = np.random.default_rng(0)
    for batch in _in_batches(batches, _BATCH):
        rows = network.features(batch)
        if statistics is None:
            statistics = metrics.Statistics.empty(rows.shape[1])
        for i, row in enumerate(rows, statistics.count):  # reservoir sampling (Vitter 1985)
            if i < KEPT:
                kept.append(row)
            elif (place := int(rng.integers(i + 1))) < KEPT:
                kept[place] = row
        if classes and network.probabilities is not None:
            probabilities.append(network.probabilities(rows))
        statistics.add(rows)
    if statistics is None or statistics.count < 2:
        raise UserError("a Frechet distance needs at least two examples on each side")
    found = np.concatenate(probabilities) if probabilities else None
    return SetStatistics(statistics, np.stack(kept), found)


def cached_statistics(
    network: Network, make_batches: Callable[[], Iterable[np.ndarray]]
) -> SetStatistics:
    """`compute_statistics`, cached on disk under a hash of the examples and the network.

    Args:
      network: gives the features.
      make_batches: starts the examples from the beginning, the same each time.
    """
    if not network.digest:
        return compute_statistics(network, make_batches())
    digest = hashlib.sha256(f"{network.key} {network.digest} {_VERSION}".encode())
    for i, batch in enumerate(make_batches()):
        if not i:
            digest.update(str(batch.shape[1:]).encode())
        digest.update(np.ascontiguousarray(batch).tobytes())
    path = cache_folder() / f"{network.key}_{digest.hexdigest()[:32]}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            statistics = metrics.Statistics(int(saved["count"]), saved["mean"], saved["scatter"])
            return SetStatistics(statistics, saved["features"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # missing or damaged
    found = compute_statistics(network, make_batches())
    of = found.statistics
    # A full or read-only disk only costs computing them again.
    with contextlib.suppress(UserError), writing(path) as temporary:
        np.savez(
            temporary, count=of.count, mean=of.mean, scatter=of.scatter, features=found.features
        )
    return found


def compare(network: Network, real: SetStatistics, made: SetStatistics) -> dict[str, float]:
    """Compares generated or reconstructed examples with real ones.

    Returns:
      the Frechet distance as `network.key`; if `made` has class probabilities, also the Inception
      score, and precision and recall if both sets have more than three examples.
    """
    figures = {network.key: metrics.frechet_distance_of(made.statistics, real.statistics)}
    if made.probabilities is None:
        return figures
    # The score is a mean over parts in order: shuffled, each part has all classes.
    order = np.random.default_rng(0).permutation(len(made.probabilities))
    score = metrics.inception_score(made.probabilities[order])
    figures[f"{network.key}_inception_score"] = score
    if min(len(real.features), len(made.features)) > 3:
        precision, recall = metrics.precision_recall(real.features, made.features)
        figures[f"{network.key}_precision"] = precision
        figures[f"{network.key}_recall"] = recall
    return figures


def with_prefix(name: str, prefix: str) -> str:
    """Returns the name of a set figure: FID is rFID for reconstructions and gFID for samples."""
    return f"{prefix}{name}" if name.startswith("fid") else name


def rows_of(networks: Sequence[Network], prefix: str) -> dict[str, tuple[str, str]]:
    """Returns the rows of `compare`'s figures in a table: name -> (heading, format)."""
    rows = {}
    for network in networks:
        heading = network.heading.replace("FID (", f"{prefix}FID (")
        rows[with_prefix(network.key, prefix)] = (heading, ".2f")
        for name, text, form in (
            ("inception_score", "  Inception score", ".2f"),
            ("precision", "  precision", ".3f"),
            ("recall", "  recall", ".3f"),
        ):
            rows[with_prefix(f"{network.key}_{name}", prefix)] = (text, form)
    return rows
