"""Properties that every quantizer in `QUANTIZERS` must have."""

import re
from functools import partial

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_cases import CASES, GRID, MUTABLE, OPTIONS, init_variables, latents, make

from vq_jax.quantizers import QUANTIZERS, SCHEDULED, blockwise
from vq_jax.quantizers.functions import normalise
from vq_jax.training.checkpoint import Checkpoints

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def initialised():
    """Returns a function from a case to its quantizer, latents and variables, made once."""
    made = {}

    def get(case):
        if case not in made:
            rng = np.random.default_rng(0)
            quantizer = make(case)
            z = latents(rng, quantizer)
            made[case] = quantizer, z, jax.jit(partial(init_variables, quantizer))(z)
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_lookup_of_the_codes_equals_the_quantized_latents(case, initialised):
    quantizer, z, variables = initialised(case)
    rounded = z.astype(jnp.bfloat16)
    apply = jax.jit(quantizer.apply)
    lookup = jax.jit(partial(quantizer.apply, method="lookup"))
    # The arithmetic is in float32 for any input dtype, so equal values get equal codes.
    chex.assert_trees_all_equal(
        apply(variables, rounded)[1], apply(variables, rounded.astype(jnp.float32))[1]
    )
    for inputs in (z, rounded):
        z_q, codes, aux = apply(variables, inputs)
        chex.assert_shape(z_q, z.shape)
        chex.assert_type([z_q, codes], [jnp.float32, jnp.int32])
        if not quantizer.grids:
            chex.assert_shape(codes, (len(z), *GRID, *quantizer.code_shape))
        assert 0 <= int(codes.min()) and int(codes.max()) < quantizer.num_codes
        chex.assert_trees_all_close(lookup(variables, codes), z_q, atol=2e-6)
        chex.assert_shape(aux["counts"], (*quantizer.code_shape, quantizer.num_codes))
        assert float(aux["counts"].sum()) == codes.size
        assert all(term.shape == () for name, term in aux.items() if name != "counts")
        assert float((aux["counts"] > 0).mean()) > 0.3
        prepared = quantizer.apply(variables, z, method="prepare")
        if prepared.shape == z_q.shape and not case.startswith(("ibq", "gumbel", "vq projected")):
            # The other quantizers choose by distance, so they beat a single point for all latents.
            assert float(jnp.mean((z_q - prepared) ** 2) / jnp.var(prepared)) < 1.0


@pytest.mark.parametrize("case", CASES)
def test_gradients_arrive_and_four_devices_agree_with_one(case, initialised):
    quantizer, z, variables = initialised(case)
    # Make some entries dead, so that the test covers their revival.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[..., ::5].set(0.0) if "cluster_size" in str(path) else leaf,
        variables,
    )
    direction = jax.random.normal(KEY, z.shape)

    def run(z, direction, axis_name=None):
        """Returns the results for each latent and those of the whole batch."""
        mean = partial(jax.lax.pmean, axis_name=axis_name) if axis_name else lambda tree: tree

        def loss(params, z):
            apply = partial(quantizer.apply, {**variables, "params": params}, z, key=KEY)
            z_q, codes, aux = apply(axis_name=axis_name)
            return jnp.mean(z_q * direction) + aux["loss"], (codes, aux)

        (total, (codes, aux)), (gradient, to_z) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            variables.get("params", {}), z
        )
        counts = aux.pop("counts")
        masks, updated = quantizer.apply(
            variables, z, codes, KEY, axis_name=axis_name, method="update", mutable=MUTABLE
        )
        _, first = quantizer.apply(
            variables, z, KEY, 2, axis_name=axis_name, method="initialise", mutable=MUTABLE
        )
        return (codes, to_z), (mean((total, aux, gradient)), counts, masks, updated, first)

    (codes, to_z), one = jax.jit(run)(z, direction)
    to_params = one[0][2]
    chex.assert_tree_all_finite((to_params, to_z))
    assert float(jnp.abs(to_z).sum(-1).min()) > 0  # every latent gets a gradient
    ema = getattr(getattr(quantizer, "inner", None) or quantizer, "codebook", "") == "ema"
    for path, gradient in jax.tree_util.tree_leaves_with_path(to_params):
        name = jax.tree_util.keystr(path)
        if "['stages_0']" in name and name.endswith("['kernel']"):
            continue  # the only input of these layers, the quality, is 0 by default
        has_gradient = float(jnp.abs(gradient).max()) > 0
        assert has_gradient != (ema and name.endswith("['book']['codebook']")), name

    if case in OPTIONS:  # compare devices for one case of each class only
        return
    split = lambda a: a.reshape(4, 1, *a.shape[1:])
    (by_device, _), four = jax.pmap(
        partial(run, axis_name="data"), axis_name="data", out_axes=(0, None)
    )(split(z), split(direction))
    chex.assert_trees_all_equal(by_device.reshape(codes.shape), codes)
    chex.assert_trees_all_close(one, four, rtol=2e-4, atol=2e-5)
    if "cluster_size" in str(jax.tree_util.tree_structure(variables)):
        assert any(mask.any() for mask in jax.tree.leaves(one[2]))


@pytest.mark.parametrize("case", ["vq", "gumbel", "ibq", "lfq", "multiscale", "vq entropy"])
def test_sharded_jit_agrees_and_divides_the_latents_over_devices(case, initialised, monkeypatch):
    quantizer, z, variables = initialised(case)
    monkeypatch.setattr(blockwise, "MAX_SCORES", 512)  # several blocks
    rows = jax.sharding.NamedSharding(
        jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), jax.P("data")
    )

    def loss(params, z):
        z_q, codes, aux = quantizer.apply({**variables, "params": params}, z, key=KEY)
        return jnp.mean(jnp.square(z_q)) + aux["loss"], codes

    step = jax.value_and_grad(loss, (0, 1), has_aux=True)
    params = variables.get("params", {})
    expected = jax.jit(step)(params, z)
    compiled = jax.jit(step).lower(params, jax.device_put(z, rows)).compile()
    chex.assert_trees_all_close(
        compiled(params, jax.device_put(z, rows)), expected, rtol=2e-4, atol=2e-5
    )
    # If the latents were gathered, every device would process all of them.
    gathered = [line for line in compiled.as_text().splitlines() if " all-gather(" in line]
    assert not [line for line in gathered if re.search(r"f32\[[\d,]*\d{3,}", line)], gathered


@pytest.mark.parametrize("case", [*QUANTIZERS, "vq heads"])
def test_a_revived_entry_equals_a_latent_and_stays_alive(case, initialised):
    quantizer, z, variables = initialised(case)
    if "codebook" not in variables:
        codes = quantizer.apply(variables, z)[1]
        assert not jax.tree.leaves(quantizer.apply(variables, z, codes, KEY, method="update"))
        return
    dead = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[..., :3].set(0.0) if "cluster_size" in str(path) else leaf,
        variables,
    )
    codes = jax.jit(quantizer.apply)(dead, z)[1]
    # Change the codes so that no latent uses the first three.
    update = jax.jit(partial(quantizer.apply, method="update", mutable=MUTABLE))
    masks, after = update(dead, z, jnp.maximum(codes, 3), KEY)
    after = {**dead, **after}
    for mask in jax.tree.leaves(masks):
        flat = mask.reshape(-1, quantizer.num_codes)
        assert flat[:, :3].all()
    again, _ = update(after, z, jnp.maximum(codes, 3), jax.random.key(9))
    for mask in jax.tree.leaves(again):
        assert not mask.reshape(-1, quantizer.num_codes)[:, :3].any()
    if case in ("vq", "simvq", "gumbel", "ibq"):
        entries = quantizer.apply(after, method="codebooks")[:3]
        rows = quantizer.apply(after, z, method="prepare").reshape(-1, quantizer.dim)
        if case == "ibq":  # revival sets the direction of an entry, not its length
            entries, rows = normalise(entries), normalise(rows)
        nearest = jnp.linalg.norm(rows[:, None] - entries, axis=-1).min(0)
        assert float(nearest.max()) < 1e-3


@pytest.mark.parametrize("case", QUANTIZERS)
def test_variables_survive_a_checkpoint(case, initialised, tmp_path):
    _, _, variables = initialised(case)
    if not variables:  # no learned entries
        return
    with Checkpoints(tmp_path) as checkpoints:
        numbers = iter(grain.MapDataset.range(3).to_iter_dataset())
        checkpoints.save(1, {"quantizer": variables}, numbers)
        blank = jax.tree.map(jnp.zeros_like, variables)
        restored = checkpoints.restore({"quantizer": blank})[1]["quantizer"]
    chex.assert_trees_all_equal(restored, variables)


@pytest.mark.parametrize("case", ["vq gumbel", "gumbel", "residual/simvq"])
def test_randomness_depends_on_the_key_only(case, initialised):
    quantizer, z, variables = initialised(case)
    apply = jax.jit(partial(quantizer.apply, variables, z))
    plain, again, other = (apply(key=key)[0] for key in (KEY, KEY, jax.random.key(8)))
    chex.assert_trees_all_equal(plain, again)
    assert float(jnp.abs(plain - other).max()) > 0
    chex.assert_trees_all_equal(apply()[0], apply(key=None)[0])


@pytest.mark.parametrize("case", ["vq entropy", "lfq", "ibq", "gumbel"])
def test_a_scheduled_value_acts_as_the_field(case, initialised):
    quantizer, z, variables = initialised(case)
    for name in SCHEDULED:
        # A temperature changes the loss through the entropy term only.
        weight = getattr(quantizer, "entropy_weight", 0)
        if not hasattr(quantizer, name) or (name == "temperature" and not weight):
            continue
        from_field = quantizer.clone(**{name: 0.7}).apply(variables, z)[2]["loss"]
        apply = jax.jit(partial(quantizer.apply, variables, z))
        from_schedule = apply(scheduled={name: jnp.float32(0.7)})[2]["loss"]
        assert float(from_schedule) == pytest.approx(float(from_field), rel=1e-4)
        assert float(from_field) != pytest.approx(float(quantizer.apply(variables, z)[2]["loss"]))


@pytest.mark.parametrize("case", ["residual/gumbel", "residual"])
def test_the_entries_of_a_level_get_their_full_gradient(case, initialised):
    quantizer, z, variables = initialised(case)
    codes = quantizer.apply(variables, z)[1]
    direction = jax.random.normal(KEY, z.shape)

    def gradient_through(method, inputs):
        def total(params):
            out = quantizer.apply({**variables, "params": params}, inputs, method=method)
            return jnp.sum(direction * (out[0] if method == "__call__" else out))

        return jax.jit(jax.grad(total))(variables["params"])

    whole = gradient_through("__call__", z)
    looked_up = gradient_through("lookup", codes)
    if case == "residual/gumbel":
        # The entries are separate from the keys, so `lookup` is all that gives them a gradient.
        for i in range(quantizer.levels):
            entries = [tree[f"stages_{i}"]["book"]["codebook"] for tree in (whole, looked_up)]
            chex.assert_trees_all_close(*entries, rtol=1e-4, atol=1e-5)
    to_z = jax.jit(jax.grad(lambda z: jnp.sum(direction * quantizer.apply(variables, z)[0])))(z)
    if case == "residual":  # the levels together are one straight-through estimator
        chex.assert_trees_all_close(to_z, direction, atol=1e-5)


@pytest.mark.parametrize("levels", [(8, 8), (5, 5), (8, 5), (4, 7)])
def test_residual_levels_of_fsq_leave_at_most_half_a_step(levels):
    inner = QUANTIZERS["fsq"](levels=levels)
    quantizer = QUANTIZERS["residual"](inner=inner, levels=3)
    z = 3 * jax.random.normal(KEY, (1, 4000, len(levels)))
    y = inner.apply({}, z, method="prepare")
    z_q, codes, _ = quantizer.apply({}, z)
    step = inner.residual_scale**2 / (np.asarray(levels) // 2)  # of the last level
    assert float((jnp.abs(y - z_q) / step).max()) < 0.51 + 1e-3 * np.prod(levels)
    first = quantizer.apply({}, codes[..., :1], method="lookup")
    assert float(jnp.abs(y - first).max()) > float(jnp.abs(y - z_q).max())


def test_no_latent_revives_two_entries():
    quantizer = make("vq", num_codes=64)
    z = jax.random.normal(KEY, (1, 4, 5, 6))
    variables = quantizer.init(KEY, z)
    book = variables["codebook"]["book"]
    book = {**book, "cluster_size": jnp.zeros_like(book["cluster_size"]).at[0, 0].set(1e3)}
    codes = jnp.zeros((1, 4, 5), jnp.int32)
    masks, after = quantizer.apply(
        {**variables, "codebook": {"book": book}}, z, codes, KEY, method="update", mutable=MUTABLE
    )
    moved = np.asarray(after["params"]["book"]["codebook"])[
        np.asarray(masks["book"]["codebook"])[:, 0]
    ]
    assert len(moved) == 20 == len(np.unique(moved, axis=0))
