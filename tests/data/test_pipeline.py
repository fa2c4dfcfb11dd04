"""Batches for training and evaluation."""

import threading
import time

import chex
import jax
import numpy as np
import pytest
from small import prepare

from vq_jax.config import base, check, make_prepare
from vq_jax.data.pipeline import eval_batches, pad_rows, train_batches
from vq_jax.errors import UserError


@pytest.fixture
def config():
    config = base("vqvae").data
    config.update(batch_size=8, crop="random", resize=40)
    return config


def test_batches_depend_on_the_seed(emoji, config):
    a, b, c = (train_batches(emoji.train, config, seed, prepare(config)) for seed in (0, 0, 1))
    for _ in range(3):
        batch = next(a)
        chex.assert_trees_all_equal(batch, next(b))
        assert not np.array_equal(batch["x"], next(c)["x"])
    chex.assert_shape(batch["x"], (8, 32, 32, 3))
    chex.assert_type([batch["x"], batch["label"]], [np.float32, np.int32])
    assert batch["x"].min() >= -1 and batch["x"].max() <= 1


def test_each_epoch_has_every_image_once_in_a_new_order(emoji, config):
    config.update(crop="center", flip=False, resize=None)
    small = [emoji.train[i] for i in range(16)]
    iterator = train_batches(small, config, 0, prepare(config))
    epochs = [np.concatenate([next(iterator)["x"] for _ in range(2)]) for _ in range(2)]
    sets = [{x.tobytes() for x in epoch} for epoch in epochs]
    assert len(sets[0]) == 16 and sets[0] == sets[1]
    assert not np.array_equal(*epochs)


def test_restored_iterator_continues_exactly(emoji, config):
    iterator = train_batches(emoji.train, config, 0, prepare(config))
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(3)]
    restored = train_batches(emoji.train, config, 0, prepare(config))
    restored.set_state(state)
    for batch in expected:
        chex.assert_trees_all_equal(next(restored), batch)


def test_processes_divide_the_batch_of_a_single_process(emoji, config):
    whole = train_batches(emoji.train, config, 0, prepare(config))
    shares = [train_batches(emoji.train, config, 0, prepare(config), i, 2) for i in range(2)]
    for _ in range(3):
        batch = next(whole)["x"]
        for i, share in enumerate(shares):
            chex.assert_trees_all_equal(next(share)["x"], batch[4 * i : 4 * i + 4])


def test_joined_batches_equal_consecutive_batches(emoji, config):
    single = train_batches(emoji.train, config, 0, prepare(config))
    expected = np.concatenate([next(single)["x"] for _ in range(3)])
    shares = [
        train_batches(emoji.train, config, 0, prepare(config), i, 2, together=3) for i in range(2)
    ]
    joined = np.concatenate([next(share)["x"] for share in shares])
    chex.assert_trees_all_equal(joined, expected)


def test_batches_are_placed_ahead_and_the_state_is_of_the_last_one_returned(emoji, config):
    placed = []

    def place(batch):
        placed.append(threading.current_thread())
        return {"x": jax.device_put(batch["x"])}

    iterator = train_batches(emoji.train, config, 0, prepare(config), place=place)
    first = next(iterator)
    assert isinstance(first["x"], jax.Array)
    state = iterator.get_state()
    deadline = time.monotonic() + 20
    while len(placed) < 3 and time.monotonic() < deadline:  # before they are requested
        time.sleep(0.01)
    assert len(placed) >= 3 and threading.current_thread() not in placed
    expected = [next(iterator)["x"] for _ in range(3)]
    restored = train_batches(emoji.train, config, 0, prepare(config))
    restored.set_state(state)
    for x in expected:
        chex.assert_trees_all_equal(np.asarray(x), next(restored)["x"])


@pytest.mark.slow
def test_restored_iterator_with_worker_processes_continues_exactly(emoji, config):
    config.workers = 2
    iterator = train_batches(emoji.train, config, 0, prepare(config))
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(3)]
    iterator.set_state(state)
    for batch in expected:
        chex.assert_trees_all_equal(next(iterator), batch)
    iterator.close()


def test_evaluation_has_every_image_once_in_order(emoji, config):
    config.update(batch_size=100)
    batches = list(eval_batches(emoji.val, config, prepare(config, False)))
    assert {b["x"].shape for b in batches} == {(100, 32, 32, 3)}
    assert sum(b["valid"].sum() for b in batches) == len(emoji.val)
    labels = np.concatenate([b["label"][b["valid"]] for b in batches])
    assert labels.tolist() == [emoji.val[i]["label"] for i in range(len(emoji.val))]


def test_always_readable_source_gives_the_same_batches(config, rng):
    """For such a source, a thread makes a whole batch instead of one example."""
    from vq_jax.modalities.vector import Table

    class Unmarked:
        def __init__(self, table):
            self.table = table

        def __len__(self):
            return len(self.table)

        def __getitem__(self, index):
            return self.table[index]

    table = Table(rng.normal(size=(30, 4)), range(30), np.zeros(30, np.int32), ())
    vectors = base("vector_mlp")
    vectors.data.batch_size = 8
    prepare_vector = make_prepare(vectors, train=True)
    fast, slow = (
        train_batches(s, vectors.data, 0, prepare_vector) for s in (table, Unmarked(table))
    )
    for _ in range(6):
        chex.assert_trees_all_equal(next(fast), next(slow))


def test_batch_larger_than_the_split_is_an_error(emoji, config):
    with pytest.raises(UserError, match="data.batch_size is 8, and there are 3 training examples"):
        train_batches([emoji.train[i] for i in range(3)], config, 0, prepare(config))


def test_unknown_crop_is_an_error():
    config = base("vqvae")
    config.phases.joint = 1
    config.data.crop = "centre"
    with pytest.raises(UserError, match="'center' or 'random'"):
        check(config)


def test_rows_of_zeros_fill_a_batch():
    rows = pad_rows(np.ones((2, 3, 4), np.int32), 5)
    assert rows.shape == (5, 3, 4) and rows.dtype == np.int32
    assert rows[:2].all() and not rows[2:].any()
    assert pad_rows(np.ones(3), 3).all()
