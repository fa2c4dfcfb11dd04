"""TiTok's weights, single-stage and two-stage: imported they give its numbers, exported its arrays."""

import json

import numpy as np
import pytest
import torch
from alike import assert_same_tokenizer, to_numpy, to_torch
from safetensors.numpy import load_file
from torch_models import randomise
from torch_titok import TiTok

import vq_jax
from vq_jax import config as configs
from vq_jax.errors import UserError
from vq_jax.interop.state_dicts import to_titok
from vq_jax.interop.weights import ARRAYS
from vq_jax.tasks.export import export
from vq_jax.tasks.import_weights import import_weights


@pytest.mark.parametrize("legacy", [False, True], ids=["single-stage", "two-stage"])
def test_import_and_export(tmp_path, legacy, rng):
    model = randomise(TiTok(legacy, codes=256))
    (tmp_path / "theirs").mkdir()
    torch.save(model.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    described = {"model": {"vq_model": {"use_l2_norm": legacy}}}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(described))
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    tokenizer = vq_jax.load(tmp_path / "ours")
    images = rng.uniform(-1, 1, size=(8, 32, 32, 3)).astype(np.float32)
    codes = model.encode(to_torch(images))

    def decode(codes):
        return to_numpy(model.decode(torch.as_tensor(codes)))

    assert_same_tokenizer(tokenizer, images, codes.numpy(), decode)
    export(tmp_path / "ours", tmp_path / "back", "titok")
    back, before = load_file(tmp_path / "back" / ARRAYS), model.state_dict()
    assert back.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(back[name], array.numpy(), err_msg=name)
    import_weights(tmp_path / "back", tmp_path / "again")
    assert vq_jax.load(tmp_path / "again").fingerprint == tokenizer.fingerprint


def test_refusals(tmp_path):
    arrays = TiTok(True).state_dict()
    torch.save(
        {k: v for k, v in arrays.items() if not k.startswith("pixel_")}, tmp_path / "first.bin"
    )
    with pytest.raises(UserError, match="first stage"):
        import_weights(tmp_path / "first.bin", tmp_path / "no")
    torch.save(TiTok(False).state_dict(), tmp_path / "single.bin")
    with pytest.raises(UserError, match="32x32 only"):
        import_weights(tmp_path / "single.bin", tmp_path / "no", resolution=64)


@pytest.mark.parametrize(
    "section, field, value",
    [("quantizer", "code_dim", 4), ("quantizer", "codebook", "mapped"), ("data", "channels", 1),
     ("model", "heads", 2)],
)  # fmt: skip
def test_tokenizers_that_titok_has_not_are_not_exported(section, field, value):
    config = configs.base("titok", "vq")
    config.model.update(width=64, heads=1)
    config[section][field] = value
    with pytest.raises(UserError, match="format 'titok' does not support"):
        to_titok(config, {"params": {}})
