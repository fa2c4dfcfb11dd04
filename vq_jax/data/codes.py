"""Codes as a TFDS data set: ArrayRecord shards, written apart from each other, and their metadata.

A folder holds `codes-<split>.array_record-<i>-of-<n>`, TFDS's own `features.json` and
`dataset_info.json`, and `tokenizer.json`: whose codes they are and how they were made. It needs no
TensorFlow, and `tfds.builder_from_directory` opens it as any other.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax.errors import UserError, first_line
from vq_jax.files import unfinished, write

_ABOUT = "tokenizer.json"
_COMPLETE = "dataset_info.json"
_FORMAT = "array_record"


def _features(about: Mapping[str, Any]) -> Any:
    import tensorflow_datasets as tfds

    names = about["classes"]
    named = bool(names) and len(set(names)) == len(names) and all(names)
    label = tfds.features.ClassLabel(names=names) if named else tfds.features.Scalar(np.int32)
    codes = tfds.features.Tensor(shape=tuple(about["shape"]), dtype=np.int32)
    return tfds.features.FeaturesDict({"codes": codes, "label": label})


def shard_path(folder: Path, split: str, index: int, count: int) -> Path:
    """Where a shard lies."""
    return folder / f"codes-{split}.{_FORMAT}-{index:05d}-of-{count:05d}"


def begin(folder: Path, about: dict[str, Any]) -> None:
    """Makes the folder and writes down whose codes it will hold.

    Args:
      folder: for one data set.
      about: `fingerprint` of the tokenizer, `shape` of an image's codes, `num_codes`, `books`,
        `image` (H, W, C), `classes`, and whatever else decides what the codes are.

    Raises:
      UserError: it holds, or another process has begun there, something else.
    """
    path = folder / _ABOUT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = any(not p.name.startswith(".") for p in folder.iterdir())
        if not path.exists():  # looked for last: another process may just have begun
            if others:
                raise UserError(f"--output={folder} holds other things: name an empty folder")
            write((json.dumps(about, indent=2) + "\n").encode(), path)
    except OSError as e:
        raise UserError(f"--output={folder} cannot be written: {e.strerror or e}") from e
    before = read_about(folder)
    about = json.loads(json.dumps(about))
    if before != about:
        changed = sorted(k for k in {*before, *about} if before.get(k) != about.get(k))
        raise UserError(
            f"{folder} holds codes made otherwise ({', '.join(changed)}): name another --output"
        )


def write_shard(path: Path, examples: Iterator[tuple[np.ndarray, int]], about: dict) -> int:
    """Writes a shard of (codes, label); it has its name once it is complete.

    Returns:
      how many examples there were.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    features = _features(about)
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
    """Writes TFDS's metadata once every shard is there.

    Args:
      folder: the data set's.
      shards: split -> number of shards.

    Returns:
      the shards that are still missing; none means that the data set is complete.
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
        features=_features(read_about(folder)),
        split_infos=infos,
        check_data=False,  # which would take TensorFlow
    )
    return []


def read_about(folder: Path) -> dict[str, Any]:
    """What `begin` wrote down.

    Raises:
      UserError: there is nothing, or nothing readable.
    """
    try:
        return json.loads((folder / _ABOUT).read_text())
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(
            f"{folder} holds no codes: write some with --mode=tokenize --output={folder}"
        ) from e
    except (OSError, ValueError) as e:
        raise UserError(f"{folder / _ABOUT} cannot be read: {first_line(e)}") from e


def read_codes(folder: Path) -> tuple[dict[str, Any], Any, Any]:
    """Opens a folder of codes.

    Returns:
      what `begin` wrote down; the splits `train` and `val`, random access to examples of `codes`
      int32 [*grid] and `label`.

    Raises:
      UserError: there is none, or it is not complete.
    """
    about = read_about(folder)
    if not (folder / _COMPLETE).exists():
        raise UserError(f"{folder} is not complete: run --mode=tokenize again, it goes on")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        return about, *(builder.as_data_source(split=split) for split in ("train", "val"))
    except Exception as e:  # whatever damaged metadata makes TFDS raise
        raise UserError(f"{folder} cannot be read as a data set: {str(e)[:200]}") from e
