import threading
import time

import chex
import jax
import numpy as np
import pytest

from vq_jax.config import base
from vq_jax.data.pipeline import eval_batches, train_batches
from vq_jax.errors import UserError


@pytest.fixture
def config():
    config = base("vqvae").data
    config.update(batch_size=8, crop="random", resize=40)
    return config


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(emoji, config):
    a, b, c = (train_batches(emoji.train, config, seed) for seed in (0, 0, 1))
    for _ in range(3):
        batch = next(a)
        chex.assert_trees_all_equal(batch, next(b))
        assert not np.array_equal(batch["image"], next(c)["image"])
    chex.assert_shape(batch["image"], (8, 32, 32, 3))
    chex.assert_type([batch["image"], batch["label"]], [np.float32, np.int32])
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1


def test_an_epoch_sees_each_image_once_and_the_next_in_another_order(emoji, config):
    config.update(crop="center", flip=False, resize=None)
    small = [emoji.train[i] for i in range(16)]
    iterator = train_batches(small, config, 0)
    epochs = [np.concatenate([next(iterator)["image"] for _ in range(2)]) for _ in range(2)]
    sets = [{x.tobytes() for x in epoch} for epoch in epochs]
    assert len(sets[0]) == 16 and sets[0] == sets[1]
    assert not np.array_equal(*epochs)


def test_a_restored_position_goes_on_exactly(emoji, config):
    iterator = train_batches(emoji.train, config, 0)
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(3)]
    other = train_batches(emoji.train, config, 0)
    other.set_state(state)
    for batch in expected:
        chex.assert_trees_all_equal(next(other), batch)


def test_processes_share_the_batch_that_one_would_have(emoji, config):
    whole = train_batches(emoji.train, config, 0)
    shares = [train_batches(emoji.train, config, 0, i, 2) for i in range(2)]
    for _ in range(3):
        batch = next(whole)["image"]
        for i, share in enumerate(shares):
            chex.assert_trees_all_equal(next(share)["image"], batch[4 * i : 4 * i + 4])


def test_batches_joined_are_the_batches_one_after_another(emoji, config):
    single = train_batches(emoji.train, config, 0)
    expected = np.concatenate([next(single)["image"] for _ in range(3)])
    shares = [train_batches(emoji.train, config, 0, i, 2, together=3) for i in range(2)]
    joined = np.concatenate([next(share)["image"] for share in shares])
    chex.assert_trees_all_equal(joined, expected)


def test_batches_are_placed_ahead_and_the_position_is_of_the_last_one_taken(emoji, config):
    placed = []

    def place(batch):
        placed.append(threading.current_thread())
        return {"image": jax.device_put(batch["image"])}

    iterator = train_batches(emoji.train, config, 0, place=place)
    first = next(iterator)
    assert isinstance(first["image"], jax.Array)
    state = iterator.get_state()
    limit = time.monotonic() + 20
    while len(placed) < 3 and time.monotonic() < limit:  # without being asked for
        time.sleep(0.01)
    assert len(placed) >= 3 and threading.current_thread() not in placed
    expected = [next(iterator)["image"] for _ in range(3)]
    other = train_batches(emoji.train, config, 0)
    other.set_state(state)
    for image in expected:
        chex.assert_trees_all_equal(np.asarray(image), next(other)["image"])


@pytest.mark.slow
def test_worker_processes_decode_too(emoji, config):
    config.workers = 2
    iterator = train_batches(emoji.train, config, 0)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(3)]
    iterator.set_state(state)
    for batch in expected:
        chex.assert_trees_all_equal(next(iterator), batch)
    iterator.close()


def test_evaluation_sees_every_image_once_in_order(emoji, config):
    config.update(batch_size=100)
    batches = list(eval_batches(emoji.val, config))
    assert {b["image"].shape for b in batches} == {(100, 32, 32, 3)}
    assert sum(b["valid"].sum() for b in batches) == len(emoji.val)
    labels = np.concatenate([b["label"][b["valid"]] for b in batches])
    assert labels.tolist() == [emoji.val[i]["label"] for i in range(len(emoji.val))]


def test_fewer_images_than_a_batch_are_refused(emoji, config):
    with pytest.raises(UserError, match="3 training images are fewer than a batch"):
        train_batches([emoji.train[i] for i in range(3)], config, 0)


def test_an_unknown_crop_is_named(emoji, config):
    config.crop = "centre"
    with pytest.raises(UserError, match="'center' or 'random'"):
        train_batches(emoji.train, config, 0)
