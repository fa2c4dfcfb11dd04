"""Edits of clips: what is given comes back, and the rest depends on it."""

import numpy as np
import pytest
from small import make_prior, make_tokenizer, make_video_tokenizer

from vq_jax import video_editing
from vq_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return make_video_tokenizer()


@pytest.fixture(scope="module", params=["masked", "random_order", "causal"])
def prior(request, tokenizer):
    return make_prior(tokenizer, request.param)


def clip(rng, frames=9, height=16, width=16):
    return rng.integers(0, 256, (frames, height, width, 3), np.uint8)


@pytest.mark.parametrize(("given", "frames"), [(1, 8), (3, 20), (12, 5)])
def test_predict_appends_frames(prior, rng, given, frames):
    start = clip(rng, given, 18, 22)
    found = video_editing.predict(prior, start, frames, seed=3)
    assert found.shape == (given + frames, 18, 22, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[:given], start)
    np.testing.assert_array_equal(found, video_editing.predict(prior, start, frames, seed=3))
    assert (found != video_editing.predict(prior, start, frames, seed=4)).any()
    # A shorter prediction of the same seed is the beginning of a longer one.
    shorter = video_editing.predict(prior, start, frames - 1, seed=3)
    np.testing.assert_array_equal(found[:-1], shorter)


def test_interpolate_keeps_both_ends(tokenizer, rng):
    first, last = clip(rng, 2, 16, 20)
    for name in ("masked", "random_order"):
        found = video_editing.interpolate(make_prior(tokenizer, name), first, last)
        assert found.shape == (9, 16, 20, 3)
        np.testing.assert_array_equal(found[[0, -1]], [first, last])
    with pytest.raises(UserError, match="no later frames"):
        video_editing.interpolate(make_prior(tokenizer, "causal"), first, last)
    with pytest.raises(UserError, match="20x16 pixels and the last 16x16"):
        video_editing.interpolate(make_prior(tokenizer, "masked"), first, last[:, :16])


@pytest.mark.parametrize("frames", [3, 9, 21])
def test_inpaint_changes_what_is_masked_alone(prior, rng, frames):
    x = clip(rng, frames, 16, 24)
    of_frame: np.ndarray = np.zeros((16, 24), bool)
    of_frame[5:9, 7:15] = True
    moving = np.stack([np.roll(of_frame, t, axis=1) for t in range(frames)])
    for mask in (of_frame, moving):
        found = video_editing.inpaint(prior, x, mask)
        where = np.broadcast_to(mask, x.shape[:3])
        np.testing.assert_array_equal(found[~where], x[~where])
        assert (found[where] != x[where]).mean() > 0.9


def test_whole_frames_can_be_masked(prior, rng):
    x = clip(rng, 9)
    mask: np.ndarray = np.zeros(x.shape[:3], bool)
    mask[4:6] = True
    found = video_editing.inpaint(prior, x, mask)
    np.testing.assert_array_equal(found[~mask], x[~mask])


def test_mistakes_are_named(prior, rng):
    x, mask = clip(rng), np.ones((16, 16), bool)
    for call, message in (
        (lambda: video_editing.predict(prior, x, 0), "frames is 0"),
        (lambda: video_editing.predict(prior, x[0], 4), r"make it uint8 \[T, H, W, 3\]"),
        (lambda: video_editing.inpaint(prior, x, mask), "covers the whole clip"),
        (lambda: video_editing.inpaint(prior, x, mask[:4]), "make the mask"),
        (lambda: video_editing.inpaint(prior, x, mask.astype(int)), "make it bool"),
        (lambda: video_editing.predict(make_prior(make_tokenizer()), x, 4), "prior of videos"),
    ):
        with pytest.raises(UserError, match=message):
            call()
