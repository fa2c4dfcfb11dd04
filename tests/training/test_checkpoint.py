"""Checkpoints: saving, restoring, damaged files, and checkpoints of another config."""

import os
import shutil

import chex
import grain
import jax
import jax.numpy as jnp
import pytest

from vq_jax.errors import UserError
from vq_jax.training.checkpoint import Checkpoints


@pytest.fixture
def tree():
    return {"params": {"w": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.int32(7), "empty": {}}


def numbers():
    return iter(grain.MapDataset.range(100).seed(3).shuffle().repeat().to_iter_dataset().batch(4))


def test_arrays_and_the_data_position_are_restored(tmp_path, tree):
    iterator = numbers()
    next(iterator)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(7, {"state": tree}, iterator)
        expected = next(iterator)
    other = numbers()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        zeros = jax.tree.map(jnp.zeros_like, tree)
        step, restored = checkpoints.restore({"state": zeros}, other)
    assert step == 7
    chex.assert_trees_all_equal(restored["state"], tree)
    chex.assert_trees_all_equal(next(other), expected)


def test_only_the_newest_checkpoints_are_kept(tmp_path, tree):
    iterator = numbers()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"state": tree}, iterator)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_one_tree_can_be_restored_without_the_others(tmp_path, tree):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": tree, "b": {"x": jnp.ones(3)}}, numbers())
    with Checkpoints(tmp_path) as checkpoints:
        _, trees = checkpoints.restore({"b": {"x": jnp.zeros(3)}})
    chex.assert_trees_all_equal(trees, {"b": {"x": jnp.ones(3)}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"params": {"w": jnp.zeros((2, 4))}},
            r"w is \(2, 4\) in this config, \(2, 3\) in the checkpoint",
        ),
        (
            {"params": {"w": jnp.zeros((2, 3)), "v": jnp.zeros(2)}},
            r"params/v is \(2,\) in this config, absent in the checkpoint",
        ),
        ({"params": {}}, r"params/w is absent in this config, \(2, 3\) in the"),
    ],
)
def test_arrays_that_do_not_fit_are_listed(tmp_path, tree, change, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"state": tree}, numbers())
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore({"state": {**tree, **change}})


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints 5 and 10 of a tree of random numbers, which do not compress."""
    folder = tmp_path_factory.mktemp("two")
    tree = {"w": jax.random.normal(jax.random.key(0), (200, 200)), "b": jnp.zeros(7)}
    iterator = numbers()
    with Checkpoints(folder) as checkpoints:
        for step in (5, 10):
            checkpoints.save(step, {"state": tree}, iterator)
            next(iterator)
    return folder, tree


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


PATHS = ["_CHECKPOINT_METADATA", "state/_METADATA", "state/d/*", "state/ocdbt*/d/*", "data/*.json"]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.unlink])
@pytest.mark.parametrize("pattern", PATHS)
def test_damaged_checkpoint_is_reported_and_the_one_before_is_restored(
    two, tmp_path, caplog, damage, pattern
):
    original, tree = two
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    (file,) = (folder / "10").glob(pattern)
    damage(file)
    iterator, undamaged = numbers(), numbers()
    with Checkpoints(folder) as checkpoints:
        step, restored = checkpoints.restore({"state": tree}, iterator)
        assert step == 5
        chex.assert_trees_all_equal(restored["state"], tree)
        chex.assert_trees_all_equal(next(iterator), next(undamaged))
        warnings = [r.getMessage() for r in caplog.records if r.name == "vq_jax"]
        assert len(warnings) == 1 and str(folder / "10") in warnings[0]
        checkpoints.save(10, {"state": tree}, iterator)  # replaces the damaged one
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore({"state": tree})[0] == 10


def test_missing_tree_is_damage_and_no_undamaged_checkpoint_is_an_error(two, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(two[0], folder)
    shutil.rmtree(folder / "10" / "state")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore({"state": two[1]})[0] == 5
    flip_a_bit(next((folder / "5" / "state" / "ocdbt.process_0" / "d").iterdir()))
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match="can be read"):
        checkpoints.restore({"state": two[1]})


def test_another_number_of_processes_is_rejected(two, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(two[0], folder)
    data = folder / "10" / "data"
    (data / "process_0-of-1.json").rename(data / "process_0-of-2.json")
    (folder / "10" / "checksums.json").unlink()
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(UserError, match="written by 2 processes"):
            checkpoints.restore({"state": two[1]}, numbers())
        # Without the iterator, the number of processes does not matter.
        assert checkpoints.restore({"state": two[1]})[0] == 10
