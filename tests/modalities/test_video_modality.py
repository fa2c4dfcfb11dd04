"""The modality of video: figures by frame, preparation, previews."""

import numpy as np
import pytest
from PIL import Image

from vq_jax import config as configs
from vq_jax import metrics, modalities
from vq_jax.data.images import to_float
from vq_jax.data.video import read_clip
from vq_jax.errors import UserError

VIDEO = modalities.MODALITIES["video"]


@pytest.fixture
def config():
    config = configs.base("causal3d")
    config.data.update(frames=5, resolution=32)
    config.eval_lpips = False
    config.loss.perceptual_weight = 0.0
    config.phases.joint = 1
    return config


def test_figures_are_those_of_frames_by_index(config, rng):
    x = rng.uniform(-1, 1, (3, 5, 32, 32, 3)).astype(np.float32)
    noise = rng.normal(0, 0.1, x.shape) * np.arange(1, 6)[:, None, None, None]
    y = np.clip(x + noise, -1, 1).astype(np.float32)
    values = VIDEO.metrics(config)(x, y)
    np.testing.assert_allclose(
        values["psnr_by_frame"][:, 2], metrics.psnr(x[:, 2], y[:, 2]), rtol=1e-5
    )
    changes = [(a[:, 1:] - a[:, :-1]) / 2 for a in (x, y)]
    wanted = metrics.psnr(changes[0][:, 1], changes[1][:, 1])
    np.testing.assert_allclose(values["psnr_of_changes"][:, 1], wanted, rtol=1e-5)
    figures = VIDEO.summarize({k: np.asarray(v).mean(0) for k, v in values.items()})
    by_frame = figures["psnr_by_frame"]
    assert by_frame == sorted(by_frame, reverse=True)  # the noise grows
    assert figures["psnr"] == pytest.approx(np.mean(by_frame))
    assert figures["psnr_worst_frame"] == by_frame[-1]


def test_flicker_is_seen_in_the_changes(config, rng):
    """A constant error does not change the differences of frames; one that alternates does."""
    x = rng.uniform(-0.5, 0.5, (1, 5, 32, 32, 3)).astype(np.float32)
    sign = np.array([1, -1, 1, -1, 1])[:, None, None, None]
    of = [VIDEO.metrics(config)(x, x + error) for error in (0.1, 0.1 * sign.astype(np.float32))]
    psnr = [float(np.mean(v["psnr_by_frame"])) for v in of]
    assert psnr[0] == pytest.approx(psnr[1], abs=1e-3)
    assert float(np.mean(of[0]["psnr_of_changes"])) > float(np.mean(of[1]["psnr_of_changes"])) + 20


def test_all_frames_are_cropped_and_flipped_alike(config):
    config.data.update(crop="random", resize=40)
    column = np.tile(np.arange(48, dtype=np.uint8)[None, :, None], (48, 1, 3))
    prepare = VIDEO.prepare(config.data, train=True)
    seen = set()
    for i in range(20):
        made = prepare({"x": np.stack([column] * 9), "label": 3}, np.random.default_rng(i))
        assert made["x"].shape == (5, 32, 32, 3) and made["label"] == 3
        np.testing.assert_array_equal(made["x"], np.stack([made["x"][0]] * 5))
        seen.add(made["x"][0].tobytes())
    assert len(seen) > 10
    with pytest.raises(UserError, match="a video has 4 frames"):
        prepare({"x": np.stack([column] * 4), "label": 0})


def test_lpips_is_of_some_frames(config):
    config.loss.update(perceptual_weight=1.0, perceptual_frames=2)
    distance = VIDEO.perceptual(config)
    x = np.zeros((2, 5, 32, 32, 3), np.float32)
    y = x.copy()
    y[:, 1] = 1.0  # between those that are compared
    assert np.abs(distance(x, y)).max() < 1e-6
    y[1, 2] = 1.0
    found = np.asarray(distance(x, y))
    assert found.shape == (2,) and found[0] < 1e-6 < found[1]


def test_a_preview_is_a_sheet_and_an_animation(tmp_path, rng):
    rows = [rng.integers(0, 256, (count, 5, 8, 8, 3), np.uint8) for count in (3, 2)]
    VIDEO.preview(tmp_path / "grid.png", *rows)
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (5 * 10 - 2, 5 * 10 - 2)  # five clips of five frames
    assert read_clip(tmp_path / "grid.gif", 3).shape == (5, 18, 28, 3)


def test_side_by_side(rng):
    a, b = rng.integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    found = VIDEO.side_by_side(a, b).array()
    np.testing.assert_array_equal(found[:, :, :8], a)
    np.testing.assert_array_equal(found[:, :, 10:], b)


def test_networks_tell_sets_of_clips_apart(rng):
    frames, pairs = VIDEO.networks()
    assert "not FVD" in frames.heading and "not FVD" in pairs.heading
    clips = to_float(rng.integers(0, 256, (2, 5, 32, 32, 3), np.uint8))
    assert frames.features(clips).shape == (4, 1280) and pairs.features(clips).shape == (2, 2560)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 2}, "data.channels is 2"),
        ({"frame_rate": 5.0, "stride": 2}, "exclude each other"),
        ({"frames": 6}, "use 5"),
        ({"crop": "left"}, "data.crop"),
    ],
)
def test_wrong_fields_are_named(config, changes, message):
    config.data.update(changes)
    with pytest.raises(UserError, match=message):
        configs.check(config)
