"""The tokenizers of bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_prior, make_text_tokenizer

import vq_jax
from vq_jax.config import base, check
from vq_jax.errors import UserError

LENGTH = 32


@pytest.fixture(scope="module", params=[0, 2], ids=["parallel", "sequential"])
def tokenizer(request):
    return make_text_tokenizer(request.param)


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.integers(0, 256, (3, LENGTH)), jnp.int32)


def apply(tokenizer, *arguments, method):
    return tokenizer.module.apply(tokenizer.variables, *arguments, method=method)


def test_codes_and_logits_have_their_shapes(tokenizer, x):
    codes = tokenizer.encode(x)
    assert codes.shape == (3, LENGTH // 4) and codes.dtype == jnp.int32
    logits = tokenizer.decode(codes)
    assert logits.shape == (3, LENGTH, 256) and logits.dtype == jnp.float32
    np.testing.assert_array_equal(tokenizer.reconstruct(x), logits)
    assert tokenizer.encode(x[:, :16]).shape == (3, 4)


def test_a_byte_is_predicted_from_all_codes_and_only_the_bytes_before():
    tokenizer = make_text_tokenizer(2)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, LENGTH)), jnp.int32)
    codes = tokenizer.encode(x)

    def seen(z, onehot):
        """Logits of byte 12, for latents and one-hot bytes, with a gradient to both."""

        def run(module, z, onehot):
            before = jnp.pad(onehot[:, :-1], ((0, 0), (1, 0), (0, 0)))
            h = module.decoder.context(z) + before @ module.decoder.embedding.embedding[:256]
            from vq_jax.models.text_conv import _angles

            for block in module.decoder.blocks:
                h, _ = block(h, jnp.asarray(_angles(LENGTH, 8)), False)
            return module.decoder.head(module.decoder.norm(h))[0, 12].sum()

        return apply(tokenizer, z, onehot, method=run)

    z = apply(tokenizer, codes, method="lookup")
    to_z, to_x = jax.grad(seen, (0, 1))(z, jax.nn.one_hot(x, 256))
    assert (jnp.abs(to_z).max(-1) > 0).all()
    np.testing.assert_array_equal(jnp.abs(to_x).max(-1)[0] > 0, np.arange(LENGTH) < 12)
    # The n-grams, which have no gradient, look back, too.
    logits = apply(tokenizer, codes, x, method="predict")
    later = apply(tokenizer, codes, x.at[0, 12:].set(7), method="predict")
    np.testing.assert_array_equal(logits[:, :13], later[:, :13])


def test_steps_equal_the_prediction_of_a_whole_text(x):
    tokenizer = make_text_tokenizer(2)
    codes = tokenizer.encode(x)
    logits = apply(tokenizer, codes, x, method="predict")
    context, cache = apply(tokenizer, codes, method="begin")
    step = jax.jit(lambda *args: apply(tokenizer, *args, method="step"))
    for n in range(LENGTH):
        before_B = x[:, n - 1] if n else jnp.zeros(3, jnp.int32)
        one, cache = step(context, before_B, n, cache)
        np.testing.assert_allclose(one, logits[:, n], atol=1e-4)


def test_a_sequential_decoder_takes_the_likeliest_byte_and_keeps_given_ones(x):
    tokenizer = make_text_tokenizer(2)
    codes = tokenizer.encode(x)
    y = tokenizer.modality.to_raw(tokenizer.decode(codes))
    predicted = apply(tokenizer, codes, jnp.asarray(y, jnp.int32), method="predict")
    np.testing.assert_array_equal(predicted.argmax(-1), y)
    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_array_equal(tokenizer.draw(codes, keys, 0.0), y)
    given = np.where(np.arange(LENGTH) < 10, x, -1)
    drawn = tokenizer.draw(codes, keys, 1.0, given)
    np.testing.assert_array_equal(drawn[:, :10], x[:, :10])
    assert (drawn[:, 10:] != x[:, 10:]).any()


def test_the_likelihood_of_bytes_is_that_of_their_logits(tokenizer, x):
    codes = tokenizer.encode(x)
    logits = apply(tokenizer, codes, x, method="predict")
    log_p = jax.nn.log_softmax(logits)
    expected = jnp.take_along_axis(log_p, x[..., None], -1)[..., 0].sum(1)
    np.testing.assert_allclose(tokenizer.log_likelihood(x, codes), expected, rtol=1e-5)


def test_texts_are_encoded_as_bytes_and_as_strings(tokenizer):
    codes = tokenizer.encode(b"In the beginning")
    assert codes.shape == (1, 4)
    np.testing.assert_array_equal(codes, tokenizer.encode("In the beginning"))
    assert tokenizer.encode(b"In the beginning G").shape == (1, 5)
    with pytest.raises(ValueError, match="3 bytes, fewer than one code spans, 4"):
        tokenizer.encode(b"In ")
    with pytest.raises(ValueError, match="outside 0 to 255"):
        tokenizer.encode(np.full((1, 4), 256))


def test_codes_of_the_identity_are_bytes():
    tok = vq_jax.load("bytes")
    text = "Æther, \0 and ÿ".encode()
    codes = tok.encode(text)
    np.testing.assert_array_equal(codes[0], list(text))
    assert tok.modality.to_raw(tok.decode(codes))[0].tobytes() == text
    assert tok.codes.num_codes == 256
    assert float(tok.log_likelihood(codes, codes)[0]) > -1e-6


def test_a_prior_continues_a_text():
    for causal_layers in (0, 2):
        prior = make_prior(make_text_tokenizer(causal_layers), "causal")
        given = prior.modality.from_prompt("In the beg")
        samples = prior.sample(2, given=given)
        assert samples.shape == (2, LENGTH)
        assert all(prior.modality.shown(s).startswith("In the beg") for s in samples)
        codes = prior.sample_codes(2, given=prior._encode_beginning(given))
        np.testing.assert_array_equal(codes[0, :2], codes[1, :2])
        with pytest.raises(UserError, match="32 bytes, and this prior writes texts of 32"):
            prior.sample(1, given=np.zeros(LENGTH, np.int32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 3}, "a power of 2"),
        ({"factor": 64}, "multiple of model.factor, 64"),
        ({"width": 20, "heads": 2}, "multiple of 4"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    config = base("text_conv")
    config.data.length = LENGTH
    config.phases.joint = 1
    config.model.update(fields)
    with pytest.raises(UserError, match=message):
        check(config)
