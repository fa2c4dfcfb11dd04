"""Tests that imported priors, MaskGIT's and taming's, give the same logits as the originals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from alike import LIMIT, assert_same_tokenizer, save
from flax import serialization
from torch_models import VQGAN, MaskGIT, MinGPT, Transformer, randomise

import vq_jax
from vq_jax.errors import UserError
from vq_jax.tasks.import_weights import import_weights


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, size=(2, 32, 32, 3)).astype(np.float32)


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

    assert_same_tokenizer(tokenizer, images, np.asarray(codes), decode)


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
    with pytest.raises(UserError, match="without its tokenizer"):
        import_weights(path, tmp_path / "other")


@pytest.mark.parametrize("classes,positions,sos", [(0, 16, 0), (7, 16, 0), (0, 25, 3)])
def test_tamings_transformer_with_the_tokenizer_in_its_file(
    tmp_path, classes, positions, sos, rng, capsys
):
    """It may have more positions than an image has codes, and a start token other than 0."""
    mults = (1, 1, 1, 1, 1, 1, 1)
    first = randomise(
        VQGAN(mults=mults, attended=(), blocks=1)
    )  # A side of 256 pixels has 4 codes.
    model = randomise(MinGPT(positions=positions))
    state = {f"first_stage_model.{k}": v for k, v in first.state_dict().items()}
    state |= {f"transformer.{k}": v for k, v in model.state_dict().items()}
    path = save(tmp_path / "net2net.ckpt", state)
    import_weights(path, tmp_path / "prior", classes=classes, heads=4, sos_token=sos)
    assert "not imported" not in capsys.readouterr().out
    prior = vq_jax.load(tmp_path / "prior")
    codes = rng.integers(0, 64, size=(2, 16))
    label = np.array([5, 2]) if classes else np.array([0, 0])
    begin = label if classes else np.array([sos, sos])
    tokens = np.concatenate([begin[:, None], codes[:, :-1]], axis=1)
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


def test_a_transformer_without_heads_or_arrays_is_refused_and_nothing_is_written(tmp_path):
    state = {f"transformer.{k}": v for k, v in MinGPT().state_dict().items()}
    first = VQGAN(mults=(1,) * 7, attended=()).state_dict()
    state |= {f"first_stage_model.{k}": v for k, v in first.items()}
    path = save(tmp_path / "x.ckpt", state)
    with pytest.raises(UserError, match=r"give heads \(n_head in its yaml\)"):
        import_weights(path, tmp_path / "prior")
    del state["transformer.blocks.1.attn.query.weight"]
    del state["transformer.pos_emb"]
    state["transformer.blocks.0.extra"] = torch.zeros(2)
    with pytest.raises(UserError) as e:
        import_weights(save(tmp_path / "y.ckpt", state), tmp_path / "prior", heads=4)
    for line in (
        "missing: blocks.1.attn.query.weight", "missing: pos_emb", "unexpected: blocks.0.extra"
    ):  # fmt: skip
        assert line in str(e.value)
    assert not (tmp_path / "prior").exists()
