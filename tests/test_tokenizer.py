"""A tokenizer in use, whatever its quantizer: untrained ones, no files but pictures."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.config import base, check, make_tokenizer
from vq_jax.data.sources import Splits
from vq_jax.tasks.evaluate_tokenizer import measure_split, plot_codes
from vq_jax.tokenizer import TrainedTokenizer

SHAPES = {
    "vq": (8, 8),
    "vq heads": (8, 8, 2),
    "fsq": (8, 8),
    "residual/fsq": (8, 8, 4),
    "multiscale": (85,),
}


def made(case: str) -> TrainedTokenizer:
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
    return made(request.param), SHAPES[request.param]


def test_codes_have_the_grids_shape_and_decode_to_the_reconstruction(tokenizer, emoji_images):
    tok, shape = tokenizer
    codes = tok.encode(emoji_images)
    assert tok.grid == shape
    chex.assert_shape(codes, (16, *shape))
    chex.assert_trees_all_close(tok.decode(codes), tok.reconstruct(emoji_images), atol=1e-4)
    assert tok.factor == (None if len(shape) == 1 else 4)
    if tok.factor:
        wide = jnp.concatenate([emoji_images, emoji_images], axis=2)
        chex.assert_shape(tok.encode(wide), (16, 8, 16, *shape[2:]))


def test_first_levels_decode_alone_and_other_shapes_are_refused(emoji_images):
    tok = made("residual/fsq")
    codes = np.asarray(tok.encode(emoji_images))
    images = [tok.decode(codes[..., :levels]) for levels in (1, 2, 4)]
    assert all(image.shape == (16, 32, 32, 3) for image in images)
    assert float(jnp.abs(images[0] - images[2]).max()) > 0
    for wrong in (codes[..., :0], np.concatenate([codes, codes], -1)):
        with pytest.raises(ValueError, match="a position, not 4"):
            tok.decode(wrong)
    heads = made("vq heads")
    with pytest.raises(ValueError, match="1 a position, not 2"):
        heads.decode(np.zeros((1, 8, 8, 1), np.int32))


def test_a_split_is_measured_by_level(tokenizer, emoji: Splits, tmp_path):
    tok, shape = tokenizer
    figures, counts, _ = measure_split(tok, emoji.val, {})
    codes, images = int(np.prod(shape)), figures["images"]
    assert images == len(emoji.val)
    assert counts.shape == (*tok.code_shape, tok.num_codes)
    assert counts.sum() == codes * images
    bits = np.log2(tok.num_codes) * codes / 32**2
    assert figures["bits_per_pixel"] == pytest.approx(bits)
    assert 0 < figures["entropy_bits_per_pixel"] <= bits * (1 + 1e-6)
    if tok.code_shape:
        assert len(figures["usage_by_level"]) == tok.code_shape[0]
        p = counts / counts.sum(1, keepdims=True)
        entropy = -(p * np.log2(np.maximum(p, 1e-12))).sum(1).mean()
        assert figures["entropy_bits_per_pixel"] == pytest.approx(entropy * codes / 32**2, rel=1e-4)
    plot_codes(tok, counts, tmp_path / "codebook.png")
    assert (tmp_path / "codebook.png").stat().st_size > 5000


def test_images_of_one_colour_have_no_variance_to_be_held_against():
    class Grey:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"image": np.full((32, 32, 3), 90, np.uint8), "label": 0}

    figures, _, _ = measure_split(made("vq"), Grey(), {})
    assert "nmse" not in figures and figures["psnr"] > 0
