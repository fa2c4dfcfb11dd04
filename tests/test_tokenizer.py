"""Encoding, decoding and evaluation with untrained tokenizers of several quantizers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.config import base, check, make_prepare, make_tokenizer
from vq_jax.data.sources import Splits
from vq_jax.tasks.evaluate_tokenizer import measure_examples
from vq_jax.tasks.job import Evaluation
from vq_jax.tokenizer import TrainedTokenizer

SHAPES = {
    "vq": (8, 8),
    "vq heads": (8, 8, 2),
    "fsq": (8, 8),
    "residual/fsq": (8, 8, 4),
    "multiscale": (85,),
}


def make_untrained(case: str) -> TrainedTokenizer:
    name, *heads = case.split()
    config = base("vqvae", name)
    config.model.update(hidden=16, res_hidden=8, num_res_blocks=1)
    if "num_codes" in config.quantizer:
        config.quantizer.update(num_codes=32, dim=8)
    if heads:
        config.quantizer.heads = 2
    config.phases.joint = 1
    check(config)
    module = make_tokenizer(config)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return TrainedTokenizer(config, module, variables, 0)


@pytest.fixture(scope="module", params=SHAPES)
def tokenizer(request):
    return make_untrained(request.param), SHAPES[request.param]


def test_codes_have_their_shape_and_decode_to_the_reconstruction(tokenizer, emoji_images):
    tok, shape = tokenizer
    codes = tok.encode(emoji_images)
    assert tok.codes.shape == shape
    chex.assert_shape(codes, (16, *shape))
    chex.assert_trees_all_close(tok.decode(codes), tok.reconstruct(emoji_images), atol=1e-4)
    assert tok.strides == (None if len(shape) == 1 else (4, 4))
    if tok.strides:
        wide = jnp.concatenate([emoji_images, emoji_images], axis=2)
        chex.assert_shape(tok.encode(wide), (16, 8, 16, *shape[2:]))


def test_first_levels_can_be_decoded_and_other_shapes_are_refused(emoji_images):
    tok = make_untrained("residual/fsq")
    codes = np.asarray(tok.encode(emoji_images))
    images = [tok.decode(codes[..., :levels]) for levels in (1, 2, 4)]
    assert all(image.shape == (16, 32, 32, 3) for image in images)
    assert float(jnp.abs(images[0] - images[2]).max()) > 0
    for invalid in (codes[..., :0], np.concatenate([codes, codes], -1)):
        with pytest.raises(ValueError, match="a position, not 4"):
            tok.decode(invalid)
    heads = make_untrained("vq heads")
    with pytest.raises(ValueError, match="1 a position, not 2"):
        heads.decode(np.zeros((1, 8, 8, 1), np.int32))


def evaluate(tok, source, folder):
    tok.config.eval_lpips = False
    return measure_examples(Evaluation(tok, Splits(source, source, ()), folder, None))


def test_evaluation_measures_every_level(tokenizer, emoji: Splits, tmp_path):
    tok, shape = tokenizer
    metrics = evaluate(tok, emoji.val, tmp_path)
    prepare = make_prepare(tok.config)
    x = np.stack([prepare(emoji.val[i])["x"] for i in range(len(emoji.val))])
    all_codes = np.asarray(tok.encode(x)).reshape(-1, tok.codes.books)
    counts = np.stack([np.bincount(c, minlength=tok.codes.num_codes) for c in all_codes.T])
    codes, images = int(np.prod(shape)), metrics["images"]
    assert images == len(emoji.val)
    bits = np.log2(tok.codes.num_codes) * codes / 32**2
    assert metrics["bits_per_pixel"] == pytest.approx(bits)
    assert 0 < metrics["entropy_bits_per_pixel"] <= bits * (1 + 1e-6)
    if tok.codes.code_shape:
        assert len(metrics["usage_by_level"]) == tok.codes.code_shape[0]
        p = counts / counts.sum(1, keepdims=True)
        entropy = -(p * np.log2(np.maximum(p, 1e-12))).sum(1).mean()
        assert metrics["entropy_bits_per_pixel"] == pytest.approx(entropy * codes / 32**2, rel=1e-4)
    assert (tmp_path / "codebook.png").stat().st_size > 5000


def test_images_of_one_colour_have_no_nmse(tmp_path):
    class Grey:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"x": np.full((32, 32, 3), 90, np.uint8), "label": 0}

    metrics = evaluate(make_untrained("vq"), Grey(), tmp_path)
    assert "nmse" not in metrics and metrics["psnr"] > 0
