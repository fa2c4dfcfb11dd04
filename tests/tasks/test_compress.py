"""Compression as a user runs it: real files, and pipes."""

import shutil

import numpy as np
import pytest
from PIL import Image
from running import mistake, process, program
from small import make_prior, make_tokenizer, write

from vq_jax import codec
from vq_jax.data.images import decode, with_channels

pytestmark = pytest.mark.slow


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A tokenizer's folder, as an import leaves it."""
    tokenizer = make_tokenizer()
    tokenizer.config.data.dir = data_dir
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    folder.mkdir()
    return write(tokenizer, folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory, emoji):
    """What folders hold: formats, sizes, a subfolder, a name twice, a damaged file, a text."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "deep").mkdir()
    sizes = {"a.png": (32, 32), "a.jpg": (50, 33), "deep/b.webp": (1, 90), "deep/c.png": (32, 32)}
    for i, (name, size) in enumerate(sizes.items()):
        image = Image.fromarray(with_channels(emoji.val[i]["image"], 3))
        image.resize(size).save(folder / name)
    (folder / "damaged.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def compressed(run, images, tmp_path_factory):
    output = tmp_path_factory.mktemp("compressed") / "out"
    how = ["--mode=compress", f"--workdir={run}", f"--input={images}", f"--output={output}"]
    return output, program(*how, check=False)


def test_a_folder_is_compressed_but_for_what_cannot_be_read(run, images, compressed):
    output, done = compressed
    assert done.returncode == 2
    assert "skipped" in done.stderr and "damaged.png" in done.stderr
    assert "Traceback" not in done.stderr
    expected = {"a.png.vqz", "a.jpg.vqz", "damaged.png.vqz", "deep/b.webp.vqz", "deep/c.png.vqz"}
    assert files(output) == expected - {"damaged.png.vqz"}
    # The ratio is of all bytes that there are.
    plain = sum(decode(images / name[:-4]).nbytes for name in files(output))
    small = sum((output / name).stat().st_size for name in files(output))
    assert f"compressed 4 of 5 into {output}: {plain:,} bytes" in done.stdout
    assert f"{small:,} compressed" in done.stdout and f"{plain / small:.1f} times" in done.stdout
    # The training codes were counted, once.
    opened = codec.load(run)
    assert "static" in opened.models
    step = -(-7420 // 4096)
    counts = codec.read_counts(run, opened.tokenizer)
    assert counts.sum() == len(range(0, 7420, step)) * 16


def test_it_comes_back_as_python_gives_it(run, images, compressed, tmp_path):
    output, _ = compressed
    how = ["--mode=decompress", f"--workdir={run}", f"--input={output}"]
    done = program(*how, f"--output={tmp_path / 'back'}")
    assert "decompressed 4 of 4" in done.stdout
    back = {"a.png.png", "a.jpg.png", "deep/b.webp.png", "deep/c.png.png"}
    assert files(tmp_path / "back") == back
    opened = codec.load(run)
    for name in back:
        original = decode(images / name[:-4])
        image = decode(tmp_path / "back" / name)
        assert image.shape == original.shape
        data = opened.compress(original)
        assert data == (output / f"{name[:-4]}.vqz").read_bytes()
        # A run of batches, in a process with other optimizations, may round otherwise.
        difference = image.astype(int) - opened.decompress(data).astype(int)
        assert np.abs(difference).max() <= 1


def test_one_file_under_any_name(run, images, tmp_path):
    how = [f"--workdir={run}", "--entropy=fixed"]
    program("--mode=compress", *how, f"--input={images / 'a.jpg'}", f"--output={tmp_path / 'a.x'}")
    assert files(tmp_path) == {"a.x"}
    back = tmp_path / "new" / "a.jpg"
    said = program("--mode=decompress", *how[:1], f"--input={tmp_path / 'a.x'}", f"--output={back}")
    plain, small = 50 * 33 * 3, (tmp_path / "a.x").stat().st_size
    assert f"{plain:,} bytes uncompressed, {small:,} compressed" in said.stdout
    with Image.open(back) as opened:
        assert opened.format == "JPEG" and opened.size == (50, 33)


def test_a_prior_codes_and_says_where_it_can_be_read(run, images, tmp_path):
    opened = codec.load(run)
    prior = make_prior(opened.tokenizer, "masked")
    prior.config.tokenizer = str(run)
    prior.config.phases.prior = 1
    (tmp_path / "prior").mkdir()
    write(prior, tmp_path / "prior")
    how = [f"--workdir={tmp_path / 'prior'}", f"--input={images / 'a.jpg'}"]
    done = program("--mode=compress", *how, f"--output={tmp_path / 'a.vqz'}")
    assert "--entropy=static" in done.stderr
    how[1] = f"--input={tmp_path / 'a.vqz'}"
    program("--mode=decompress", *how, f"--output={tmp_path / 'a.png'}")
    assert decode(tmp_path / "a.png").shape == (33, 50, 3)
    said = mistake(
        "--mode=decompress", f"--workdir={run}", how[1], f"--output={tmp_path / 'b.png'}"
    )
    assert "needs a prior" in said
    assert not (tmp_path / "b.png").exists()


def test_what_cannot_be_read_leaves_nothing_behind(run, compressed, tmp_path):
    output, _ = compressed
    data = (output / "a.jpg.vqz").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    write(make_tokenizer(seed=1), other)
    middle = len(data) // 2
    cases = {
        "truncated": (data[:-5], "cut short or altered"),
        "altered": (data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "altered"),
        "newer": (data[:3] + b"\x02" + data[4:], "newer than this program"),
        "text": (b"some text", "not a .vqz file"),
        "empty": (b"", "not a .vqz file"),
    }
    (tmp_path / "bad").mkdir()
    for name, (content, _) in cases.items():
        (tmp_path / "bad" / f"{name}.vqz").write_bytes(content)
    shutil.copy(output / "a.jpg.vqz", tmp_path / "bad" / "whole.vqz")
    how = ["--mode=decompress", f"--input={tmp_path / 'bad'}", f"--output={tmp_path / 'out'}"]
    done = program(*how, f"--workdir={run}", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert files(tmp_path / "out") == {"whole.png"}
    for name, (_, message) in cases.items():
        (line,) = (line for line in done.stderr.splitlines() if f"{name}.vqz" in line)
        assert message in line
    single = ["--mode=decompress", f"--input={tmp_path / 'bad' / 'whole.vqz'}"]
    single += [f"--output={tmp_path / 'single.png'}", f"--workdir={other}"]
    said = mistake(*single)
    assert "another model" in said and "whole.vqz" in said
    assert not (tmp_path / "single.png").exists()


def test_mistakes_are_one_line_before_any_work(run, images, tmp_path):
    run = shutil.copytree(run, tmp_path.with_name("run"))  # one that no codes were counted for
    (run / codec.COUNTS).unlink(missing_ok=True)
    out = f"--output={tmp_path / 'out'}"
    here = ["--mode=compress", f"--workdir={run}", out]
    file = f"--input={images / 'a.png'}"
    for arguments, parts in (
        ([*here, "--input=nowhere"], ("there is no nowhere",)),
        (here, ("--input",)),
        ([*here, file, "--quality=2"], ("quality is 2", "residual")),
        (
            [*here[:2], file, f"--output={tmp_path / 'a.png'}"],
            ("would be a .vqz file",),
        ),
        (
            ["--mode=decompress", here[1], file, f"--output={tmp_path / 'a.xyz'}"],
            (".xyz is no format",),
        ),
        ([*here, file, "--entropy=prior"], ("needs a prior",)),
        ([*here[:1], out, file, "--workdir=nowhere"], ("nowhere",)),
    ):
        said = mistake(*arguments)
        assert all(part in said for part in parts), said
    assert not files(tmp_path) and not (run / codec.COUNTS).exists()
    # Where there is nothing to count, no counts are kept.
    (tmp_path / "photos").mkdir()
    shutil.copy(images / "a.png", tmp_path / "photos")
    nothing = ["--config=configs/default.py", "--config.data.source=folder"]
    nothing += [f"--config.data.folder={tmp_path / 'photos'}", "--config.data.val_fraction=1"]
    assert "cannot be counted" in mistake(*here, file, *nothing)
    assert not (run / codec.COUNTS).exists()


def test_one_that_cannot_be_written_does_not_stop_the_others(run, images, tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(images / name, tmp_path / "in" / f"{name[2:]}{name[1:]}")
    (tmp_path / "out" / "png.vqz").mkdir(parents=True)
    how = ["--mode=compress", f"--workdir={run}", f"--input={tmp_path / 'in'}"]
    done = program(*how, f"--output={tmp_path / 'out'}", "--entropy=fixed", check=False)
    assert done.returncode == 2 and "cannot write" in done.stderr
    assert files(tmp_path / "out") == {"jpg.vqz"} and "compressed 1 of 2" in done.stdout


def test_a_file_goes_through_pipes(run, images, tmp_path):
    image = (images / "a.jpg").read_bytes()
    how = {"text": False, "check": True}
    done = process(
        "--mode=compress", f"--workdir={run}", "--entropy=fixed", "--input=-", "--output=-",
        input=image, **how,
    )  # fmt: skip
    expected = codec.load(run).compress(decode(images / "a.jpg"), entropy="fixed")
    assert done.stdout == expected
    assert b"bits a pixel" in done.stderr  # standard output holds the file, and nothing else
    back = process(
        "--mode=decompress", f"--workdir={run}", "--input=/dev/stdin", "--output=-",
        input=done.stdout, **how,
    )  # fmt: skip
    (tmp_path / "back.png").write_bytes(back.stdout)
    difference = decode(tmp_path / "back.png").astype(int) - codec.load(run).decompress(expected)
    assert np.abs(difference).max() <= 1
    assert f"{len(expected):,} compressed".encode() in back.stderr
    said = mistake("--mode=compress", f"--workdir={run}", f"--input={images}", "--output=-")
    assert "standard input and output are of one file" in said


def test_a_name_as_long_as_can_be_does_not_stop_a_folder(run, images, tmp_path):
    (tmp_path / "in").mkdir()
    longest = "y" * 251
    shutil.copy(images / "a.png", tmp_path / "in" / f"{longest}.png")
    shutil.copy(images / "a.png", tmp_path / "in" / "a.png")
    how = ["--mode=compress", f"--workdir={run}", "--entropy=fixed", f"--input={tmp_path / 'in'}"]
    program(*how, f"--output={tmp_path / 'out'}")
    assert files(tmp_path / "out") == {"a.vqz", f"{longest}.vqz"}
    shutil.copy(images / "a.jpg", tmp_path / "in" / f"{longest}.jpg")  # now suffixes are added
    done = program(*how, f"--output={tmp_path / 'two'}", check=False)
    assert done.returncode == 2 and "File name too long" in done.stderr
    assert files(tmp_path / "two") == {"a.png.vqz"}


def test_training_on_says_that_files_will_not_be_read(
    run, images, emoji, data_dir, tmp_path, small_run
):
    shutil.copytree(small_run, tmp_path / "run")
    how = [f"--workdir={tmp_path / 'run'}", f"--input={images / 'a.png'}"]
    program("--mode=compress", *how, f"--output={tmp_path / 'a.vqz'}")
    again = ["--config=default", how[0], *SMALL, f"--config.data.dir={data_dir}"]
    said = program(*again, "--config.phases.joint=4").stdout
    warned = said.index("compressed files (code_counts.npz), which its model will not read")
    assert warned < said.index("measuring")
    how[1] = f"--input={tmp_path / 'a.vqz'}"
    assert "another model" in mistake("--mode=decompress", *how, f"--output={tmp_path / 'a.png'}")


SMALL = [
    "--config.data.batch_size=8", "--config.model.hidden=16", "--config.model.res_hidden=8",
    "--config.quantizer.num_codes=32", "--config.quantizer.dim=8", "--config.kmeans_batches=1",
    "--config.loss.perceptual_weight=0.0", "--config.loss.perceptual_stride=3",
    "--config.eval_lpips=False", "--config.phases.autoencoder=0", "--config.phases.quantizer=0",
    "--config.phases.adversarial=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, emoji, data_dir):
    workdir = tmp_path_factory.mktemp("small") / "run"
    program("--config=default", f"--workdir={workdir}", *SMALL, "--config.phases.joint=2",
            f"--config.data.dir={data_dir}")  # fmt: skip
    return workdir
