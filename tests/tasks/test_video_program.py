"""The program on video: training, figures, files, samples and edits of clips."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from running import environment, program, user_error

import vq_jax
from vq_jax import codec, video_editing
from vq_jax.config import base, base_prior
from vq_jax.data.moving_emoji import MovingEmoji
from vq_jax.data.video import as_clip, read_clip, write_clip
from vq_jax.runs import load_tokenizer
from vq_jax.tasks.train import train


def tokenizer_config(**model):
    config = base("causal3d", "vq")
    config.data.update(frames=9, resolution=16, batch_size=4)
    config.model.update(ch=16, ch_mult=(1, 1), num_res_blocks=1, z_channels=16, norm="none")
    config.model.update(halve_time=(0, 1), halve_space=(0, 1), shortcut=True, **model)
    config.quantizer.update(num_codes=32, dim=8)
    config.loss.perceptual_weight = 0.0
    config.optim.lr = 3e-3
    config.discriminator.update(ndf=8, n_layers=2)
    config.update(kmeans_batches=2, tensorboard=False, ema_decay=0.9, eval_lpips=False)
    config.phases.update(autoencoder=20, quantizer=2, joint=10, adversarial=4)
    return config


@pytest.fixture(scope="module")
def small_data():
    """Few held-out clips, so that evaluations are short."""
    from vq_jax.data import moving_emoji

    patch = pytest.MonkeyPatch()
    patch.setattr(moving_emoji, "VAL_CLIPS", 16)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_data):
    """A tokenizer and a prior, trained for some steps."""
    folder = tmp_path_factory.mktemp("video")
    tokenizer, prior = folder / "tokenizer", folder / "prior"
    train(tokenizer_config(), tokenizer)
    config = base_prior("random_order", modality="video")
    config.tokenizer = str(tokenizer)
    config.data.update(frames=9, resolution=16, batch_size=8)
    config.prior.update(layers=1, width=32, heads=2)
    config.update(tensorboard=False, ema_decay=0.9, eval_samples=8, eval_references=16)
    config.phases.prior = 5
    train(config, prior)
    return tokenizer, prior


@pytest.fixture(scope="module")
def clip(tmp_path_factory, small_data):
    """A file without loss, longer and larger than the training clips, and its frames."""
    from vq_jax.data.builders import emoji_splits

    path = tmp_path_factory.mktemp("clips") / "clip.mkv"
    x = MovingEmoji("test", tuple(emoji_splits()["test"]), 11, 24, 1)[0]["x"]
    x = np.concatenate([x, x[:, ::-1]], axis=2)
    write_clip(as_clip(x), path)
    return path, x


def test_training_writes_figures_and_clips(runs):
    tokenizer, prior = runs
    figures = json.loads((tokenizer / "evaluation.json").read_text())
    assert len(figures["psnr_by_frame"]) == 9 and figures["psnr_worst_frame"] <= figures["psnr"]
    assert figures["bits_per_pixel-frame"] == pytest.approx(3 * 16 * 5 / (9 * 16 * 16))
    assert {"psnr_of_changes", "ssim_of_changes"} <= figures.keys()
    assert {"reconstructions.png", "reconstructions.gif"} <= {p.name for p in tokenizer.iterdir()}
    metrics = [json.loads(line) for line in (tokenizer / "metrics.jsonl").read_text().splitlines()]
    assert any("loss_discriminator" in line for line in metrics)
    figures = json.loads((prior / "evaluation.json").read_text())
    assert {"bits_per_code", "frame_frechet", "frame_pair_frechet"} <= figures.keys()


def test_samples_are_clips_a_sheet_and_an_animation(runs, tmp_path):
    program("--mode=sample", f"--workdir={runs[1]}", "--count=3", f"--output={tmp_path}")
    names = {p.name for p in tmp_path.iterdir()}
    assert names >= {"00000.mp4", "00002.mp4", "grid.png", "grid.gif"}
    assert read_clip(tmp_path / "00001.mp4", 3).shape == (9, 16, 16, 3)


def test_compress_and_decompress_keep_length_size_and_rate(runs, clip, tmp_path):
    path, x = clip
    vqz, back = tmp_path / "a.vqz", tmp_path / "b.mkv"
    program("--mode=compress", f"--workdir={runs[0]}", f"--input={path}", f"--output={vqz}",
            "--entropy=fixed")  # fmt: skip
    assert vqz.stat().st_size < 400
    program("--mode=decompress", f"--workdir={runs[0]}", f"--input={vqz}", f"--output={back}")
    found = read_clip(back, 3)
    assert found.shape == x.shape and found.rate == 12
    opened = codec.load(runs[0])
    np.testing.assert_array_equal(found.array(), opened.decompress(vqz.read_bytes()).array())
    other = tmp_path / "c.mkv"
    program("--mode=reconstruct", f"--workdir={runs[0]}", f"--input={path}", f"--output={other}")
    np.testing.assert_array_equal(read_clip(other, 3).array(), found.array())


def test_one_bad_file_does_not_stop_the_others(runs, clip, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.mkv", "c.mkv"):
        (folder / name).write_bytes(clip[0].read_bytes())
    (folder / "b.mp4").write_bytes(b"no video")
    result = program("--mode=compress", f"--workdir={runs[0]}", f"--input={folder}", f"--output={out}",
                     "--entropy=fixed", check=False)  # fmt: skip
    assert result.returncode == 2 and "1 of 3 files could not be compressed" in result.stderr
    assert {p.name for p in out.iterdir()} == {"a.vqz", "c.vqz"}


def test_a_folder_of_frames_is_a_clip(runs, clip, tmp_path):
    _, x = clip
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(x):
        Image.fromarray(frame).save(folder / f"{i}.png")
    out = tmp_path / "out.mkv"
    program("--mode=reconstruct", f"--workdir={runs[0]}", f"--input={folder}", f"--output={out}",
            "--side_by_side")  # fmt: skip
    found = read_clip(out, 3).array()
    np.testing.assert_array_equal(found[:, :, : x.shape[2]], x)


def test_predict_interpolate_and_inpaint(runs, clip, tmp_path):
    path, x = clip
    prior = vq_jax.load(runs[1])
    out = tmp_path / "out.mkv"
    program(
        "--mode=predict", f"--workdir={runs[1]}", f"--input={path}", f"--output={out}", "--frames=6"
    )
    found = read_clip(out, 3).array()
    np.testing.assert_array_equal(found, video_editing.predict(prior, x, 6))
    np.testing.assert_array_equal(found[:11], x)

    for name, frame in (("a.png", x[0]), ("b.png", x[-1])):
        Image.fromarray(frame).save(tmp_path / name)
    program("--mode=interpolate", f"--workdir={runs[1]}", f"--input={tmp_path / 'a.png'}",
            f"--to={tmp_path / 'b.png'}", f"--output={out}")  # fmt: skip
    found = read_clip(out, 3).array()
    np.testing.assert_array_equal(found[[0, -1]], x[[0, -1]])

    mask: np.ndarray = np.zeros(x.shape[:3], np.uint8)
    mask[:, 5:12, 5:20] = 255
    Image.fromarray(mask[0]).save(tmp_path / "mask.png")
    write_clip(as_clip(mask[..., None]), tmp_path / "mask.mkv")
    results = []
    for name in ("mask.png", "mask.mkv"):
        program("--mode=inpaint", f"--workdir={runs[1]}", f"--input={path}", f"--output={out}",
                f"--mask={tmp_path / name}")  # fmt: skip
        results.append(read_clip(out, 3).array())
    np.testing.assert_array_equal(*results)
    np.testing.assert_array_equal(results[0][mask == 0], x[mask == 0])
    assert (results[0][mask > 0] != x[mask > 0]).any()


def test_memory_does_not_grow_with_the_length(runs, tmp_path):
    """Compresses 60 and 600 frames, each in its own process."""
    peaks = []
    for frames in (60, 600):
        path = tmp_path / f"{frames}.mp4"
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (8, 90, 160, 3), np.uint8)
        write_clip(as_clip(np.stack([noise[t % 8] for t in range(frames)])), path)
        code = (
            "import resource, sys; from vq_jax import cli; code = cli.main(sys.argv); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "--mode=compress", f"--workdir={runs[0]}",
             f"--input={path}", f"--output={tmp_path / 'a.vqz'}", "--entropy=fixed"],
            capture_output=True, text=True, env=environment(), check=True, timeout=300,
        )  # fmt: skip
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 20_000, peaks  # kB; the frames alone are 26 MB


def test_an_image_tokenizer_starts_a_video_tokenizer(tmp_path, small_data):
    config = base("vqgan", "vq")
    config.data.update(resolution=16, batch_size=4)
    config.model.update(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8)
    config.model.update(attn_resolutions=(), mid_attention=False)
    config.quantizer.update(num_codes=32, dim=8)
    config.loss.perceptual_weight = 0.0
    config.update(kmeans_batches=0, tensorboard=False, eval_lpips=False)
    config.phases.joint = 2
    train(config, tmp_path / "image")
    video = tokenizer_config()
    video.model.update(ch=8, ch_mult=(1, 2), z_channels=8, halve_time=(0,), halve_space=(0,))
    video.model.update(norm="group", shortcut=False)
    video.phases.update(autoencoder=1, quantizer=0, joint=0, adversarial=0)
    video.optim.lr = 0.0
    video.update(start_from=str(tmp_path / "image"), kmeans_batches=0, ema_decay=0.0)
    train(video, tmp_path / "video")
    image, opened = (load_tokenizer(tmp_path / name) for name in ("image", "video"))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 1, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(opened.encode(x)[:, 0], image.encode(x[:, 0]))


def test_mistakes_are_named_in_one_line(runs, clip, tmp_path):
    tokenizer, prior = runs
    path, _ = clip
    inputs = f"--input={path}"
    for arguments, message in (
        (["--mode=predict", f"--workdir={prior}", inputs, f"--output={path}"], "is the input"),
        (["--mode=predict", f"--workdir={prior}", inputs, f"--output={tmp_path / 'a.png'}"],
         "no format that can be written"),
        (["--mode=predict", f"--workdir={prior}", inputs, f"--output={tmp_path / 'a.mkv'}",
          "--frames=0"], "frames is 0"),
        (["--mode=inpaint", f"--workdir={prior}", inputs, f"--output={tmp_path / 'a.mkv'}"],
         "needs a mask"),
        (["--mode=predict", f"--workdir={prior}", inputs, "--output=-"], "cannot hold videos"),
        (["--mode=outpaint", f"--workdir={prior}", inputs, f"--output={tmp_path / 'a.mkv'}",
          "--margins=4"], "outpaint is for images"),
        (["--mode=compress", f"--workdir={tokenizer}", f"--input={tmp_path / 'none.mp4'}",
          f"--output={tmp_path / 'a.vqz'}"], "does not exist"),
    ):  # fmt: skip
        assert message in user_error(*arguments)
