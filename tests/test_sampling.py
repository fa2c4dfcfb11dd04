"""Samplers, on small tables of logits whose distributions are known."""

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
    in_parallel,
    log_probability,
    one_by_one,
    row_keys,
)

ROWS = 20_000
KEYS = row_keys(jax.random.key(0), 0, ROWS)


def fits(counts, probabilities):
    """Chi-square: whether counts may well have been drawn from probabilities."""
    p = np.asarray(probabilities, np.float64)
    expected = p / p.sum() * np.sum(counts)
    seen = expected > 0
    assert not np.asarray(counts)[~seen].any()
    return (
        seen.sum() == 1 or stats.chisquare(np.asarray(counts)[seen], expected[seen]).pvalue > 1e-4
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
def test_codes_are_drawn_as_often_as_their_probability_says(draw, expected):
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    codes = draw_codes(KEYS, jnp.broadcast_to(logits, (ROWS, 4)), draw)
    assert fits(np.bincount(codes, minlength=4), expected)


def test_top_p_keeps_the_smallest_sufficient_set(rng):
    logits = jnp.asarray(rng.normal(size=(200, 50)) * 2, jnp.float32)
    p = np.asarray(jax.nn.softmax(logits))
    for top_p in (0.1, 0.5, 0.9, 0.999):
        kept = np.isfinite(filter_logits(logits, top_p=top_p))
        held = np.where(kept, p, 0)
        assert (held.sum(1) >= top_p - 1e-5).all()
        least = np.where(kept, p, 1).min(1)
        assert (held.sum(1) - least < top_p + 1e-5).all()  # not one less
        assert (np.where(kept, 0, p).max(1) <= least).all()  # and the likeliest ones


def test_of_equal_codes_top_k_keeps_no_more_than_k():
    assert np.isfinite(filter_logits(jnp.zeros((1, 9)), top_k=4)).sum() == 4
    assert np.isfinite(filter_logits(jnp.zeros((1, 9)), temperature=0.0)).sum() == 1


def test_what_is_off_is_no_filter(rng):
    logits = jnp.asarray(rng.normal(size=(3, 7)), jnp.float32)
    chex.assert_trees_all_equal(filter_logits(logits), logits)
    chex.assert_trees_all_equal(filter_logits(logits, top_k=99), logits)


def test_guidance_of_one_is_plain_and_schedules_end_where_they_should(rng):
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


def test_fields_out_of_range_are_named():
    for fields, name in (({"temperature": -1}, "temperature"), ({"top_p": 0.0}, "top_p"),
                         ({"guidance_schedule": "square"}, "guidance_schedule")):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            Draw(**fields)


# --- one by one -----------------------------------------------------------------------------------

_TABLE = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]))  # next by last


def chain(given, free, order, draw=None, keys=KEYS):
    """A Markov chain over the tokens in the order visited; the first comes as after a 0."""
    rows = len(given)

    def begin():
        return jnp.broadcast_to(_TABLE[0], (1, rows, 3)), None

    def step(code, n, position, following, cache):
        return _TABLE[code][None], cache

    return jax.jit(one_by_one, static_argnums=(0, 1, 6))(
        begin, step, keys, given, free, order, draw or Draw()
    )


def test_codes_one_by_one_have_the_joint_distribution():
    order = jnp.broadcast_to(jnp.array([1, 0]), (ROWS, 2))
    zeros = jnp.zeros((ROWS, 2), jnp.int32)
    codes, likelihood = chain(zeros, jnp.ones((ROWS, 2), bool), order)
    table = np.exp(_TABLE)
    joint = table[0][:, None] * table  # [visited first, then]
    pairs = np.asarray(codes[:, 1] * 3 + codes[:, 0])
    assert fits(np.bincount(pairs, minlength=9), joint.reshape(-1))
    np.testing.assert_allclose(likelihood, np.log(joint.reshape(-1))[pairs], rtol=1e-5)


def test_given_codes_stay_and_are_read():
    free = jnp.broadcast_to(jnp.array([False, True]), (ROWS, 2))
    given = jnp.ones((ROWS, 2), jnp.int32)
    order = jnp.broadcast_to(jnp.arange(2), (ROWS, 2))
    codes, likelihood = chain(given, free, order)
    assert (codes[:, 0] == 1).all()
    assert fits(np.bincount(codes[:, 1], minlength=3), np.exp(_TABLE[1]))
    np.testing.assert_allclose(likelihood, _TABLE[1][codes[:, 1]], rtol=1e-5)


def test_a_row_does_not_depend_on_its_batch():
    order = jnp.broadcast_to(jnp.arange(4), (8, 4))
    given, free = jnp.zeros((8, 4), jnp.int32), jnp.ones((8, 4), bool)
    whole, _ = chain(given, free, order, keys=KEYS[:8])
    part, _ = chain(given[:3], free[:3], order[:3], keys=row_keys(jax.random.key(0), 5, 3))
    np.testing.assert_array_equal(whole[5:], part)


# --- in parallel ----------------------------------------------------------------------------------


def table(rng, tokens=6):
    return jnp.asarray(rng.normal(size=(1, 1, tokens, 4)), jnp.float32)


def parallel(logits, steps, given=None, free=None, rows=ROWS, **how):
    tokens = logits.shape[2]
    given = jnp.zeros((rows, tokens), jnp.int32) if given is None else given
    free = jnp.ones((rows, tokens), bool) if free is None else free

    def of(codes):
        return jnp.broadcast_to(logits, (1, rows, tokens, 4))

    return in_parallel(of, KEYS[:rows], given, free, steps, how.pop("draw", Draw()), **how)


@pytest.mark.parametrize("steps", [1, 3, 6, 20])
def test_along_a_fixed_order_independent_codes_are_drawn_from_their_own_table(rng, steps):
    # Settling the surest first favours likely codes: an order that does not look shows the rest.
    logits = table(rng)
    codes, likelihood = parallel(logits, steps, rank_N=jnp.asarray(halton_order((2, 3))))
    p = np.asarray(jax.nn.softmax(logits[0, 0]))
    for n in range(6):
        assert fits(np.bincount(codes[:, n], minlength=4), p[n])
    np.testing.assert_allclose(likelihood, log_probability(logits[0], codes).sum(1), rtol=1e-4)


def test_given_codes_are_never_changed_and_all_others_are_settled(rng):
    given = jnp.asarray(rng.integers(0, 4, (64, 6)), jnp.int32)
    free = jnp.asarray(rng.random((64, 6)) < 0.5)
    seen = []

    def of(codes):
        jax.debug.callback(lambda c: seen.append(np.asarray(c)), codes, ordered=True)
        return jnp.broadcast_to(table(rng), (1, 64, 6, 4))

    codes, _ = in_parallel(of, KEYS[:64], given, free, 4, Draw())
    jax.effects_barrier()
    assert (np.where(free, given, codes) == given).all() and (codes >= 0).all()
    assert len(seen) == 4
    for before, after in zip(seen, [*seen[1:], np.asarray(codes)], strict=True):
        settled = before >= 0
        np.testing.assert_array_equal(before[settled], after[settled])
        open_ = (before < 0).any(1)  # as long as something is masked, something is settled
        assert ((after >= 0).sum(1)[open_] > settled.sum(1)[open_]).all()
    masked = (seen[1] < 0).sum(1)
    expected = np.floor(np.asarray(free).sum(1) * np.cos(np.pi / 8) + 1e-4)
    np.testing.assert_array_equal(masked, np.minimum(expected, np.maximum(free.sum(1) - 1, 0)))


def test_without_chance_the_surest_are_settled_first():
    logits = jnp.log(jnp.array([[0.99, 0.01], [0.6, 0.4], [0.9, 0.1]]))[None, None]
    order = []

    def of(codes):
        jax.debug.callback(lambda c: order.append(np.asarray(c[0] >= 0)), codes, ordered=True)
        return logits

    free = jnp.ones((1, 3), bool)
    in_parallel(of, KEYS[:1], jnp.zeros((1, 3), jnp.int32), free, 3, Draw(temperature=0.0),
                choice_temperature=0.0)  # fmt: skip
    jax.effects_barrier()
    assert [list(map(bool, o)) for o in order] == [
        [False, False, False],
        [True, False, False],
        [True, False, True],
    ]


@pytest.mark.parametrize("grid,books", [((8, 8), 1), ((4, 6), 2), ((16,), 1), ((1, 1), 3)])
def test_a_halton_order_visits_every_token_once(grid, books):
    rank = halton_order(grid, books)
    np.testing.assert_array_equal(np.sort(rank), np.arange(np.prod(grid) * books))


def test_the_first_quarter_of_a_halton_order_lies_all_over():
    early = (halton_order((8, 8)) < 16).reshape(4, 2, 4, 2).sum((1, 3))
    assert (early > 0).sum() >= 13  # of 16 blocks


def test_a_guidance_schedule_looks_at_each_row_by_itself(rng):
    logits = jnp.asarray(rng.normal(size=(2, 1, 6, 4)) * 3, jnp.float32)
    draw = Draw(guidance=6.0, guidance_schedule="linear")
    given = jnp.zeros((2, 6), jnp.int32)
    free = jnp.ones((2, 6), bool).at[1, 1:].set(False)

    def run(rows):
        def of(codes):
            return jnp.broadcast_to(logits, (2, len(codes), 6, 4))

        return in_parallel(of, KEYS[rows], given[rows], free[rows], 4, draw)[0]

    np.testing.assert_array_equal(run(slice(0, 2))[0], run(slice(0, 1))[0])
