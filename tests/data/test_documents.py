"""Documents, and windows of them."""

import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

from vq_jax.data.pipeline import train_batches
from vq_jax.data.text import HELD_OUT_BOOKS, Windows, document, open_kjv, open_text, read_kjv
from vq_jax.errors import UserError
from vq_jax.modalities import MODALITIES

TEXT = MODALITIES["text"]


def data_of(folder="", length=8, **fields):
    fields = {"batch_size": 4, "workers": 0, "val_fraction": 0.25} | fields
    return ConfigDict({"folder": str(folder), "length": length, **fields})


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 100])
def test_windows_cover_a_document(size):
    source = Windows([document("a", bytes(range(size)))], 8)
    seen: set[int] = set()
    prepare = TEXT.prepare(data_of(), train=False)
    for i in range(len(source)):
        x = prepare(source[i])["x"]
        assert x.shape == (8,) and x.dtype == np.int32
        seen |= set(x[: min(8, size)].tolist())
    assert seen == set(range(size)) and len(source) == max(1, -(-size // 8))


def test_training_windows_begin_anywhere(rng):
    source = Windows([document("a", bytes(range(100)))], 8)
    prepare = TEXT.prepare(data_of(), train=True)
    starts = {int(prepare(source[i], rng)["x"][0]) for i in range(len(source)) for _ in range(50)}
    assert starts == set(range(93))


def test_windows_of_several_documents_do_not_mix(rng):
    source = Windows(
        [document("a", b"a" * 20), document("b", b"b" * 3), document("c", b"c" * 9)], 8
    )
    found = [(bytes(source[i]["x"][:8]), source[i]["id"]) for i in range(len(source))]
    assert [len(set(x)) for x, _ in found] == [1] * 6
    assert [name for _, name in found] == ["a:0", "a:8", "a:12", "b:0", "c:0", "c:1"]


def test_whole_files_are_held_out_and_files_of_any_kind_are_read(tmp_path, rng):
    for i in range(20):
        (tmp_path / f"{i}.{'md' if i % 2 else 'bin'}").write_bytes(bytes([i]) * 50)
    (tmp_path / "empty.txt").write_bytes(b"")
    splits = open_text(data_of(tmp_path), 0)
    train = {source["x"][0] for source in map(splits.train.__getitem__, range(len(splits.train)))}
    val = {source["x"][0] for source in map(splits.val.__getitem__, range(len(splits.val)))}
    assert train | val == set(range(20)) and not train & val and val
    copy = pickle.loads(pickle.dumps(splits.train))
    np.testing.assert_array_equal(copy[3]["x"], splits.train[3]["x"])


def test_the_end_of_a_single_file_is_held_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(200)))
    splits = open_text(data_of(path), 0)
    (train,), (val,) = splits.train.documents, splits.val.documents
    assert train.read(0, 200)[: train.size] + val.read(0, 200) == bytes(range(200))
    assert val.size == 50
    last = splits.train[len(splits.train) - 1]["x"]
    assert last.max() < 150, "training reads held-out bytes"


def test_folders_train_and_val_are_the_splits_and_subfolders_the_classes(tmp_path):
    for place in ("train/x/a.txt", "train/y/b.txt", "val/x/c.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    splits = open_text(data_of(tmp_path), 0)
    assert splits.class_names == ("x", "y")
    assert {splits.train[i]["label"] for i in range(len(splits.train))} == {0, 1}
    assert bytes(splits.val[0]["x"]).startswith(b"val/x/c")


def test_missing_and_empty_files_are_refused(tmp_path):
    for folder, message in (
        ("", "needs data.folder"),
        (tmp_path / "none", "there is no file or folder"),
        (tmp_path, "there are no files in"),
    ):
        with pytest.raises(UserError, match=message):
            open_text(data_of(folder), 0)
    (tmp_path / "short.txt").write_bytes(b"abc")
    with pytest.raises(UserError, match="3 bytes, and data.length is 8"):
        open_text(data_of(tmp_path / "short.txt"), 0)
    (tmp_path / "short.txt").unlink()
    (tmp_path / "a.txt").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(UserError, match="are empty"):
            open_text(data_of(folder), 0)


def test_the_bible_is_held_out_by_whole_books():
    books = read_kjv()
    assert len(books) == 66 and books["Genesis"].startswith(b"In the beginning God created")
    assert books["John"].startswith(b"In the beginning was the Word")
    assert books["Revelation"].endswith(b"Amen.\n")
    splits = open_kjv(data_of(length=256), 0)
    assert {d.name for d in splits.val.documents} == set(HELD_OUT_BOOKS)
    assert {d.name for d in splits.train.documents} == books.keys() - set(HELD_OUT_BOOKS)
    assert 0.05 < sum(d.size for d in splits.val.documents) / sum(map(len, books.values())) < 0.1


def test_batches_of_texts_are_the_same_for_the_same_seed():
    splits = open_kjv(data_of(length=32), 0)
    prepare = TEXT.prepare(data_of(length=32), train=True)
    batches = [next(train_batches(splits.train, data_of(length=32), 0, prepare)) for _ in range(2)]
    np.testing.assert_array_equal(batches[0]["x"], batches[1]["x"])
    assert batches[0]["x"].shape == (4, 32)
