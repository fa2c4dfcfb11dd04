"""Batches for training and evaluation: one Grain pipeline over any source."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import grain
import ml_collections
import numpy as np
from absl import flags

from vq_jax.data.sources import Source
from vq_jax.errors import UserError

Batch = dict[str, np.ndarray]

# (example of a source, generator or None) -> member of a batch
Prepare = Callable[..., dict[str, Any]]


def prepare_codes(
    example: dict[str, Any], rng: np.random.Generator | None = None
) -> dict[str, Any]:
    """Turns an example of a set of codes into `codes` int32 [N] and `label`."""
    del rng  # augmentation happened before the codes were written
    codes = np.asarray(example["codes"], np.int32).reshape(-1)
    return {"codes": codes, "label": np.int32(example["label"])}


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
    """Appends rows of zeros to an array [N, ...], up to [size, ...]."""
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


class _Share(grain.MapDataset):
    """One process's share of every batch: process p of P has the p-th of P equal parts."""

    def __init__(self, parent: Any, batch: int, index: int, count: int):
        super().__init__(parent)
        self._batch, self._part, self._start = batch, batch // count, batch // count * index

    def __len__(self) -> int:
        return len(self._parent)  # repeated endlessly

    def __getitem__(self, index: Any) -> Any:
        batches, place = divmod(index, self._part)
        return self._parent[batches * self._batch + self._start + place]


def _leave_signals(index: int, count: int) -> None:
    """Makes a worker process ignore SIGINT and SIGTERM; its parent stops it."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _copied(batch: Batch) -> Batch:
    """Copies a batch out of memory shared with a worker, so that the shared memory is freed at once."""
    return {name: np.array(array) for name, array in batch.items()}


def train_batches(
    source: Source,
    config: ml_collections.ConfigDict,
    seed: int,
    prepare: Prepare,
    process_index: int = 0,
    process_count: int = 1,
    *,
    together: int = 1,
    place: Callable[[Batch], Any] | None = None,
) -> grain.DatasetIterator:
    """Yields endless batches, reshuffled every epoch; the same for the same seed.

    Examples are shuffled and augmented by their index in the whole stream and only then divided among
    processes. A batch holds the same examples in the same order for any number of processes, as long
    as all can be read. Decoding runs in threads (`config.workers` = 0) or in that many worker
    processes, and `place` runs in a thread, ahead of training. The position of the iterator is part of
    a checkpoint.

    Args:
      source: the examples.
      config: the section `data`.
      seed: of order and augmentation.
      prepare: turns an example into a member of a batch.
      process_index, process_count: which share of each batch is this process's.
      together: number of batches to join into one; joined batches are decoded in threads on demand.
      place: moves a finished batch, for example to devices.

    Returns:
      an iterator; closing it stops its threads and processes. It yields what `prepare` makes, stacked:
      `x` [batch_size / process_count, ...] and `label` int32 [...], or `codes` int32 [..., N] in place
      of `x`.

    Raises:
      UserError: the source is smaller than a batch.
    """
    if not len(source):
        raise UserError(
            "the training split is empty: all examples are held out (see data.val_fraction)"
        )
    if len(source) < config.batch_size:
        raise UserError(
            f"data.batch_size is {config.batch_size}, and there are {len(source)} training examples: "
            f"use {len(source)} or less"
        )
    batch_size = together * config.batch_size
    dataset: Any = (
        grain.MapDataset.source(source).seed(seed).shuffle().repeat(None).random_map(prepare)
    )
    if process_count > 1:
        dataset = _Share(dataset, batch_size, process_index, process_count)
    share = batch_size // process_count
    if config.workers and together == 1:
        if not flags.FLAGS.is_parsed():  # Grain's workers read its flags, in a notebook too
            flags.FLAGS.mark_as_parsed()
        dataset = _batches(dataset, share, source, grain.ReadOptions(2, 64))
        workers = grain.MultiprocessingOptions(num_workers=config.workers)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_leave_signals).map(_copied)
    else:
        dataset = _batches(dataset, share, source, grain.ReadOptions(4, 4 * share))
    if place is not None:
        dataset = dataset.map(place)
    ahead = 2 if together == 1 else 0
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=ahead))


def _batches(dataset: Any, size: int, source: Source, options: grain.ReadOptions) -> Any:
    """Batches of examples, read in threads, without those that cannot be read.

    If all can be read, a thread makes a whole batch instead of an example: for small examples this is
    many times faster.
    """
    if getattr(source, "always_readable", False):
        dataset = dataset.batch(size, drop_remainder=True)
        return dataset.to_iter_dataset(grain.ReadOptions(options.num_threads, 4))
    return dataset.to_iter_dataset(options).batch(size, drop_remainder=True)


def eval_batches(
    source: Source, config: ml_collections.ConfigDict, prepare: Prepare
) -> Iterator[Batch]:
    """Yields every example once, in order; all batches have the same shape.

    Yields:
      as `train_batches`, and `valid` bool [batch_size], False for padding of the last batch.
    """
    dataset = (
        grain.MapDataset.source(source)
        .seed(0)  # of random conditions
        .random_map(prepare)
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=64))
        .batch(config.batch_size)
    )
    for batch in dataset:
        count = len(batch["label"])
        padded = {name: pad_rows(array, config.batch_size) for name, array in batch.items()}
        yield padded | {"valid": np.arange(config.batch_size) < count}
