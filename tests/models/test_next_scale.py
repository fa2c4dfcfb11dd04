"""The next-scale prior: what sees what, one scale after another against all at once, samples, edits."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CLASSES, make_prior, make_prior_config, make_tokenizer

from vq_jax import config as configs
from vq_jax import editing, sampling
from vq_jax.errors import UserError
from vq_jax.models import PRIORS
from vq_jax.tasks.train_prior import describe_codes, make_prior_recipe
from vq_jax.tokenizer import TrainedTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> TrainedTokenizer:
    return make_tokenizer("multiscale")


@pytest.fixture(scope="module")
def prior(tokenizer):
    """A prior with random params; gates are large enough for every dependence to show."""
    made = make_prior(tokenizer, "next_scale")
    for layer in range(made.config.prior.layers):
        dense = made.params[f"block_{layer}"]["modulation"]
        dense["bias"] = jnp.where(jnp.arange(len(dense["bias"])) < 64, 1.0, 0.0)
    return made


def make_hierarchy():
    """A tokenizer with levels that are no scales of one sum."""
    config = configs.base("vqvae2", "hierarchy/vq")
    config.data.resolution = 16
    config.model.update(hidden=16, res_hidden=8)
    config.quantizer.update(sides=(2, 4))
    config.phases.joint = 1
    module = configs.make_tokenizer(config)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return TrainedTokenizer(config, module, variables, 1)


def draw_codes(tokenizer, count=2):
    shape = (count, *tokenizer.codes.shape)
    return jax.random.randint(jax.random.key(3), shape, 0, tokenizer.codes.num_codes)


def test_logits_depend_on_coarser_scales_only(prior, tokenizer):
    module, codes = prior.module, draw_codes(tokenizer, 1)
    logits = jax.jit(partial(module.apply, prior.variables))
    before = logits(codes, jnp.array([1]))
    scale = np.repeat(np.arange(3), module.sizes)
    for i in range(3):
        changed = jnp.where(scale == i, (codes + 5) % 32, codes)
        moved = np.abs(logits(changed, jnp.array([1])) - before).max(-1)[0]
        assert (moved[scale <= i] == 0).all()
        assert (moved[scale > i] > 1e-5).all()


def test_the_sum_of_all_scales_is_what_the_codes_decode_to(prior, tokenizer):
    module, codes = prior.module, draw_codes(tokenizer)
    total = module.empty_sum(len(codes))
    for i, (start, size) in enumerate(zip(module.starts, module.sizes, strict=True)):
        part = codes[:, start : start + size]
        total = module.apply(prior.variables, i, part, total, method="add_scale")
    expected = tokenizer.module.apply(tokenizer.variables, codes, method="lookup")
    chex.assert_trees_all_close(total, expected, atol=1e-5)


def test_one_scale_after_another_equals_all_at_once(prior, tokenizer):
    module, codes, label = prior.module, draw_codes(tokenizer), jnp.array([0, 3])
    total, cache, found = module.empty_sum(len(codes)), None, []
    for i, (start, size) in enumerate(zip(module.starts, module.sizes, strict=True)):
        logits, cache = module.apply(prior.variables, i, total, label, cache, method="scale_logits")
        found.append(logits)
        part = codes[:, start : start + size]
        total = module.apply(prior.variables, i, part, total, method="add_scale")
    expected = module.apply(prior.variables, codes, label)
    chex.assert_trees_all_close(jnp.concatenate(found, axis=1), expected, atol=1e-4)


def test_samples_keep_given_codes_and_have_the_likelihood_of_the_others(prior, tokenizer):
    given = np.asarray(draw_codes(tokenizer))
    free = np.zeros(given.shape, bool)
    free[:, 1:5] = free[0, 9] = True
    codes, likelihood = prior.fill(given, free, label="Objects", seed=2)
    np.testing.assert_array_equal(codes[~free], given[~free])
    assert (codes[free] != given[free]).any()
    log_p = prior.log_probability(codes, label="Objects")
    np.testing.assert_allclose(likelihood, (log_p * free).sum(1), rtol=1e-4)
    alone, _ = prior.fill(given[1:], free[1:], label="Objects", seed=2, first=1)
    np.testing.assert_array_equal(alone[0], codes[1])


def test_frequencies_of_samples_are_the_probabilities(prior, tokenizer):
    codes = prior.sample_codes(4096, label="Flags", seed=1)
    logits = prior.module.apply(prior.variables, codes[:1], jnp.array([0]))
    p = np.asarray(jax.nn.softmax(logits[0, 0]))
    found = np.bincount(codes[:, 0], minlength=32) / len(codes)
    assert np.abs(found - p).max() < 4 * np.sqrt(p.max() / len(codes))


def test_guidance_rises_with_the_scale():
    draw = sampling.Draw(guidance=3.0, guidance_schedule="linear", temperature=0.0)
    seen = []

    def logits_of(i, total, cache):
        # Code 0 leads slightly with the label, and by far without it.
        seen.append(i)
        return jnp.array([[[[1.0, 0.9]]], [[[2.0, 0.0]]]]), None

    one, all_free = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    codes, _ = sampling.sample_scales(
        logits_of, lambda i, codes, total: total, jnp.zeros(1), (1, 1),
        sampling.row_keys(jax.random.key(0), 0, 1), one, all_free, draw,
    )  # fmt: skip
    assert seen == [0, 1]
    # Scale 0 has guidance 1: 1 against .9. Scale 1 has 3: 2 - 3 against 2.7.
    np.testing.assert_array_equal(codes, [[0, 1]])


def test_inpainting_and_variations_keep_what_is_given(prior, rng):
    image = rng.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[4:12, 6:16] = True
    result = editing.inpaint(prior, image, mask, seed=1)
    np.testing.assert_array_equal(result[~mask], image[~mask])
    assert (result[mask] != image[mask]).mean() > 0.5
    free = editing.free_codes(prior, mask, 4)
    assert not free[0] and free[5:].reshape(4, 4)[1:3, 1:].all() and free[5:].sum() == 6
    assert editing.variations(prior, image, 0.5, 2).shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match="up to 16x16"):
        editing.inpaint(prior, np.zeros((32, 32, 3), np.uint8), np.eye(32, dtype=bool))


def test_remat_does_not_change_gradients(prior, tokenizer):
    codes, label = draw_codes(tokenizer), jnp.array([0, 3])

    def loss(params, module):
        variables = prior.variables | {"params": params}
        return jnp.square(module.apply(variables, codes, label)).mean()

    grads = jax.jit(jax.grad(loss), static_argnums=1)
    again = grads(prior.params, prior.module.clone(remat=True))
    chex.assert_trees_all_close(grads(prior.params, prior.module), again, rtol=1e-4, atol=1e-6)


def test_other_tokenizers_and_conditions_are_refused(tokenizer):
    fields = {"num_codes": 8, "classes": 0, "dtype": jnp.float32, "books": 1}
    with pytest.raises(ValueError, match="'multiscale'"):
        PRIORS["next_scale"](grid=(4, 4), condition=(), **fields)
    with pytest.raises(ValueError, match="no condition"):
        PRIORS["next_scale"](grid=(5,), grids=((1, 1), (2, 2)), condition=(5,), **fields)


def test_priors_over_a_hierarchy_are_refused_by_name():
    tokenizer = make_hierarchy()
    with pytest.raises(UserError, match="'multiscale'"):
        make_prior_recipe(make_prior_config(tokenizer, "next_scale"), None, tokenizer)


def test_old_runs_go_on_without_levels(tokenizer):
    new = make_prior_config(tokenizer, "causal")
    old = new.copy_and_resolve_references()
    old.codes.grids = ()
    again = new.copy_and_resolve_references()
    describe_codes(again.unlock(), tokenizer, CLASSES, old)
    assert new.codes.grids and not configs.differences(old, again)
    assert not (again.codes.latent or again.codes.radices)

    # A prior may start from one over other scales: the scales are those of its own tokenizer.
    old.codes.grids = ((1, 1), (3, 3))
    describe_codes(again, tokenizer, CLASSES, old)
    assert again.codes.grids == new.codes.grids


def test_a_causal_prior_knows_the_places_and_levels_of_a_pyramid(tokenizer):
    module = make_prior(tokenizer, "causal").module
    np.testing.assert_allclose(module._coordinates()[:6], [
        (-1, -1), (1.5, 1.5), (0.5, 0.5), (0.5, 2.5), (2.5, 0.5), (2.5, 2.5),
    ])  # fmt: skip
    params = module.init(jax.random.key(0), draw_codes(tokenizer, 1), jnp.array([0]))["params"]
    chex.assert_shape(params["levels"], (3, 32))
