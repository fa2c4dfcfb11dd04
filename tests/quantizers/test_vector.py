import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.quantizers import QUANTIZERS, VectorQuantizer

MUTABLE = ["params", "codebook"]


@pytest.fixture
def z(rng):
    return jnp.asarray(rng.normal(size=(2, 8, 8, 6)), jnp.float32)


def made(z, **kwargs):
    quantizer = VectorQuantizer(num_codes=16, dim=z.shape[-1], **kwargs)
    variables = quantizer.init(jax.random.key(0), z)
    _, variables = quantizer.apply(
        variables, z, jax.random.key(1), method="initialise", mutable=MUTABLE
    )
    return quantizer, variables


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_contract(name, dtype, z):
    quantizer = QUANTIZERS[name](dim=z.shape[-1])
    variables = quantizer.init(jax.random.key(0), z)
    z_q, codes, aux = jax.jit(quantizer.apply)(variables, z.astype(dtype))
    chex.assert_shape(z_q, z.shape)
    chex.assert_type([z_q, codes], [jnp.float32, jnp.int32])
    chex.assert_shape(codes, z.shape[:-1])
    assert 0 <= int(codes.min()) and int(codes.max()) < quantizer.num_codes
    chex.assert_trees_all_equal(quantizer.apply(variables, codes, method="lookup"), z_q)
    assert float(aux["counts"].sum()) == codes.size
    to_encoder = jax.grad(lambda z: quantizer.apply(variables, z)[0].sum())(z)
    chex.assert_trees_all_equal(to_encoder, jnp.ones_like(z))


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_loss_equals_the_equation_and_reaches_the_right_side(z, codebook):
    quantizer, variables = made(z, codebook=codebook, beta=0.3)
    _, codes, aux = quantizer.apply(variables, z)
    entries = np.asarray(variables["params"]["codebook"], np.float64)[np.asarray(codes)]
    error = ((np.asarray(z, np.float64) - entries) ** 2).mean()
    assert aux["loss"] == pytest.approx((1.3 if codebook == "gradient" else 0.3) * error, rel=1e-5)

    def loss(params, z):
        return quantizer.apply({**variables, "params": params}, z)[2]["loss"]

    to_params, to_z = jax.grad(loss, (0, 1))(variables["params"], z)
    chex.assert_trees_all_close(to_z, 0.3 * 2 * (z - entries) / z.size, atol=1e-6)
    moved = float(jnp.abs(to_params["codebook"]).max())
    assert moved > 0 if codebook == "gradient" else moved == 0


def test_statistics_start_at_the_scale_of_one_batch(z):
    quantizer = VectorQuantizer(num_codes=16, dim=6)
    variables = quantizer.init(jax.random.key(0), z)
    many = jnp.concatenate([z] * 4)
    _, variables = quantizer.apply(
        variables, many, jax.random.key(1), 4, method="initialise", mutable=MUTABLE
    )
    tokens = z.size // z.shape[-1]
    assert float(variables["codebook"]["cluster_size"].sum()) == pytest.approx(tokens, rel=0.05)


def test_ema_follows_the_recursion_of_the_paper(z):
    quantizer, variables = made(z, decay=0.9, revive_below=0.0)
    codes = quantizer.apply(variables, z)[1]
    size = np.asarray(variables["codebook"]["cluster_size"], np.float64)
    total = np.asarray(variables["codebook"]["embed_sum"], np.float64)
    _, after = quantizer.apply(
        variables, z, codes, jax.random.key(2), method="update", mutable=MUTABLE
    )
    flat, index = np.asarray(z, np.float64).reshape(-1, 6), np.asarray(codes).ravel()
    for k in range(16):
        members = flat[index == k]
        size[k] = 0.9 * size[k] + 0.1 * len(members)
        total[k] = 0.9 * total[k] + 0.1 * members.sum(0)
    chex.assert_trees_all_close(after["codebook"]["cluster_size"], size, rtol=1e-5)
    chex.assert_trees_all_close(
        after["params"]["codebook"], total / size[:, None], rtol=1e-3, atol=1e-5
    )


def test_a_dead_entry_moves_onto_a_latent_and_stays_alive(z):
    quantizer, variables = made(z, revive_below=0.1)
    far = {"codebook": variables["params"]["codebook"].at[3].set(1e3)}
    stats = {**variables["codebook"]}
    stats["cluster_size"] = stats["cluster_size"].at[3].set(1e-4)
    variables = {"params": far, "codebook": stats}
    codes = quantizer.apply(variables, z)[1]
    assert not (np.asarray(codes) == 3).any()
    revived, variables = quantizer.apply(
        variables, z, codes, jax.random.key(2), method="update", mutable=MUTABLE
    )
    assert np.flatnonzero(revived).tolist() == [3]
    entry = np.asarray(variables["params"]["codebook"][3])
    assert (np.asarray(z).reshape(-1, 6) == entry).all(1).any()
    codes = quantizer.apply(variables, z)[1]
    assert (np.asarray(codes) == 3).any()
    revived, variables = quantizer.apply(
        variables, z, codes, jax.random.key(3), method="update", mutable=MUTABLE
    )
    assert not revived.any()
    assert np.abs(np.asarray(variables["params"]["codebook"][3]) - entry).max() < 1.0


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_update_and_losses_are_the_same_on_four_devices(rng, codebook):
    z = jnp.asarray(rng.normal(size=(8, 4, 6)), jnp.float32)
    quantizer, variables = made(
        z, codebook=codebook, revive_below=0.5, variance_weight=1.0, usage_weight=1.0
    )
    stats = variables["codebook"]
    stats = {**stats, "cluster_size": stats["cluster_size"].at[jnp.array([2, 5])].set(1e-3)}
    variables = {**variables, "codebook": stats}
    key = jax.random.key(5)

    def run(z, axis_name=None):
        _, codes, aux = quantizer.apply(variables, z, axis_name=axis_name)
        loss = aux["loss"] if axis_name is None else jax.lax.pmean(aux["loss"], axis_name)
        revived, after = quantizer.apply(
            variables, z, codes, key, axis_name=axis_name, method="update", mutable=MUTABLE
        )
        return loss, aux["counts"], revived, after

    one = jax.jit(run)(z)
    four = jax.pmap(lambda z: run(z, "data"), axis_name="data", out_axes=None)(
        z.reshape(4, 2, 4, 6)
    )
    assert one[2].any()  # some entries really were revived
    chex.assert_trees_all_close(one, four, rtol=1e-5, atol=1e-6)


def test_diversity_terms_spread_latents_and_codes(z):
    narrow = 1e-3 * z
    plain, variables = made(narrow)
    spread = VectorQuantizer(num_codes=16, dim=6, variance_weight=1.0, usage_weight=1.0)
    base = plain.apply(variables, narrow)[2]["loss"]
    assert spread.apply(variables, narrow)[2]["loss"] > base + 0.9
    push = jax.grad(lambda x: spread.apply(variables, x)[2]["loss"])(narrow)
    assert float(jnp.sum(push * (narrow - narrow.mean((0, 1, 2))))) < 0  # wider is cheaper


def test_an_unknown_codebook_rule_is_named():
    with pytest.raises(ValueError, match="'ema' or 'gradient'"):
        VectorQuantizer(codebook="em").init(jax.random.key(0), jnp.zeros((1, 64)))
