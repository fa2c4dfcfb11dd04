"""Moving emoji: the same clips each time, other emoji in each split, smooth motion."""

import numpy as np
import pytest

from vq_jax.config import base
from vq_jax.data import builders
from vq_jax.data.moving_emoji import VAL_CLIPS, open_moving_emoji


@pytest.fixture(scope="module")
def splits():
    config = base("causal3d").data
    config.update(frames=9, resolution=32)
    return open_moving_emoji(config, 0)


def test_clips_depend_on_split_and_index_alone(splits):
    clip = splits.train[5]["x"]
    assert clip.shape == (9, 32, 32, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, splits.train[5]["x"])
    assert (clip != splits.train[6]["x"]).any() and (clip != splits.val[5]["x"]).any()
    assert len(splits.val) == VAL_CLIPS


def test_longer_and_larger_clips_show_the_same_scene(splits):
    config = base("causal3d").data
    config.update(frames=17, resolution=64)
    longer = open_moving_emoji(config, 1).val[3]["x"]
    small = longer.reshape(17, 32, 2, 32, 2, 3).mean((2, 4))[:9]
    assert np.abs(small - splits.val[3]["x"]).mean() < 12


def test_emoji_of_the_splits_are_those_of_the_images(splits):
    names = [{path.stem for path in part.files} for part in (splits.train, splits.val)]
    assert not names[0] & names[1]
    groups = [{builders.emoji_group(name) for name in part} for part in names]
    assert not groups[0] & groups[1]


def test_emoji_move_and_stay_inside(splits):
    for i in range(20):
        clip = splits.val[i]["x"].astype(int)
        changes = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3))
        assert changes.max() > 0.5 and changes.max() < 60


def test_one_emoji_moves_over_one_colour():
    config = base("causal3d").data
    config.update(frames=9, resolution=32)
    clips = open_moving_emoji(config, 0, alone=True).train
    shares = []
    for i in range(20):
        clip = clips[i]["x"]
        background = np.median(clip.reshape(-1, 3), axis=0)
        other = (np.abs(clip - background) > 8).any(-1)
        shares.append(other.mean())
        assert other.any((1, 2)).all()
        assert (other[0] != other[-1]).any()
    assert 0.1 < np.mean(shares) < 0.5
