"""The transform for compression: it starts as a cosine transform, and sees a bounded neighbourhood."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_photo_codec

from vq_jax.models import Tokenizer
from vq_jax.models.cosine import cosine
from vq_jax.quantizers.integer import IntegerQuantizer


def make(dim=192, **fields):
    spec = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    encoder, decoder = cosine(spec=spec, dim=dim, dtype=jnp.float32, width=8, **fields)
    quantizer = IntegerQuantizer(dim=dim, width=8)
    return Tokenizer(encoder=encoder, quantizer=quantizer, decoder=decoder)


@pytest.mark.parametrize("quality", [0.0, 0.3, 1.0])
def test_it_starts_as_an_orthonormal_transform(quality):
    module = make()
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1, maxval=1)
    variables = module.init(jax.random.key(1), x)
    q = jnp.full(2, quality)
    z = module.apply(variables, x, q, method="encode")
    chex.assert_trees_all_close(
        module.apply(variables, z, q, method="decode_latents"), x, atol=1e-5
    )
    energy = jnp.square(z).sum() * module.encoder.step(jnp.float32(quality)) ** 2
    assert float(energy) == pytest.approx(float(jnp.square(x).sum()), rel=1e-4)
    sensitivity = module.apply(
        variables, jnp.float32(quality), method=lambda m, q: m.decoder.sensitivity(q)
    )
    chex.assert_trees_all_close(sensitivity, jnp.ones(192), atol=1e-5)


def test_the_error_of_a_finer_quality_is_smaller():
    module = make()
    x = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3), minval=-1, maxval=1)
    variables = module.init(jax.random.key(1), x)
    errors = []
    for quality in (0.0, 0.5, 1.0):
        y, codes = module.apply(variables, x, jnp.array([quality]), method="reconstruct")
        chex.assert_shape(codes, (1, 4, 4, 192))
        errors.append(float(jnp.square(x - y).mean()))
    assert errors == sorted(errors, reverse=True) and errors[2] < errors[0] / 20


def test_no_latent_and_no_pixel_depends_on_more_than_the_margin():
    tokenizer = make_photo_codec()
    module, variables = tokenizer.module, tokenizer.variables
    side = 96
    x = jax.random.uniform(jax.random.key(0), (1, side, side, 3), minval=-1, maxval=1)

    def latent(x):
        return module.apply(variables, x, method="encode")[0, 6, 6].sum()

    seen = np.nonzero(np.asarray(jax.grad(latent)(x))[0].any((1, 2)))[0]
    margin = module.encoder.margin
    assert seen.min() == 48 - margin and seen.max() == 55 + margin

    z = module.apply(variables, x, method="encode")

    def pixels(z):
        return module.apply(variables, z, method="decode_latents")[0, 48:56, 48:56].sum()

    seen = np.nonzero(np.asarray(jax.grad(pixels)(z))[0].any((1, 2)))[0]
    margin = module.decoder.margin // 8
    assert seen.min() == 6 - margin and seen.max() == 6 + margin


def test_tiles_equal_the_whole_image(monkeypatch):
    from vq_jax.codec.image_tiler import ImageTiler

    tokenizer = make_photo_codec()
    image = np.uint8(np.random.default_rng(0).integers(0, 256, (320, 384, 3)))
    whole, tiled = ImageTiler(tokenizer), ImageTiler(tokenizer, side=160)
    (a,), (b,) = (tiler.encode([image], 0.4, tokenizer.encode_latents) for tiler in (whole, tiled))
    chex.assert_trees_all_close(a, b, atol=1e-4)
    codes = np.rint(a).astype(np.int32) + 511
    decoded = [next(t.decode([codes], [(320, 384)], quality=0.4)) for t in (whole, tiled)]
    assert np.abs(decoded[0].astype(int) - decoded[1]).max() <= 1


def test_latents_larger_than_a_square_are_refused():
    with pytest.raises(ValueError, match="latent of 193"):
        make(dim=193)
