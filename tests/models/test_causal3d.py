"""The causal model of video: no frame sees later ones, and streaming gives what the whole clip does."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vq_jax.models import PatchGAN3D, Tokenizer, causal3d, vqgan
from vq_jax.models.causal3d import inflate
from vq_jax.models.video_layers import causal_conv, stream
from vq_jax.quantizers import VectorQuantizer

MODELS = {
    "group": {"ch": 8, "ch_mult": (1, 2), "halve_time": (0,), "halve_space": (0,)},
    "patch": {
        "ch": 8,
        "ch_mult": (1, 2, 2),
        "halve_time": (0, 1),
        "halve_space": (0,),
        "patch": 2,
        "norm": "none",
        "shortcut": True,
    },
    "rms": {"ch": 8, "ch_mult": (1, 1), "halve_time": (0, 1), "halve_space": (1,), "norm": "rms"},
}
STRIDES = {"group": (2, 2, 2), "patch": (4, 4, 4), "rms": (4, 2, 2)}


def make(name, frames=9, side=8, **changes):
    spec = jax.ShapeDtypeStruct((frames, side, side, 3), jnp.float32)
    fields = {"num_res_blocks": 1, "z_channels": 8} | MODELS[name] | changes
    encoder, decoder = causal3d(spec=spec, dim=4, dtype=jnp.float32, **fields)
    return Tokenizer(
        encoder=encoder, quantizer=VectorQuantizer(num_codes=16, dim=4), decoder=decoder
    )


def run(module, variables, x, method):
    """Applies a compiled method."""
    return jax.jit(partial(module.apply, method=method))(variables, x)


@pytest.fixture(scope="module", params=list(MODELS))
def opened(request):
    """A model, its variables with random kernels everywhere, and a batch of clips."""
    module = make(request.param)
    x = jax.random.uniform(jax.random.key(0), (2, 9, 8, 8, 3), minval=-1, maxval=1)
    variables = jax.jit(module.init)(jax.random.key(1), x)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda a: a + rng.normal(0, 0.1, a.shape).astype(np.float32), variables
    )
    return request.param, module, variables, x


def test_strides_and_shapes(opened):
    name, module, variables, x = opened
    assert module.encoder.strides == STRIDES[name]
    step, side, _ = STRIDES[name]

    def shape(method, of):
        return jax.eval_shape(partial(module.apply, method=method), variables, of)

    chex.assert_shape(shape("encode", x), (2, 1 + 8 // step, 8 // side, 8 // side, 4))
    chex.assert_shape(shape("decode_codes", shape("encode_to_codes", x)), x.shape)
    image = shape("encode", x[:, :1])  # an image is a clip of one frame
    chex.assert_shape(image, (2, 1, 8 // side, 8 // side, 4))


def test_no_latent_and_no_frame_depends_on_later_ones(opened):
    name, module, variables, x = opened
    step = STRIDES[name][0]

    def seen_by(method, of):
        """Function of a position in time of the output to those of the input that it depends on."""
        y = run(module, variables, of, method)

        def loss(a, k):
            output = module.apply(variables, a, method=method)
            return (jax.lax.dynamic_index_in_dim(output, k, axis=1) ** 2).sum()

        gradient = jax.jit(jax.grad(loss))
        return y, lambda k: np.abs(gradient(of, k)).max((0, 2, 3, 4)) > 0

    z, seen_by_latent = seen_by("encode", x)
    for k in range(1 + 8 // step):
        last, seen = k * step, seen_by_latent(k)  # the last frame of position k
        assert not seen[last + 1 :].any() and seen[max(0, last - step + 1) : last + 1].all(), seen
    _, seen_by_frame = seen_by("decode_latents", z)
    for t in (0, 1, 3, 4, 8):
        position, seen = -(-t // step), seen_by_frame(t)
        assert not seen[position + 1 :].any() and seen[position], (t, seen)


def test_the_codes_of_the_first_frames_are_those_of_the_clip_they_begin(opened):
    _, module, variables, x = opened
    whole = run(module, variables, x, "encode_to_codes")
    part = run(module, variables, x[:, :5], "encode_to_codes")
    np.testing.assert_array_equal(part, whole[:, : part.shape[1]])


@pytest.mark.parametrize("groups", [(1, 4, 4), (5, 4), (1, 8)])
def test_streaming_equals_the_whole(opened, groups):
    _, module, variables, x = opened
    z = run(module, variables, x, "encode")
    y = run(module, variables, z, "decode_latents")
    step = 8 // (z.shape[1] - 1)
    state_z, state_y, start, found_z, found_y = None, None, 0, [], []
    for count in groups:
        part, state_z = stream(module, variables, x[:, start : start + count], state_z, "encode")
        out, state_y = stream(module, variables, part, state_y, "decode_latents")
        assert part.shape[1] == (count - (start == 0)) // step + (start == 0)
        found_z.append(part)
        found_y.append(out)
        start += count
    np.testing.assert_allclose(jnp.concatenate(found_z, 1), z, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(jnp.concatenate(found_y, 1), y, atol=1e-5, rtol=1e-4)


def test_remat_changes_no_gradient():
    x = jax.random.uniform(jax.random.key(0), (1, 5, 8, 8, 3))
    plain, remat = (make("group", 5, remat_encoder=on, remat_decoder=on) for on in (False, True))
    variables = jax.jit(plain.init)(jax.random.key(1), x)

    def loss(params, module):
        z = module.apply({**variables, "params": params}, x, method="encode")
        return (
            module.apply({**variables, "params": params}, z, method="decode_latents") ** 2
        ).sum()

    grads = [
        jax.jit(jax.grad(lambda p, m=m: loss(p, m)))(variables["params"]) for m in (plain, remat)
    ]
    chex.assert_trees_all_close(*grads, rtol=1e-3, atol=1e-3)


def test_inflated_weights_of_an_image_model_treat_each_frame_as_the_image_model_does():
    spec = jax.ShapeDtypeStruct((8, 8, 3), jnp.float32)
    fields = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 8}
    image = Tokenizer(
        *vqgan(spec=spec, dim=4, dtype=jnp.float32, attn_resolutions=(), **fields)[:1],
        VectorQuantizer(num_codes=16, dim=4),
        vqgan(spec=spec, dim=4, dtype=jnp.float32, attn_resolutions=(), **fields)[1],
    )
    x = jax.random.uniform(jax.random.key(0), (1, 5, 8, 8, 3), minval=-1, maxval=1)
    of_image = jax.jit(image.init)(jax.random.key(1), x[0])
    video = make("group", 5, mid_attention=True, halve_time=())
    wanted = jax.eval_shape(video.init, jax.random.key(0), x)
    variables = inflate(jax.device_get(of_image), wanted)
    chex.assert_trees_all_equal_shapes(variables, wanted)
    z = run(video, variables, x, "encode")
    np.testing.assert_allclose(z[0], run(image, of_image, x[0], "encode"), atol=1e-5)
    y = run(video, variables, z, "decode_latents")
    of_frames = run(image, of_image, z[0], "decode_latents")
    np.testing.assert_allclose(y[0], of_frames, atol=1e-5)


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_joined_frames_give_the_convolution_in_three_dimensions(strides):
    """The CPU's algorithm equals XLA's own convolution, and so do its gradients."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 7, 8, 8, 32))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 32, 8)) / 30

    def direct(x, kernel):
        pads = lax.padtype_to_pads((8, 8), (3, 3), strides[1:], "SAME")
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(
            x, kernel, strides, [(0, 0), *pads], dimension_numbers=numbers
        )

    def ours(x, kernel):
        return causal_conv(x, kernel, strides, "SAME")

    np.testing.assert_allclose(ours(x, kernel), direct(x, kernel), atol=1e-4)
    grads = [
        jax.grad(lambda x, k, f=f: jnp.sin(f(x, k)).sum(), argnums=(0, 1))(x, kernel)
        for f in (ours, direct)
    ]
    chex.assert_trees_all_close(*grads, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_the_discriminator_sees_patches_of_frames(norm):
    module = PatchGAN3D(ndf=4, n_layers=2, norm=norm)
    x = jax.random.normal(jax.random.key(0), (2, 9, 16, 16, 3))
    logits, _ = jax.jit(module.init_with_output)(jax.random.key(1), x)
    chex.assert_shape(logits, (2, 3, 2, 2, 1))
    chex.assert_type(logits, jnp.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 8}, "use 9"),
        ({"side": 6}, "multiple of 4"),
        ({"halve_time": (3,)}, "model.halve_time"),
        ({"norm": "batch"}, "model.norm"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make("patch", **changes)
