"""Files of video: formats, rates, rotation, damage, and folders of clips."""

import logging
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vq_jax.config import base
from vq_jax.data import video
from vq_jax.data.clips import open_clips
from vq_jax.data.video import as_clip, decode_frames, probe, read_clip, write_clip
from vq_jax.errors import UserError


def moving(frames=30, height=48, width=64):
    """A white bar that moves over a background that brightens."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    for t in range(frames):
        clip[t, ..., 0] = 8 * (t % 30)
        clip[t, 10:20, 2 * t % width : 2 * t % width + 8] = 255
    return clip


@pytest.mark.parametrize(
    ("suffix", "exact"),
    [(".mkv", True), (".avi", True), (".gif", True), (".webp", True)]
    + [(s, False) for s in (".mp4", ".m4v", ".mov", ".webm")],
)
def test_every_format_keeps_frames_size_and_rate(tmp_path, suffix, exact):
    x, path = moving(), tmp_path / f"a{suffix}"
    write_clip(as_clip(x, Fraction(25)), path)
    clip = read_clip(path, 3)
    assert clip.shape == x.shape and clip.rate == 25
    found = clip.array()
    assert np.abs(found.astype(int) - x).mean() < (0 if exact else 2) + 1e-9
    info = probe(path)
    assert info.count == 30
    part = np.stack(list(decode_frames(path, info, info.rate, 12, 5)))  # by seeking
    np.testing.assert_array_equal(part, found[12:17])
    np.testing.assert_array_equal(
        np.stack(list(decode_frames(path, info, Fraction(5)))), found[::5]
    )


def test_a_clip_can_be_read_many_times(tmp_path):
    """A decoder that is closed in the middle must not wait for its threads."""
    path = tmp_path / "a.mp4"
    write_clip(as_clip(moving(60, 360, 640)), path)
    for _ in range(5):
        clip = read_clip(path, 3)
        next(clip.frames())
    assert sum(1 for _ in clip.frames()) == 60


def test_odd_sizes_grey_and_rates_of_television(tmp_path):
    path = tmp_path / "a.mp4"
    write_clip(as_clip(moving()[:, :47, :63], Fraction(30000, 1001)), path)
    clip = read_clip(path, 1)
    assert clip.shape == (30, 47, 63, 1) and clip.rate == Fraction(30000, 1001)


def test_a_variable_rate_becomes_constant(tmp_path):
    path, times = tmp_path / "a.mkv", [0, 100, 200, 700, 800, 900]  # in milliseconds
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt, stream.time_base = "bgr0", Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 40 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(path, count=True)
    found = [frame[0, 0, 0] // 40 for frame in decode_frames(path, info, Fraction(10))]
    assert found == [0, 1, 2, 2, 2, 2, 2, 3, 4, 5]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_are_those_of_hd_video_and_come_back(tmp_path, suffix):
    x, path = np.zeros((3, 64, 64, 3), np.uint8), tmp_path / f"a{suffix}"
    x[:, :32], x[:, 32:] = [220, 40, 30], [20, 200, 60]
    write_clip(as_clip(x), path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.colorspace == 1  # BT.709
    assert np.abs(read_clip(path, 3).array().astype(int) - x)[:, [5, 50]].max() < 4


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_short_frames_before_a_long_one_are_kept(tmp_path, suffix):
    """The frame at time 0 is the first one, and the last one is shown to its end."""
    path = tmp_path / f"a{suffix}"
    images = [Image.fromarray(np.full((16, 16, 3), v, np.uint8)) for v in (10, 100, 200)]
    options = {"lossless": True} if suffix == ".webp" else {}
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=[100, 100, 1900], **options
    )
    clip = read_clip(path, 3)
    assert [frame[0, 0, 0] for frame in clip.frames()] == [10, 200, 200]
    found = [frame[0, 0, 0] for frame in decode_frames(path, probe(path), Fraction(10))]
    assert found == [10, 100] + [200] * 19


def test_frames_of_avi_are_counted(tmp_path):
    """AVI has no times: with frames out of order in the file, those that FFmpeg guesses are wrong."""
    path, x = tmp_path / "a.avi", np.zeros((40, 64, 64, 3), np.uint8)
    x += (6 * np.arange(40, dtype=np.uint8))[:, None, None, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "crf": "10"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for image in x:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    found = read_clip(path, 3).array()
    assert found.shape == x.shape and np.abs(found.astype(int) - x).max() < 5
    info = probe(path)
    part = np.stack(list(decode_frames(path, info, info.rate, 17, 4)))
    np.testing.assert_array_equal(part, found[17:21])


def test_transparency_is_over_white(tmp_path):
    path = tmp_path / "a.webp"
    images = [Image.new("RGBA", (8, 8), (255, 0, 0, opacity)) for opacity in (0, 255)]
    images[0].save(path, save_all=True, append_images=images[1:], lossless=True, exact=True)
    first, second = read_clip(path, 3).array()
    assert (first == 255).all() and (second == [255, 0, 0]).all()


def test_names_with_a_colon(tmp_path):
    path = tmp_path / "12:30.mp4"
    write_clip(as_clip(moving(5)), path)
    assert read_clip(path, 3).shape[0] == 5


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation_is_applied(tmp_path, angle):
    path = tmp_path / "a.mp4"
    write_clip(as_clip(moving()), path)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # the matrix of the track's header
    units = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[angle]
    for offset, value in zip((0, 4, 12, 16), units, strict=True):
        data[place + offset : place + offset + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    plain = read_clip(path, 3).array()
    (tmp_path / "b.mp4").write_bytes(data)
    found = read_clip(tmp_path / "b.mp4", 3)
    # The matrix turns clockwise.
    np.testing.assert_array_equal(found.array(), np.rot90(plain, -angle // 90, axes=(1, 2)))
    assert found.shape[1:3] == ((64, 48) if angle != 180 else (48, 64))


def test_truncated_files_repeat_the_last_frame(tmp_path, caplog):
    path = tmp_path / "a.mkv"
    write_clip(as_clip(moving(), Fraction(25)), path)
    path.write_bytes(path.read_bytes()[:-1500])
    clip = read_clip(path, 3)
    assert 5 < clip.shape[0] < 30 and len(clip.array()) == clip.shape[0]
    write_clip(as_clip(moving(), Fraction(25)), tmp_path / "b.mp4")
    data = bytearray((tmp_path / "b.mp4").read_bytes())
    data[1500:1700] = b"\0" * 200
    (tmp_path / "b.mp4").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert read_clip(tmp_path / "b.mp4", 3).array().shape == (30, 48, 64, 3)
    assert "damaged after" in caplog.text or "repeat the one before" in caplog.text


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "empty.webm").write_bytes(b"")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "notes.txt").write_text("some text\n" * 100)
    Image.new("RGB", (8, 8)).save(tmp_path / "still.jpg")
    (tmp_path / "still.jpg").rename(tmp_path / "still.webp")
    assert read_clip(tmp_path / "still.webp", 3).shape[0] == 1
    for name in ("a.mp4", "empty.webm", "sound.mp4", "missing.mp4", "notes.txt"):
        with pytest.raises(UserError, match=f"cannot read .*{name} as a video"):
            read_clip(tmp_path / name, 3)
    with pytest.raises(UserError, match="no format of video"):
        write_clip(as_clip(moving()), tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot be written as .mp4"):
        write_clip(as_clip(np.zeros((1, 2, 40_000, 3), np.uint8)), tmp_path / "wide.mp4")
    assert not (tmp_path / "wide.mp4").exists()


def test_sound_is_left_out_and_said_once(tmp_path, caplog):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("ffv1", rate=10)
        pictures.width = pictures.height = 16
        pictures.pix_fmt = "bgr0"
        sound = container.add_stream("aac", rate=8000)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
            container.mux(pictures.encode(frame))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        container.mux(pictures.encode(None))
    video.say_no_sound.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [read_clip(path, 3).shape[0] for _ in range(3)] == [3, 3, 3]
    assert caplog.text.count("sound") == 1


def config_of(folder, **changes):
    config = base("causal3d").data
    config.update(source="folder", folder=str(folder), frames=9, resolution=16, val_fraction=0.3)
    config.update(changes)
    return config


@pytest.fixture
def folder(tmp_path):
    """Clips of two classes, a folder of frames, and a broken file."""
    for i in range(4):
        path = tmp_path / ("cats", "dogs")[i % 2] / f"{i}.mp4"
        write_clip(as_clip(moving(40), Fraction(20)), path)
    frames = tmp_path / "cats" / "frames"
    frames.mkdir()
    for i in range(20):
        Image.fromarray(moving()[i]).save(frames / f"frame{i}.png")
    (tmp_path / "dogs" / "broken.mp4").write_bytes(b"no video")
    write_clip(as_clip(moving(5)), tmp_path / "dogs" / "short.mp4")
    return tmp_path


def test_a_folder_gives_windows_of_its_clips(folder, caplog):
    with caplog.at_level(logging.WARNING):
        splits = open_clips(config_of(folder), 0)
    assert splits.class_names == ("cats", "dogs")
    assert "broken.mp4" in caplog.text and "it has 5 frames, and data.frames is 9" in caplog.text
    files = [{str(w[0]) for w in part._windows} for part in (splits.train, splits.val)]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 5
    for part in (splits.train, splits.val):
        for i in range(len(part)):
            example = part[i]
            assert example["x"].shape == (9, 16, 22, 3)
    # Frames are those of the file, shrunk; windows of a held-out clip come one after another.
    starts = [start for _, start, _, _ in splits.val._windows]
    assert starts == sorted(starts) or len(files[1]) > 1


def test_images_beside_videos_are_no_clip(tmp_path, caplog):
    for i in range(9):
        Image.fromarray(moving()[i]).save(tmp_path / f"{i}.png")
    assert video.frames_in(tmp_path)
    write_clip(as_clip(moving(20)), tmp_path / "a.mp4")
    assert not video.frames_in(tmp_path)
    with caplog.at_level(logging.WARNING):
        splits = open_clips(config_of(tmp_path, val_fraction=1.0), 0)
    assert len(splits.val) == 2 and "skipped 9 images" in caplog.text


@pytest.mark.parametrize(("changes", "step"), [({"stride": 2}, 2), ({"frame_rate": 5.0}, 4)])
def test_stride_and_rate_skip_frames(folder, changes, step):
    config = config_of(folder / "dogs", resize=0, val_fraction=1.0, frames=9, **changes)
    found = open_clips(config, 0).val[0]["x"]
    whole = read_clip(folder / "dogs" / "1.mp4", 3).array()
    np.testing.assert_array_equal(found, whole[::step][:9])


def test_a_damaged_clip_is_skipped_and_named_once(folder, caplog):
    splits = open_clips(config_of(folder / "dogs", val_fraction=1.0), 0)
    path = splits.val._windows[0][0]
    path.write_bytes(b"gone")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert splits.val[0] is None and splits.val[1] is None
    assert path.name in caplog.text and len(caplog.records) == 1
    with pytest.raises(UserError, match="none of the"):
        open_clips(config_of(folder, frames=500), 0)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"")
    for call in (
        lambda: read_clip(tmp_path / "a.mp4", 3),
        lambda: open_clips(config_of(tmp_path), 0),
    ):
        with pytest.raises(UserError, match=r"pip install 'vq_jax\[video\]'"):
            call()
