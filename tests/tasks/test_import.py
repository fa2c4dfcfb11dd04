"""Tests that imported tokenizers give the same numbers as the originals, and export unchanged."""

import chex
import numpy as np
import pytest
import torch
from alike import (
    LIMIT,
    assert_same_latents,
    assert_same_tokenizer,
    diffusers_model,
    save,
    to_numpy,
    to_torch,
)
from diffusers import VQModel
from safetensors.numpy import load_file
from torch_models import VQGAN, Magvit2, PatchGAN, randomise

import vq_jax
from vq_jax.errors import UserError
from vq_jax.interop.lpips import load_lpips
from vq_jax.interop.weights import ARRAYS, read_group
from vq_jax.tasks.export import export
from vq_jax.tasks.import_weights import import_weights


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, size=(2, 32, 32, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "widths,attended,fields",
    [
        ((32,), (), {"layers_per_block": 2, "mid_block_add_attention": False}),
        ((32, 64), (1,), {"layers_per_block": 1}),
        ((64, 96, 64), (0, 2), {"layers_per_block": 1}),
    ],
)
def test_diffusers_import_and_export(tmp_path, images, widths, attended, fields):
    model = diffusers_model(widths, attended, **fields)
    model.save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    tokenizer = vq_jax.load(tmp_path / "ours")
    with torch.no_grad():
        latents = model.encode(to_torch(images)).latents
        codes = model.quantize(latents)[2][2].reshape(len(images), *latents.shape[2:])
        entries = model.quantize.embedding.weight
    chex.assert_trees_all_close(
        tokenizer.module.apply(tokenizer.variables, images, method="encode"),
        to_numpy(latents),
        atol=LIMIT,
    )

    def decode(codes):
        z_q = entries[codes].permute(0, 3, 1, 2)
        return to_numpy(model.decode(z_q, force_not_quantize=True).sample)

    with torch.no_grad():
        model.config["lookup_from_codebook"] = False
        assert_same_tokenizer(tokenizer, images, codes, decode)

    export(tmp_path / "ours", tmp_path / "back", "diffusers")
    again = VQModel.from_pretrained(tmp_path / "back").state_dict()
    before = model.state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_old_diffusers_names_of_attention(tmp_path, images):
    model = diffusers_model((32, 64), (1,), layers_per_block=1)
    model.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "diffusion_pytorch_model.safetensors"
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    arrays = load_file(path)
    for to, old in new.items():
        arrays = {k.replace(f".{to}.", f".{old}."): v for k, v in arrays.items()}
    from safetensors.numpy import save_file

    save_file(arrays, path)
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert_same_latents(model, tmp_path / "ours", images)


def test_an_unsupported_diffusers_model_is_refused(tmp_path):
    model = diffusers_model((32,), (), layers_per_block=1, norm_type="spatial")
    model.save_pretrained(tmp_path / "movq")
    with pytest.raises(UserError, match="norm_type is 'spatial'"):
        import_weights(tmp_path / "movq", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# --- taming and similar codebases -----------------------------------------------------------------

CASES = {
    "taming": VQGAN(ch=32, mults=(1, 2), blocks=2, attended=(1,)),
    # latent-diffusion's f4 without attention, in the checkpoint of a diffusion model.
    "ldm": VQGAN(mults=(1, 2, 1), attended=(), mid_attention=False, z=3, dim=3),
    "gumbel": VQGAN(quantizer="gumbel", z=8, dim=8),
    "ibq": VQGAN(quantizer="ibq"),
    "llamagen": VQGAN("llamagen", "cosine", mults=(1, 1, 2), attended=(2,), z=16, dim=8),
    "magvit2": Magvit2(),
}
FAMILY = {"ldm": "taming", "gumbel": "taming_gumbel"}


@pytest.mark.parametrize("name", CASES)
def test_pytorch_families(tmp_path, images, name, capsys):
    model = randomise(CASES[name])
    state = model.state_dict()
    if name == "ldm":
        state = {f"first_stage_model.{k}": v for k, v in state.items()}
        state |= {"model.diffusion_model.out.0.weight": torch.zeros(3)}
    path = save(tmp_path / "theirs.ckpt", state, epoch=3)
    if name == "llamagen":
        extra = {"quantize.codebook_used": torch.zeros(8)}
        torch.save({"model": state | extra, "steps": 1}, path)
    import_weights(path, tmp_path / "ours", format="ibq" if name == "ibq" else None)
    assert f"imported {FAMILY.get(name, name)}:" in capsys.readouterr().out
    tokenizer = vq_jax.load(tmp_path / "ours")
    codes = model.encode(to_torch(images)).numpy()
    assert_same_tokenizer(
        tokenizer, images, codes, lambda c: to_numpy(model.decode(torch.tensor(c)))
    )


def taming_lpips():
    """Returns LPIPS on VGG16 with our names and with taming's, and an array we do not use.

    taming has torchvision's layers in five slices, and the linear heads after a dropout.
    """
    params = load_lpips()
    slices = [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]]
    layers = [f"net.slice{s + 1}.{n}" for s, numbers in enumerate(slices) for n in numbers]
    state = {}
    for j, layer in enumerate(layers):
        state[f"{layer}.weight"] = np.asarray(params[f"conv_{j}"]).transpose(3, 2, 0, 1)
        state[f"{layer}.bias"] = np.asarray(params[f"bias_{j}"])
    for i in range(5):
        state[f"lin{i}.model.1.weight"] = np.asarray(params[f"linear_{i}"])[None, :, None, None]
    named = {f"loss.perceptual_loss.{k}": torch.tensor(v.copy()) for k, v in state.items()}
    shift = {"loss.perceptual_loss.scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    return params, named, shift


@pytest.mark.parametrize("name", ["taming", "gumbel"])
def test_taming_import_and_export_with_discriminator_and_lpips(tmp_path, name):
    model, discriminator = randomise(CASES[name]), randomise(PatchGAN())
    state = model.state_dict()
    state |= {f"loss.discriminator.{k}": v for k, v in discriminator.state_dict().items()}
    params, lpips, shift = taming_lpips()
    state |= lpips | shift
    path = save(tmp_path / "theirs.ckpt", state)
    import_weights(path, tmp_path / "ours")
    chex.assert_trees_all_equal(load_lpips(folder=tmp_path / "ours"), params)
    export(tmp_path / "ours", tmp_path / "back", "taming")
    back = load_file(tmp_path / "back" / ARRAYS)
    assert back.keys() == state.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, state[key].numpy(), err_msg=key)
    # The export can be imported again.
    import_weights(tmp_path / "back", tmp_path / "again")
    again, before = (load_file(tmp_path / f / ARRAYS) for f in ("again", "ours"))
    chex.assert_trees_all_equal(again, before)


def test_moving_averages_are_imported(tmp_path, images):
    model, averaged = randomise(Magvit2(), 0), randomise(Magvit2(), 1)
    state = dict(model.state_dict())
    for key, value in averaged.state_dict().items():
        state[f"model_ema.{key.replace('.', '')}"] = value
    state["model_ema.decay"] = torch.tensor(0.999)
    import_weights(save(tmp_path / "x.ckpt", state), tmp_path / "ours")
    codes = averaged.encode(to_torch(images)).numpy()
    chex.assert_trees_all_equal(np.asarray(vq_jax.load(tmp_path / "ours").encode(images)), codes)


def test_half_precision_becomes_float32(tmp_path):
    state = randomise(CASES["taming"]).half().state_dict()
    import_weights(save(tmp_path / "x.ckpt", state), tmp_path / "ours")
    entries = vq_jax.load(tmp_path / "ours").codebooks()
    assert entries.dtype == np.float32
    np.testing.assert_array_equal(entries, state["quantize.embedding.weight"].float().numpy())
    CASES["taming"].float()


def test_all_wrong_arrays_are_listed_and_nothing_is_written(tmp_path):
    state = dict(randomise(CASES["taming"]).state_dict())
    del state["encoder.norm_out.bias"]
    state["decoder.conv_out.weight"] = torch.zeros(3, 16, 3, 3)
    state["encoder.down.0.block.0.extra"] = torch.zeros(2)
    with pytest.raises(UserError) as e:
        import_weights(save(tmp_path / "x.ckpt", state), tmp_path / "ours")
    text = str(e.value)
    assert "missing: encoder.norm_out.bias (here params/encoder/norm_out/bias)" in text
    assert "unexpected: encoder.down.0.block.0.extra, (2,)" in text
    assert "wrong shape: decoder.conv_out.weight" in text
    assert not (tmp_path / "ours").exists()


# case -> (name of an array, array, expected message)
BAD = {
    "rank": ("encoder.mid.block_1.conv1.weight", torch.zeros(32), "wrong shape: encoder.mid"),
    "codebook": ("quantize.embedding.weight", torch.zeros(2, 3, 4), "expected 2 dimensions"),
    "first": ("encoder.conv_in.weight", torch.zeros(5), "expected 4 dimensions"),
    "blocks": ("encoder.down.0.block.99999999.x", torch.zeros(1), "unexpected: encoder.down.0.bl"),
    "digits": (f"encoder.down.{'9' * 5000}.block.0.x", torch.zeros(1), "unexpected"),
    "names": ("encoder.\x1b[2Jevil\nvq_jax: all good", torch.zeros(1), r"unexpected: .*\\x1b\[2J"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_shapes_and_names_are_reported(tmp_path, name):
    key, array, message = BAD[name]
    state = dict(randomise(CASES["taming"]).state_dict()) | {key: array}
    with pytest.raises(UserError, match=message) as e:
        import_weights(save(tmp_path / "x.ckpt", state), tmp_path / "ours")
    assert "\x1b" not in str(e.value)
    assert not (tmp_path / "ours").exists()


def test_a_missing_codebook_is_refused_and_nan_gives_a_warning(tmp_path, capsys):
    state = dict(randomise(CASES["taming"]).state_dict())
    kl = {key: a for key, a in state.items() if not key.startswith("quantize")}
    with pytest.raises(UserError, match="no codebook .*KL autoencoder"):
        import_weights(save(tmp_path / "kl.ckpt", kl), tmp_path / "ours")
    state["encoder.conv_in.bias"] = torch.full_like(state["encoder.conv_in.bias"], torch.nan)
    import_weights(save(tmp_path / "nan.ckpt", state), tmp_path / "ours")
    assert "warning: 1 arrays have NaN or infinite values" in capsys.readouterr().out


def test_an_incomplete_discriminator_is_not_imported(tmp_path, capsys):
    state = dict(randomise(CASES["taming"]).state_dict())
    discriminator = randomise(PatchGAN()).state_dict()
    discriminator = {f"loss.discriminator.{k}": v for k, v in discriminator.items()}
    del discriminator["loss.discriminator.main.2.weight"]
    import_weights(save(tmp_path / "x.ckpt", state | discriminator), tmp_path / "ours")
    assert "also imported" not in capsys.readouterr().out
    assert not read_group(tmp_path / "ours", "discriminator")


def test_the_resolution_is_the_given_one_or_that_of_the_config_json(tmp_path):
    model = diffusers_model((32, 64), (1,), layers_per_block=1)
    for size, given, found in ((64, None, 64), (32, None, 256), (32, 128, 128)):
        model.register_to_config(sample_size=size)
        folder = tmp_path / f"{size}_{given}"
        model.save_pretrained(folder / "theirs")
        import_weights(folder / "theirs", folder / "ours", resolution=given)
        config = vq_jax.load(folder / "ours").config
        assert config.data.resolution == found
        assert config.model.attn_resolutions == (found // 2,)
