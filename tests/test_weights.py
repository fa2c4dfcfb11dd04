"""The models that ship with the package."""

import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import program, user_error
from small import make_tokenizer, write

import vq_jax
from vq_jax import codec, files, runs
from vq_jax.data.builders import TEST_PHOTOS, package_folder
from vq_jax.data.images import decode, psnr
from vq_jax.errors import UserError

SHIPPED = sorted(p.name for p in files.WEIGHTS.iterdir() if p.is_dir())
ROOT = Path(__file__).parents[1]
FILES = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def photo():
    pytest.importorskip("skimage")
    package, _, inside = TEST_PHOTOS["coffee"].partition("/")
    return decode(package_folder(package) / inside)


@pytest.fixture(scope="module")
def photo_codec():
    return codec.load("photo-codec")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_model_opens_by_its_name_and_has_a_card(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert vq_jax.load(name).step > 0
    folder = runs.find(name)
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    assert set(sizes) >= {"config.json", "model.safetensors", "README.md"}
    assert sum(sizes.values()) < 10e6
    card = (folder / "README.md").read_text()
    for part in ("Trained", "Data", "Licence", "python -m vq_jax.main"):
        assert part in card, part


def test_a_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo-codec").mkdir()
    assert runs.find("photo-codec") == Path("photo-codec")


def test_the_docs_list_all_models():
    listed = re.findall(
        r"^\| `([\w-]+)` \| .* \| [\d.]+ \|$", (ROOT / "docs/weights.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == SHIPPED


def test_all_models_together_are_small():
    assert sum(p.stat().st_size for p in files.WEIGHTS.rglob("*") if p.is_file()) < 30e6


def test_a_prior_that_ships_takes_the_tokenizer_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    write(make_tokenizer(), tmp_path / "emoji")
    assert runs.find("emoji") == Path("emoji")
    prior = vq_jax.load("emoji-prior")
    assert prior.tokenizer.spec.shape == (32, 32, 3)


def test_nothing_is_written_into_a_model_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(files.WEIGHTS.rglob("*"))
    for name in ("emoji-prior", files.WEIGHTS / "emoji-prior"):
        program("--mode=sample", f"--workdir={name}", "--count=1", "--seed=3")
        assert (tmp_path / "samples" / "00000.png").is_file()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "x.png")
    program(
        "--mode=compress", "--workdir=emoji", "--entropy=static", "--input=x.png", "--output=x.vqz"
    )
    assert "nothing is written" in user_error("--mode=evaluate", "--workdir=emoji")
    train = ("--config=default", "--workdir=emoji")
    assert "is the name of a model that ships" in user_error(*train)
    assert not (tmp_path / "emoji").exists()
    assert sorted(files.WEIGHTS.rglob("*")) == before


@pytest.mark.parametrize("quality", [20, 60])
def test_photographs_are_better_than_jpegs_of_as_many_bytes(photo, photo_codec, quality):
    data = photo_codec.compress(photo, quality=quality)
    ours = psnr(photo, photo_codec.decompress(data))
    for jpeg_quality in range(1, 95):
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "JPEG", quality=jpeg_quality, optimize=True)
        if len(file.getvalue()) >= len(data):
            break
    assert ours > 1.5 + psnr(photo, np.asarray(Image.open(file)))


def test_a_file_of_another_machine_has_the_same_codes(photo_codec):
    content = photo_codec.open((FILES / "coffee.vqz").read_bytes())
    digest = hashlib.sha256(np.ascontiguousarray(content.codes, "<i2").tobytes()).hexdigest()
    assert digest == (FILES / "coffee.sha256").read_text().strip()


def test_a_file_of_another_model_that_ships_names_it(photo, photo_codec):
    data = codec.load("photo-codec-perceptual").compress(photo[:64, :64])
    with pytest.raises(UserError, match="made with photo-codec-perceptual: name it"):
        photo_codec.decompress(data)


def test_a_name_that_is_nearly_right_is_corrected():
    assert "emoji-prior" in user_error("--mode=sample", "--workdir=emoji-prio")
    assert "photo-codec" in user_error("--mode=serve", "--workdir=photo-code")
    assert "emoji-upscale" in user_error("--mode=serve", "--workdir=quite-another")


def test_the_commands_take_the_name(photo, tmp_path):
    pytest.importorskip("skimage")
    Image.fromarray(photo[:100, :120]).save(tmp_path / "x.png")
    common = "--workdir=photo-codec"
    program(
        "--mode=compress", common, f"--input={tmp_path / 'x.png'}", f"--output={tmp_path / 'x.vqz'}"
    )
    program(
        "--mode=decompress",
        common,
        f"--input={tmp_path / 'x.vqz'}",
        f"--output={tmp_path / 'y.png'}",
    )
    assert psnr(decode(tmp_path / "y.png"), photo[:100, :120]) > 25
