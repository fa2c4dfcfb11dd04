"""Writes the codes of a data set, for priors to learn from."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax import tokenizer as tokenizers
from vq_jax.data import codes as codes_data
from vq_jax.data.images import fit, to_float, with_channels
from vq_jax.data.pipeline import make_prepare
from vq_jax.data.sources import Source, open_source
from vq_jax.errors import UserError
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.training.report import track

_SHARD = 1024  # images a shard
_BATCH = 32


def tokenize(
    workdir: Path,
    *,
    output: Path,
    data: ConfigDict | None = None,
    flips: bool = False,
    crops: int = 0,
    process: int = 0,
    processes: int = 1,
) -> None:
    """`--mode=tokenize`: writes the codes of both splits as a TFDS data set.

    Shards are dealt out to the processes, which need not know of each other; one that is there is not
    made again, so a run that was killed goes on.

    Args:
      workdir: the tokenizer's run.
      output: the folder of the data set.
      data: a section `data` that names the source; by default the tokenizer's own.
      flips: training images in their mirror image, too.
      crops: so many random crops of each training image instead of its middle.
      process, processes: which share of the shards is this process's.
    """
    if crops < 0 or not 0 <= process < processes:
        raise UserError(f"--crops={crops} --process={process} --processes={processes} cannot be")
    if output.is_file():
        raise UserError(f"--output={output} is a file: name a folder")
    tokenizer = tokenizers.load(workdir)
    config = tokenizer.config.copy_and_resolve_references()
    configs.use_data(config, data)
    splits = open_source(config.data, config.seed)
    parts: dict[str, Source] = {"train": splits.train, "val": splits.val}
    about = {
        "fingerprint": tokenizer.fingerprint.hex(),
        "shape": list(tokenizer.grid),
        "num_codes": tokenizer.num_codes,
        "books": math.prod(tokenizer.code_shape),
        "image": list(configs.image_shape(config)),
        "classes": list(splits.class_names),
        "data": {k: v for k, v in config.data.items() if k not in ("batch_size", "workers")},
        "flips": flips,
        "crops": crops,
        "images": {split: len(source) for split, source in parts.items()},
    }
    codes_data.begin(output, about)
    shards = {split: -(-len(source) // _SHARD) for split, source in parts.items()}
    todo = [(split, i) for split, count in shards.items() for i in range(count)][process::processes]
    paths = {place: codes_data.shard_path(output, *place, shards[place[0]]) for place in todo}
    left = [place for place in todo if not paths[place].exists()]
    images = 0
    for split, i in track(left, "tokenizing"):
        indices = range(i * _SHARD, min((i + 1) * _SHARD, len(parts[split])))
        train = split == "train"
        made = prepared(config, parts[split], indices, flips and train, crops if train else 0)
        images += codes_data.write_shard(paths[split, i], encoded(tokenizer, made), about)
    missing = codes_data.finish(output, shards)
    before = f" ({len(todo) - len(left)} were there already)" if len(left) < len(todo) else ""
    print(f"wrote the codes of {images:,} images in {len(left)} shards to {output}{before}")
    if missing:
        print(f"{len(missing)} shards are still missing: the other processes, or this again")


def prepared(
    config: ConfigDict,
    source: Source,
    indices: Iterable[int],
    flips: bool = False,
    crops: int = 0,
) -> Iterator[tuple[np.ndarray, int]]:
    """Images as a tokenizer takes them, float32 [H, W, C], with their labels, in all forms asked for."""
    data = config.data
    middle = make_prepare(data, train=False)
    resize = data.resolution if data.resize is None else data.resize
    for index in indices:
        example = source[index]
        if example is None:
            continue
        forms = [middle(example)["image"]]
        if crops:
            image = with_channels(example["image"], data.channels)
            rng = np.random.default_rng((config.seed, index))
            forms = [
                to_float(fit(image, data.resolution, resize, rng, random_crop=True))
                for _ in range(crops)
            ]
        for image in forms:
            yield image, example["label"]
            if flips:
                yield image[:, ::-1], example["label"]


def encoded(
    tokenizer: TrainedTokenizer, images: Iterator[tuple[np.ndarray, int]]
) -> Iterator[tuple[np.ndarray, int]]:
    """The codes of images, encoded a batch at a time."""

    def flush(batch: list[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, int]]:
        x = np.stack([image for image, _ in batch])
        x = np.pad(x, ((0, _BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
        codes: Any = jax.device_get(tokenizer.encode(x))
        yield from ((codes[i], label) for i, (_, label) in enumerate(batch))

    batch: list[tuple[np.ndarray, int]] = []
    for pair in images:
        batch.append(pair)
        if len(batch) == _BATCH:
            yield from flush(batch)
            batch = []
    if batch:
        yield from flush(batch)
