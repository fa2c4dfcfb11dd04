"""Tests that exported models load elsewhere, and are the same after another import."""

import json
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
import torch
from alike import LIMIT, diffusers_model, save, to_numpy, to_torch
from diffusers import VQModel
from safetensors.numpy import load_file
from small import make_prior, make_tokenizer, write
from torch_models import VQGAN, Magvit2, randomise

import vq_jax
from vq_jax import codec
from vq_jax import config as configs
from vq_jax.codec import counts
from vq_jax.errors import UserError
from vq_jax.interop.weights import ARRAYS
from vq_jax.tasks.export import export
from vq_jax.tasks.import_weights import import_weights
from vq_jax.tokenizer import TrainedTokenizer


@pytest.fixture
def imported(tmp_path):
    path = save(tmp_path / "theirs.ckpt", randomise(VQGAN()).state_dict())
    import_weights(path, tmp_path / "ours")
    return tmp_path / "ours"


def test_our_own_format_loads_without_orbax_and_is_imported_unchanged(tmp_path, imported):
    opened = codec.load(imported)
    found = np.arange(opened.tokenizer.codes.num_codes)[None] ** 2
    counts.save(imported, opened.tokenizer, found)
    export(imported, tmp_path / "exported", "vq_jax")
    import_weights(tmp_path / "exported", tmp_path / "back")
    files = [imported, tmp_path / "exported", tmp_path / "back"]
    arrays = [load_file(folder / ARRAYS) for folder in files]
    chex.assert_trees_all_equal(*arrays)
    assert {p.name for p in (tmp_path / "exported").iterdir()} == {
        ARRAYS,
        "config.json",
        counts.FILE,
    }
    # The exported counts decode files that were coded with the original ones.
    image = np.zeros((16, 16, 3), np.uint8)
    data = codec.load(imported).compress(image, entropy="static")
    codec.load(tmp_path / "back").decompress(data)
    fingerprints = {vq_jax.load(folder).fingerprint for folder in files}
    assert len(fingerprints) == 1
    # Load it in a process that cannot import Orbax.
    code = "import sys; sys.modules['orbax'] = None; import vq_jax; vq_jax.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "exported")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_diffusers_loads_an_exported_tokenizer(tmp_path, rng, distance):
    config = configs.base("vqgan", "vq")
    config.data.resolution = 32
    config.model.update({"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 8})
    config.quantizer.update({"num_codes": 64, "dim": 6, "distance": distance})
    config.phases.joint = 1
    module = configs.make_tokenizer(config)
    x = rng.uniform(-1, 1, size=(2, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    variables["params"]["quantizer"]["book"]["codebook"] *= 64.0
    write(TrainedTokenizer(config, module, variables, 0), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "theirs", "diffusers")
    model = VQModel.from_pretrained(tmp_path / "theirs").eval()
    tokenizer = vq_jax.load(tmp_path / "run")
    with torch.no_grad():
        latents = model.encode(to_torch(x)).latents
        _, _, (_, _, codes) = model.quantize(latents)
        y = to_numpy(model.decode(latents).sample)
    ours = np.asarray(tokenizer.encode(x))
    chex.assert_trees_all_equal(ours, codes.reshape(ours.shape).numpy())
    assert len(np.unique(ours)) > 3
    chex.assert_trees_all_close(np.asarray(tokenizer.reconstruct(x)), y, atol=LIMIT)


def test_an_exported_prior_draws_the_same_samples(tmp_path):
    tokenizer = make_tokenizer()
    write(tokenizer, tmp_path / "tokenizer")
    prior = make_prior(tokenizer, "masked")
    prior.config.tokenizer = str(tmp_path / "tokenizer")
    prior.config.phases.prior = 1
    write(prior, tmp_path / "prior")
    export(tmp_path / "prior", tmp_path / "exported", "vq_jax")
    (tmp_path / "tokenizer").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="the prior's tokenizer"):
        import_weights(tmp_path / "exported", tmp_path / "back")
    import_weights(tmp_path / "exported", tmp_path / "back", tokenizer=tmp_path / "moved")
    again = vq_jax.load(tmp_path / "back")
    np.testing.assert_array_equal(
        again.sample_codes(3, label="Flags"), prior.sample_codes(3, label="Flags")
    )
    with pytest.raises(UserError, match="use format 'vq_jax'"):
        export(tmp_path / "back", tmp_path / "x", "diffusers")


def test_stablehlo_runs_without_the_package_for_any_batch_size(tmp_path, rng):
    diffusers_model((32, 64), (1,), layers_per_block=1).save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours", resolution=32)
    export(tmp_path / "ours", tmp_path / "programs", "stablehlo")
    tokenizer = vq_jax.load(tmp_path / "ours")

    def program(name):
        data = (tmp_path / "programs" / f"{name}.stablehlo").read_bytes()
        return jax.export.deserialize(bytearray(data)).call

    for count in (1, 3):
        x = rng.uniform(-1, 1, size=(count, 32, 32, 3)).astype(np.float32)
        codes = program("encode")(x)
        chex.assert_trees_all_equal(codes, tokenizer.encode(x))
        chex.assert_trees_all_close(program("decode")(codes), tokenizer.decode(codes), atol=LIMIT)


def test_errors_of_export(tmp_path, imported):
    with pytest.raises(UserError, match="format is 'onnx': use one of"):
        export(imported, tmp_path / "x", "onnx")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="already exists"):
        export(imported, tmp_path / "full", "vq_jax")
    path = save(tmp_path / "magvit2.ckpt", randomise(Magvit2()).state_dict())
    import_weights(path, tmp_path / "magvit2")
    with pytest.raises(UserError, match=r"no model like model.name='magvit2'"):
        export(tmp_path / "magvit2", tmp_path / "x", "diffusers")
    assert not (tmp_path / "x").exists()


def test_errors_of_import(tmp_path, imported):
    with pytest.raises(UserError, match="nowhere does not exist"):
        import_weights(tmp_path / "nowhere", tmp_path / "x")
    with pytest.raises(UserError, match="already exists"):
        import_weights(tmp_path / "theirs.ckpt", imported)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="not a weight file"):
        import_weights(tmp_path / "text", tmp_path / "x")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "linear.pt")
    with pytest.raises(
        UserError, match="no tokenizer of a known format: its arrays are named weight"
    ):
        import_weights(tmp_path / "linear.pt", tmp_path / "x")
    with pytest.raises(UserError, match="no tokenizer of llamagen"):
        import_weights(tmp_path / "theirs.ckpt", tmp_path / "x", format="llamagen")


def test_another_codebases_folder_must_be_imported_first(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(UserError, match="import the weights of another codebase from"):
        vq_jax.load(tmp_path)


def test_arrays_that_do_not_match_the_config_are_refused(tmp_path, imported):
    config = json.loads((imported / "config.json").read_text())
    config["model"]["ch"] = 64
    shutil.copytree(imported, tmp_path / "changed")
    (tmp_path / "changed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="wrong shape: params/decoder/conv_in/bias"):
        vq_jax.load(tmp_path / "changed")


@pytest.mark.parametrize("bits, dtypes", [(16, {"float16"}), (8, {"int8", "float32"})])
def test_params_of_fewer_bits_open_as_float32(bits, dtypes, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    tokenizer = make_tokenizer()
    write(tokenizer, folder)
    export(folder, tmp_path / "small", "vq_jax", bits=bits)
    stored = load_file(tmp_path / "small" / ARRAYS)
    assert {str(a.dtype) for n, a in stored.items() if n.startswith("params/")} == dtypes
    assert {str(a.dtype) for n, a in stored.items() if n.startswith("codebook/")} == {"float32"}
    opened = vq_jax.load(tmp_path / "small")
    assert {str(a.dtype) for a in jax.tree.leaves(opened.variables)} == {"float32"}
    for found, right in zip(
        jax.tree.leaves(opened.variables), jax.tree.leaves(tokenizer.variables), strict=True
    ):
        largest = np.abs(right).max(axis=tuple(range(right.ndim - 1)), initial=0)
        error = np.abs(found - right).max(initial=0, axis=tuple(range(right.ndim - 1)))
        assert (error <= largest * (1e-3 if bits == 16 else 0.501 / 127) + 1e-6).all()
    if bits == 16:
        chex.assert_trees_all_close(opened.variables, tokenizer.variables, rtol=1e-3, atol=1e-6)
    assert opened.fingerprint != tokenizer.fingerprint

    # What was stored in fewer bits is a model like any other: imported, it is the same.
    import_weights(tmp_path / "small", tmp_path / "imported", format="vq_jax")
    assert vq_jax.load(tmp_path / "imported").fingerprint == opened.fingerprint


def test_params_that_fewer_bits_cannot_hold_are_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    tokenizer = make_tokenizer()
    large = jax.tree.map(lambda a: a * 1e9, tokenizer.variables)
    write(TrainedTokenizer(tokenizer.config, tokenizer.module, large, 0), folder)
    for format, bits, text in (
        ("vq_jax", 16, "16 bits cannot hold"),
        ("taming", 8, "only 'vq_jax'"),
        ("vq_jax", 4, "bits is 4: use one of 32, 16, 8"),
    ):
        with pytest.raises(UserError, match=text):
            export(folder, tmp_path / format, format, bits=bits)
        assert not (tmp_path / format).exists()
    export(folder, tmp_path / "small", "vq_jax", bits=8)
    assert vq_jax.load(tmp_path / "small").step == 0
