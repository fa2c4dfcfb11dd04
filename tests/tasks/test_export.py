"""What is handed on opens elsewhere, and comes back the same."""

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


def test_our_own_form_is_opened_without_orbax_and_comes_back_the_same(tmp_path, imported):
    opened = codec.load(imported)
    counts = np.arange(opened.tokenizer.num_codes)[None] ** 2
    codec.save_counts(imported, opened.tokenizer, counts)
    export(imported, tmp_path / "exported", "vq_jax")
    import_weights(tmp_path / "exported", tmp_path / "back")
    files = [imported, tmp_path / "exported", tmp_path / "back"]
    arrays = [load_file(folder / ARRAYS) for folder in files]
    chex.assert_trees_all_equal(*arrays)
    assert {p.name for p in (tmp_path / "exported").iterdir()} == {
        ARRAYS,
        "config.json",
        codec.COUNTS,
    }
    # Files coded by the counts are read with what was handed on.
    image = np.zeros((16, 16, 3), np.uint8)
    data = codec.load(imported).compress(image, entropy="static")
    codec.load(tmp_path / "back").decompress(data)
    prints = {vq_jax.load(folder).fingerprint for folder in files}
    assert len(prints) == 1
    # In a process that has none.
    code = "import sys; sys.modules['orbax'] = None; import vq_jax; vq_jax.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "exported")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_diffusers_opens_a_tokenizer_trained_here(tmp_path, rng, distance):
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


def test_a_prior_is_handed_on_with_the_same_draws(tmp_path):
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
    with pytest.raises(UserError, match="vq_jax only"):
        export(tmp_path / "back", tmp_path / "x", "diffusers")


def test_stablehlo_runs_without_the_package_for_any_number_of_images(tmp_path, rng):
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


def test_what_cannot_be_exported_says_so(tmp_path, imported):
    with pytest.raises(UserError, match="--format=onnx: use one of"):
        export(imported, tmp_path / "x", "onnx")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is there already"):
        export(imported, tmp_path / "full", "vq_jax")
    path = save(tmp_path / "magvit2.ckpt", randomise(Magvit2()).state_dict())
    import_weights(path, tmp_path / "magvit2")
    with pytest.raises(UserError, match=r"no model like model.name='magvit2'"):
        export(tmp_path / "magvit2", tmp_path / "x", "diffusers")
    assert not (tmp_path / "x").exists()


def test_import_says_what_is_wrong_with_its_input(tmp_path, imported):
    with pytest.raises(UserError, match="there is no"):
        import_weights(tmp_path / "nowhere", tmp_path / "x")
    with pytest.raises(UserError, match="is there already"):
        import_weights(tmp_path / "theirs.ckpt", imported)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="no file of weights"):
        import_weights(tmp_path / "text", tmp_path / "x")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "linear.pt")
    with pytest.raises(UserError, match="of no known kind: its arrays are called weight"):
        import_weights(tmp_path / "linear.pt", tmp_path / "x")
    with pytest.raises(UserError, match="of no known llamagen"):
        import_weights(tmp_path / "theirs.ckpt", tmp_path / "x", format="llamagen")


def test_another_codebases_folder_is_to_be_imported_first(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(UserError, match="--mode=import --input="):
        vq_jax.load(tmp_path)


def test_a_folder_that_has_been_tampered_with_is_refused(tmp_path, imported):
    config = json.loads((imported / "config.json").read_text())
    config["model"]["ch"] = 64
    shutil.copytree(imported, tmp_path / "changed")
    (tmp_path / "changed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="of another shape: params/decoder/conv_in/bias"):
        vq_jax.load(tmp_path / "changed")
