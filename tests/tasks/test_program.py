"""Training as a user runs it: killed, stopped, diverged, on two hosts; and what is done with the run."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from running import (
    end,
    lines,
    process,
    program,
    start,
    start_two,
    steps_logged,
    wait_for_steps,
)

import vq_jax
from vq_jax import config as configs
from vq_jax.data.images import decode, to_float
from vq_jax.tasks.train_tokenizer import make_recipe
from vq_jax.training.checkpoint import Checkpoints
from vq_jax.training.state import split
from vq_jax.training.steps import init_state

SMALL = [
    "--config=configs/default.py",
    "--config.data.batch_size=8",
    "--config.model.hidden=32",
    "--config.model.res_hidden=16",
    "--config.quantizer.num_codes=64",
    "--config.kmeans_batches=4",
    "--config.discriminator.ndf=8",
    "--config.loss.perceptual_weight=0.0",
    "--config.eval_lpips=False",
    "--config.tensorboard=False",
    "--config.optim.schedule=constant",
    "--config.optim.warmup_steps=10",
    "--config.phases.autoencoder=6",
    "--config.phases.quantizer=4",
    "--config.phases.joint=8",
    "--config.phases.adversarial=6",
    "--config.adversarial.warmup_steps=2",
    "--config.adversarial.ramp_steps=2",
    "--config.log_every=1",
    "--config.save_every=5",
]


def small(workdir, data_dir):
    return [*SMALL, f"--workdir={workdir}", f"--config.data.dir={data_dir}"]


def final_state(workdir):
    """All the arrays of a finished small run: params, optimizers, averages, codebook statistics."""
    config = configs.load(Path(workdir) / "config.json")
    state = init_state(make_recipe(config), jax.random.key(1), (32, 32, 3))
    with Checkpoints(Path(workdir) / "checkpoints", writes=False) as checkpoints:
        step, parts = checkpoints.restore(split(state))
    assert step == 24
    return parts


@pytest.fixture(scope="module")
def trained(tmp_path_factory, emoji, data_dir):
    workdir = tmp_path_factory.mktemp("run") / "small"
    done = process(*small(workdir, data_dir))
    return workdir, done.stdout


@pytest.mark.slow
def test_a_run_leaves_everything_it_names(trained, emoji):
    workdir, said = trained
    for name in (
        "config.json", "metrics.jsonl", "evaluation.json",
        "reconstructions.png", "curves.png", "codebook.png",
    ):  # fmt: skip
        assert (workdir / name).stat().st_size > 0
        assert name in said
    steps = lines(workdir)
    assert [s["step"] for s in steps] == list(range(1, 25))
    phases = ["autoencoder"] * 6 + ["quantizer"] * 4 + ["joint"] * 8 + ["adversarial"] * 6
    assert [s["phase"] for s in steps] == phases
    assert "loss_discriminator" in steps[-1] and "loss_discriminator" not in steps[17]
    assert "perplexity" not in steps[5] and "perplexity" in steps[6]
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert figures["images"] == len(emoji.val) and figures["bits_per_pixel"] == 64 * 6 / 1024
    assert 5 < figures["psnr"] < 40 and 0 < figures["usage"] <= 1
    with Image.open(workdir / "reconstructions.png") as picture:
        assert picture.size == (12 * 34 - 2, 2 * 34 - 2)


@pytest.mark.slow
def test_run_again_it_says_that_it_is_finished(trained, data_dir):
    workdir, _ = trained
    before = (workdir / "metrics.jsonl").read_text()
    assert "it is finished" in program(*small(workdir, data_dir)).stdout
    assert (workdir / "metrics.jsonl").read_text() == before
    other = program(*small(workdir, data_dir), "--config.optim.lr=0.5", check=False)
    assert other.returncode == 2 and "optim.lr 0.0015 -> 0.5" in other.stderr


@pytest.mark.slow
def test_stopped_at_random_moments_it_equals_the_uninterrupted_run(trained, data_dir, tmp_path):
    """Killed, and by Ctrl-C, in turns; more of them: VQ_JAX_STOPS=60 pytest -k random_moments"""
    whole, final = lines(trained[0]), final_state(trained[0])
    rng = np.random.default_rng()
    stops, runs = int(os.environ.get("VQ_JAX_STOPS", "2")), 0
    while stops:
        workdir = tmp_path / f"stopped-{runs}"
        arguments = [*small(workdir, data_dir), "--config.save_every=2"]
        while stops:
            run = start(*arguments)
            if rng.uniform() < 0.2:  # anywhere in the start, else after some steps
                time.sleep(rng.uniform(0.2, 8))
            else:
                wait_for_steps(workdir, steps_logged(workdir) + rng.integers(1, 9), run)
                time.sleep(rng.uniform(0, 0.3))
            if run.poll() is not None:  # it was faster: the next run is to be stopped
                break
            signum = signal.SIGINT if stops % 2 else signal.SIGKILL
            run.send_signal(signum)
            said, _ = run.communicate(timeout=100)
            assert "Traceback" not in said, said
            if signum == signal.SIGINT and run.returncode:  # at the very end it may be finished
                assert run.returncode == 130, said
                assert "stopped" in said
            stops -= 1
        done = process(*arguments)
        assert any(said in done.stdout for said in ("is at step", "to train on", "is finished"))
        assert lines(workdir) == whole
        chex.assert_trees_all_equal(final_state(workdir), final)
        runs += 1


@pytest.mark.slow
def test_ctrl_c_stops_a_whole_group_with_its_workers(data_dir, tmp_path):
    """As a terminal sends it: to the process and to those that decode for it."""
    workdir = tmp_path / "run"
    arguments = [*small(workdir, data_dir), "--config.data.workers=2", "--config.phases.joint=4000"]
    run = start(*arguments, start_new_session=True)
    wait_for_steps(workdir, 12, run)
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=100)
    assert run.returncode == 130, said
    stopped = re.search(
        r"stopped by Ctrl-C at step (\d+): the same command goes on from step \1", said
    )
    assert stopped and (workdir / "checkpoints" / stopped[1]).is_dir(), said
    assert "Traceback" not in said and "leaked" not in said
    with pytest.raises(ProcessLookupError):  # nobody is left, a moment later
        for _ in range(100):
            os.killpg(run.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
def test_sigterm_saves_and_a_damaged_checkpoint_is_passed_over(trained, data_dir, tmp_path):
    arguments = [*small(tmp_path / "run", data_dir), "--config.save_every=3"]
    run = start(*arguments)
    wait_for_steps(tmp_path / "run", 7, run)
    run.terminate()
    said, _ = run.communicate(timeout=100)
    assert run.returncode == 0, said
    stopped = int(
        re.search(
            "stopped by SIGTERM at step (\\d+): the same command goes on from step \\1", said
        )[1]
    )
    newest = tmp_path / "run" / "checkpoints" / str(stopped)
    assert 7 <= stopped < 24 and newest.is_dir()
    files = [p for p in newest.rglob("*") if p.is_file() and p.parent.name == "d"]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    done = process(*arguments)
    assert f"checkpoint {newest} is damaged" in done.stderr
    assert lines(tmp_path / "run") == lines(trained[0])
    chex.assert_trees_all_equal(final_state(tmp_path / "run"), final_state(trained[0]))


@pytest.mark.slow
def test_two_processes_agree_with_one(trained, data_dir, tmp_path):
    """That they stop together and go on: `test_prior_program`, with params spread over them."""
    workdir = tmp_path / "run"
    arguments = [*small(workdir, data_dir), "--config.phases.adversarial=0"]
    said = end(start_two(*arguments))
    assert "held-out images" in said[0] and "held-out images" not in said[1]
    for ours, theirs in zip(lines(workdir, "phase"), lines(trained[0], "phase")[:18], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2, abs=1e-3)
    refused = program(*arguments, check=False)
    assert refused.returncode == 2 and "written by 2 processes" in refused.stderr


@pytest.mark.slow
def test_a_run_that_diverges_goes_back_as_far_as_it_can_and_then_stops(trained, data_dir, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    arguments = [
        *small(tmp_path / "run", data_dir), "--config.phases.adversarial=60",
        "--config.optim.lr=1e30", "--config.optim.warmup_steps=0", "--config.skip_limit=3",
        "--config.save_every=50",
    ]  # fmt: skip
    done = program(*arguments, check=False)
    assert done.returncode == 2 and "3 steps in a row" in done.stderr
    for step in (24, 20):
        assert f"back to step {step}, with other batches" in done.stdout
    assert "lower optim.lr (now 1e+30)" in done.stderr and "Traceback" not in done.stderr
    chex.assert_trees_all_equal(final_state(tmp_path / "run"), final_state(trained[0]))


@pytest.mark.slow
def test_evaluate_repeats_the_figures(trained):
    workdir, _ = trained
    before = json.loads((workdir / "evaluation.json").read_text())
    said = process("--mode=evaluate", f"--workdir={workdir}").stdout
    assert "PSNR" in said and "LPIPS" not in said  # as its config has it
    after = json.loads((workdir / "evaluation.json").read_text())
    assert {name: after[name] for name in before if name != "protocol"} == {
        name: value for name, value in before.items() if name != "protocol"
    }
    assert after["efficientnet_frechet"] > 0 and "not FID" in said  # what training leaves out
    assert "centre crop" in said


@pytest.mark.slow
def test_a_run_is_handed_on_and_brought_back(trained, tmp_path, rng):
    trained = trained[0]
    exported, imported = tmp_path / "exported", tmp_path / "imported"
    arguments = ["--mode=export", f"--workdir={trained}", "--format=vq_jax", f"--output={exported}"]
    assert "model.safetensors" in program(*arguments).stdout
    failed = program(*arguments, check=False)
    assert failed.returncode == 2 and "is there already" in failed.stderr
    program("--mode=import", f"--input={exported}", f"--workdir={imported}")
    image = rng.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    pictures = []
    for folder in (trained, imported):
        out = tmp_path / f"{folder.name}.png"
        program(
            "--mode=reconstruct", f"--workdir={folder}", f"--input={tmp_path / 'x.png'}",
            f"--output={out}",
        )  # fmt: skip
        pictures.append(np.asarray(Image.open(out)))
    np.testing.assert_array_equal(*pictures)
    failed = program("--mode=import", f"--workdir={tmp_path / 'y'}", check=False)
    assert failed.returncode == 2 and "import needs --input" in failed.stderr


@pytest.mark.slow
def test_from_python(trained, emoji_images):
    tok = vq_jax.load(trained[0])
    codes = tok.encode(emoji_images)
    chex.assert_shape(codes, (16, 8, 8))
    chex.assert_type(codes, jnp.int32)
    assert tok.num_codes == 64 and tok.grid == (8, 8) and tok.factor == 4
    chex.assert_trees_all_close(tok.decode(codes), tok.reconstruct(emoji_images), atol=1e-5)
    for wrong, message in (
        (emoji_images[0], "not \\[B, H, W, 3\\]"),
        ((emoji_images * 100).astype(np.uint8), "uint8"),
        (emoji_images * 100, "beyond"),
        (emoji_images[:, :30], "multiples of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            tok.encode(wrong)
    with pytest.raises(ValueError, match="outside"):
        tok.decode(codes + 64)
    with pytest.raises(ValueError, match="not integers"):
        tok.decode(codes[0])


@pytest.mark.slow
def test_reconstruct_takes_any_size_and_folders(trained, tmp_path, rng):
    workdir, _ = trained
    (tmp_path / "in" / "sub").mkdir(parents=True)
    sizes = {"a.png": (61, 45), "sub/b.jpg": (33, 128), "c.png": (3, 2)}
    for name, (height, width) in sizes.items():
        array = rng.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(array).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"nothing")
    done = program(
        "--mode=reconstruct", f"--workdir={workdir}",
        f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "broken.png" in done.stderr
    assert "reconstructed 3 of 4 into" in done.stdout
    for name, size in sizes.items():
        assert decode((tmp_path / "out" / name).with_suffix(".png")).shape[:2] == size
    refused = program(
        "--mode=reconstruct", f"--workdir={workdir}", f"--input={tmp_path / 'in'}",
        f"--output={tmp_path / 'in'}", check=False,
    )  # fmt: skip
    assert refused.returncode == 2 and "among the originals" in refused.stderr
    program(
        "--mode=reconstruct", f"--workdir={workdir}", "--side_by_side",
        f"--input={tmp_path / 'in' / 'a.png'}", f"--output={tmp_path / 'one.png'}",
    )  # fmt: skip
    both = decode(tmp_path / "one.png")
    assert both.shape[:2] == (61, 2 * 45 + 2)
    original = decode(tmp_path / "in" / "a.png")
    assert (both[:, :45] == original).all()
    # What the program writes is what the library gives, on the image mirrored to a multiple of 4.
    padded = np.pad(to_float(original), ((0, 3), (0, 3), (0, 0)), mode="symmetric")
    expected = np.asarray(vq_jax.load(workdir).reconstruct(padded[None]))[0, :61, :45]
    assert np.abs(to_float(both[:, 47:]) - np.clip(expected, -1, 1)).max() < 1.5 / 127.5
