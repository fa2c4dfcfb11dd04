"""Priors: what sees what, and that one token after another is the same as all at once."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.models.transformer import PRIORS, unstack

KEY = jax.random.key(0)
K, GRID, CLASSES = 11, (3, 4), 3
STYLES = {
    "rope": {"position": "rope", "norm": "rms", "activation": "swiglu"},
    "learned": {"position": "learned", "norm": "layer", "activation": "gelu"},
    "bert": {"position": "learned", "norm": "bert", "activation": "gelu_erf"},
}


def make(name, books=1, condition=(), style="rope", **fields):
    prior = PRIORS[name](
        num_codes=K, grid=GRID, books=books, classes=CLASSES, condition=condition,
        dtype=jnp.float32, layers=2, width=32, heads=2, **STYLES[style], **fields,
    )  # fmt: skip
    codes = jax.random.randint(KEY, (2, prior.length), 0, K)
    labels = jnp.array([1, CLASSES])
    worse = None
    if condition:
        worse = jax.random.randint(jax.random.key(1), (2, prior.prefix_length - 1), 0, K)
    variables = prior.init(jax.random.key(2), codes, labels, worse)
    # Larger than at the start of a training, so that nothing hides below the tolerance.
    variables = jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, variables)
    return prior, variables, codes, labels, worse


def orders(count=2):
    positions = GRID[0] * GRID[1]
    return jnp.stack([jax.random.permutation(jax.random.key(i), positions) for i in range(count)])


def dependence(prior, variables, codes, labels, order=None):
    """bool [N, N]: whether logits of token n depend on token m, by gradient at the embeddings."""

    def logits(offsets_ND):
        # Offsets to the embedding of each token, by place.
        def add(next_fun, args, kwargs, context):
            y = next_fun(*args, **kwargs)
            visited = offsets_ND if order is None else offsets_ND[order[0]]
            return y + visited[None] if context.method_name == "_tokens" else y

        with nn.intercept_methods(add):
            return prior.apply(variables, codes[:1], labels[:1], None, order)[0].sum(-1)

    zeros = jnp.zeros((prior.length, prior.width))
    jacobian = jax.jit(jax.jacobian(lambda x: jnp.sin(logits(x))))(zeros)
    return np.asarray(jnp.abs(jacobian).sum(-1) > 0)


@pytest.mark.parametrize("style", STYLES)
def test_a_causal_prior_sees_what_is_before_and_all_of_it(style):
    prior, variables, codes, labels, _ = make("causal", style=style)
    found = dependence(prior, variables, codes, labels)
    np.testing.assert_array_equal(found, np.tril(np.ones_like(found), -1))


def test_a_prior_of_any_order_sees_what_was_visited_before():
    prior, variables, codes, labels, _ = make("random_order")
    order = orders(1)
    found = dependence(prior, variables, codes, labels, order)
    turn = np.argsort(np.asarray(order[0]))
    np.testing.assert_array_equal(found, turn[None, :] < turn[:, None])


def test_a_masked_prior_sees_all():
    prior, variables, codes, labels, _ = make("masked")
    assert dependence(prior, variables, codes, labels).all()


def test_what_is_masked_has_no_say():
    prior, variables, codes, labels, _ = make("masked")
    masked = codes.at[:, 3].set(-1)
    other = codes.at[:, 3].set((codes[:, 3] + 1) % K)
    apply = jax.jit(prior.apply)
    chex.assert_trees_all_equal(
        apply(variables, masked, labels), apply(variables, other.at[:, 3].set(-1), labels)
    )
    assert jnp.abs(apply(variables, codes, labels) - apply(variables, other, labels)).max() > 1e-3


@pytest.mark.parametrize("name", ["causal", "random_order"])
@pytest.mark.parametrize(
    "style,books,condition,scan",
    [("rope", 1, (), False), ("learned", 2, (2, 2), False), ("rope", 3, (2, 2), True)],
)
def test_cached_logits_equal_uncached(name, style, books, condition, scan):
    prior, variables, codes, labels, worse = make(name, books, condition, style, scan=scan)
    order = orders() if prior.target_aware else None
    whole = jax.jit(prior.apply)(variables, codes, labels, worse, order)
    single, params = unstack(prior, variables["params"])
    visited = jnp.tile(jnp.arange(12), (2, 1)) if order is None else order
    row = jnp.arange(2)

    @jax.jit
    def step(n, code, position, following, cache):
        return single.apply({"params": params}, code, n, position, following, cache, method="step")

    cache = single.apply({"params": params}, 2, method="empty_cache")
    logits, cache = single.apply(
        {"params": params}, labels, worse, visited[:, 0], cache, method="begin"
    )
    for n in range(prior.length):
        index = visited[:, n // books] * books + n % books
        chex.assert_trees_all_close(logits, whole[row, index], atol=2e-5, rtol=1e-4)
        if n + 1 < prior.length:
            following = visited[:, (n + 1) // books]
            logits, cache = step(n, codes[row, index], visited[:, n // books], following, cache)


@pytest.mark.parametrize("name", PRIORS)
def test_layers_in_a_loop_and_computed_again_are_the_same_layers(name):
    prior, variables, codes, labels, _ = make(name, scan=True, remat=True)
    single, params = unstack(prior, variables["params"])
    plain = single.clone(remat=False)

    def loss(module, params):
        return jnp.square(module.apply({"params": params}, codes, labels)).mean()

    loss = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
    value, grads = loss(prior, variables["params"])
    expected, expected_grads = loss(plain, params)
    chex.assert_trees_all_close(value, expected, rtol=1e-5)
    chex.assert_trees_all_close(unstack(prior, grads)[1], expected_grads, rtol=1e-4, atol=1e-6)


def test_a_label_and_a_condition_have_their_say_and_none_is_a_label_too():
    prior, variables, codes, _, worse = make("masked", condition=(2, 2))
    apply = jax.jit(prior.apply)
    plain = apply(variables, codes, jnp.array([0, CLASSES]), worse)
    other = apply(variables, codes, jnp.array([1, CLASSES]), worse)
    assert jnp.abs(plain - other)[0].max() > 1e-3
    chex.assert_trees_all_equal(plain[1], other[1])
    assert jnp.abs(plain - apply(variables, codes, jnp.array([0, 3]), (worse + 1) % K)).max() > 1e-3
    with pytest.raises(ValueError, match="condition"):
        prior.apply(variables, codes, jnp.array([0, 0]))


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    prior, variables, codes, labels, _ = make("causal")
    half = prior.clone(dtype=jnp.bfloat16)
    logits = jax.jit(half.apply)(variables, codes, labels)
    assert logits.dtype == jnp.float32
    chex.assert_trees_all_close(logits, prior.apply(variables, codes, labels), atol=0.1, rtol=0.1)
    params = half.init(KEY, codes, labels)
    chex.assert_trees_all_equal_dtypes(params, variables)


def test_fields_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="prior.position is 'ropes'"):
        PRIORS["causal"](num_codes=K, grid=GRID, books=1, classes=0, condition=(), dtype=jnp.float32,
                         position="ropes")  # fmt: skip
    with pytest.raises(ValueError, match="multiple of"):
        PRIORS["causal"](num_codes=K, grid=GRID, books=1, classes=0, condition=(), dtype=jnp.float32,
                         width=36, heads=4)  # fmt: skip
