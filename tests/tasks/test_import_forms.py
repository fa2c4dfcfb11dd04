"""Tests of importing all formats of weight files, and what else belongs to a tokenizer."""

import argparse
import enum
import json
import pathlib
import sys
import types

import chex
import numpy as np
import pytest
import torch
import yaml
from alike import assert_same_latents, diffusers_model, save, to_torch
from safetensors.numpy import load_file, save_file
from torch_models import VQGAN, Magvit2, PatchGAN, randomise

import vq_jax
from vq_jax import losses
from vq_jax.errors import UserError
from vq_jax.interop.weights import ARRAYS
from vq_jax.tasks.export import export
from vq_jax.tasks.import_weights import import_weights
from vq_jax.tasks.train_tokenizer import make_recipe

MODEL = VQGAN(ch=32, mults=(1, 2), blocks=1, attended=())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def state():
    return dict(randomise(MODEL).state_dict())


def codes_of(folder, images):
    return np.asarray(vq_jax.load(folder).encode(images))


# --- files ----------------------------------------------------------------------------------------


def test_shards_equal_a_single_file(tmp_path, images):
    model = diffusers_model((32, 64), (), layers_per_block=1)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("whole", "shards"):
        import_weights(tmp_path / name, tmp_path / f"{name}_ours")
    ours = [load_file(tmp_path / f"{name}_ours" / ARRAYS) for name in ("whole", "shards")]
    chex.assert_trees_all_equal(*ours)
    index = next((tmp_path / "shards").glob("*.index.json"))
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    for shard, message in (
        ("../x.safetensors", "outside its folder"),
        ("no.safetensors", "cannot read"),
    ):
        changed = content | {"weight_map": content["weight_map"] | {name: shard}}
        index.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            import_weights(tmp_path / "shards", tmp_path / "never")
    index.write_text("[]")
    with pytest.raises(UserError, match="not an index of weight files"):
        import_weights(tmp_path / "shards", tmp_path / "never")


def test_the_tokenizer_of_a_pipeline_is_found(tmp_path, images):
    model = diffusers_model((32, 64), (), layers_per_block=1)
    model.save_pretrained(tmp_path / "pipeline" / "vqvae")
    (tmp_path / "pipeline" / "model_index.json").write_text('{"vqvae": ["diffusers", "VQModel"]}')
    import_weights(tmp_path / "pipeline", tmp_path / "ours")
    assert_same_latents(model, tmp_path / "ours", images)


def test_an_assumed_number_of_groups_is_reported(tmp_path, capsys):
    diffusers_model((32, 64), (), layers_per_block=1).save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert "norm_num_groups" not in capsys.readouterr().out
    (tmp_path / "theirs" / "config.json").unlink()
    import_weights(tmp_path / "theirs", tmp_path / "other")
    assert "there is no config.json with it: norm_num_groups 32" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content,message",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>Not found", "a web page"),
        (b"\n<HTML><body>", "a web page"),
        (b"some text", "not a weight file"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, content, message):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        import_weights(tmp_path / "x.ckpt", tmp_path / "ours")


def test_a_pickled_module_or_a_list_is_refused(tmp_path, state):
    for protocol in (2, 4):
        torch.save(torch.nn.Conv2d(3, 4, 3), tmp_path / "x.pt", pickle_protocol=protocol)
        with pytest.raises(UserError, match=r"a pickled module \(torch\.nn.*Conv2d\)"):
            import_weights(tmp_path / "x.pt", tmp_path / "ours")
    torch.save([state, state], tmp_path / "y.pt")
    with pytest.raises(UserError, match="a list of 2 state dicts"):
        import_weights(tmp_path / "y.pt", tmp_path / "ours")


class Colour(enum.Enum):
    """A third-party Enum."""

    RED = "red"


class Subclass(torch.Tensor):
    """A third-party subclass of a tensor, as augmentation libraries define."""


@pytest.fixture
def project(monkeypatch):
    """Moves the two classes to a third-party module."""
    module = types.ModuleType("project")
    for cls in (Colour, Subclass):
        monkeypatch.setattr(cls, "__module__", "project")
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "project", module)


def test_harmless_objects_are_ignored(tmp_path, state, project):
    posix = types.new_class("PosixPath", (pathlib.PurePosixPath,))
    posix.__module__ = "pathlib._local"  # The module's name in Python 3.13.
    local = types.ModuleType("pathlib._local")
    local.PosixPath = posix
    sys.modules["pathlib._local"] = local
    others = {
        "hyper_parameters": {
            "colour": Colour.RED,
            "rng": np.random.default_rng(0),
            "legacy": np.random.RandomState(0),
            "folder": posix("/data"),
            "args": argparse.Namespace(colour=Colour.RED),
            "generator": torch.device("cpu"),
        },
        "extra": torch.ones(2).as_subclass(Subclass),
    }
    try:
        torch.save({"state_dict": state, **others}, tmp_path / "x.ckpt")
    finally:
        del sys.modules["pathlib._local"]
    import_weights(tmp_path / "x.ckpt", tmp_path / "ours")
    entries = vq_jax.load(tmp_path / "ours").codebooks()
    np.testing.assert_array_equal(entries, state["quantize.embedding.weight"].numpy())


@pytest.mark.parametrize(
    "name",
    ["params_ema", "state_dict_ema", "ema_model", "model_ema", "ema_generator", "ema"],
)
def test_moving_averages_are_preferred(tmp_path, state, name, capsys):
    averaged = dict(randomise(VQGAN(ch=32, mults=(1, 2), blocks=1, attended=()), 1).state_dict())
    torch.save({"params": state, name: averaged}, tmp_path / "x.pt")
    import_weights(tmp_path / "x.pt", tmp_path / "ours")
    assert "the moving averages (EMA) of the weights are imported" in capsys.readouterr().out
    entries = vq_jax.load(tmp_path / "ours").codebooks()
    np.testing.assert_array_equal(entries, averaged["quantize.embedding.weight"].numpy())


# --- what belongs to a tokenizer besides its model ------------------------------------------------


def test_tamings_ema_codebook_is_imported_and_exported(tmp_path, state, images):
    """`EMAVectorQuantizer` has the same counts and sums as our quantizer."""
    counts = torch.arange(1.0, 65.0)
    averages = {
        "quantize.embedding.cluster_size": counts,
        "quantize.embedding.embed_avg": state["quantize.embedding.weight"] * counts[:, None],
    }
    import_weights(save(tmp_path / "x.ckpt", state | averages), tmp_path / "ours")
    tokenizer = vq_jax.load(tmp_path / "ours")
    assert tokenizer.config.quantizer.codebook == "ema"
    book = tokenizer.variables["codebook"]["quantizer"]["book"]
    np.testing.assert_array_equal(book["cluster_size"], counts.numpy()[None])
    np.testing.assert_array_equal(tokenizer.encode(images), MODEL.encode(to_torch(images)).numpy())
    export(tmp_path / "ours", tmp_path / "back", "taming")
    back = load_file(tmp_path / "back" / ARRAYS)
    for key, value in (state | averages).items():
        np.testing.assert_array_equal(back[key], value.numpy(), err_msg=key)


def test_a_remap_is_applied_and_exported_again(tmp_path, state, images, capsys):
    whole = MODEL.encode(to_torch(images)).numpy()
    used = np.unique(whole)[::-1].copy()  # In another order.
    more = {
        "quantize.used": torch.tensor(used),
        "colorize": torch.randn(3, 5, 1, 1),
    }
    import_weights(save(tmp_path / "x.ckpt", state | more), tmp_path / "ours")
    assert f"codes are the {len(used)} entries" in capsys.readouterr().out
    tokenizer = vq_jax.load(tmp_path / "ours")
    assert tokenizer.codes.num_codes == len(used)
    codes = np.asarray(tokenizer.encode(images))
    np.testing.assert_array_equal(used[codes], whole)
    export(tmp_path / "ours", tmp_path / "back", "taming")
    back = load_file(tmp_path / "back" / ARRAYS)
    assert back.keys() == (state | more).keys()
    for key, value in (state | more).items():
        np.testing.assert_array_equal(back[key], value.numpy(), err_msg=key)
    params = yaml.safe_load((tmp_path / "back" / "config.yaml").read_text())["model"]["params"]
    assert params["n_embed"] == 64 and params["colorize_nlabels"] == 5
    np.testing.assert_array_equal(np.load(tmp_path / "back" / params["remap"]), used)
    more["quantize.used"] = torch.tensor([0, 64])
    with pytest.raises(UserError, match="the remap .* does not match"):
        import_weights(save(tmp_path / "y.ckpt", state | more), tmp_path / "never")


def test_the_exported_yaml_has_the_loss_whose_arrays_are_exported(tmp_path, state):
    discriminator = randomise(PatchGAN()).state_dict()
    discriminator = {f"loss.discriminator.{k}": v for k, v in discriminator.items()}
    lpips = {
        f"loss.perceptual_loss.lin{i}.model.1.weight": torch.ones(1, 4, 1, 1) for i in range(5)
    }
    for name, arrays, target in (
        ("plain", state, "taming.modules.losses.DummyLoss"),
        ("trained", state | discriminator | lpips, "vqperceptual.VQLPIPSWithDiscriminator"),
    ):
        import_weights(save(tmp_path / f"{name}.ckpt", arrays), tmp_path / name)
        export(tmp_path / name, tmp_path / f"{name}_back", "taming")
        config_yaml = yaml.safe_load((tmp_path / f"{name}_back" / "config.yaml").read_text())
        loss = config_yaml["model"]["params"]["lossconfig"]
        assert loss["target"].endswith(target)
        assert load_file(tmp_path / f"{name}_back" / ARRAYS).keys() == arrays.keys()
    assert loss["params"]["disc_num_layers"] == 2 and loss["params"]["disc_ndf"] == 16


def test_other_fields_of_diffusers_config_are_exported_again(tmp_path):
    model = diffusers_model(
        (32, 64), (), layers_per_block=1, lookup_from_codebook=True, force_upcast=True,
        scaling_factor=0.5,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "exported", "vq_jax")
    import_weights(tmp_path / "exported", tmp_path / "again")
    for folder in ("ours", "again"):
        export(tmp_path / folder, tmp_path / f"{folder}_back", "diffusers")
        config_json = json.loads((tmp_path / f"{folder}_back" / "config.json").read_text())
        for field in ("lookup_from_codebook", "force_upcast", "scaling_factor"):
            assert config_json[field] == model.config[field], field


@pytest.mark.parametrize(
    "family,side,lecam", [("magvit2", 256, 0.05), ("magvit2", 128, 0.01), ("ibq", 256, 0.05)]
)
def test_the_config_has_the_authors_adversarial_loss(tmp_path, family, side, lecam):
    model = randomise(Magvit2() if family == "magvit2" else VQGAN(quantizer="ibq"))
    path = save(tmp_path / "x.ckpt", model.state_dict())
    import_weights(path, tmp_path / "ours", format=family, resolution=side)
    config = vq_jax.load(tmp_path / "ours").config
    adversarial = config.adversarial
    assert (adversarial.loss, adversarial.generator_loss) == ("hinge", "non_saturating")
    assert (adversarial.weight, adversarial.adaptive_limit) == (0.1, 0.0)
    assert adversarial.lecam_weight == lecam
    config.loss.perceptual_weight = 0.0
    expected = (losses.hinge_discriminator, losses.non_saturating_generator)
    assert make_recipe(config).adversarial == expected


def test_gumbels_kl_weight_is_tamings(tmp_path):
    model = randomise(VQGAN(quantizer="gumbel", z=8, dim=8))
    import_weights(save(tmp_path / "x.ckpt", model.state_dict()), tmp_path / "ours")
    assert vq_jax.load(tmp_path / "ours").config.quantizer.kl_weight == 1e-8


def test_a_single_safetensors_file_is_read(tmp_path, state):
    arrays = {name: value.numpy() for name, value in state.items()}
    save_file(arrays, tmp_path / "vqgan.safetensors")
    import_weights(tmp_path / "vqgan.safetensors", tmp_path / "ours")
    assert vq_jax.load(tmp_path / "ours").codes.num_codes == 64
