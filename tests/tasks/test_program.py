"""End-to-end tests of training, and of the commands on a trained run.

Training is killed, stopped, made to diverge and run in two processes.
"""

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
    count_logged_steps,
    logged_metrics,
    process,
    program,
    start,
    start_two,
    wait_for_exit,
    wait_for_steps,
)

import vq_jax
from vq_jax import config as configs
from vq_jax.data.images import decode, to_float
from vq_jax.tasks.train_tokenizer import make_recipe
from vq_jax.training.checkpoint import Checkpoints
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


def train_arguments(workdir, data_dir):
    return [*SMALL, f"--workdir={workdir}", f"--config.data.dir={data_dir}"]


def final_state(workdir):
    """Returns all arrays of a finished run: params, optimizers, averages, codebook statistics."""
    config = configs.load(Path(workdir) / "config.json")
    state = init_state(make_recipe(config), jax.random.key(1), configs.spec_of(config))
    with Checkpoints(Path(workdir) / "checkpoints", writes=False) as checkpoints:
        step, parts = checkpoints.restore(state.split())
    assert step == 24
    return parts


@pytest.fixture(scope="module")
def trained(tmp_path_factory, emoji, data_dir):
    """The folder of an uninterrupted run, and its output."""
    workdir = tmp_path_factory.mktemp("run") / "small"
    result = process(*train_arguments(workdir, data_dir))
    return workdir, result.stdout


@pytest.mark.slow
def test_a_run_writes_every_file_it_names(trained, emoji):
    workdir, output = trained
    for name in (
        "config.json", "metrics.jsonl", "evaluation.json",
        "reconstructions.png", "curves.png", "codebook.png",
    ):  # fmt: skip
        assert (workdir / name).stat().st_size > 0
        assert name in output
    steps = logged_metrics(workdir)
    assert [s["step"] for s in steps] == list(range(1, 25))
    phases = ["autoencoder"] * 6 + ["quantizer"] * 4 + ["joint"] * 8 + ["adversarial"] * 6
    assert [s["phase"] for s in steps] == phases
    assert "loss_discriminator" in steps[-1] and "loss_discriminator" not in steps[17]
    assert "perplexity" not in steps[5] and "perplexity" in steps[6]
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["images"] == len(emoji.val) and evaluation["bits_per_pixel"] == 64 * 6 / 1024
    assert 5 < evaluation["psnr"] < 40 and 0 < evaluation["usage"] <= 1
    with Image.open(workdir / "reconstructions.png") as picture:
        assert picture.size == (12 * 34 - 2, 2 * 34 - 2)


@pytest.mark.slow
def test_a_finished_run_is_neither_repeated_nor_changed(trained, data_dir):
    workdir, _ = trained
    before = (workdir / "metrics.jsonl").read_text()
    assert "it is finished" in program(*train_arguments(workdir, data_dir)).stdout
    assert (workdir / "metrics.jsonl").read_text() == before
    refused = program(*train_arguments(workdir, data_dir), "--config.optim.lr=0.5", check=False)
    assert refused.returncode == 2 and "optim.lr 0.0015 -> 0.5" in refused.stderr


@pytest.mark.slow
def test_a_run_stopped_at_random_moments_equals_an_uninterrupted_run(trained, data_dir, tmp_path):
    """Stops runs by SIGKILL and by Ctrl-C.

    The variable VQ_JAX_STOPS sets the number of stops: VQ_JAX_STOPS=60 pytest -k random_moments
    """
    expected_metrics, expected_state = logged_metrics(trained[0]), final_state(trained[0])
    rng = np.random.default_rng()
    stops, runs = int(os.environ.get("VQ_JAX_STOPS", "2")), 0
    while stops:
        workdir = tmp_path / f"stopped-{runs}"
        arguments = [*train_arguments(workdir, data_dir), "--config.save_every=2"]
        while stops:
            run = start(*arguments)
            if rng.uniform() < 0.2:  # while the program starts
                time.sleep(rng.uniform(0.2, 8))
            else:
                wait_for_steps(workdir, count_logged_steps(workdir) + rng.integers(1, 9), run)
                time.sleep(rng.uniform(0, 0.3))
            if run.poll() is not None:  # the run ended first: stop the next one
                break
            signum = signal.SIGINT if stops % 2 else signal.SIGKILL
            run.send_signal(signum)
            output, _ = run.communicate(timeout=100)
            assert "Traceback" not in output, output
            if signum == signal.SIGINT and run.returncode:  # 0 if the run had just finished
                assert run.returncode == 130, output
                assert "stopped" in output
            stops -= 1
        result = process(*arguments)
        assert any(text in result.stdout for text in ("is at step", "held out", "is finished"))
        assert logged_metrics(workdir) == expected_metrics
        chex.assert_trees_all_equal(final_state(workdir), expected_state)
        runs += 1


@pytest.mark.slow
def test_ctrl_c_stops_the_process_and_its_workers(data_dir, tmp_path):
    """Sends SIGINT to the whole process group, as a terminal does."""
    workdir = tmp_path / "run"
    arguments = [
        *train_arguments(workdir, data_dir),
        "--config.data.workers=2",
        "--config.phases.joint=4000",
    ]
    run = start(*arguments, start_new_session=True)
    wait_for_steps(workdir, 12, run)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=100)
    assert run.returncode == 130, output
    stopped = re.search(
        r"stopped by Ctrl-C at step (\d+): the same command continues from step \1", output
    )
    assert stopped and (workdir / "checkpoints" / stopped[1]).is_dir(), output
    assert "Traceback" not in output and "leaked" not in output
    with pytest.raises(ProcessLookupError):  # all processes end shortly after
        for _ in range(100):
            os.killpg(run.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_a_damaged_one_is_skipped(trained, data_dir, tmp_path):
    arguments = [*train_arguments(tmp_path / "run", data_dir), "--config.save_every=3"]
    run = start(*arguments)
    wait_for_steps(tmp_path / "run", 7, run)
    run.terminate()
    output, _ = run.communicate(timeout=100)
    assert run.returncode == 0, output
    stopped = int(
        re.search(
            "stopped by SIGTERM at step (\\d+): the same command continues from step \\1", output
        )[1]
    )
    newest = tmp_path / "run" / "checkpoints" / str(stopped)
    assert 7 <= stopped < 24 and newest.is_dir()
    files = [p for p in newest.rglob("*") if p.is_file() and p.parent.name == "d"]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    result = process(*arguments)
    assert f"checkpoint {newest} is damaged" in result.stderr
    assert logged_metrics(tmp_path / "run") == logged_metrics(trained[0])
    chex.assert_trees_all_equal(final_state(tmp_path / "run"), final_state(trained[0]))


@pytest.mark.slow
def test_two_processes_log_the_same_metrics_as_one(trained, data_dir, tmp_path):
    """`test_prior_program` tests stopping and resuming two processes, with sharded params."""
    workdir = tmp_path / "run"
    arguments = [*train_arguments(workdir, data_dir), "--config.phases.adversarial=0"]
    outputs = wait_for_exit(start_two(*arguments))
    assert "held-out images" in outputs[0] and "held-out images" not in outputs[1]
    one = logged_metrics(trained[0], "phase")[:18]
    for found, expected in zip(logged_metrics(workdir, "phase"), one, strict=True):
        assert found == pytest.approx(expected, rel=2e-2, abs=1e-3)
    refused = program(*arguments, check=False)
    assert refused.returncode == 2 and "written by 2 processes" in refused.stderr


@pytest.mark.slow
def test_a_diverging_run_tries_earlier_checkpoints_and_then_stops(trained, data_dir, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    arguments = [
        *train_arguments(tmp_path / "run", data_dir), "--config.phases.adversarial=60",
        "--config.optim.lr=1e30", "--config.optim.warmup_steps=0", "--config.skip_limit=3",
        "--config.save_every=50",
    ]  # fmt: skip
    result = program(*arguments, check=False)
    assert result.returncode == 2 and "3 steps in a row" in result.stderr
    for step in (24, 20):
        assert f"back to step {step}, with other batches" in result.stdout
    assert "lower optim.lr (now 1e+30)" in result.stderr and "Traceback" not in result.stderr
    chex.assert_trees_all_equal(final_state(tmp_path / "run"), final_state(trained[0]))


@pytest.mark.slow
def test_evaluate_repeats_the_metrics_of_training(trained):
    workdir, _ = trained
    before = json.loads((workdir / "evaluation.json").read_text())
    output = process("--mode=evaluate", f"--workdir={workdir}").stdout
    assert "PSNR" in output and "LPIPS" not in output  # eval_lpips is False
    after = json.loads((workdir / "evaluation.json").read_text())
    assert {name: after[name] for name in before if name != "protocol"} == {
        name: value for name, value in before.items() if name != "protocol"
    }
    assert after["efficientnet_frechet"] > 0 and "not FID" in output  # training leaves it out
    assert "centre crop" in output


@pytest.mark.slow
def test_an_exported_run_reconstructs_the_same_after_import(trained, tmp_path, rng):
    workdir, _ = trained
    exported, imported = tmp_path / "exported", tmp_path / "imported"
    arguments = ["--mode=export", f"--workdir={workdir}", "--format=vq_jax", f"--output={exported}"]
    assert "model.safetensors" in program(*arguments).stdout
    refused = program(*arguments, check=False)
    assert refused.returncode == 2 and "already exists" in refused.stderr
    program("--mode=import", f"--input={exported}", f"--workdir={imported}")
    image = rng.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    reconstructions = []
    for folder in (workdir, imported):
        out = tmp_path / f"{folder.name}.png"
        program(
            "--mode=reconstruct", f"--workdir={folder}", f"--input={tmp_path / 'x.png'}",
            f"--output={out}",
        )  # fmt: skip
        reconstructions.append(np.asarray(Image.open(out)))
    np.testing.assert_array_equal(*reconstructions)
    refused = program("--mode=import", f"--workdir={tmp_path / 'y'}", check=False)
    assert refused.returncode == 2 and "import needs --input" in refused.stderr


@pytest.mark.slow
def test_a_run_loads_in_python_and_rejects_invalid_inputs(trained, emoji_images):
    tok = vq_jax.load(trained[0])
    codes = tok.encode(emoji_images)
    chex.assert_shape(codes, (16, 8, 8))
    chex.assert_type(codes, jnp.int32)
    assert tok.codes.num_codes == 64 and tok.codes.shape == (8, 8) and tok.strides == (4, 4)
    chex.assert_trees_all_close(tok.decode(codes), tok.reconstruct(emoji_images), atol=1e-5)
    for invalid, message in (
        (emoji_images[0], "not \\[B, H, W, 3\\]"),
        ((emoji_images * 100).astype(np.uint8), "uint8"),
        (emoji_images * 100, "beyond"),
        (emoji_images[:, :30], "multiples of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            tok.encode(invalid)
    with pytest.raises(ValueError, match="outside"):
        tok.decode(codes + 64)
    with pytest.raises(ValueError, match="not integers"):
        tok.decode(codes[0])


@pytest.mark.slow
def test_reconstruct_accepts_folders_and_images_of_any_size(trained, tmp_path, rng):
    workdir, _ = trained
    (tmp_path / "in" / "sub").mkdir(parents=True)
    sizes = {"a.png": (61, 45), "sub/b.jpg": (33, 128), "c.png": (3, 2)}
    for name, (height, width) in sizes.items():
        array = rng.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(array).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"nothing")
    result = program(
        "--mode=reconstruct", f"--workdir={workdir}",
        f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", check=False,
    )  # fmt: skip
    assert result.returncode == 2 and "broken.png" in result.stderr
    assert "reconstructed 3 of 4 into" in result.stdout
    for name, size in sizes.items():
        assert decode((tmp_path / "out" / name).with_suffix(".png")).shape[:2] == size
    refused = program(
        "--mode=reconstruct", f"--workdir={workdir}", f"--input={tmp_path / 'in'}",
        f"--output={tmp_path / 'in'}", check=False,
    )  # fmt: skip
    assert refused.returncode == 2 and "among the inputs" in refused.stderr
    program(
        "--mode=reconstruct", f"--workdir={workdir}", "--side_by_side",
        f"--input={tmp_path / 'in' / 'a.png'}", f"--output={tmp_path / 'one.png'}",
    )  # fmt: skip
    pair = decode(tmp_path / "one.png")
    assert pair.shape[:2] == (61, 2 * 45 + 2)
    original = decode(tmp_path / "in" / "a.png")
    assert (pair[:, :45] == original).all()
    # The library gives the same result for the image mirrored to multiples of 4.
    padded = np.pad(to_float(original), ((0, 3), (0, 3), (0, 0)), mode="symmetric")
    expected = np.asarray(vq_jax.load(workdir).reconstruct(padded[None]))[0, :61, :45]
    assert np.abs(to_float(pair[:, 47:]) - np.clip(expected, -1, 1)).max() < 1.5 / 127.5
