"""Samplers, on small tables of logits with known distributions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vq_jax.sampling import (
    Draw,
    draw_codes,
    filter_logits,
    guide,
    halton_order,
    log_probability,
    row_keys,
    sample_autoregressive,
    sample_masked,
)

ROWS = 20_000
KEYS = row_keys(jax.random.key(0), 0, ROWS)


def fits(counts, probabilities):
    """Whether a chi-square test accepts counts as samples of the probabilities."""
    p = np.asarray(probabilities, np.float64)
    expected = p / p.sum() * np.sum(counts)
    possible = expected > 0
    assert not np.asarray(counts)[~possible].any()
    return (
        possible.sum() == 1
        or stats.chisquare(np.asarray(counts)[possible], expected[possible]).pvalue > 1e-4
    )


@pytest.mark.parametrize(
    "draw,expected",
    [
        (Draw(), [0.5, 0.3, 0.15, 0.05]),
        (Draw(temperature=0.5), np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        (Draw(temperature=0.0), [1, 0, 0, 0]),
        (Draw(top_k=2), [5 / 8, 3 / 8, 0, 0]),
        (Draw(top_p=0.6), [5 / 8, 3 / 8, 0, 0]),
        (Draw(top_p=0.4), [1, 0, 0, 0]),
        (Draw(min_p=0.2), np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        (Draw(top_k=3, top_p=0.8), [5 / 8, 3 / 8, 0, 0]),
    ],
)
def test_codes_are_drawn_with_their_probabilities(draw, expected):
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    codes = draw_codes(KEYS, jnp.broadcast_to(logits, (ROWS, 4)), draw)
    assert fits(np.bincount(codes, minlength=4), expected)


def test_top_p_keeps_the_smallest_sufficient_set(rng):
    logits = jnp.asarray(rng.normal(size=(200, 50)) * 2, jnp.float32)
    p = np.asarray(jax.nn.softmax(logits))
    for top_p in (0.1, 0.5, 0.9, 0.999):
        kept = np.isfinite(filter_logits(logits, top_p=top_p))
        kept_p = np.where(kept, p, 0)
        assert (kept_p.sum(1) >= top_p - 1e-5).all()
        smallest = np.where(kept, p, 1).min(1)
        assert (kept_p.sum(1) - smallest < top_p + 1e-5).all()  # one code fewer is not enough
        assert (np.where(kept, 0, p).max(1) <= smallest).all()  # those kept are the likeliest


def test_filters_keep_no_extra_codes_of_equal_logits():
    assert np.isfinite(filter_logits(jnp.zeros((1, 9)), top_k=4)).sum() == 4
    assert np.isfinite(filter_logits(jnp.zeros((1, 9)), temperature=0.0)).sum() == 1


def test_disabled_filters_do_not_change_logits(rng):
    logits = jnp.asarray(rng.normal(size=(3, 7)), jnp.float32)
    chex.assert_trees_all_equal(filter_logits(logits), logits)
    chex.assert_trees_all_equal(filter_logits(logits, top_k=99), logits)


def test_guidance_combines_both_logits_by_its_scale_and_schedule(rng):
    both = jnp.asarray(rng.normal(size=(2, 3, 7)), jnp.float32)
    chex.assert_trees_all_close(guide(both, Draw(guidance=1.0), 0.3), both[0], atol=1e-6)
    chex.assert_trees_all_close(guide(both, Draw(guidance=0.0), 0.3), both[1], atol=1e-6)
    full = guide(both, Draw(guidance=3.0), 0.0)
    chex.assert_trees_all_close(full, both[1] + 3.0 * (both[0] - both[1]), atol=1e-5)
    for schedule in ("linear", "cosine"):
        draw = Draw(guidance=3.0, guidance_schedule=schedule)
        chex.assert_trees_all_close(guide(both, draw, 0.0), both[0], atol=1e-5)
        chex.assert_trees_all_close(guide(both, draw, 1.0), full, atol=1e-5)
        chex.assert_trees_all_close(
            guide(both, draw, 0.5), both[1] + 2.0 * (both[0] - both[1]), atol=1e-5
        )


def test_error_names_the_field_that_is_out_of_range():
    for fields, name in (({"temperature": -1}, "temperature"), ({"top_p": 0.0}, "top_p"),
                         ({"guidance_schedule": "square"}, "guidance_schedule")):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            Draw(**fields)


# --- autoregressive -------------------------------------------------------------------------------

# Log-probabilities of a Markov chain, [previous code, next code].
_TABLE = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]))


def sample_chain(given, free, order, draw=None, keys=KEYS):
    """Samples a Markov chain over the tokens in the order visited, as if a 0 came first."""
    rows = len(given)

    def begin():
        return jnp.broadcast_to(_TABLE[0], (1, rows, 3)), None

    def step(code, n, position, following, cache):
        return _TABLE[code][None], cache

    return jax.jit(sample_autoregressive, static_argnums=(0, 1, 6))(
        begin, step, keys, given, free, order, draw or Draw()
    )


def test_autoregressive_codes_have_the_joint_distribution():
    order = jnp.broadcast_to(jnp.array([1, 0]), (ROWS, 2))
    zeros = jnp.zeros((ROWS, 2), jnp.int32)
    codes, likelihood = sample_chain(zeros, jnp.ones((ROWS, 2), bool), order)
    table = np.exp(_TABLE)
    joint = table[0][:, None] * table  # [visited first, visited second]
    pairs = np.asarray(codes[:, 1] * 3 + codes[:, 0])
    assert fits(np.bincount(pairs, minlength=9), joint.reshape(-1))
    np.testing.assert_allclose(likelihood, np.log(joint.reshape(-1))[pairs], rtol=1e-5)


def test_given_codes_stay_and_condition_the_others():
    free = jnp.broadcast_to(jnp.array([False, True]), (ROWS, 2))
    given = jnp.ones((ROWS, 2), jnp.int32)
    order = jnp.broadcast_to(jnp.arange(2), (ROWS, 2))
    codes, likelihood = sample_chain(given, free, order)
    assert (codes[:, 0] == 1).all()
    assert fits(np.bincount(codes[:, 1], minlength=3), np.exp(_TABLE[1]))
    np.testing.assert_allclose(likelihood, _TABLE[1][codes[:, 1]], rtol=1e-5)


def test_row_does_not_depend_on_its_batch():
    order = jnp.broadcast_to(jnp.arange(4), (8, 4))
    given, free = jnp.zeros((8, 4), jnp.int32), jnp.ones((8, 4), bool)
    whole, _ = sample_chain(given, free, order, keys=KEYS[:8])
    part, _ = sample_chain(given[:3], free[:3], order[:3], keys=row_keys(jax.random.key(0), 5, 3))
    np.testing.assert_array_equal(whole[5:], part)


# --- masked ---------------------------------------------------------------------------------------


def table(rng, tokens=6):
    return jnp.asarray(rng.normal(size=(1, 1, tokens, 4)), jnp.float32)


def sample_table(logits, steps, given=None, free=None, rows=ROWS, **settings):
    tokens = logits.shape[2]
    given = jnp.zeros((rows, tokens), jnp.int32) if given is None else given
    free = jnp.ones((rows, tokens), bool) if free is None else free

    def apply(codes):
        return jnp.broadcast_to(logits, (1, rows, tokens, 4))

    return sample_masked(
        apply, KEYS[:rows], given, free, steps, settings.pop("draw", Draw()), **settings
    )


@pytest.mark.parametrize("steps", [1, 3, 6, 20])
def test_independent_codes_in_a_fixed_order_are_drawn_from_their_own_logits(rng, steps):
    # Fixing the most confident codes first favours likely codes. A fixed order does not.
    logits = table(rng)
    codes, likelihood = sample_table(logits, steps, rank_N=jnp.asarray(halton_order((2, 3))))
    p = np.asarray(jax.nn.softmax(logits[0, 0]))
    for n in range(6):
        assert fits(np.bincount(codes[:, n], minlength=4), p[n])
    np.testing.assert_allclose(likelihood, log_probability(logits[0], codes).sum(1), rtol=1e-4)


def test_given_codes_stay_and_each_step_fixes_others(rng):
    given = jnp.asarray(rng.integers(0, 4, (64, 6)), jnp.int32)
    free = jnp.asarray(rng.random((64, 6)) < 0.5)
    inputs = []

    def apply(codes):
        jax.debug.callback(lambda c: inputs.append(np.asarray(c)), codes, ordered=True)
        return jnp.broadcast_to(table(rng), (1, 64, 6, 4))

    codes, _ = sample_masked(apply, KEYS[:64], given, free, 4, Draw())
    jax.effects_barrier()
    assert (np.where(free, given, codes) == given).all() and (codes >= 0).all()
    assert len(inputs) == 4
    for before, after in zip(inputs, [*inputs[1:], np.asarray(codes)], strict=True):
        fixed = before >= 0
        np.testing.assert_array_equal(before[fixed], after[fixed])
        unfinished = (before < 0).any(1)  # a step with masked codes fixes at least one
        assert ((after >= 0).sum(1)[unfinished] > fixed.sum(1)[unfinished]).all()
    masked = (inputs[1] < 0).sum(1)
    expected = np.floor(np.asarray(free).sum(1) * np.cos(np.pi / 8) + 1e-4)
    np.testing.assert_array_equal(masked, np.minimum(expected, np.maximum(free.sum(1) - 1, 0)))


def test_most_confident_codes_are_fixed_first_without_noise():
    logits = jnp.log(jnp.array([[0.99, 0.01], [0.6, 0.4], [0.9, 0.1]]))[None, None]
    fixed = []

    def apply(codes):
        jax.debug.callback(lambda c: fixed.append(np.asarray(c[0] >= 0)), codes, ordered=True)
        return logits

    free = jnp.ones((1, 3), bool)
    sample_masked(apply, KEYS[:1], jnp.zeros((1, 3), jnp.int32), free, 3, Draw(temperature=0.0),
                choice_temperature=0.0)  # fmt: skip
    jax.effects_barrier()
    assert [list(map(bool, o)) for o in fixed] == [
        [False, False, False],
        [True, False, False],
        [True, False, True],
    ]


@pytest.mark.parametrize(
    "grid,books", [((8, 8), 1), ((4, 6), 2), ((16,), 1), ((1, 1), 3), ((2, 3, 4), 2), ((), 3)]
)
def test_halton_order_visits_every_token_once(grid, books):
    rank = halton_order(grid, books)
    np.testing.assert_array_equal(np.sort(rank), np.arange(np.prod(grid) * books))


def test_first_quarter_of_a_halton_order_covers_the_grid():
    early = (halton_order((8, 8)) < 16).reshape(4, 2, 4, 2).sum((1, 3))
    assert (early > 0).sum() >= 13  # of 16 blocks


def test_guidance_schedule_of_a_row_does_not_depend_on_the_others(rng):
    logits = jnp.asarray(rng.normal(size=(2, 1, 6, 4)) * 3, jnp.float32)
    draw = Draw(guidance=6.0, guidance_schedule="linear")
    given = jnp.zeros((2, 6), jnp.int32)
    free = jnp.ones((2, 6), bool).at[1, 1:].set(False)

    def run(rows):
        def apply(codes):
            return jnp.broadcast_to(logits, (2, len(codes), 6, 4))

        return sample_masked(apply, KEYS[rows], given[rows], free[rows], 4, draw)[0]

    np.testing.assert_array_equal(run(slice(0, 2))[0], run(slice(0, 1))[0])
