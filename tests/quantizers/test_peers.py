"""Parity with vector-quantize-pytorch: equal codes, losses and gradients.

Both libraries get the same latents and the same codebook.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.quantizers import QUANTIZERS, functions

torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[test]'")
peer = pytest.importorskip(
    "vector_quantize_pytorch", reason="needs vector-quantize-pytorch: pip install -e '.[test]'"
)
K, D = 32, 6


@pytest.fixture
def z(rng):
    return rng.normal(size=(2, 50, D)).astype(np.float32)


def apply(quantizer, codebook, z):
    """Returns z_q, codes, loss, and the gradient of a function of z_q and the loss w.r.t. z."""
    variables = quantizer.init(jax.random.key(0), jnp.asarray(z))
    if codebook is not None:
        params = {"params": {"book": {"codebook": jnp.asarray(codebook)}}}
        variables = {**variables, **params}

    def run(z):
        z_q, codes, aux = quantizer.apply(variables, z)
        return jnp.sum(z_q * jnp.cos(z_q)) + 100 * aux["loss"], (z_q, codes, aux["loss"])

    (_, out), gradient = jax.value_and_grad(run, has_aux=True)(jnp.asarray(z))
    return *out, gradient


def apply_peer(module, z):
    """Returns the same as `apply` for a module of vector-quantize-pytorch."""
    module.train()
    x = torch.from_numpy(z).requires_grad_()
    z_q, codes, *loss = module(x)
    loss = loss[0].sum() if loss else torch.zeros(())
    ((z_q * torch.cos(z_q)).sum() + 100 * loss).backward()
    return z_q.detach().numpy(), codes.numpy(), float(loss.detach()), x.grad.numpy()


def assert_same(ours, theirs, atol=1e-5):
    chex.assert_trees_all_equal(np.asarray(ours[1]), theirs[1].astype(np.int32))
    chex.assert_trees_all_close(np.asarray(ours[0]), theirs[0], atol=atol)
    assert float(ours[2]) == pytest.approx(theirs[2], rel=1e-4, abs=1e-6)
    chex.assert_trees_all_close(np.asarray(ours[3]), theirs[3], atol=10 * atol)


@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_vq(z, estimator):
    module = peer.VectorQuantize(
        D, K, rotation_trick=estimator == "rotation", commitment_weight=0.3, ema_update=False
    )
    codebook = module.codebook.numpy().copy()
    ours = QUANTIZERS["vq"](num_codes=K, dim=D, beta=0.3, estimator=estimator)
    assert_same(apply(ours, codebook, z), apply_peer(module, z))


def test_vq_with_a_trained_codebook(z):
    module = peer.VectorQuantize(
        D, K, rotation_trick=False, learnable_codebook=True, ema_update=False
    )
    codebook = module.codebook.detach().numpy().copy()
    ours = QUANTIZERS["vq"](num_codes=K, dim=D, beta=1.0, codebook="gradient")
    z_q, codes, loss, gradient = apply(ours, codebook, z)
    theirs = apply_peer(module, z)
    # Their single loss term trains both latents and entries. Ours has two terms, each as large.
    assert_same((z_q, codes, loss / 2, gradient), theirs)

    def loss_of(codebook):
        variables = {"params": {"book": {"codebook": codebook}}}
        return ours.apply({**ours.init(jax.random.key(0), z), **variables}, z)[2]["loss"]

    to_codebook = 100 * jax.grad(loss_of)(jnp.asarray(codebook))
    expected = module._codebook.embed.grad.numpy().reshape(K, D)
    chex.assert_trees_all_close(np.asarray(to_codebook), expected, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_vq_heads(z, shared):
    module = peer.VectorQuantize(
        D,
        K,
        heads=2,
        codebook_dim=D // 2,
        separate_codebook_per_head=not shared,
        rotation_trick=False,
        ema_update=False,
    )
    codebook = module.codebook.numpy().copy()
    ours = QUANTIZERS["vq"](num_codes=K, dim=D, beta=1.0, heads=2, shared_heads=shared)
    assert_same(apply(ours, codebook, z), apply_peer(module, z))


def test_cosine_with_orthogonality(z):
    module = peer.VectorQuantize(D, K, use_cosine_sim=True, rotation_trick=False, ema_update=False)
    codebook = module.codebook.numpy().copy()
    ours = QUANTIZERS["vq"](num_codes=K, dim=D, beta=1.0, distance="cosine")
    z_q, codes, loss, gradient = apply(ours, codebook, z)
    theirs = apply_peer(module, z)
    # Their entries have length 1 from the start.
    chex.assert_trees_all_close(np.linalg.norm(codebook, axis=-1), np.ones(K), atol=1e-5)
    assert_same((z_q, codes, loss, gradient), theirs)
    from vector_quantize_pytorch.vector_quantize_pytorch import orthogonal_loss_fn

    entries = np.random.default_rng(1).normal(size=(K, D)).astype(np.float32)
    expected = float(orthogonal_loss_fn(torch.from_numpy(entries)[None]))
    assert float(functions.orthogonality(jnp.asarray(entries))) == pytest.approx(expected, rel=1e-4)


def test_ema(z):
    module = peer.VectorQuantize(D, K, decay=0.9, eps=1e-5, rotation_trick=False)
    codebook = module.codebook.numpy().copy()
    sums = module._codebook.embed_avg.numpy().copy()
    sizes = module._codebook.cluster_size.numpy().copy()
    quantizer = QUANTIZERS["vq"](num_codes=K, dim=D, decay=0.9, revive_below=0.0)
    variables = {
        "params": {"book": {"codebook": jnp.asarray(codebook)}},
        "codebook": {"book": {"cluster_size": jnp.asarray(sizes), "embed_sum": jnp.asarray(sums)}},
    }
    for batch in np.split(z, 2):
        apply_peer(module, batch)
        codes = quantizer.apply(variables, jnp.asarray(batch))[1]
        _, variables = quantizer.apply(
            variables,
            jnp.asarray(batch),
            codes,
            jax.random.key(0),
            method="update",
            mutable=["params", "codebook"],
        )
    chex.assert_trees_all_close(
        np.asarray(variables["params"]["book"]["codebook"]),
        module.codebook.numpy(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_residual(z):
    module = peer.ResidualVQ(
        dim=D, num_quantizers=3, codebook_size=K, rotation_trick=False, ema_update=False
    )
    inner = QUANTIZERS["vq"](num_codes=K, dim=D, beta=1.0)
    ours = QUANTIZERS["residual"](inner=inner, levels=3)
    variables = ours.init(jax.random.key(0), jnp.asarray(z))
    params = {
        f"stages_{i}": {"book": {"codebook": jnp.asarray(codebook.numpy())}}
        for i, codebook in enumerate(module.codebooks)
    }
    z_q, codes, aux = ours.apply({**variables, "params": params}, jnp.asarray(z))
    theirs = apply_peer(module, z)
    chex.assert_trees_all_equal(np.asarray(codes), theirs[1].astype(np.int32))
    chex.assert_trees_all_close(np.asarray(z_q), theirs[0], atol=1e-5)
    assert float(aux["loss"]) == pytest.approx(theirs[2], rel=1e-4)

    # Each of their 3 levels sends its full gradient to the latent. Each of ours sends a third.
    def total(z):
        z_q, _, aux = ours.apply({**variables, "params": params}, z)
        return jnp.sum(z_q * jnp.cos(z_q)) + 100 * aux["loss"]

    chex.assert_trees_all_close(
        3 * np.asarray(jax.grad(total)(jnp.asarray(z))), theirs[3], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("levels", [(8, 5, 5), (7, 5, 5, 5), (8, 8, 8, 6, 5)])
def test_fsq(rng, levels):
    z = 2 * rng.normal(size=(2, 500, len(levels))).astype(np.float32)
    ours = apply(QUANTIZERS["fsq"](levels=levels), None, z)
    assert_same(ours, apply_peer(peer.FSQ(list(levels)), z))


@pytest.mark.parametrize("spherical", [False, True])
def test_lfq_and_bsq(rng, spherical):
    bits = 7
    z = rng.normal(size=(2, 60, bits)).astype(np.float32)
    module = peer.LFQ(
        dim=bits,
        codebook_size=2**bits,
        entropy_loss_weight=0.1,
        commitment_loss_weight=0.25,
        spherical=spherical,
    )
    name, extra = ("bsq", {"entropy_group": 0}) if spherical else ("lfq", {})
    # Their softmax of 2 * 100 * z . c equals that of -|z - c|^2 / 0.01.
    ours = QUANTIZERS[name](bits=bits, beta=0.25, entropy_weight=0.1, temperature=0.01, **extra)
    z_q, codes, loss, _ = apply(ours, None, z)
    module.train()
    x = torch.from_numpy(z).requires_grad_()
    result = module(x)
    highest_first = [int(f"{code:0{bits}b}"[::-1], 2) for code in np.asarray(codes).ravel()]
    expected = codes.ravel() if spherical else np.asarray(highest_first)
    chex.assert_trees_all_equal(
        np.asarray(expected), result.indices.numpy().ravel().astype(np.int32)
    )
    chex.assert_trees_all_close(np.asarray(z_q), result.quantized.detach().numpy(), atol=1e-5)
    # Their logarithm clamps its argument at 1e-5.
    assert float(loss) == pytest.approx(float(result.entropy_aux_loss), abs=2e-3)


def test_simvq(z):
    module = peer.SimVQ(dim=D, codebook_size=K, rotation_trick=True)
    ours = QUANTIZERS["simvq"](num_codes=K, dim=D, beta=0.25, estimator="rotation")
    variables = ours.init(jax.random.key(0), jnp.asarray(z))
    frozen = jnp.asarray(module.frozen_codebook.numpy())[None]
    weight = jnp.asarray(module.code_transform.weight.detach().numpy().T)
    variables = {
        "params": {"book": {"codebook_map": weight}},
        "codebook": {"book": {**variables["codebook"]["book"], "frozen": frozen}},
    }

    def run(params, z):
        z_q, codes, aux = ours.apply({**variables, "params": params}, z)
        return aux["loss"], (z_q, codes)

    (loss, (z_q, codes)), gradient = jax.value_and_grad(run, has_aux=True)(
        variables["params"], jnp.asarray(z)
    )
    x = torch.from_numpy(z)
    their_z_q, their_codes, their_loss = module(x)
    their_loss.backward()
    chex.assert_trees_all_equal(np.asarray(codes), their_codes.numpy().astype(np.int32))
    chex.assert_trees_all_close(np.asarray(z_q), their_z_q.detach().numpy(), atol=1e-5)
    assert float(loss) == pytest.approx(float(their_loss.detach()), rel=1e-4)
    chex.assert_trees_all_close(
        np.asarray(gradient["book"]["codebook_map"]).T,
        module.code_transform.weight.grad.numpy(),
        rtol=1e-3,
        atol=1e-5,
    )
