"""Priors as a user runs them: trained, killed, sampled from, used for edits; real processes and files."""

import json
import shutil
import signal
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from running import (
    end,
    lines,
    mistake,
    process,
    program,
    start,
    start_two,
    steps_logged,
    wait_for_steps,
)

import vq_jax
from vq_jax import config as configs
from vq_jax.data import codes as codes_data
from vq_jax.data.images import decode
from vq_jax.data.pipeline import make_prepare, train_batches
from vq_jax.tasks.train_prior import make_prior_recipe
from vq_jax.tasks.train_tokenizer import make_recipe
from vq_jax.training.checkpoint import Checkpoints
from vq_jax.training.prior_steps import init_prior_state
from vq_jax.training.state import split
from vq_jax.training.steps import init_state

pytestmark = pytest.mark.slow


def save_tokenizer(workdir, emoji, data_dir, seed):
    """A run's folder with a tokenizer that has learned nothing."""
    config = configs.base("vqvae")
    config.data.dir, config.data.batch_size = data_dir, 8
    config.model.update(hidden=16, res_hidden=8)
    config.quantizer.update(num_codes=32, dim=8)
    config.phases.joint, config.loss.perceptual_weight = 1, 0.0
    state = jax.jit(
        lambda key: init_state(make_recipe(config), key, (32, 32, 3))
    )(jax.random.key(seed))  # fmt: skip
    workdir.mkdir(parents=True)
    configs.save(config, workdir / "config.json")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(1, split(state), train_batches(emoji.train, config.data, 0))
    return workdir


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, emoji, data_dir):
    return save_tokenizer(tmp_path_factory.mktemp("run") / "tokenizer", emoji, data_dir, 0)


def small(workdir, tokenizer, data_dir, config="prior_default"):
    return [
        f"--config=configs/{config}.py", f"--workdir={workdir}", f"--config.tokenizer={tokenizer}",
        f"--config.data.dir={data_dir}", "--config.data.batch_size=8", "--config.prior.layers=1",
        "--config.prior.width=32", "--config.prior.heads=2", "--config.phases.prior=12",
        "--config.log_every=1", "--config.save_every=4", "--config.eval_samples=12",
        "--config.eval_references=32", "--config.tensorboard=False",
    ]  # fmt: skip


def final_state(workdir):
    config = configs.load(Path(workdir) / "config.json")
    recipe = make_prior_recipe(config)
    state = init_prior_state(recipe, jax.random.key(1), np.zeros(32, np.uint8), {})
    with Checkpoints(Path(workdir) / "checkpoints", writes=False) as checkpoints:
        step, parts = checkpoints.restore(split(state))
    assert step == 12
    return parts


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer, data_dir):
    workdir = tmp_path_factory.mktemp("prior") / "small"
    return workdir, process(*small(workdir, tokenizer, data_dir)).stdout


def test_a_run_leaves_everything_it_names(trained):
    workdir, said = trained
    for name in ("config.json", "metrics.jsonl", "evaluation.json", "curves.png", "samples.png",
                 "nearest.png"):  # fmt: skip
        assert (workdir / name).stat().st_size > 0
        assert name in said
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert 0 < figures["bits_per_code"] < 12 and figures["images"] == 253
    assert figures["bits_per_pixel"] == pytest.approx(figures["bits_per_code"] / 16)
    assert figures["efficientnet_frechet_floor"] < figures["efficientnet_frechet"]
    assert [s["step"] for s in lines(workdir)] == list(range(1, 13))


def test_killed_it_equals_the_uninterrupted_run(trained, tokenizer, data_dir, tmp_path):
    workdir = tmp_path / "run"
    arguments = [*small(workdir, tokenizer, data_dir), "--config.save_every=2"]
    run = start(*arguments)
    wait_for_steps(workdir, 5, run)
    run.kill()
    run.wait()
    assert steps_logged(workdir) < 12
    assert "is at step" in process(*arguments).stdout
    assert lines(workdir) == lines(trained[0])
    chex.assert_trees_all_equal(final_state(workdir), final_state(trained[0]))


def test_two_processes_that_share_a_state_agree_with_one(tokenizer, data_dir, tmp_path):
    def arguments(workdir):
        return [
            *small(workdir, tokenizer, data_dir), "--config.phases.prior=24",
            "--config.prior.width=128",  # less would not be spread
            "--config.prior.dropout=0.0", "--config.optim.warmup_steps=10", "--config.eval_samples=0",
        ]  # fmt: skip

    one, two = tmp_path / "one", tmp_path / "two"
    program(*arguments(one))
    fully_sharded = [*arguments(two), "--config.fsdp=True"]
    processes = start_two(*fully_sharded)
    wait_for_steps(two, 5, *processes)
    processes[1].send_signal(signal.SIGINT)  # one of them is told
    assert "stopped by SIGTERM at step" in end(processes, 0, 130)[0] and steps_logged(two) < 24
    said = end(start_two(*fully_sharded))
    assert "held-out images" in said[0] and "held-out images" not in said[1]
    for ours, theirs in zip(lines(two, "phase"), lines(one, "phase"), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2, abs=1e-3)
    figures = [json.loads((w / "evaluation.json").read_text()) for w in (one, two)]
    assert figures[1]["bits_per_code"] == pytest.approx(figures[0]["bits_per_code"], rel=1e-2)
    drawn = program("--mode=sample", f"--workdir={two}", "--count=4", f"--output={tmp_path / 'i'}")
    assert "4 images" in drawn.stdout


def test_sampling_writes_a_grid_and_files_and_repeats_itself(trained, tmp_path):
    workdir, _ = trained
    how = ["--mode=sample", f"--workdir={workdir}", "--count=3", "--label=Flags", "--label=0",
           "--seed=5", "--guidance=2", "--top_p=0.9"]  # fmt: skip
    said = program(*how, f"--output={tmp_path / 'a'}").stdout
    assert "6 images and grid.png" in said
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == [".samples.json", *(f"{i:05d}.png" for i in range(6)), "grid.png"]
    assert decode(tmp_path / "a" / "grid.png").shape == (2 * 34 - 2, 3 * 34 - 2, 3)
    prior = vq_jax.load(workdir)
    images = prior.sample(6, label=["Flags"] * 3 + [0] * 3, seed=5, guidance=2.0, top_p=0.9)
    for i in range(6):
        drawn = decode(tmp_path / "a" / f"{i:05d}.png").astype(float)
        assert np.abs(drawn - (images[i] + 1) * 127.5).max() < 2


def test_an_image_is_inpainted_and_its_other_pixels_kept(trained, tmp_path, rng):
    workdir, _ = trained
    image = rng.integers(0, 256, (41, 53, 3), np.uint8)
    mask = np.zeros((41, 53), np.uint8)
    mask[10:25, 20:44] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:40]).save(tmp_path / "short.png")
    Image.fromarray(image[:2, :3]).save(tmp_path / "tiny.png")
    how = ["--mode=inpaint", f"--workdir={workdir}", f"--output={tmp_path / 'out.png'}"]
    program(*how, f"--input={tmp_path / 'image.png'}", f"--mask={tmp_path / 'mask.png'}")
    result = decode(tmp_path / "out.png")
    np.testing.assert_array_equal(result[mask == 0], image[mask == 0])
    assert (result[mask > 0] != image[mask > 0]).any()
    (tmp_path / "out.png").unlink()
    for file, cover, message in (
        ("image.png", "short.png", "the mask is 53x40 pixels and the image 53x41"),
        ("tiny.png", "mask.png", "3x2 pixels, smaller than one code, 4x4"),
    ):
        assert message in mistake(*how, f"--input={tmp_path / file}", f"--mask={tmp_path / cover}")
        assert not (tmp_path / "out.png").exists()


def test_transparency_outside_the_mask_is_kept_and_a_lossy_suffix_told(trained, tmp_path, rng):
    workdir, _ = trained
    image = rng.integers(0, 256, (33, 41, 4), np.uint8)
    image[:8, :, 3] = 0
    Image.fromarray(image).save(tmp_path / "image.png")
    mask = np.zeros((33, 41, 4), np.uint8)
    mask[4:20, 10:30] = 255  # white paint on nothing
    Image.fromarray(mask).save(tmp_path / "mask.png")
    how = ["--mode=inpaint", f"--workdir={workdir}", f"--input={tmp_path / 'image.png'}"]
    how += [f"--mask={tmp_path / 'mask.png'}"]
    said = program(*how, f"--output={tmp_path / 'out.png'}").stderr
    assert "drawn where it is painted white" in said and "lossy" not in said
    result = decode(tmp_path / "out.png", alpha=True)
    inside = mask[..., 3] > 0
    np.testing.assert_array_equal(result[~inside], image[~inside])
    assert (result[inside][:, 3] == 255).all()
    said = program(*how, f"--output={tmp_path / 'out.jpg'}").stderr
    assert "a .jpg file changes the other pixels a little" in said
    assert decode(tmp_path / "out.jpg").shape == (33, 41, 3)
    how[0], how[3] = "--mode=outpaint", "--margins=0,8,4,0"
    program(*how, f"--output={tmp_path / 'wide.png'}")
    wide = decode(tmp_path / "wide.png", alpha=True)
    np.testing.assert_array_equal(wide[:33, :41], image)
    assert (wide[33:, :, 3] == 255).all() and (wide[:, 41:, 3] == 255).all()


def test_a_folder_of_samples_holds_those_of_the_last_call(trained, tmp_path):
    workdir, _ = trained
    how = ["--mode=sample", f"--workdir={workdir}", f"--output={tmp_path / 'out'}"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.png").write_text("not ours")
    assert "00000.png of your own" in mistake(*how)
    (tmp_path / "out" / "00000.png").unlink()
    for name in ("00001.jpg", "00500.png"):
        (tmp_path / "out" / name).write_text("not ours")
    program(*how, "--count=3", "--label=Flags", "--label=6")
    assert len(list((tmp_path / "out").glob("0000*.png"))) == 6
    assert "removed 4 images of an earlier call" in program(*how, "--count=2").stdout
    left = sorted(p.name for p in (tmp_path / "out").iterdir())
    ours = [".samples.json", "00000.png", "00001.png", "grid.png"]
    assert left == sorted([*ours, "00001.jpg", "00500.png"])


def test_codes_are_written_by_several_processes_and_trained_from(
    tokenizer, emoji, data_dir, tmp_path
):
    how = ["--mode=tokenize", f"--workdir={tokenizer}", f"--output={tmp_path / 'codes'}", "--flips"]
    first = program(*how, "--processes=2", "--process=0").stdout
    assert "shards are still missing" in first
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "codes").glob("codes-*")}
    said = program(*how).stdout  # all that is left
    assert "missing" not in said
    assert written and all(p.stat().st_mtime_ns == at for p, at in written.items())
    source = [f"--config.data.folder={tmp_path / 'codes'}", "--config.data.source=codes"]
    arguments = small(tmp_path / "prior", tokenizer, data_dir)
    said = program(*arguments, *source, "--config.eval_samples=0").stdout
    assert "7,420 images to train on, 253 held out" in said
    assert json.loads((tmp_path / "prior" / "evaluation.json").read_text())["images"] == 253
    # The codes are the tokenizer's own, of each image and of its mirror image.
    _, train, val = codes_data.read_codes(tmp_path / "codes")
    tok = vq_jax.load(tokenizer)
    prepare = make_prepare(tok.config.data, train=False)
    for i in (0, 700, 3000):
        x = prepare(emoji.train[i])["image"]
        expected = np.asarray(tok.encode(np.stack([x, x[:, ::-1]])))
        np.testing.assert_array_equal(train[2 * i]["codes"], expected[0])
        np.testing.assert_array_equal(train[2 * i + 1]["codes"], expected[1])
        assert train[2 * i]["label"] == train[2 * i + 1]["label"] == emoji.train[i]["label"]
    x = prepare(emoji.val[5])["image"]
    np.testing.assert_array_equal(val[5]["codes"], np.asarray(tok.encode(x[None]))[0])


def test_a_prior_with_a_condition_is_held_against_what_it_was_given(tokenizer, data_dir, tmp_path):
    workdir = tmp_path / "upscale"
    said = program(*small(workdir, tokenizer, data_dir, "prior_upscale")).stdout
    assert "PSNR, dB, as given" in said
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert figures["psnr_before"] > figures["psnr"]  # it has learned nothing
    array = np.zeros((20, 27, 3), np.uint8)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(array).save(tmp_path / "in" / name)
    program("--mode=upscale", f"--workdir={workdir}", f"--input={tmp_path / 'in'}",
            f"--output={tmp_path / 'out'}", "--factor=4")  # fmt: skip
    assert decode(tmp_path / "out" / "b.png").shape == (80, 108, 3)


def test_a_users_mistake_is_one_line_and_exit_code_2(trained, tokenizer, emoji, data_dir, tmp_path):
    workdir, _ = trained
    other = save_tokenizer(tmp_path / "other", emoji, data_dir, 1)
    shutil.copytree(workdir, tmp_path / "moved")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    again = small(tmp_path / "moved", other, data_dir)
    for arguments, message in (
        (["--mode=sample", f"--workdir={workdir}", "--label=Food"], "near: Food & Drink"),
        (["--mode=sample", f"--workdir={workdir}", f"--tokenizer={other}"], "another tokenizer"),
        (["--mode=sample", f"--workdir={tokenizer}"], "holds a tokenizer, not a prior"),
        (["--mode=reconstruct", f"--workdir={workdir}", f"--input={tmp_path / 'a.png'}", "--output=x"],
         "holds a prior, not a tokenizer"),
        (["--mode=outpaint", f"--workdir={workdir}", f"--input={tmp_path / 'a.png'}", "--output=x.png",
          "--margins=1,2"], "top,right,bottom,left"),
        (["--mode=tokenize", f"--workdir={tokenizer}", "--input=x", f"--output={tmp_path / 'codes'}"],
         "does not look at --input; a folder's images"),
        (["--mode=outpaint", f"--workdir={workdir}", f"--input={tmp_path / 'a.png'}", "--output=x.png",
          "--margins=0,100000000,0,0"], "make an image of 100000032x32 pixels"),
        (["--mode=sample", f"--workdir={workdir}", "--mask=x.png"], "does not look at --mask"),
        (["--mode=sample", f"--workdir={workdir}", "--count=-3"], "count is -3: use 1 or more"),
        (["--mode=sample", f"--workdir={workdir}", "--count=2000000000"], "at most 1,000,000"),
        (["--mode=sample", f"--workdir={workdir}", f"--seed={2**64 + 1}"], "seed is 18446744073709551617"),
        (["--mode=sample", f"--workdir={workdir}", "--seed=4294967296"], "use 0 to 4294967295"),
        (["--mode=sample", f"--workdir={workdir}", "--label=²"], "there is no class '²'"),
        (["--mode=sample", f"--workdir={workdir}", "--temperature=nan"], "temperature is nan"),
        (["--mode=variations", f"--workdir={workdir}", f"--input={tmp_path / 'a.png'}", "--output=x.png",
          "--count=2000000000"], "use 1 to 1000"),
        (["--mode=variations", f"--workdir={workdir}", f"--input={tmp_path / 'a.png'}", "--output=x.png",
          "--seed=-1"], "seed is -1"),
        ([*again, "--config.phases.prior=20"], "another tokenizer"),
        (small(tokenizer, tokenizer, data_dir), "holds a tokenizer: take another --workdir"),
        ([*again, "--config.tokenizer=/nonexistent"], "--config.tokenizer names its run"),
        ([*again, "--config.data.resolution=16"], "--config.data.resolution=32"),
    ):  # fmt: skip
        assert message in mistake(*arguments), arguments
