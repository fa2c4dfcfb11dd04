"""Clips of any length and size to codes and back, by streaming."""

from fractions import Fraction

import numpy as np
import pytest
from small import make_prior, make_video_tokenizer

from vq_jax.codec import Codec, video_tiler
from vq_jax.codec.video_tiler import VideoTiler
from vq_jax.data.images import to_float, to_uint8
from vq_jax.data.video import Clip, as_clip
from vq_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return make_video_tokenizer()


def clip_of(rng, frames, height, width):
    """A clip that changes smoothly."""
    t, y, x = np.meshgrid(*map(np.arange, (frames, height, width)), indexing="ij")
    waves = [np.sin(rng.uniform(0.1, 0.4, 3) @ np.stack([t, y, x]).reshape(3, -1)) for _ in "rgb"]
    return to_uint8(np.stack(waves, -1).reshape(frames, height, width, 3))


def test_a_clip_of_one_tile_has_the_codes_and_pixels_of_the_whole(tokenizer, rng):
    clip = clip_of(rng, 21, 16, 24)
    tiler = VideoTiler(tokenizer)
    codes = tiler.encode([clip])[0]
    whole = np.asarray(tokenizer.encode(to_float(clip)[None]))[0]
    assert (codes == whole).mean() > 0.99  # float32 sums in another order
    decoded = next(tiler.decode([codes], [tiler.shape(clip)])).array()
    wanted = to_uint8(np.asarray(tokenizer.decode(codes[None]))[0])
    assert np.abs(decoded.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 40])
def test_any_length_comes_back(tokenizer, rng, frames):
    clip = clip_of(rng, frames, 16, 16)
    tiler = VideoTiler(tokenizer)
    shape = tiler.shape(clip)
    codes = tiler.encode([clip])[0]
    assert codes.shape == tiler.grid(shape) == (1 + -(-(frames - 1) // 4), 4, 4)
    assert next(tiler.decode([codes], [shape])).array().shape == clip.shape


def test_tiles_of_a_large_frame_give_what_the_whole_frame_does(tokenizer, rng):
    """Without norms over frames, only the model's receptive field limits this."""
    clip = clip_of(rng, 5, 50, 131)
    large, small = VideoTiler(tokenizer, 256), VideoTiler(tokenizer, 96)
    codes = [tiler.encode([clip])[0] for tiler in (large, small)]
    assert (codes[0] == codes[1]).mean() > 0.99
    shape = large.shape(clip)
    decoded = [next(t.decode([codes[0]], [shape])).array().astype(int) for t in (large, small)]
    assert np.abs(decoded[0] - decoded[1]).max() <= 1


def test_a_clip_is_read_once_and_never_held(tokenizer):
    read = []

    def frames():
        for i in range(200):
            read.append(i)
            yield np.full((16, 16, 3), i, np.uint8)

    tiler = VideoTiler(tokenizer)
    codes = tiler.encode([Clip((200, 16, 16, 3), Fraction(25), frames)])[0]
    assert read == list(range(200))
    decoded = next(tiler.decode([codes], [(200, 16, 16, 25, 1)])).frames()
    next(decoded)  # the first frames come before the last codes are decoded
    assert decoded.gi_frame is not None


def test_a_file_keeps_size_and_rate(tokenizer, rng):
    vqz = Codec(tokenizer)
    clip = as_clip(clip_of(rng, 7, 18, 30), Fraction(30000, 1001))
    data = vqz.compress(clip)
    found = vqz.decompress(data)
    assert found.shape == clip.shape and found.rate == clip.rate
    codes, shape = vqz.read(data)
    np.testing.assert_array_equal(codes, vqz.tiler.encode([clip])[0])
    assert shape == (7, 18, 30, 30000, 1001)


def test_a_prior_codes_clips_in_windows_of_space_and_time(tokenizer, rng):
    prior = make_prior(tokenizer, "causal")
    vqz = Codec(tokenizer, prior=prior)
    clip = clip_of(rng, 14, 16, 24)
    data = vqz.compress(clip)
    np.testing.assert_array_equal(vqz.read(data)[0], vqz.tiler.encode([clip])[0])


def test_wrong_clips_are_refused(tokenizer):
    vqz = Codec(tokenizer)
    with pytest.raises(ValueError, match=r"make it uint8 \[T, H, W, 3\]"):
        vqz.compress(np.zeros((4, 8, 8, 1), np.uint8))
    tiler = VideoTiler(tokenizer)
    codes = np.zeros((1, 1, 1), np.int32)
    for shape in ((1, 2**20, 2**20, 25, 1), (1, 4, 4, 1, 2**20), (1, 4, 4, 2**30, 1)):
        with pytest.raises(UserError, match="which no video has"):
            next(tiler.decode([codes], [shape]))


def test_memory_is_checked_before_it_is_allocated(tokenizer, monkeypatch):
    monkeypatch.setattr(video_tiler, "free_memory", lambda: 2**28)
    frame = np.zeros((3000, 5000, 3), np.uint8)
    clip = Clip((5, *frame.shape), Fraction(25), lambda: iter([frame] * 5))
    tiler = VideoTiler(tokenizer)
    with pytest.raises(UserError, match="GiB of memory, and 0.2 GiB are free"):
        tiler.encode([clip])
    with pytest.raises(UserError, match="GiB are free"):
        next(tiler.decode([np.zeros((2, 750, 1250), np.int32)], [tiler.shape(clip)]))
