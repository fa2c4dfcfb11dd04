"""Transformers over patches (`vit`) and latent tokens (`titok`): positions, sizes, nested dropout."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import write

from vq_jax import config as configs
from vq_jax.errors import UserError
from vq_jax.models import MODELS, Tokenizer
from vq_jax.models.transforms import from_patches, to_patches
from vq_jax.quantizers import VectorQuantizer
from vq_jax.tasks.reconstruct import reconstruct_one
from vq_jax.tasks.train_tokenizer import tokenizer_job
from vq_jax.tokenizer import TrainedTokenizer

SPEC = jax.ShapeDtypeStruct((16, 16, 3), jnp.float32)
SMALL = {"patch": 4, "layers": 2, "width": 32, "heads": 2}
KEY = jax.random.key(0)


def make(name, **fields):
    encoder, decoder = MODELS[name].make(spec=SPEC, dim=6, dtype=jnp.float32, **SMALL | fields)
    return Tokenizer(encoder=encoder, quantizer=VectorQuantizer(32, 6), decoder=decoder)


def test_patches_are_inverted(rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 12, 3)), jnp.float32)
    patches = to_patches(x, 4)
    chex.assert_shape(patches, (2, 2, 3, 48))
    np.testing.assert_array_equal(patches[0, 1, 2].reshape(4, 4, 3), x[0, 4:, 8:])
    np.testing.assert_array_equal(from_patches(patches, 4), x)


def test_learned_positions_are_resampled_for_other_sizes(rng):
    encoder = make("vit", position="learned").encoder
    variables = encoder.init(KEY, jnp.zeros((1, 16, 16, 3)))
    places = variables["params"]["trunk"]["places"]
    chex.assert_shape(places, (4, 4, 32))
    # With the same vector at all positions, the grid does not matter.
    constant = jnp.broadcast_to(places[:1, :1], places.shape)
    variables["params"]["trunk"]["places"] = constant
    row = jnp.asarray(rng.normal(size=(1, 4, 4, 3)), jnp.float32)
    small = encoder.apply(variables, jnp.tile(row, (1, 4, 4, 1)))
    large = encoder.apply(variables, jnp.tile(row, (1, 8, 6, 1)))
    chex.assert_shape(large, (1, 8, 6, 6))
    chex.assert_trees_all_close(large, jnp.broadcast_to(small[:, :1, :1], large.shape), atol=1e-5)


def test_rotary_positions_tell_patches_apart(rng):
    encoder = make("vit").encoder
    row = jnp.asarray(rng.normal(size=(1, 4, 4, 3)), jnp.float32)
    x = jnp.tile(row, (1, 4, 4, 1)).at[:, :4, :4].set(0.0)
    variables = encoder.init(KEY, x)
    variables = jax.tree.map(lambda a: 5 * a if a.ndim > 1 else a, variables)
    z = encoder.apply(variables, x)[0]
    assert np.abs(z[1, 2] - z[2, 1]).max() > 1e-3


def test_missing_latents_count_as_zeros():
    module = make("titok", tokens=6)
    variables = module.init(KEY, jnp.zeros((1, *SPEC.shape)))
    z = jax.random.normal(KEY, (2, 6, 6))
    of_three = module.apply(variables, z[:, :3], method="decode_latents")
    zeros = z.at[:, 3:].set(0.0)
    expected = module.apply(variables, zeros, method="decode_latents")
    np.testing.assert_array_equal(of_three, expected)


def test_nested_dropout_drops_the_last_latents_of_some_examples():
    module = make("titok", tokens=6, nested_dropout=0.5)
    z = jnp.ones((4000, 6, 2))
    kept = np.asarray(module.drop_last(z, KEY)).all(-1)
    assert (np.diff(kept.astype(int), axis=1) <= 0).all() and kept[:, 0].all()
    share = np.bincount(kept.sum(1), minlength=7)[1:] / 4000
    np.testing.assert_allclose(share[:-1], 1 / 12, atol=0.02)  # half of them, evenly 1 to 6
    assert make("titok", tokens=6).drop_last(z, KEY) is z


def test_reconstruction_from_the_first_codes(rng):
    config = configs.base("titok", "vq")
    config.data.resolution = 16
    config.model.update(SMALL | {"tokens": 6})
    config.quantizer.update(num_codes=32, dim=6)
    config.phases.joint = 1
    module = configs.make_tokenizer(config)
    variables = module.init(KEY, jnp.zeros((1, *SPEC.shape)))
    tokenizer = TrainedTokenizer(config, module, variables, 1)
    assert tokenizer.codes.grid == (6,) and tokenizer.strides is None
    x = rng.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    whole = reconstruct_one(tokenizer, x)
    np.testing.assert_array_equal(reconstruct_one(tokenizer, x, 6), whole)
    codes = tokenizer.encode(jnp.asarray(x[None], jnp.float32) / 127.5 - 1)
    first = tokenizer.modality.to_raw(tokenizer.decode(codes[:, :2])[0])
    np.testing.assert_array_equal(reconstruct_one(tokenizer, x, 2), first)


def test_wrong_fields_are_refused():
    config = configs.base("vit", "vq")
    config.phases.joint = 1
    config.data.resolution = 20
    with pytest.raises(UserError, match=r"multiple of model\.patch"):
        configs.check(config)
    config.data.resolution = 32
    config.model.position = "rotary"
    with pytest.raises(UserError, match=r"model\.position"):
        configs.check(config)
    config = configs.base("titok", "vq")
    config.phases.joint = 1
    config.data.resolution = 64
    config.model.decoder_heads = 7
    with pytest.raises(UserError, match=r"model\.decoder_width 768 .* model\.decoder_heads, 7"):
        configs.check(config)
    config.model.decoder_heads = 0
    config.model.pixel_codes = 32
    config.model.patch = 8
    with pytest.raises(UserError, match="enlarges by 16"):
        configs.check(config)


def test_a_two_stage_model_starts_from_the_decoder_of_another_tokenizer(tmp_path):
    config = configs.base("maskgit", "vq")
    config.data.resolution = 16
    config.model.update(ch=8, ch_mult=(1, 2, 2), num_res_blocks=1)
    config.quantizer.update(num_codes=24, dim=6)
    config.phases.joint = 1
    module = configs.make_tokenizer(config)
    variables = jax.jit(module.init)(KEY, jnp.zeros((1, *SPEC.shape)))
    (tmp_path / "pixels").mkdir()
    write(TrainedTokenizer(config, module, variables, 1), tmp_path / "pixels")

    config = configs.base("titok", "vq")
    config.data.resolution = 16
    pixels = {"pixel_codes": 24, "pixel_dim": 6, "pixel_ch": 8, "pixel_ch_mult": (1, 2, 2)}
    config.model.update(SMALL | {"tokens": 6, "pixel_blocks": 1} | pixels)
    config.quantizer.update(num_codes=32, dim=6)
    config.phases.joint = 1
    config.start_from = str(tmp_path / "pixels")
    job = tokenizer_job(config, tmp_path / "run", KEY)
    params = jax.device_get(job.init().generator.params)
    taken, entries = (params["decoder"][name] for name in ("pixel_decoder", "pixel_codebook"))
    chex.assert_trees_all_equal(taken, variables["params"]["decoder"])
    chex.assert_trees_all_equal(entries, variables["params"]["quantizer"]["book"]["codebook"])
    config.model.pixel_ch = 16
    with pytest.raises(UserError, match="wrong shape"):
        tokenizer_job(config, tmp_path / "run", KEY)
