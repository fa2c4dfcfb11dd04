"""VAR's tokenizer and transformer: imported they give the originals' numbers, exported their arrays."""

import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from alike import LIMIT, assert_same_tokenizer, to_numpy, to_torch
from safetensors.numpy import load_file
from torch_models import randomise
from torch_var import VARTokenizer, VARTransformer

import vq_jax
from vq_jax.errors import UserError
from vq_jax.interop.state_dicts import to_var
from vq_jax.interop.weights import ARRAYS
from vq_jax.tasks.export import export
from vq_jax.tasks.import_weights import import_weights


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, size=(2, 32, 32, 3)).astype(np.float32)


@pytest.fixture
def theirs(tmp_path):
    model = randomise(VARTokenizer(mults=(1, 1, 2), attended=(2,)))
    (tmp_path / "vae").mkdir()
    torch.save(model.state_dict(), tmp_path / "vae" / "vae_ch160v4096z32.pth")
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"v_patch_nums": model.scales}))
    import_weights(tmp_path / "vae", tmp_path / "tokenizer", resolution=32)
    return model


def assert_exports_back(folder, output, model):
    export(folder, output, "var")
    back, before = load_file(output / ARRAYS), model.state_dict()
    assert back.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(back[name], array.numpy(), err_msg=name)


def test_tokenizer(tmp_path, theirs, images):
    tokenizer = vq_jax.load(tmp_path / "tokenizer")
    assert tokenizer.codes.grids == tuple((side, side) for side in theirs.scales)
    codes = theirs.encode(to_torch(images))

    def decode(codes):
        return to_numpy(theirs.decode(torch.as_tensor(codes)))

    assert_same_tokenizer(tokenizer, images, codes.numpy(), decode)
    assert_exports_back(tmp_path / "tokenizer", tmp_path / "back", theirs)
    import_weights(tmp_path / "back", tmp_path / "again", resolution=32)
    assert vq_jax.load(tmp_path / "again").fingerprint == tokenizer.fingerprint


def test_transformer(tmp_path, theirs, rng):
    model = randomise(VARTransformer(), seed=1)
    torch.save(model.state_dict(), tmp_path / "var_d2.pth")
    import_weights(tmp_path / "var_d2.pth", tmp_path / "prior", tokenizer=tmp_path / "tokenizer")
    prior = vq_jax.load(tmp_path / "prior")
    codes = rng.integers(0, 64, size=(2, sum(side**2 for side in theirs.scales)))
    labels = np.array([3, 5])
    expected = model(theirs.inputs(torch.as_tensor(codes)), torch.as_tensor(labels)).numpy()
    ours = prior.module.apply(prior.variables, jnp.asarray(codes), jnp.asarray(labels))
    assert np.abs(expected).std() > 0.1
    chex.assert_trees_all_close(ours, expected, atol=LIMIT * max(1.0, np.abs(expected).max()))
    assert len(prior.class_names) == 5
    drawn = prior.sample_codes(2, label="3", seed=1)
    assert drawn.shape == codes.shape and prior.config.sampling.guidance == 2.5
    assert_exports_back(tmp_path / "prior", tmp_path / "back", model)


def test_refusals(tmp_path, theirs):
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match="v_patch_nums"):
        import_weights(tmp_path / "vae", tmp_path / "no", resolution=32)
    shared = {"pos_1LC": torch.zeros(1, 5, 8), "shared_ada_lin.1.weight": torch.zeros(48, 8)}
    torch.save(shared, tmp_path / "var_d36.pth")
    with pytest.raises(UserError, match="d36"):
        import_weights(tmp_path / "var_d36.pth", tmp_path / "no", tokenizer=tmp_path / "tokenizer")
    torch.save(randomise(VARTransformer(codes=32)).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="32 codes"):
        import_weights(tmp_path / "other.pth", tmp_path / "no", tokenizer=tmp_path / "tokenizer")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "field, value",
    [("convolution_share", 0.3), ("convolutions", 0), ("distance", "cosine")],
)
def test_tokenizers_that_var_cannot_decode_are_not_exported(tmp_path, theirs, field, value):
    tokenizer = vq_jax.load(tmp_path / "tokenizer")
    config = tokenizer.config.copy_and_resolve_references()
    config.quantizer[field] = value
    with pytest.raises(UserError, match="format 'var' does not support"):
        to_var(config, tokenizer.variables)


def test_config_json_of_a_stranger(tmp_path, theirs):
    for vae_kwargs in (None, [], {"v_patch_nums": "x"}):
        described = json.dumps({"vae_kwargs": vae_kwargs})
        (tmp_path / "vae" / "config.json").write_text(described)
        with pytest.raises(UserError, match="v_patch_nums"):
            import_weights(tmp_path / "vae", tmp_path / "no", resolution=32)
    torch.save({"pos_1LC": torch.zeros(1, 5, 8)}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="no layers"):
        import_weights(tmp_path / "empty.pth", tmp_path / "no", tokenizer=tmp_path / "tokenizer")
