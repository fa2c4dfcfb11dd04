"""End-to-end tests of priors: training, resuming, sampling and edits."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
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
    user_error,
    wait_for_exit,
    wait_for_steps,
)
from small import prepare

import vq_jax
from vq_jax import config as configs
from vq_jax.data import codes as codes_data
from vq_jax.data.images import decode
from vq_jax.data.pipeline import train_batches
from vq_jax.errors import UserError
from vq_jax.modalities import Network
from vq_jax.tasks.job import Evaluation
from vq_jax.tasks.kinds import KINDS
from vq_jax.tasks.train_prior import make_prior_recipe
from vq_jax.tasks.train_tokenizer import make_recipe
from vq_jax.training.checkpoint import Checkpoints
from vq_jax.training.prior_steps import init_prior_state
from vq_jax.training.steps import init_state

pytestmark = pytest.mark.slow


def save_tokenizer(workdir, emoji, data_dir, seed):
    """Saves an untrained tokenizer as a run, and returns its folder."""
    config = configs.base("vqvae")
    config.data.dir, config.data.batch_size = data_dir, 8
    config.model.update(hidden=16, res_hidden=8)
    config.quantizer.update(num_codes=32, dim=8)
    config.phases.joint, config.loss.perceptual_weight = 1, 0.0
    state = jax.jit(
        lambda key: init_state(make_recipe(config), key, configs.spec_of(config))
    )(jax.random.key(seed))  # fmt: skip
    workdir.mkdir(parents=True)
    configs.save(config, workdir / "config.json")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(
            1, state.split(), train_batches(emoji.train, config.data, 0, prepare(config.data))
        )
    return workdir


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, emoji, data_dir):
    return save_tokenizer(tmp_path_factory.mktemp("run") / "tokenizer", emoji, data_dir, 0)


def train_arguments(workdir, tokenizer, data_dir, config="prior_default"):
    return [
        f"--config=configs/{config}.py", f"--workdir={workdir}", f"--config.tokenizer={tokenizer}",
        f"--config.data.dir={data_dir}", "--config.data.batch_size=8", "--config.prior.layers=1",
        "--config.prior.width=32", "--config.prior.heads=2", "--config.phases.prior=12",
        "--config.log_every=1", "--config.save_every=4", "--config.eval_samples=12",
        "--config.eval_references=32", "--config.tensorboard=False",
    ]  # fmt: skip


def final_state(workdir):
    """Returns all arrays of a finished run."""
    config = configs.load(Path(workdir) / "config.json")
    recipe = make_prior_recipe(config)
    state = init_prior_state(recipe, jax.random.key(1), np.zeros(32, np.uint8), {})
    with Checkpoints(Path(workdir) / "checkpoints", writes=False) as checkpoints:
        step, parts = checkpoints.restore(state.split())
    assert step == 12
    return parts


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer, data_dir):
    """The folder of an uninterrupted run, and its output."""
    workdir = tmp_path_factory.mktemp("prior") / "small"
    return workdir, process(*train_arguments(workdir, tokenizer, data_dir)).stdout


def test_a_run_writes_every_file_it_names(trained):
    workdir, output = trained
    for name in ("config.json", "metrics.jsonl", "evaluation.json", "curves.png", "samples.png",
                 "nearest.png"):  # fmt: skip
        assert (workdir / name).stat().st_size > 0
        assert name in output
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert 0 < evaluation["bits_per_code"] < 12 and evaluation["images"] == 253
    assert evaluation["bits_per_pixel"] == pytest.approx(evaluation["bits_per_code"] / 16)
    assert evaluation["efficientnet_frechet_floor"] < evaluation["efficientnet_frechet"]
    assert [s["step"] for s in logged_metrics(workdir)] == list(range(1, 13))


def test_a_killed_run_equals_an_uninterrupted_run(trained, tokenizer, data_dir, tmp_path):
    workdir = tmp_path / "run"
    arguments = [*train_arguments(workdir, tokenizer, data_dir), "--config.save_every=2"]
    run = start(*arguments)
    wait_for_steps(workdir, 5, run)
    run.kill()
    run.wait()
    assert count_logged_steps(workdir) < 12
    assert "is at step" in process(*arguments).stdout
    assert logged_metrics(workdir) == logged_metrics(trained[0])
    chex.assert_trees_all_equal(final_state(workdir), final_state(trained[0]))


def test_two_processes_with_sharded_params_log_the_same_metrics_as_one(
    tokenizer, data_dir, tmp_path
):
    def arguments(workdir):
        return [
            *train_arguments(workdir, tokenizer, data_dir), "--config.phases.prior=24",
            "--config.prior.width=128",  # smaller params are not sharded
            "--config.prior.dropout=0.0", "--config.optim.warmup_steps=10", "--config.eval_samples=0",
        ]  # fmt: skip

    one, two = tmp_path / "one", tmp_path / "two"
    program(*arguments(one))
    sharded = [*arguments(two), "--config.fsdp=True"]
    processes = start_two(*sharded)
    wait_for_steps(two, 5, *processes)
    processes[1].send_signal(signal.SIGINT)  # only one process gets SIGINT
    assert (
        "stopped by SIGTERM at step" in wait_for_exit(processes, 0, 130)[0]
        and count_logged_steps(two) < 24
    )
    outputs = wait_for_exit(start_two(*sharded))
    assert "held-out images" in outputs[0] and "held-out images" not in outputs[1]
    pairs = zip(logged_metrics(two, "phase"), logged_metrics(one, "phase"), strict=True)
    for found, expected in pairs:
        assert found == pytest.approx(expected, rel=2e-2, abs=1e-3)
    evaluations = [json.loads((w / "evaluation.json").read_text()) for w in (one, two)]
    assert evaluations[1]["bits_per_code"] == pytest.approx(
        evaluations[0]["bits_per_code"], rel=1e-2
    )
    sampled = program(
        "--mode=sample", f"--workdir={two}", "--count=4", f"--output={tmp_path / 'i'}"
    )
    assert "4 images" in sampled.stdout


def test_sample_writes_a_grid_and_the_images_of_the_python_interface(trained, tmp_path):
    workdir, _ = trained
    arguments = ["--mode=sample", f"--workdir={workdir}", "--count=3", "--label=Flags", "--label=0",
           "--seed=5", "--guidance=2", "--top_p=0.9"]  # fmt: skip
    output = program(*arguments, f"--output={tmp_path / 'a'}").stdout
    assert "6 images and grid.png" in output
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == [".samples.json", *(f"{i:05d}.png" for i in range(6)), "grid.png"]
    assert decode(tmp_path / "a" / "grid.png").shape == (2 * 34 - 2, 3 * 34 - 2, 3)
    prior = vq_jax.load(workdir)
    images = prior.sample(6, label=["Flags"] * 3 + [0] * 3, seed=5, guidance=2.0, top_p=0.9)
    for i in range(6):
        written = decode(tmp_path / "a" / f"{i:05d}.png").astype(float)
        assert np.abs(written - (images[i] + 1) * 127.5).max() < 2


def test_inpaint_changes_only_masked_pixels_and_rejects_invalid_sizes(trained, tmp_path, rng):
    workdir, _ = trained
    image = rng.integers(0, 256, (41, 53, 3), np.uint8)
    mask = np.zeros((41, 53), np.uint8)
    mask[10:25, 20:44] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:40]).save(tmp_path / "short.png")
    Image.fromarray(image[:2, :3]).save(tmp_path / "tiny.png")
    arguments = ["--mode=inpaint", f"--workdir={workdir}", f"--output={tmp_path / 'out.png'}"]
    program(*arguments, f"--input={tmp_path / 'image.png'}", f"--mask={tmp_path / 'mask.png'}")
    result = decode(tmp_path / "out.png")
    np.testing.assert_array_equal(result[mask == 0], image[mask == 0])
    assert (result[mask > 0] != image[mask > 0]).any()
    (tmp_path / "out.png").unlink()
    for file, mask_file, message in (
        ("image.png", "short.png", "the mask is 53x40 pixels and the image 53x41"),
        ("tiny.png", "mask.png", "3x2 pixels, smaller than one code, 4x4"),
    ):
        assert message in user_error(
            *arguments, f"--input={tmp_path / file}", f"--mask={tmp_path / mask_file}"
        )
        assert not (tmp_path / "out.png").exists()


def test_edits_keep_transparency_and_warn_of_lossy_formats(trained, tmp_path, rng):
    workdir, _ = trained
    image = rng.integers(0, 256, (33, 41, 4), np.uint8)
    image[:8, :, 3] = 0
    Image.fromarray(image).save(tmp_path / "image.png")
    mask = np.zeros((33, 41, 4), np.uint8)
    mask[4:20, 10:30] = 255  # white on a transparent background
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ["--mode=inpaint", f"--workdir={workdir}", f"--input={tmp_path / 'image.png'}"]
    arguments += [f"--mask={tmp_path / 'mask.png'}"]
    warnings = program(*arguments, f"--output={tmp_path / 'out.png'}").stderr
    assert "its painted white pixels are the mask" in warnings and "lossy" not in warnings
    result = decode(tmp_path / "out.png", alpha=True)
    inside = mask[..., 3] > 0
    np.testing.assert_array_equal(result[~inside], image[~inside])
    assert (result[inside][:, 3] == 255).all()
    warnings = program(*arguments, f"--output={tmp_path / 'out.jpg'}").stderr
    assert "the format .jpg also changes the other pixels slightly" in warnings
    assert decode(tmp_path / "out.jpg").shape == (33, 41, 3)
    arguments[0], arguments[3] = "--mode=outpaint", "--margins=0,8,4,0"
    program(*arguments, f"--output={tmp_path / 'wide.png'}")
    wide = decode(tmp_path / "wide.png", alpha=True)
    np.testing.assert_array_equal(wide[:33, :41], image)
    assert (wide[33:, :, 3] == 255).all() and (wide[:, 41:, 3] == 255).all()


def test_sample_replaces_its_earlier_images_and_keeps_other_files(trained, tmp_path):
    workdir, _ = trained
    arguments = ["--mode=sample", f"--workdir={workdir}", f"--output={tmp_path / 'out'}"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.png").write_text("not ours")
    assert "00000.png was not written by sample" in user_error(*arguments)
    (tmp_path / "out" / "00000.png").unlink()
    for name in ("00001.jpg", "00500.png"):
        (tmp_path / "out" / name).write_text("not ours")
    program(*arguments, "--count=3", "--label=Flags", "--label=6")
    assert len(list((tmp_path / "out").glob("0000*.png"))) == 6
    assert "removed 4 samples of an earlier call" in program(*arguments, "--count=2").stdout
    found = sorted(p.name for p in (tmp_path / "out").iterdir())
    written = [".samples.json", "00000.png", "00001.png", "grid.png"]
    assert found == sorted([*written, "00001.jpg", "00500.png"])
    (tmp_path / "out" / "00002.png").write_text("not ours")
    assert "00002.png was not written by sample" in user_error(*arguments, "--count=3")
    (tmp_path / "out" / "00000.txt").write_text("not ours")
    program(*arguments, "--count=1")
    assert (tmp_path / "out" / "00000.txt").read_text() == "not ours"
    # Samples of another kind that an earlier call wrote are removed.
    (tmp_path / "out" / ".samples.json").write_text('{".txt": 1, ".png": 1}')
    program(*arguments, "--count=1")
    assert not (tmp_path / "out" / "00000.txt").exists()


def test_several_processes_write_codes_and_a_prior_trains_on_them(
    tokenizer, emoji, data_dir, tmp_path
):
    arguments = [
        "--mode=tokenize",
        f"--workdir={tokenizer}",
        f"--output={tmp_path / 'codes'}",
        "--flips",
    ]
    first = program(*arguments, "--processes=2", "--process=0").stdout
    assert "shards are still missing" in first
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "codes").glob("codes-*")}
    rest = program(*arguments).stdout  # writes the missing shards
    assert "missing" not in rest
    assert written and all(p.stat().st_mtime_ns == modified for p, modified in written.items())
    source = [f"--config.data.folder={tmp_path / 'codes'}", "--config.data.source=codes"]
    arguments = train_arguments(tmp_path / "prior", tokenizer, data_dir)
    output = program(*arguments, *source, "--config.eval_samples=0").stdout
    assert "7,420 training images, 253 held out" in output
    assert json.loads((tmp_path / "prior" / "evaluation.json").read_text())["images"] == 253
    # The codes are those of each image and of its mirror image.
    _, train, val = codes_data.read_codes(tmp_path / "codes")
    tok = vq_jax.load(tokenizer)
    prepare_image = prepare(tok.config.data, False)
    for i in (0, 700, 3000):
        x = prepare_image(emoji.train[i])["x"]
        expected = np.asarray(tok.encode(np.stack([x, x[:, ::-1]])))
        np.testing.assert_array_equal(train[2 * i]["codes"], expected[0])
        np.testing.assert_array_equal(train[2 * i + 1]["codes"], expected[1])
        assert train[2 * i]["label"] == train[2 * i + 1]["label"] == emoji.train[i]["label"]
    x = prepare_image(emoji.val[5])["x"]
    np.testing.assert_array_equal(val[5]["codes"], np.asarray(tok.encode(x[None]))[0])


def test_an_upscaling_prior_is_compared_with_its_input(tokenizer, data_dir, tmp_path):
    workdir = tmp_path / "upscale"
    output = program(*train_arguments(workdir, tokenizer, data_dir, "prior_upscale")).stdout
    assert "PSNR, dB, as given" in output
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["psnr_before"] > evaluation["psnr"]  # the tokenizer is untrained
    image = np.zeros((20, 27, 3), np.uint8)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(image).save(tmp_path / "in" / name)
    program("--mode=upscale", f"--workdir={workdir}", f"--input={tmp_path / 'in'}",
            f"--output={tmp_path / 'out'}", "--factor=4")  # fmt: skip
    assert decode(tmp_path / "out" / "b.png").shape == (80, 108, 3)


def test_fid_that_cannot_be_computed_is_refused_at_once():
    network = Network("fid", "FID", "", "", features=lambda x: x, probabilities=lambda x: x)

    def evaluation(condition, **changes):
        model = SimpleNamespace(
            module=SimpleNamespace(condition=condition), config=SimpleNamespace(eval_samples=64)
        )
        return Evaluation(model, None, None, None, [network], **changes)

    check = KINDS["prior"].check
    check(evaluation(()))
    with pytest.raises(UserError, match="FID is for samples without a condition"):
        check(evaluation((4, 4)))
    with pytest.raises(UserError, match="count is 1: gFID takes 2 to"):
        check(evaluation((), count=1))


def test_user_errors_are_one_line_with_exit_code_2(trained, tokenizer, emoji, data_dir, tmp_path):
    workdir, _ = trained
    other = save_tokenizer(tmp_path / "other", emoji, data_dir, 1)
    shutil.copytree(workdir, tmp_path / "moved")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    again = train_arguments(tmp_path / "moved", other, data_dir)
    for arguments, message in (
        (["--mode=sample", f"--workdir={workdir}", "--label=Food"], "near: Food & Drink"),
        (["--mode=sample", f"--workdir={workdir}", f"--tokenizer={other}"], "another tokenizer"),
        (["--mode=sample", f"--workdir={tokenizer}"], "holds a tokenizer, not a prior"),
        (["--mode=reconstruct", f"--workdir={workdir}", f"--input={tmp_path / 'a.png'}", "--output=x"],
         "holds a prior, not a tokenizer"),
        (["--mode=outpaint", f"--workdir={workdir}", f"--input={tmp_path / 'a.png'}", "--output=x.png",
          "--margins=1,2"], "top,right,bottom,left"),
        (["--mode=tokenize", f"--workdir={tokenizer}", "--input=x", f"--output={tmp_path / 'codes'}"],
         "does not use --input; a folder's images"),
        (["--mode=outpaint", f"--workdir={workdir}", f"--input={tmp_path / 'a.png'}", "--output=x.png",
          "--margins=0,100000000,0,0"], "make an image of 100000032x32 pixels"),
        (["--mode=sample", f"--workdir={workdir}", "--mask=x.png"], "does not use --mask"),
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
        (train_arguments(tokenizer, tokenizer, data_dir), "holds a tokenizer: use another workdir"),
        ([*again, "--config.tokenizer=/nonexistent"], "set tokenizer to the folder of its run"),
        ([*again, "--config.data.resolution=16"], "set data.resolution=32"),
    ):  # fmt: skip
        assert message in user_error(*arguments), arguments
