"""Batches for training and evaluation: one Grain pipeline over any source."""

import dataclasses
import signal
from collections.abc import Callable, Iterator
from typing import Any

import grain
import ml_collections
import numpy as np
from absl import flags

from vq_jax.data.degrade import Degrade
from vq_jax.data.images import fit, to_float, with_channels
from vq_jax.data.sources import Source
from vq_jax.errors import UserError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Turns an example into a training image: channels, size, crop, flip, float in [-1, 1].

    With `degrade` it comes with a `condition`, a worse version of itself.
    """

    resolution: int
    channels: int
    resize: int
    random_crop: bool = False
    flip: bool = False
    degrade: Degrade | None = None

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        image = with_channels(example["image"], self.channels)
        image = fit(image, self.resolution, self.resize, rng, self.random_crop, self.flip)
        made = {"image": to_float(image), "label": np.int32(example["label"])}
        if self.degrade is not None:
            made["condition"] = to_float(self.degrade(image, rng))
        return made


def _as_codes(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """An example of a set of codes: int32 codes, flat, and label."""
    del rng  # flips and crops were made when the codes were
    codes = np.asarray(example["codes"], np.int32).reshape(-1)
    return {"codes": codes, "label": np.int32(example["label"])}


def make_prepare(
    config: ml_collections.ConfigDict, train: bool, degrade: Degrade | None = None
) -> Callable[..., dict[str, Any]]:
    """The function from an example, and a generator, to a member of a batch."""
    if config.source == "codes":
        return _as_codes
    if config.crop not in ("center", "random"):
        raise UserError(f"data.crop is {config.crop!r}: use 'center' or 'random'")
    return Prepare(
        resolution=config.resolution,
        channels=config.channels,
        resize=config.resolution if config.resize is None else config.resize,
        random_crop=train and config.crop == "random",
        flip=train and config.flip,
        degrade=degrade,
    )


class _Share(grain.MapDataset):
    """One process's part of every batch: process p of P has the p-th P-th of it, in order."""

    def __init__(self, parent: Any, batch: int, index: int, count: int):
        super().__init__(parent)
        self._batch, self._part, self._start = batch, batch // count, batch // count * index

    def __len__(self) -> int:
        return len(self._parent)  # repeated without end

    def __getitem__(self, index: Any) -> Any:
        batches, place = divmod(index, self._part)
        return self._parent[batches * self._batch + self._start + place]


def _leave_signals(index: int, count: int) -> None:
    """Has a worker process ignore what ends its parent, which tells it when to stop."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _copied(batch: Batch) -> Batch:
    """A batch of a worker's in memory of this process: what is shared is freed at once, even where the
    batch itself lives on to the end of the process."""
    return {name: np.array(array) for name, array in batch.items()}


def train_batches(
    source: Source,
    config: ml_collections.ConfigDict,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    together: int = 1,
    degrade: Degrade | None = None,
    place: Callable[[Batch], Any] | None = None,
) -> grain.DatasetIterator:
    """Endless batches, shuffled anew each epoch; the same for the same seed.

    Examples are drawn and augmented by their place in the whole stream and only then dealt out to
    processes, so a batch holds the same images in the same order however many processes share it (as
    long as all can be read). Decoding runs in threads (`config.workers` = 0) or in that many worker
    processes, between which the images are dealt out anew, and `place` in a thread, ahead of
    training. The iterator's position, that of the last batch taken, is part of a checkpoint.

    Args:
      source: the examples.
      config: the section `data`.
      seed: of order and augmentation.
      process_index, process_count: which share of each batch is this process's.
      together: how many batches to join into one; those of more than one are decoded in threads,
        when they are asked for.
      degrade: makes each image's `condition`, as large as it likes.
      place: puts a finished batch where it is wanted, on devices say.

    Returns:
      an iterator to be closed, which stops its threads and processes. It yields `image` float32
      [batch_size / process_count, H, W, C] in [-1, 1] and `label` int32 [...]; from a set of codes,
      `codes` int32 [..., N] in place of the image.

    Raises:
      UserError: the source is smaller than a batch.
    """
    if not len(source):
        raise UserError("the data has a single image, which is held out: at least 2 are needed")
    if len(source) < config.batch_size:
        raise UserError(
            f"{len(source)} training images are fewer than a batch: "
            f"--config.data.batch_size={config.batch_size} must be {len(source)} or less"
        )
    batch_size = together * config.batch_size
    dataset: Any = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat(None)
        .random_map(make_prepare(config, True, degrade))
    )
    if process_count > 1:
        dataset = _Share(dataset, batch_size, process_index, process_count)
    share = batch_size // process_count
    if config.workers and together == 1:
        if not flags.FLAGS.is_parsed():  # Grain's workers read its flags, in a notebook too
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=64))
        dataset = dataset.batch(share, drop_remainder=True)
        workers = grain.MultiprocessingOptions(num_workers=config.workers)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_leave_signals).map(_copied)
    else:
        options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4 * share)
        dataset = dataset.to_iter_dataset(options).batch(share, drop_remainder=True)
    if place is not None:
        dataset = dataset.map(place)
    ahead = 2 if together == 1 else 0
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=ahead))


def eval_batches(
    source: Source, config: ml_collections.ConfigDict, degrade: Degrade | None = None
) -> Iterator[Batch]:
    """Every example once, in order, centre-cropped; all batches have the same shape.

    Yields:
      as `train_batches`, and `valid` bool [batch_size]: False where the last batch is filled up.
    """
    dataset = (
        grain.MapDataset.source(source)
        .seed(0)  # of how conditions are made
        .random_map(make_prepare(config, False, degrade))
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=64))
        .batch(config.batch_size)
    )
    for batch in dataset:
        count = len(batch["label"])
        fill = config.batch_size - count
        padded = {k: np.pad(v, [(0, fill)] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}
        yield padded | {"valid": np.arange(config.batch_size) < count}
