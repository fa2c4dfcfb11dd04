"""End-to-end tests of compress and decompress, with files and pipes."""

import shutil

import numpy as np
import pytest
from PIL import Image
from running import process, program, user_error
from small import make_photo_codec, make_prior, make_tokenizer, write

from vq_jax import codec
from vq_jax.codec import counts as code_counts
from vq_jax.codec.bitstream import VERSION
from vq_jax.data.images import decode, with_channels

pytestmark = pytest.mark.slow


def files(folder):
    """Returns the relative paths of all files in a folder."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """The folder of a tokenizer, in the format that an import writes."""
    tokenizer = make_tokenizer()
    tokenizer.config.data.dir = data_dir
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    folder.mkdir()
    return write(tokenizer, folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory, emoji):
    """A folder with a subfolder, several formats and sizes, a damaged image and a text file."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "deep").mkdir()
    sizes = {"a.png": (32, 32), "a.jpg": (50, 33), "deep/b.webp": (1, 90), "deep/c.png": (32, 32)}
    for i, (name, size) in enumerate(sizes.items()):
        image = Image.fromarray(with_channels(emoji.val[i]["x"], 3))
        image.resize(size).save(folder / name)
    (folder / "damaged.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def compressed(run, images, tmp_path_factory):
    """The folder of the compressed images, and the result of the program."""
    output = tmp_path_factory.mktemp("compressed") / "out"
    arguments = ["--mode=compress", f"--workdir={run}", f"--input={images}", f"--output={output}"]
    return output, program(*arguments, check=False)


def test_compress_skips_the_unreadable_images_of_a_folder(run, images, compressed):
    output, result = compressed
    assert result.returncode == 2
    assert "skipped" in result.stderr and "damaged.png" in result.stderr
    assert "Traceback" not in result.stderr
    expected = {"a.png.vqz", "a.jpg.vqz", "damaged.png.vqz", "deep/b.webp.vqz", "deep/c.png.vqz"}
    assert files(output) == expected - {"damaged.png.vqz"}
    # The ratio is that of the total sizes.
    raw = sum(decode(images / name[:-4]).nbytes for name in files(output))
    compressed_bytes = sum((output / name).stat().st_size for name in files(output))
    assert f"compressed 4 of 5 into {output}: {raw:,} bytes" in result.stdout
    assert f"{compressed_bytes:,} compressed" in result.stdout
    assert f"{raw / compressed_bytes:.1f} times" in result.stdout
    # The codes of up to 4,096 training images were counted.
    opened = codec.load(run)
    assert "static" in opened.models
    step = -(-7420 // 4096)
    counts = code_counts.read(run, opened.tokenizer)
    assert counts.sum() == len(range(0, 7420, step)) * 16


def test_decompressed_images_match_the_python_interface(run, images, compressed, tmp_path):
    output, _ = compressed
    arguments = ["--mode=decompress", f"--workdir={run}", f"--input={output}"]
    result = program(*arguments, f"--output={tmp_path / 'back'}")
    assert "decompressed 4 of 4" in result.stdout
    names = {"a.png.png", "a.jpg.png", "deep/b.webp.png", "deep/c.png.png"}
    assert files(tmp_path / "back") == names
    opened = codec.load(run)
    for name in names:
        original = decode(images / name[:-4])
        image = decode(tmp_path / "back" / name)
        assert image.shape == original.shape
        data = opened.compress(original)
        assert data == (output / f"{name[:-4]}.vqz").read_bytes()
        # Decoding in batches, or with other XLA optimizations, may round differently.
        difference = image.astype(int) - opened.decompress(data).astype(int)
        assert np.abs(difference).max() <= 1


def test_a_single_file_may_have_any_name(run, images, tmp_path):
    arguments = [f"--workdir={run}", "--entropy=fixed"]
    program(
        "--mode=compress", *arguments, f"--input={images / 'a.jpg'}", f"--output={tmp_path / 'a.x'}"
    )
    assert files(tmp_path) == {"a.x"}
    back = tmp_path / "new" / "a.jpg"
    output = program(
        "--mode=decompress", *arguments[:1], f"--input={tmp_path / 'a.x'}", f"--output={back}"
    ).stdout
    raw, compressed_bytes = 50 * 33 * 3, (tmp_path / "a.x").stat().st_size
    assert f"{raw:,} bytes uncompressed, {compressed_bytes:,} compressed" in output
    with Image.open(back) as image:
        assert image.format == "JPEG" and image.size == (50, 33)


def test_a_file_compressed_with_a_prior_needs_it_to_decompress(run, images, tmp_path):
    opened = codec.load(run)
    prior = make_prior(opened.tokenizer, "masked")
    prior.config.tokenizer = str(run)
    prior.config.phases.prior = 1
    (tmp_path / "prior").mkdir()
    write(prior, tmp_path / "prior")
    arguments = [f"--workdir={tmp_path / 'prior'}", f"--input={images / 'a.jpg'}"]
    result = program("--mode=compress", *arguments, f"--output={tmp_path / 'a.vqz'}")
    assert "entropy='static'" in result.stderr
    arguments[1] = f"--input={tmp_path / 'a.vqz'}"
    program("--mode=decompress", *arguments, f"--output={tmp_path / 'a.png'}")
    assert decode(tmp_path / "a.png").shape == (33, 50, 3)
    error = user_error(
        "--mode=decompress", f"--workdir={run}", arguments[1], f"--output={tmp_path / 'b.png'}"
    )
    assert "needs a prior" in error
    assert not (tmp_path / "b.png").exists()


def test_unreadable_files_are_reported_and_write_no_output(run, compressed, tmp_path):
    output, _ = compressed
    data = (output / "a.jpg.vqz").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    write(make_tokenizer(seed=1), other)
    middle = len(data) // 2
    cases = {
        "truncated": (data[:-5], "truncated or altered"),
        "altered": (data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "altered"),
        "newer": (data[:3] + bytes([VERSION + 1]) + data[4:], "newer than this program"),
        "text": (b"some text", "not a .vqz file"),
        "empty": (b"", "not a .vqz file"),
    }
    (tmp_path / "bad").mkdir()
    for name, (content, _) in cases.items():
        (tmp_path / "bad" / f"{name}.vqz").write_bytes(content)
    shutil.copy(output / "a.jpg.vqz", tmp_path / "bad" / "whole.vqz")
    arguments = ["--mode=decompress", f"--input={tmp_path / 'bad'}", f"--output={tmp_path / 'out'}"]
    result = program(*arguments, f"--workdir={run}", check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert files(tmp_path / "out") == {"whole.png"}
    for name, (_, message) in cases.items():
        (line,) = (line for line in result.stderr.splitlines() if f"{name}.vqz" in line)
        assert message in line
    single = ["--mode=decompress", f"--input={tmp_path / 'bad' / 'whole.vqz'}"]
    single += [f"--output={tmp_path / 'single.png'}", f"--workdir={other}"]
    error = user_error(*single)
    assert "another model" in error and "whole.vqz" in error
    assert not (tmp_path / "single.png").exists()


def test_user_errors_are_one_line_and_write_no_files(run, images, tmp_path):
    run = shutil.copytree(run, tmp_path.with_name("run"))  # without code counts
    (run / code_counts.FILE).unlink(missing_ok=True)
    out = f"--output={tmp_path / 'out'}"
    base = ["--mode=compress", f"--workdir={run}", out]
    file = f"--input={images / 'a.png'}"
    for case, parts in (
        ([*base, "--input=nowhere"], ("nowhere does not exist",)),
        (base, ("--input",)),
        ([*base, file, "--quality=2"], ("quality is 2", "residual")),
        (
            [*base[:2], file, f"--output={tmp_path / 'a.png'}"],
            ("would be a .vqz file",),
        ),
        (
            ["--mode=decompress", base[1], file, f"--output={tmp_path / 'a.xyz'}"],
            (".xyz is no format",),
        ),
        ([*base, file, "--entropy=prior"], ("needs a prior",)),
        ([*base[:1], out, file, "--workdir=nowhere"], ("nowhere",)),
    ):
        error = user_error(*case)
        assert all(part in error for part in parts), error
    assert not files(tmp_path) and not (run / code_counts.FILE).exists()
    # With no training images there are no code counts.
    (tmp_path / "photos").mkdir()
    shutil.copy(images / "a.png", tmp_path / "photos")
    no_images = ["--config=configs/default.py", "--config.data.source=folder"]
    no_images += [f"--config.data.folder={tmp_path / 'photos'}", "--config.data.val_fraction=1"]
    assert "cannot be counted" in user_error(*base, file, *no_images)
    assert not (run / code_counts.FILE).exists()


def test_a_failed_write_does_not_stop_the_other_images(run, images, tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(images / name, tmp_path / "in" / f"{name[2:]}{name[1:]}")
    (tmp_path / "out" / "png.vqz").mkdir(parents=True)
    arguments = ["--mode=compress", f"--workdir={run}", f"--input={tmp_path / 'in'}"]
    result = program(*arguments, f"--output={tmp_path / 'out'}", "--entropy=fixed", check=False)
    assert result.returncode == 2 and "cannot write" in result.stderr
    assert files(tmp_path / "out") == {"jpg.vqz"} and "compressed 1 of 2" in result.stdout


def test_compress_and_decompress_work_through_pipes(run, images, tmp_path):
    image = (images / "a.jpg").read_bytes()
    options = {"text": False, "check": True}
    result = process(
        "--mode=compress", f"--workdir={run}", "--entropy=fixed", "--input=-", "--output=-",
        input=image, **options,
    )  # fmt: skip
    expected = codec.load(run).compress(decode(images / "a.jpg"), entropy="fixed")
    assert result.stdout == expected
    assert b"bits a pixel" in result.stderr  # standard output holds only the file
    back = process(
        "--mode=decompress", f"--workdir={run}", "--input=/dev/stdin", "--output=-",
        input=result.stdout, **options,
    )  # fmt: skip
    (tmp_path / "back.png").write_bytes(back.stdout)
    difference = decode(tmp_path / "back.png").astype(int) - codec.load(run).decompress(expected)
    assert np.abs(difference).max() <= 1
    assert f"{len(expected):,} compressed".encode() in back.stderr
    error = user_error("--mode=compress", f"--workdir={run}", f"--input={images}", "--output=-")
    assert "standard input and output take one file" in error


def test_a_file_name_of_maximum_length_does_not_stop_a_folder(run, images, tmp_path):
    (tmp_path / "in").mkdir()
    longest = "y" * 251
    shutil.copy(images / "a.png", tmp_path / "in" / f"{longest}.png")
    shutil.copy(images / "a.png", tmp_path / "in" / "a.png")
    arguments = [
        "--mode=compress",
        f"--workdir={run}",
        "--entropy=fixed",
        f"--input={tmp_path / 'in'}",
    ]
    program(*arguments, f"--output={tmp_path / 'out'}")
    assert files(tmp_path / "out") == {"a.vqz", f"{longest}.vqz"}
    # Two images with the same stem: the output names now keep the suffix.
    shutil.copy(images / "a.jpg", tmp_path / "in" / f"{longest}.jpg")
    result = program(*arguments, f"--output={tmp_path / 'two'}", check=False)
    assert result.returncode == 2 and "File name too long" in result.stderr
    assert files(tmp_path / "two") == {"a.png.vqz"}


def test_further_training_warns_that_compressed_files_become_unreadable(
    run, images, emoji, data_dir, tmp_path, small_run
):
    shutil.copytree(small_run, tmp_path / "run")
    arguments = [f"--workdir={tmp_path / 'run'}", f"--input={images / 'a.png'}"]
    program("--mode=compress", *arguments, f"--output={tmp_path / 'a.vqz'}")
    again = ["--config=default", arguments[0], *SMALL, f"--config.data.dir={data_dir}"]
    output = program(*again, "--config.phases.joint=4").stdout
    warned = output.index("compressed files (code_counts.npz), which its model cannot read")
    assert warned < output.index("evaluating")
    arguments[1] = f"--input={tmp_path / 'a.vqz'}"
    assert "another model" in user_error(
        "--mode=decompress", *arguments, f"--output={tmp_path / 'a.png'}"
    )


SMALL = [
    "--config.data.batch_size=8", "--config.model.hidden=16", "--config.model.res_hidden=8",
    "--config.quantizer.num_codes=32", "--config.quantizer.dim=8", "--config.kmeans_batches=1",
    "--config.loss.perceptual_weight=0.0", "--config.loss.perceptual_stride=3",
    "--config.eval_lpips=False", "--config.phases.autoencoder=0", "--config.phases.quantizer=0",
    "--config.phases.adversarial=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, emoji, data_dir):
    """The folder of a short training run."""
    workdir = tmp_path_factory.mktemp("small") / "run"
    program("--config=default", f"--workdir={workdir}", *SMALL, "--config.phases.joint=2",
            f"--config.data.dir={data_dir}")  # fmt: skip
    return workdir


@pytest.fixture(scope="module")
def photo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photo") / "codec"
    folder.mkdir()
    return write(make_photo_codec(), folder)


def test_a_codec_with_a_quality_compresses_and_salvages(photo_run, tmp_path):
    rng = np.random.default_rng(0)
    image = np.uint8(np.clip(rng.normal(127, 60, (90, 1000, 3)), 0, 255))
    Image.fromarray(image).save(tmp_path / "x.png")
    common = (f"--workdir={photo_run}", f"--input={tmp_path / 'x.png'}")
    sizes = []
    for quality in (5, 90):
        out = tmp_path / f"{quality}.vqz"
        program("--mode=compress", *common, f"--output={out}", f"--quality={quality}")
        sizes.append(out.stat().st_size)
    assert sizes[0] < sizes[1]
    program(
        "--mode=compress",
        *common,
        f"--output={tmp_path / 'plain.vqz'}",
        "--quality=5",
        "--effort=0",
    )
    assert (tmp_path / "plain.vqz").stat().st_size > sizes[0]

    whole = ("--mode=decompress", f"--workdir={photo_run}", f"--input={tmp_path / '90.vqz'}")
    program(*whole, f"--output={tmp_path / 'y.png'}")
    assert decode(tmp_path / "y.png").shape == image.shape
    data = bytearray((tmp_path / "90.vqz").read_bytes())
    data[-9] ^= 1
    (tmp_path / "bad.vqz").write_bytes(data)
    bad = ("--mode=decompress", f"--workdir={photo_run}", f"--input={tmp_path / 'bad.vqz'}")
    output = f"--output={tmp_path / 'z.png'}"
    assert "checksum" in user_error(*bad, output)
    assert not (tmp_path / "z.png").exists()
    result = program(*bad, output, "--salvage")
    assert "bad.vqz: damaged: rows 0-89, columns 496-999" in result.stderr
    kept, lost = (decode(tmp_path / f"{name}.png") for name in "yz")
    assert (kept[:, :400] == lost[:, :400]).all() and (kept[:, 600:] != lost[:, 600:]).any()


def test_arguments_that_a_codec_with_a_quality_cannot_take_are_named(photo_run, tmp_path, images):
    common = (
        "--mode=compress",
        f"--workdir={photo_run}",
        f"--input={images / 'a.png'}",
        f"--output={tmp_path / 'a.vqz'}",
    )
    assert "use 1 to 100" in user_error(*common, "--quality=0")
    assert "effort is 3: use 0 or 1" in user_error(*common, "--effort=3")
    assert "take 'context'" in user_error(*common, "--entropy=static")
    assert not (tmp_path / "a.vqz").exists()


def test_only_a_codec_with_a_context_takes_it(run, images, tmp_path):
    arguments = (
        f"--workdir={run}",
        f"--input={images / 'a.png'}",
        f"--output={tmp_path / 'a.vqz'}",
    )
    assert "quantizer 'integer'" in user_error("--mode=compress", *arguments, "--entropy=context")
