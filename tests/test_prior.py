"""Sampling from a prior and editing images. The params are random: the properties hold for any."""

from types import SimpleNamespace

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_prior, make_tokenizer

from vq_jax import editing
from vq_jax.errors import UserError
from vq_jax.prior import TrainedPrior
from vq_jax.runs import check_fingerprint
from vq_jax.sampling import log_probability


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def priors(tokenizer):
    return {name: make_prior(tokenizer, name) for name in ("causal", "masked", "random_order")}


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (24, 40, 3), np.uint8)


@pytest.mark.parametrize("name", ["causal", "masked", "random_order"])
def test_samples_depend_on_the_seed_and_index_and_not_on_the_batch(priors, name):
    prior = priors[name]
    five = prior.sample_codes(5, label="Flags", seed=3)
    np.testing.assert_array_equal(five, prior.sample_codes(5, label="Flags", seed=3))
    two = prior.sample_codes(2, label="Flags", seed=3, first=3)
    np.testing.assert_array_equal(five[3:], two)
    assert (five != prior.sample_codes(5, label="Flags", seed=4)).any()
    assert len({codes.tobytes() for codes in five}) == 5
    images = prior.sample(2, label="Flags", seed=3, first=3)
    assert images.shape == (2, 16, 16, 3) and np.abs(images).max() <= 1


def test_guidance_changes_samples_except_at_one_and_without_a_label(priors):
    for prior in priors.values():
        plain = prior.sample_codes(3, label=1)
        np.testing.assert_array_equal(plain, prior.sample_codes(3, label=1, guidance=1.0))
        assert (plain != prior.sample_codes(3, label=1, guidance=9.0)).any()
        # Without a label, guidance has no effect.
        unlabelled = prior.sample_codes(3, guidance=9.0)
        np.testing.assert_array_equal(unlabelled, prior.sample_codes(3))


@pytest.mark.parametrize("name", ["causal", "masked", "random_order"])
def test_given_codes_do_not_change(priors, name, rng):
    prior = priors[name]
    given = rng.integers(0, 32, (4, *prior.tokenizer.codes.shape))
    free = rng.random(given.shape) < 0.5
    codes, likelihood = prior.fill(given, free, label=[0, 1, 2, 0])
    np.testing.assert_array_equal(codes[~free], given[~free])
    assert (codes[free] != given[free]).any() and np.isfinite(likelihood).all()
    unchanged, likelihood = prior.fill(given, np.zeros_like(free))
    np.testing.assert_array_equal(unchanged, given)
    np.testing.assert_array_equal(likelihood, 0)


def test_log_likelihood_of_samples_is_that_of_the_model(priors):
    for name in ("causal", "random_order"):
        prior = priors[name]
        shape = (3, *prior.tokenizer.codes.shape)
        codes, likelihood = prior.fill(
            np.zeros(shape, int), np.ones(shape, bool), label="Objects", temperature=0.5, top_k=5
        )
        expected = prior.log_probability(codes, "Objects").sum(1)
        np.testing.assert_allclose(likelihood, expected, rtol=1e-4)
    with pytest.raises(UserError, match="masked"):
        priors["masked"].log_probability(codes)


def test_likeliest_candidate_is_kept(priors):
    prior = priors["causal"]
    best = prior.sample_codes(2, label=0, candidates=4)
    candidates = prior.sample_codes(8, label=0)
    likelihood = prior.log_probability(candidates, 0).sum(1).reshape(2, 4)
    expected = candidates.reshape(2, 4, *candidates.shape[1:])[[0, 1], likelihood.argmax(1)]
    np.testing.assert_array_equal(best, expected)


def test_random_order_prior_reads_given_codes_first(priors):
    # Only the last code is given, and the first sampled code depends on it.
    prior = priors["random_order"]
    n = prior.module.length
    free = np.ones((1, n), bool)
    free[0, -1] = False
    free = free.reshape(1, *prior.tokenizer.codes.shape)
    first = []
    for code in (0, 1):
        given = np.full((1, *prior.tokenizer.codes.shape), code)
        codes, likelihood = prior.fill(given, free, temperature=0.0)
        order = jnp.array([[n - 1, *range(n - 1)]])
        logits = prior.module.apply(
            {"params": prior.params}, jnp.asarray(codes.reshape(1, -1)), jnp.array([3]), None, order
        )
        greedy = np.asarray(logits.argmax(-1))[0, :-1]
        np.testing.assert_array_equal(codes.reshape(-1)[:-1], greedy)
        chex.assert_trees_all_close(
            likelihood[0], log_probability(logits[0, :-1], greedy).sum(), rtol=1e-4
        )
        first.append(codes.reshape(-1)[:-1])
    assert (first[0] != first[1]).any()


def test_labels_are_names_or_numbers_and_invalid_arguments_are_refused(priors):
    prior = priors["masked"]
    np.testing.assert_array_equal(prior.labels("Objects", 2), [2, 2])
    np.testing.assert_array_equal(prior.labels(["1", "Flags", 2], 3), [1, 0, 2])
    np.testing.assert_array_equal(prior.labels(None, 2), [3, 3])
    with pytest.raises(UserError, match="near: Food & Drink"):
        prior.labels("food", 1)
    with pytest.raises(UserError, match="no class 'Objcts'; near: Objects"):
        prior.labels("Objcts", 1)
    with pytest.raises(UserError, match="no class 7.*0 to 2"):
        prior.labels(7, 1)
    for invalid in (
        {"temperature": -1.0},
        {"steps": 0},
        {"choice_temperature": -1.0},
        {"seed": -1},
    ):
        with pytest.raises(UserError, match="-1|steps is 0"):
            prior.sample(1, **invalid)
    codes = np.zeros((4, 4, 4), np.int32)
    for free in (np.ones(4, bool), np.ones((3, 4, 4), bool), np.ones((4, 4), bool)):
        with pytest.raises(UserError, match=r"make them \[B, 4, 4\]"):
            prior.fill(codes, free)


def test_fingerprint_of_another_tokenizer_is_refused(tokenizer):
    other = make_tokenizer(seed=5)
    check_fingerprint(tokenizer, list(make_tokenizer().fingerprint), "it")
    with pytest.raises(UserError, match="another tokenizer"):
        check_fingerprint(other, list(tokenizer.fingerprint), "it")


@pytest.mark.parametrize("quantizer", ["residual/vq", "multiscale"])
@pytest.mark.parametrize("name", ["causal", "masked"])
def test_each_code_of_a_position_is_a_token(quantizer, name):
    tokenizer = make_tokenizer(quantizer)
    prior = make_prior(tokenizer, name)
    assert prior.module.length == np.prod(tokenizer.codes.shape)
    codes = prior.sample_codes(2)
    assert codes.shape == (2, *tokenizer.codes.shape)
    assert prior.sample(2).shape == (2, 16, 16, 3)


# --- edits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["causal", "masked", "random_order"])
def test_inpainting_keeps_every_pixel_outside_the_mask(priors, name, image):
    mask = np.zeros(image.shape[:2], bool)
    mask[5:13, 18:33] = True
    result = editing.inpaint(priors[name], image, mask, seed=1, candidates=2)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[~mask], image[~mask])
    assert (result[mask] != image[mask]).mean() > 0.5
    again = editing.inpaint(priors[name], image, mask, seed=1, candidates=2)
    np.testing.assert_array_equal(result, again)
    # Pixels under the mask do not affect the result.
    changed = np.where(mask[..., None], 255 - image, image)
    np.testing.assert_array_equal(editing.inpaint(priors[name], changed, mask, seed=1, candidates=2), result)  # fmt: skip


def test_windows_sample_every_free_code_once_and_keep_the_others(priors, rng):
    free_counts = []
    prior = priors["masked"]

    def fill(given, free, **settings):
        free_counts.append(free.sum())
        return prior.fill(given, free, **settings)

    spy = SimpleNamespace(module=prior.module, fill=fill)
    given = rng.integers(0, 32, (11, 14))
    free = rng.random((11, 14)) < 0.3
    codes = editing.fill_grid(spy, given, free, candidates=3)
    assert sum(free_counts) == 3 * free.sum() and len(free_counts) > 4
    np.testing.assert_array_equal(codes[~free], given[~free])


def test_outpainting_keeps_the_image(priors, image):
    result = editing.outpaint(priors["masked"], image, (3, 0, 10, 5))
    assert result.shape == (37, 45, 3)
    np.testing.assert_array_equal(result[3:27, 5:], image)


def test_variations_differ_more_with_a_larger_share(priors, image):
    prior = priors["masked"]
    few, many = (
        editing.variations(prior, image, share, 2, seed=2).astype(float) for share in (0.05, 1.0)
    )
    assert few.shape == (2, *image.shape) and (few[0] != few[1]).any()
    single = editing.variations(prior, image, 0.01, 1)[0].astype(float)
    assert np.abs(few[0] - single).mean() < np.abs(many[0] - single).mean()


@pytest.mark.parametrize("enlarge", [True, False])
def test_upscaling_enlarges_by_two_and_four(tokenizer, enlarge):
    prior = make_prior(tokenizer, "masked", "upscale", enlarge=enlarge)
    small = np.zeros((9, 22, 3), np.uint8)
    small[:, 11:] = 255
    assert editing.upscale(prior, small, 2).shape == (18, 44, 3)
    assert editing.upscale(prior, small, 4).shape == (36, 88, 3)
    first, other = (editing.upscale(prior, x, 2, temperature=0.0) for x in (small, 255 - small))
    assert (first != other).any()
    with pytest.raises(UserError, match="factor is 3"):
        editing.upscale(prior, small, 3)
    with pytest.raises(UserError, match="condition"):
        prior.sample(1)


def test_restoring_keeps_the_image_size(tokenizer, image):
    prior = make_prior(tokenizer, "masked", "restore")
    result = editing.restore(prior, image[:23, :39])
    assert result.shape == (23, 39, 3) and result.dtype == np.uint8


def test_invalid_edits_are_refused_with_the_reason(priors, tokenizer, image):
    prior = priors["masked"]
    with pytest.raises(UserError, match="mask is 3x4 pixels and the image 40x24"):
        editing.inpaint(prior, image, np.ones((4, 3), bool))
    with pytest.raises(UserError, match="whole image"):
        editing.inpaint(prior, image, np.ones((24, 40), bool))
    with pytest.raises(UserError, match="2x3 pixels, smaller than one code"):
        editing.inpaint(prior, image[:3, :2], np.ones((3, 2), bool))
    with pytest.raises(UserError, match="needs 'upscale'"):
        editing.upscale(prior, image, 2)
    with pytest.raises(UserError, match="margins are 0, 0, 0, 0"):
        editing.outpaint(prior, image, (0, 0, 0, 0))
    with pytest.raises(UserError, match="share is 2"):
        editing.variations(prior, image, 2, 1)
    with pytest.raises(UserError, match=r"float64 \(24, 40, 3\): make it uint8"):
        editing.restore(prior, image / 127.5 - 1)
    with pytest.raises(UserError, match="mask is uint8: make it bool"):
        editing.inpaint(prior, image, np.ones((24, 40), np.uint8))
    with pytest.raises(UserError, match="edits need a prior"):
        editing.variations(tokenizer, image, 0.5, 1)
    with pytest.raises(UserError, match="edits need a prior"):
        editing.inpaint(tokenizer, image, np.ones(image.shape[:2], bool))
    without_grid = TrainedPrior(
        prior.config,
        SimpleNamespace(
            strides=None,
            modality=prior.modality,
            module=None,
            variables={},
            codes=SimpleNamespace(grids=()),
        ),
        prior.module,
        prior.params,
        1,
    )
    with pytest.raises(UserError, match="with a grid of codes"):
        editing.restore(without_grid, image)


def test_extrapolation_keeps_known_pixels_and_fills_all_others(rng):
    values = np.full((40, 30, 2), 7.0)
    known = np.zeros((40, 30), bool)
    known[3, 4] = True
    np.testing.assert_allclose(editing.extrapolate(values, known), 7.0, rtol=1e-6)
    known = rng.random((40, 30)) < 0.5
    values = rng.normal(size=(40, 30, 2))
    filled = editing.extrapolate(values, known)
    np.testing.assert_array_equal(filled[known], values[known])
    assert np.abs(filled).max() <= np.abs(values[known]).max() + 1e-9
