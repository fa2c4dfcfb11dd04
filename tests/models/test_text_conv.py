"""The tokenizers of bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import user_error
from small import make_prior, make_text_tokenizer

import vq_jax
from vq_jax.config import base, check
from vq_jax.errors import UserError
from vq_jax.runs import load_tokenizer

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


def test_a_byte_is_predicted_from_all_codes_and_only_the_bytes_before(x):
    tokenizer = make_text_tokenizer(2)
    codes = tokenizer.encode(x)

    @jax.jit
    def logits_of(z, x):
        h = apply(tokenizer, z, x, method="features")
        return apply(tokenizer, h, method="head")

    z = apply(tokenizer, codes, method="lookup")
    to_z = jax.grad(lambda z: logits_of(z, x)[:, 12].sum())(z)
    assert (jnp.abs(to_z).max(-1) > 0).all()
    before = logits_of(z, x)
    for place in range(LENGTH):
        changed = logits_of(z, x.at[:, place].add(1) % 256)
        differs = (jnp.abs(changed - before).max(-1) > 0).all(0)
        np.testing.assert_array_equal(differs[: place + 1], False)
        assert differs[place + 1 :].all()


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


def test_a_folder_named_as_the_identity_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes").mkdir()
    assert load_tokenizer("bytes").codes.num_codes == 256
    assert "no folder for figures" in user_error("--mode=evaluate", "--workdir=bytes")


def test_codes_of_the_identity_are_bytes():
    tok = vq_jax.load("bytes")
    text = "Æther, \0 and ÿ".encode()
    codes = tok.encode(text)
    np.testing.assert_array_equal(codes[0], list(text))
    assert tok.modality.to_raw(tok.decode(codes))[0].tobytes() == text
    assert tok.codes.num_codes == 256
    assert float(tok.log_likelihood(codes, codes)[0]) > -1e-6


def test_the_identity_has_nothing_to_train():
    config = base("bytes", "lfq")
    config.quantizer.bits = 8
    config.phases.joint = 1
    with pytest.raises(UserError, match="no params to train: .* tokenizer='bytes'"):
        check(config)
    config.quantizer.bits = 9
    with pytest.raises(UserError, match="quantizer.bits=8"):
        check(config)


def test_a_prior_continues_a_text():
    for causal_layers in (0, 2):
        prior = make_prior(make_text_tokenizer(causal_layers), "causal")
        given = prior.modality.from_prompt("In the beg")
        samples = prior.sample(2, prompt="In the beg")
        assert samples.shape == (2, LENGTH)
        assert all(prior.modality.shown(s).startswith("In the beg") for s in samples)
        codes = prior.sample_codes(2, given=prior._encode_beginning(given))
        np.testing.assert_array_equal(codes[0, :2], codes[1, :2])
        longer = prior.sample_codes(2, given=prior._encode_beginning(given[:8]))
        np.testing.assert_array_equal(codes[:, :2], longer[:, :2])
        with pytest.raises(UserError, match="32 bytes, and this prior writes texts of 32"):
            prior.sample(1, prompt=bytes(LENGTH))
    with pytest.raises(UserError, match="3 bytes, fewer than one code spans, 4"):
        make_prior(make_text_tokenizer(), "causal").sample(1, prompt="In ")


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
