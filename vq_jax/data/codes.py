"""Codes as a TFDS data set: ArrayRecord shards that can be written in parallel, and their metadata.

A folder has `codes-<split>.array_record-<i>-of-<n>`, TFDS's own `features.json` and `dataset_info.json`,
and `tokenizer.json`, which says which tokenizer made the codes, and how. It needs no TensorFlow, and
`tfds.builder_from_directory` opens it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax.errors import UserError, first_line
from vq_jax.files import unfinished, write

_METADATA = "tokenizer.json"
_COMPLETE = "dataset_info.json"
_FORMAT = "array_record"


def _features(metadata: Mapping[str, Any]) -> Any:
    import tensorflow_datasets as tfds

    names = metadata["classes"]
    named = bool(names) and len(set(names)) == len(names) and all(names)
    label = tfds.features.ClassLabel(names=names) if named else tfds.features.Scalar(np.int32)
    codes = tfds.features.Tensor(shape=tuple(metadata["shape"]), dtype=np.int32)
    return tfds.features.FeaturesDict({"codes": codes, "label": label})


def shard_path(folder: Path, split: str, index: int, count: int) -> Path:
    """Returns the path of a shard."""
    return folder / f"codes-{split}.{_FORMAT}-{index:05d}-of-{count:05d}"


def begin(folder: Path, metadata: dict[str, Any]) -> None:
    """Makes the folder and writes the metadata of its codes.

    Args:
      folder: of one data set.
      metadata: `fingerprint` of the tokenizer, `shape` of an example's codes, `num_codes`, `books`,
        the shape of an example, `classes`, and what else decides the codes.

    Raises:
      UserError: the folder has other contents, or codes with other metadata.
    """
    path = folder / _METADATA
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = any(not p.name.startswith(".") for p in folder.iterdir())
        if not path.exists():  # checked last: another process may have just made it
            if others:
                raise UserError(f"output: {folder} has other contents; name an empty folder")
            write((json.dumps(metadata, indent=2) + "\n").encode(), path)
    except OSError as e:
        raise UserError(f"output: {folder} cannot be written: {e.strerror or e}") from e
    before = read_metadata(folder)
    metadata = json.loads(json.dumps(metadata))
    if before != metadata:
        changed = sorted(k for k in {*before, *metadata} if before.get(k) != metadata.get(k))
        raise UserError(
            f"output: {folder} has codes that differ in {', '.join(changed)}; name another folder"
        )


def write_shard(path: Path, examples: Iterator[tuple[np.ndarray, int]], metadata: dict) -> int:
    """Writes a shard of (codes, label) atomically.

    Returns:
      the number of examples.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    features = _features(metadata)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    with unfinished(path) as temporary:
        writer, count = ArrayRecordWriter(str(temporary), "group_size:1"), 0
        for codes, label in examples:
            example = {"codes": np.asarray(codes, np.int32), "label": int(label)}
            writer.write(serializer.serialize_example(features.encode_example(example)))
            count += 1
        writer.close()
        temporary.replace(path)
    return count


def finish(folder: Path, shards: Mapping[str, int]) -> list[Path]:
    """Writes TFDS's metadata if all shards are there.

    Args:
      folder: of the data set.
      shards: split -> number of shards.

    Returns:
      the missing shards; [] if the data set is complete.
    """
    paths = {s: [shard_path(folder, s, i, n) for i in range(n)] for s, n in shards.items()}
    missing = [p for of_split in paths.values() for p in of_split if not p.exists()]
    if missing:
        return missing
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

    infos = []
    for split, files in paths.items():
        lengths = []
        for file in files:
            reader = ArrayRecordReader(str(file))
            lengths.append(reader.num_records())
            reader.close()
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="codes", split=split, filetype_suffix=_FORMAT
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths,
                num_bytes=sum(f.stat().st_size for f in files),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=_features(read_metadata(folder)),
        split_infos=infos,
        check_data=False,  # it needs TensorFlow
    )
    return []


def read_metadata(folder: Path) -> dict[str, Any]:
    """Reads what `begin` wrote.

    Raises:
      UserError: there is no such file, or it cannot be read.
    """
    try:
        return json.loads((folder / _METADATA).read_text())
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(f"{folder} has no codes: write them with tokenize") from e
    except (OSError, ValueError) as e:
        raise UserError(f"{folder / _METADATA} cannot be read: {first_line(e)}") from e


def read_codes(folder: Path) -> tuple[dict[str, Any], Any, Any]:
    """Opens a folder of codes.

    Returns:
      the metadata; the splits `train` and `val`, random access to examples of `codes`
      int32 [*grid] and `label`.

    Raises:
      UserError: there are none, or they are not complete.
    """
    metadata = read_metadata(folder)
    if not (folder / _COMPLETE).exists():
        raise UserError(f"{folder} is not complete: run tokenize again, which continues")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        return metadata, *(builder.as_data_source(split=split) for split in ("train", "val"))
    except Exception as e:  # damaged metadata can make TFDS raise anything
        raise UserError(f"{folder} cannot be read as a data set: {str(e)[:200]}") from e
