"""Encoders, decoders and discriminators: shapes, dtypes, widths, PyTorch and rematerialisation."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.models import DISCRIMINATORS, MODELS, PatchGAN, Tokenizer
from vq_jax.quantizers import VectorQuantizer

SMALL = {
    "vqgan": {
        "ch": 8,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "attn_resolutions": (8,),
        "z_channels": 8,
    },
    "vqvae": {"hidden": 16, "res_hidden": 8, "downsamples": 2},
    "maskgit": {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1},
    "magvit2": {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1},
    "mlp": {"hidden": (32, 16), "tokens": 2},
    "vqvae2": {"hidden": 16, "res_hidden": 8},
    "vit": {"patch": 4, "layers": 1, "width": 32, "heads": 2},
    "titok": {"patch": 4, "layers": 1, "width": 32, "heads": 2, "tokens": 6},
    "vector_mlp": {"hidden": (32, 16)},
}
GRID = {
    "vqgan": (8, 8),
    "vqvae": (4, 4),
    "maskgit": (8, 8),
    "magvit2": (8, 8),
    "mlp": (2,),
    "vqvae2": (20,),
    "vit": (4, 4),
    "titok": (6,),
    "vector_mlp": (),
}
DEEP = [name for name in SMALL if not name.endswith("mlp")]
ANY_SIZE = [name for name in DEEP if name not in ("titok", "vqvae2")]


def shape_of(name):
    return (40,) if name == "vector_mlp" else (16, 16, 3)


def tokenizer(name, dtype=jnp.float32, **kwargs):
    spec = jax.ShapeDtypeStruct(shape_of(name), jnp.float32)
    encoder, decoder = MODELS[name].make(spec=spec, dim=6, dtype=dtype, **SMALL[name] | kwargs)
    return Tokenizer(
        encoder=encoder, quantizer=VectorQuantizer(num_codes=32, dim=6), decoder=decoder
    )


# Models of texts and of video have files of their own.
@pytest.mark.parametrize("name", list(SMALL))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_model_encodes_and_decodes(name, dtype, rng):
    module = tokenizer(name, dtype=dtype)
    x = jnp.asarray(rng.uniform(-1, 1, size=(2, *shape_of(name))), jnp.float32)
    init = (
        jax.jit(module.init)
        if jnp.dtype(dtype) == jnp.float32
        else partial(jax.eval_shape, module.init)
    )
    variables = init(jax.random.key(0), x)
    chex.assert_type(jax.tree.leaves(variables["params"]), jnp.float32)
    assert variables["params"].keys() == {"encoder", "quantizer", "decoder"}

    def run(variables, x):
        z = module.apply(variables, x, method="encode")
        z_q, codes, _ = module.apply(variables, z, method="quantize")
        y = module.apply(variables, z_q, method="decode_latents")
        h = module.apply(variables, z_q, x, method="features")
        looked_up = module.apply(variables, codes, method="lookup")
        return z, codes, y, (z_q, looked_up), module.apply(variables, h, method="head")

    z, codes, y, _, _ = jax.eval_shape(run, variables, x)
    chex.assert_shape(z, (2, *GRID[name], 6))
    chex.assert_shape(codes, (2, *GRID[name]))
    chex.assert_shape(y, x.shape)
    chex.assert_type([z, y], jnp.float32)
    if jnp.dtype(dtype) == jnp.float32:  # For bfloat16, shapes and dtypes are enough.
        _, _, y, (z_q, looked_up), output = jax.jit(run)(variables, x)
        chex.assert_trees_all_equal(looked_up, z_q)
        chex.assert_trees_all_close(output, y, atol=1e-6)


@pytest.mark.parametrize("name", ANY_SIZE)
def test_models_with_strides_accept_other_sizes(name):
    module = tokenizer(name)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    chex.assert_shape(module.apply(variables, jnp.zeros((1, 8, 24, 3))), (1, 8, 24, 3))


def test_mlp_has_the_configured_widths():
    encoder, decoder = MODELS["mlp"].make(
        spec=jax.ShapeDtypeStruct((28, 28, 1), jnp.float32), dim=64, dtype=jnp.float32
    )
    module = Tokenizer(encoder=encoder, quantizer=VectorQuantizer(512, 64), decoder=decoder)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]

    def widths(side):
        return {k.shape for k in jax.tree.leaves(params[side]) if k.ndim == 2}

    assert widths("encoder") == {(784, 256), (256, 128), (128, 64)}
    assert widths("decoder") == {(64, 128), (128, 256), (256, 784)}
    assert params["quantizer"]["book"]["codebook"].shape == (512, 64)
    disc = DISCRIMINATORS["mlp"]()
    params = jax.jit(disc.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    kernels = {k.shape for k in jax.tree.leaves(params) if k.ndim == 2}
    assert kernels == {(784, 128), (128, 64), (64, 1)}


def test_vqgan_has_attention_at_the_configured_resolutions():
    module = tokenizer("vqgan", attn_resolutions=(16,), mid_attention=False)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    assert {k for k in params["encoder"] if "attn" in k} == {"down_0_attn_0"}
    assert {k for k in params["decoder"] if "attn" in k} == {"up_0_attn_0", "up_0_attn_1"}
    assert "attn_1" not in params["encoder"]["mid"]


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_patchgan_matches_torch(norm, rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    disc = PatchGAN(ndf=8, n_layers=2, norm=norm)
    params = jax.jit(disc.init)(jax.random.key(0), x)["params"]

    def torch_conv(name, **kwargs):
        p = params[name]
        kernel = torch.tensor(np.asarray(p["kernel"]).transpose(3, 2, 0, 1).copy())
        layer = torch.nn.Conv2d(
            kernel.shape[1], kernel.shape[0], 4, padding=1, bias="bias" in p, **kwargs
        )
        layer.weight.data = kernel
        if "bias" in p:
            layer.bias.data = torch.tensor(np.asarray(p["bias"]))
        return layer

    def torch_norm(name):
        if norm == "none":
            return torch.nn.Identity()
        p = params[name]
        width = p["scale"].size
        layer = (
            torch.nn.BatchNorm2d(width)
            if norm == "batch"
            else torch.nn.GroupNorm(min(32, width), width, eps=1e-6)
        )
        layer.weight.data, layer.bias.data = (
            torch.tensor(np.asarray(p[k])) for k in ("scale", "bias")
        )
        return layer

    relu = torch.nn.LeakyReLU(0.2)
    peer = torch.nn.Sequential(
        torch_conv("conv_0", stride=2), relu,
        torch_conv("conv_1", stride=2), torch_norm("norm_1"), relu,
        torch_conv("conv_2"), torch_norm("norm_2"), relu,
        torch_conv("conv_out"),
    )  # fmt: skip
    with torch.no_grad():
        expected = peer(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    chex.assert_trees_all_close(disc.apply({"params": params}, x), expected, atol=1e-4)


def test_patchgan_weights_have_an_initial_standard_deviation_of_002():
    params = jax.jit(PatchGAN(ndf=64).init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    for name in ("conv_1", "conv_2", "conv_3"):
        assert float(params[name]["kernel"].std()) == pytest.approx(0.02, rel=0.02)
    assert float(params["norm_1"]["scale"].mean()) == pytest.approx(1.0, abs=0.02)


def test_invalid_fields_are_reported():
    with pytest.raises(ValueError, match="disc.*'batch', 'group' or 'none'"):
        PatchGAN(norm="layer").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="does not halve"):
        spec = jax.ShapeDtypeStruct((30, 30, 3), jnp.float32)
        MODELS["vqvae"].make(spec=spec, dim=4, dtype=jnp.float32)


def gradients(module, variables, x):
    """Returns a function of params that computes a loss and its gradients, and the params."""

    def loss(params):
        return jnp.square(module.apply({**variables, "params": params}, x)).mean()

    return jax.jit(jax.value_and_grad(loss)), variables["params"]


def remat_count(function, *args):
    """Counts the rematerialised calls in a function's jaxpr."""
    return str(jax.make_jaxpr(function)(*args)).count("remat")


@pytest.mark.parametrize("name", [*DEEP, "patchgan"])
def test_remat_recomputes_and_does_not_change_gradients(name, rng):
    x = jnp.asarray(rng.uniform(-1, 1, size=(2, 16, 16, 3)), jnp.float32)
    if name == "patchgan":
        plain, remat = (PatchGAN(ndf=8, n_layers=2, remat=on) for on in (False, True))
    else:
        smaller = {"ch_mult": (1,), "attn_resolutions": ()} if name == "vqgan" else {}
        plain = tokenizer(name, **smaller)
        remat = tokenizer(name, remat_encoder=True, remat_decoder=True, **smaller)
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    chex.assert_trees_all_equal(jax.jit(remat.init)(jax.random.key(0), x), variables)
    (loss, params), (remat_loss, _) = (gradients(m, variables, x) for m in (plain, remat))
    assert remat_count(loss, params) == 0 and remat_count(remat_loss, params) > 0
    chex.assert_trees_all_close(loss(params), remat_loss(params), rtol=1e-3, atol=1e-5)
