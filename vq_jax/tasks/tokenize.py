"""Writes the codes of a data set: for priors to learn from, or as a table of semantic IDs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax import metrics, modalities
from vq_jax.console import track
from vq_jax.data import codes as codes_data
from vq_jax.data.pipeline import pad_rows
from vq_jax.data.sources import Source
from vq_jax.errors import UserError
from vq_jax.files import writing
from vq_jax.runs import load_tokenizer
from vq_jax.tokenizer import TrainedTokenizer

_SHARD = 1024  # examples a shard
_BATCH = 32
_TABLE = ".parquet"
_OTHER_FILES = frozenset([".csv", ".tsv", ".txt", ".json", ".jsonl", ".npy", ".npz"])

# An example as the tokenizer takes it, its label, and its id.
Example = tuple[np.ndarray, int, Any]


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
    """`--mode=tokenize`: writes the codes of both splits.

    A folder gets a TFDS data set. Its shards are divided among the processes, which need not know of
    each other. Existing shards are kept, so that a call that was killed continues. A file NAME.parquet
    gets a table with one row for each example; see `write_table`.

    Args:
      workdir: the tokenizer's run.
      output: the folder, or the file NAME.parquet, to write.
      data: a section `data` that names the source; None is the tokenizer's own.
      flips: whether training images are also mirrored.
      crops: number of random crops of each training image; 0 takes its centre.
      process, processes: which share of the shards this process writes.

    Raises:
      UserError: there is no such run or data, or the output cannot be written.
    """
    if crops < 0 or not 0 <= process < processes:
        raise UserError(f"crops={crops}, process={process}, processes={processes}: out of range")
    table = _is_table(output)
    tokenizer = load_tokenizer(workdir)
    config = tokenizer.config.copy_and_resolve_references()
    configs.use_data(config, data)
    splits = modalities.open_source(config)
    parts: dict[str, Source] = {"train": splits.train, "val": splits.val}
    if table:
        if flips or crops or processes > 1:
            raise UserError(
                f"a {_TABLE} file has one row for each example: leave out flips, crops and processes"
            )
        write_table(tokenizer, config, parts, splits.class_names, output)
        return
    noun = tokenizer.modality.noun
    metadata = {
        "fingerprint": tokenizer.fingerprint.hex(),
        "shape": list(tokenizer.codes.shape),
        "num_codes": tokenizer.codes.num_codes,
        "books": tokenizer.codes.books,
        noun: list(tokenizer.spec.shape),
        "classes": list(splits.class_names),
        "data": {k: v for k, v in config.data.items() if k not in ("batch_size", "workers")},
        "flips": flips,
        "crops": crops,
        f"{noun}s": {split: len(source) for split, source in parts.items()},
    }
    # Fail before the folder is made if the modality has no flips or crops.
    next(prepared(config, splits.val, range(len(splits.val)), flips, crops), None)
    codes_data.begin(output, metadata)
    shards = {split: -(-len(source) // _SHARD) for split, source in parts.items()}
    todo = [(split, i) for split, count in shards.items() for i in range(count)][process::processes]
    paths = {place: codes_data.shard_path(output, *place, shards[place[0]]) for place in todo}
    left = [place for place in todo if not paths[place].exists()]
    count = 0
    for split, i in track(left, "tokenizing"):
        indices = range(i * _SHARD, min((i + 1) * _SHARD, len(parts[split])))
        train = split == "train"
        examples = prepared(config, parts[split], indices, flips and train, crops if train else 0)
        rows = ((codes, label) for codes, label, _ in encoded(tokenizer, examples))
        count += codes_data.write_shard(paths[split, i], rows, metadata)
    missing = codes_data.finish(output, shards)
    before = f" ({len(todo) - len(left)} already existed)" if len(left) < len(todo) else ""
    print(f"wrote the codes of {count:,} {noun}s in {len(left)} shards to {output}{before}")
    if missing:
        print(
            f"{len(missing)} shards are still missing: run the other processes, or this one again"
        )


def _is_table(output: Path) -> bool:
    """Whether the output is a table and no folder.

    Raises:
      UserError: it is another file.
    """
    suffix = output.suffix.lower()
    if suffix != _TABLE and (output.is_file() or suffix in _OTHER_FILES):
        raise UserError(f"output: {output} is a file; name a folder, or a {_TABLE} file")
    return suffix == _TABLE


def write_table(
    tokenizer: TrainedTokenizer,
    config: ConfigDict,
    parts: dict[str, Source],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Writes a parquet table of semantic IDs (Rajput et al. 2023, sec. 3.1).

    Columns: `item`, the id of the example; `split`; `label`, the name of its class, or 0 without
    classes; `code_0`, `code_1` and so on; and `index`, which numbers the items of equal codes from 0, so
    that codes and index are unique.

    Args:
      tokenizer: the tokenizer, whose examples have one position.
      config: its config, with the data.
      parts: split -> source.
      class_names: names of the classes.
      path: the file to write.

    Raises:
      UserError: examples have several positions, or the file cannot be written.
    """
    if np.prod(tokenizer.codes.grid) != 1:
        raise UserError(
            f"output: a {_TABLE} file is for tokenizers with one position, and this one's codes have the "
            f"shape {tokenizer.codes.shape}; name a folder"
        )
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {"item": [], "split": [], "label": []}
    all_codes = []
    for split, source in parts.items():
        for codes, label, name in encoded(tokenizer, prepared(config, source, range(len(source)))):
            columns["item"].append(str(name))
            columns["split"].append(split)
            columns["label"].append(class_names[label] if any(class_names) else int(label))
            all_codes.append(codes.reshape(-1))
    if not all_codes:
        raise UserError(f"no {tokenizer.modality.noun} could be read")
    codes_NQ = np.stack(all_codes)
    for level, codes_N in enumerate(codes_NQ.T):
        columns[f"code_{level}"] = codes_N.tolist()
    seen: Counter[bytes] = Counter()
    columns["index"] = []
    for codes_Q in codes_NQ:
        key = codes_Q.tobytes()
        columns["index"].append(seen[key])
        seen[key] += 1
    with writing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
    unique, largest = metrics.collisions(codes_NQ)
    print(
        f"wrote the codes of {len(codes_NQ):,} {tokenizer.modality.noun}s to {path}: "
        f"{unique:.1%} have a code of their own, at most {largest} share one"
    )


def prepared(
    config: ConfigDict,
    source: Source,
    indices: Iterable[int],
    flips: bool = False,
    crops: int = 0,
) -> Iterator[Example]:
    """Yields examples as the tokenizer takes them, with labels and ids, in all variants asked for."""
    modality = modalities.of(config)
    for index in indices:
        example = source[index]
        if example is None:
            continue
        seed = (config.seed, index)
        for x in modality.variants(example, config.data, seed, flips, crops):
            yield x, example["label"], example.get("id", index)


def encoded(tokenizer: TrainedTokenizer, examples: Iterator[Example]) -> Iterator[Example]:
    """Encodes examples in batches; yields codes in their place."""

    def flush(batch: list[Example]) -> Iterator[Example]:
        x = pad_rows(np.stack([x for x, _, _ in batch]), _BATCH)
        codes: Any = jax.device_get(tokenizer.encode(x))
        yield from ((codes[i], label, name) for i, (_, label, name) in enumerate(batch))

    batch: list[Example] = []
    for example in examples:
        batch.append(example)
        if len(batch) == _BATCH:
            yield from flush(batch)
            batch = []
    if batch:
        yield from flush(batch)
