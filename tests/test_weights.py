"""The models that ship with the package."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import program

import vq_jax
from vq_jax import codec, files, runs
from vq_jax.data.builders import TEST_PHOTOS, package_folder
from vq_jax.data.images import decode

SHIPPED = sorted(p.name for p in files.WEIGHTS.iterdir() if p.is_dir())
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


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


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
