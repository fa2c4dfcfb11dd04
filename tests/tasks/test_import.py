"""Tokenizers and priors of other codebases, by the same numbers here as there; and back."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import VQModel
from flax import serialization
from safetensors.numpy import load_file
from torch_models import VQGAN, Magvit2, MaskGIT, MinGPT, PatchGAN, Transformer, randomise

import vq_jax
from vq_jax.errors import UserError
from vq_jax.interop.weights import ARRAYS
from vq_jax.tasks.export import export
from vq_jax.tasks.import_weights import import_weights

LIMIT = 1e-4


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, size=(2, 32, 32, 3)).astype(np.float32)


def to_torch(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def to_numpy(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def held_alike(tokenizer, images, codes, decode):
    """The same codes, and what is decoded of them, here as there."""
    chex.assert_trees_all_equal(np.asarray(tokenizer.encode(images)), np.asarray(codes))
    assert len(np.unique(codes)) > 3
    expected = decode(codes)
    scale = max(1.0, np.abs(expected).max())
    chex.assert_trees_all_close(
        np.asarray(tokenizer.decode(np.asarray(codes))) / scale, expected / scale, atol=LIMIT
    )


def save(path, state, **beside):
    torch.save({"state_dict": state, **beside}, path)
    return path


# --- diffusers ------------------------------------------------------------------------------------


def diffusers_model(widths, attended, **kwargs):
    levels = range(len(widths))
    down = ["AttnDownEncoderBlock2D" if i in attended else "DownEncoderBlock2D" for i in levels]
    up = ["AttnUpDecoderBlock2D" if i in attended else "UpDecoderBlock2D" for i in levels]
    return randomise(
        VQModel(
            block_out_channels=widths, down_block_types=down, up_block_types=up[::-1],
            latent_channels=8, num_vq_embeddings=64, vq_embed_dim=6, sample_size=32, **kwargs,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "widths,attended,fields",
    [
        ((32,), (), {"layers_per_block": 2, "mid_block_add_attention": False}),
        ((32, 64), (1,), {"layers_per_block": 1}),
        ((64, 96, 64), (0, 2), {"layers_per_block": 1}),
    ],
)
def test_diffusers_both_ways(tmp_path, images, widths, attended, fields):
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
        held_alike(tokenizer, images, codes, decode)

    export(tmp_path / "ours", tmp_path / "back", "diffusers")
    again = VQModel.from_pretrained(tmp_path / "back").state_dict()
    before = model.state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_diffusers_old_names_of_attention(tmp_path, images):
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
    with torch.no_grad():
        latents = model.encode(to_torch(images)).latents
    tokenizer = vq_jax.load(tmp_path / "ours")
    found = tokenizer.module.apply(tokenizer.variables, images, method="encode")
    chex.assert_trees_all_close(found, to_numpy(latents), atol=LIMIT)


def test_an_unknown_relative_is_refused(tmp_path):
    model = diffusers_model((32,), (), layers_per_block=1, norm_type="spatial")
    model.save_pretrained(tmp_path / "movq")
    with pytest.raises(UserError, match="norm_type is 'spatial'"):
        import_weights(tmp_path / "movq", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# --- taming and its relatives ---------------------------------------------------------------------

CASES = {
    "taming": VQGAN(ch=32, mults=(1, 2), blocks=2, attended=(1,)),
    # latent-diffusion's f4 without attention, inside the file of a whole diffusion model
    "ldm": VQGAN(mults=(1, 2, 1), attended=(), mid_attention=False, z=3, dim=3),
    "gumbel": VQGAN(quantizer="gumbel"),
    "ibq": VQGAN(quantizer="ibq"),
    "llamagen": VQGAN("llamagen", "cosine", mults=(1, 1, 2), attended=(2,), z=16, dim=8),
    "magvit2": Magvit2(),
}
FAMILY = {"ldm": "taming", "gumbel": "taming_gumbel"}


@pytest.mark.parametrize("name", CASES)
def test_families_of_pytorch(tmp_path, images, name, capsys):
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
    held_alike(tokenizer, images, codes, lambda c: to_numpy(model.decode(torch.tensor(c))))


@pytest.mark.parametrize("name", ["taming", "gumbel"])
def test_taming_there_and_back_with_its_discriminator(tmp_path, name):
    model, judge = randomise(CASES[name]), randomise(PatchGAN())
    state = model.state_dict()
    state |= {f"loss.discriminator.{k}": v for k, v in judge.state_dict().items()}
    import_weights(save(tmp_path / "theirs.ckpt", state), tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", "taming")
    back = load_file(tmp_path / "back" / ARRAYS)
    left = [k for k in state if "running_" in k or "num_batches" in k]
    assert back.keys() == state.keys() - set(left)
    for key, array in back.items():
        np.testing.assert_array_equal(array, state[key].numpy(), err_msg=key)
    # Once more, from what was written.
    import_weights(tmp_path / "back", tmp_path / "again")
    again, before = (load_file(tmp_path / f / ARRAYS) for f in ("again", "ours"))
    chex.assert_trees_all_equal(again, before)


def test_moving_averages_are_taken(tmp_path, images):
    model, averaged = randomise(Magvit2(), 0), randomise(Magvit2(), 1)
    state = dict(model.state_dict())
    for key, value in averaged.state_dict().items():
        state[f"model_ema.{key.replace('.', '')}"] = value
    state["model_ema.decay"] = torch.tensor(0.999)
    import_weights(save(tmp_path / "x.ckpt", state), tmp_path / "ours")
    codes = averaged.encode(to_torch(images)).numpy()
    chex.assert_trees_all_equal(np.asarray(vq_jax.load(tmp_path / "ours").encode(images)), codes)


def test_half_precision_comes_as_float32(tmp_path):
    state = randomise(CASES["taming"]).half().state_dict()
    import_weights(save(tmp_path / "x.ckpt", state), tmp_path / "ours")
    entries = vq_jax.load(tmp_path / "ours").codebooks()
    assert entries.dtype == np.float32
    np.testing.assert_array_equal(entries, state["quantize.embedding.weight"].float().numpy())
    CASES["taming"].float()


def test_all_that_does_not_fit_is_listed_and_nothing_is_written(tmp_path):
    state = dict(randomise(CASES["taming"]).state_dict())
    del state["encoder.norm_out.bias"]
    state["decoder.conv_out.weight"] = torch.zeros(3, 16, 3, 3)
    state["encoder.down.0.block.0.extra"] = torch.zeros(2)
    with pytest.raises(UserError) as e:
        import_weights(save(tmp_path / "x.ckpt", state), tmp_path / "ours")
    text = str(e.value)
    assert "missing: encoder.norm_out.bias (here params/encoder/norm_out/bias)" in text
    assert "left over: encoder.down.0.block.0.extra, (2,)" in text
    assert "of another shape: decoder.conv_out.weight" in text
    assert not (tmp_path / "ours").exists()


# --- MaskGIT --------------------------------------------------------------------------------------


@pytest.fixture
def maskgit(tmp_path, images):
    model = MaskGIT()
    variables = model.init(jax.random.key(0), images)
    variables = jax.tree.map(lambda x: x + 0.1 if x.ndim == 1 else x, variables)
    path = tmp_path / "tokenizer_imagenet256_checkpoint"
    path.write_bytes(serialization.to_bytes(variables))
    import_weights(path, tmp_path / "tokenizer")
    return model, variables, vq_jax.load(tmp_path / "tokenizer")


def test_maskgits_tokenizer(maskgit, images):
    model, variables, tokenizer = maskgit
    codes, _ = model.apply(variables, (images + 1) / 2)

    def decode(codes):
        return np.asarray(2 * model.apply(variables, jnp.asarray(codes), method="decode") - 1)

    held_alike(tokenizer, images, np.asarray(codes), decode)


def test_maskgits_transformer(tmp_path, maskgit, rng):

    side, classes = 256 // 16, 5
    vocabulary = 64 + classes + 1
    model = Transformer(vocabulary, side * side + 1)
    tokens = rng.integers(0, 64, size=(2, 1 + side * side)).astype(np.int32)
    tokens[:, 0] = 64 + np.array([3, 0])
    tokens[:, 1::3] = vocabulary - 1
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(tokens))
    variables = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x + 0.1, variables)
    path = tmp_path / "maskgit_imagenet256_checkpoint"
    path.write_bytes(serialization.to_bytes(variables))
    import_weights(path, tmp_path / "prior", tokenizer=tmp_path / "tokenizer")
    prior = vq_jax.load(tmp_path / "prior")
    assert prior.class_names == ("0", "1", "2", "3", "4")
    codes = np.where(tokens[:, 1:] == vocabulary - 1, -1, tokens[:, 1:])
    ours = prior.module.apply({"params": prior.params}, codes, jnp.array([3, 0]))
    theirs = model.apply(variables, tokens)[:, 1:, :64]
    chex.assert_trees_all_close(ours, theirs, atol=LIMIT * float(jnp.abs(theirs).max()))
    with pytest.raises(UserError, match="without the tokenizer"):
        import_weights(path, tmp_path / "other")


# --- taming's transformer -------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 7])
def test_tamings_transformer_with_the_tokenizer_in_its_file(tmp_path, classes, rng):
    mults = (1, 1, 1, 1, 1, 1, 1)
    first = randomise(VQGAN(mults=mults, attended=(), blocks=1))  # 256 pixels to 4 codes a side
    model = randomise(MinGPT(places=16))
    state = {f"first_stage_model.{k}": v for k, v in first.state_dict().items()}
    state |= {f"transformer.{k}": v for k, v in model.state_dict().items()}
    path = save(tmp_path / "net2net.ckpt", state)
    import_weights(path, tmp_path / "prior", classes=classes, heads=4)
    prior = vq_jax.load(tmp_path / "prior")
    codes = rng.integers(0, 64, size=(2, 16))
    label = np.array([5, 2]) if classes else np.array([0, 0])
    tokens = np.concatenate([label[:, None], codes[:, :-1]], axis=1)
    theirs = model(torch.tensor(tokens)).numpy()
    ours = prior.module.apply({"params": prior.params}, codes, jnp.asarray(label))
    chex.assert_trees_all_close(np.asarray(ours), theirs, atol=LIMIT)
    drawn = prior.sample_codes(2, label=[5, 2] if classes else None)
    chex.assert_shape(drawn, (2, 4, 4))


def test_a_transformer_conditioned_on_images_is_refused(tmp_path):
    state = {f"transformer.{k}": v for k, v in MinGPT().state_dict().items()}
    first = VQGAN(mults=(1,) * 7, attended=()).state_dict()
    for name in ("first_stage_model", "cond_stage_model"):
        state |= {f"{name}.{k}": v for k, v in first.items()}
    with pytest.raises(UserError, match="conditioned on an image"):
        import_weights(save(tmp_path / "x.ckpt", state), tmp_path / "prior", heads=4)


# --- ours -----------------------------------------------------------------------------------------


@pytest.fixture
def imported(tmp_path):
    path = save(tmp_path / "theirs.ckpt", randomise(CASES["taming"]).state_dict())
    import_weights(path, tmp_path / "ours")
    return tmp_path / "ours"


def test_our_own_form_is_opened_without_orbax_and_comes_back_the_same(tmp_path, imported):
    export(imported, tmp_path / "exported", "vq_jax")
    import_weights(tmp_path / "exported", tmp_path / "back")
    files = [imported, tmp_path / "exported", tmp_path / "back"]
    arrays = [load_file(folder / ARRAYS) for folder in files]
    chex.assert_trees_all_equal(*arrays)
    assert {p.name for p in (tmp_path / "exported").iterdir()} == {ARRAYS, "config.json"}
    prints = {vq_jax.load(folder).fingerprint for folder in files}
    assert len(prints) == 1


def test_stablehlo_runs_without_the_package_for_any_number_of_images(tmp_path, rng):
    diffusers_model((32, 64), (1,), layers_per_block=1).save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
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
    with pytest.raises(UserError, match="holds a run already"):
        import_weights(tmp_path / "theirs.ckpt", imported)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="no file of weights"):
        import_weights(tmp_path / "text", tmp_path / "x")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "linear.pt")
    with pytest.raises(UserError, match="of no known kind: its arrays are called weight"):
        import_weights(tmp_path / "linear.pt", tmp_path / "x")
    with pytest.raises(UserError, match="of no known llamagen"):
        import_weights(tmp_path / "theirs.ckpt", tmp_path / "x", format="llamagen")


def test_a_folder_that_has_been_tampered_with_is_refused(tmp_path, imported):
    config = json.loads((imported / "config.json").read_text())
    config["model"]["ch"] = 64
    shutil.copytree(imported, tmp_path / "changed")
    (tmp_path / "changed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="of another shape: params/decoder/conv_in/bias"):
        vq_jax.load(tmp_path / "changed")
