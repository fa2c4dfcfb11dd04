"""Small tokenizers, and priors over their codes, with random params."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.interop.weights import write_folder
from vq_jax.models.transformer import init_params
from vq_jax.prior import TrainedPrior
from vq_jax.tasks.model_files import own_arrays
from vq_jax.tasks.train_prior import describe_codes
from vq_jax.tokenizer import TrainedTokenizer


def prepare(data, train=True):
    """Returns the function that prepares images, for the config section `data`."""
    return modalities.MODALITIES["image"].prepare(data, train)


CLASSES = ("Flags", "Food & Drink", "Objects")


def make_tokenizer(quantizer="vq", seed=0):
    """Returns a tokenizer of 16x16 images with random weights."""
    config = configs.base("vqvae", quantizer)
    config.data.resolution = 16
    config.model.update({"hidden": 16, "res_hidden": 8})
    for part in (config.quantizer, config.quantizer.get("inner", {})):
        for field, value in (("num_codes", 32), ("dim", 8), ("levels", 2), ("scales", (1, 2, 4))):
            if field in part:
                part[field] = value
    config.phases.joint = 1
    module = configs.make_tokenizer(config)
    variables = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, 16, 16, 3)))
    # Scale the codebook to the spread of the latents, so that the codes differ.
    if "quantizer" in variables["params"]:
        variables["params"]["quantizer"] = jax.tree.map(
            lambda x: 6 * x, variables["params"]["quantizer"]
        )
    return TrainedTokenizer(config, module, variables, 1)


def make_text_tokenizer(causal_layers=0, length=32, quantizer="vq", seed=0):
    """Returns a tokenizer of texts with random weights, 4 bytes a code."""
    config = configs.base("text_conv", quantizer)
    config.data.length = length
    config.model.update(factor=4, width=16, heads=2, layers=1, causal_layers=causal_layers)
    if causal_layers:
        config.model.update(ngrams=(2, 3), ngram_bits=6, ngram_dim=4)
    for part in (config.quantizer, config.quantizer.get("inner", {})):
        for field, value in (("num_codes", 32), ("dim", 8), ("levels", 2)):
            if field in part:
                part[field] = value
    config.phases.joint = 1
    module = configs.make_tokenizer(config)
    variables = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, length), jnp.int32))
    variables = jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, variables)
    return TrainedTokenizer(config, module, variables, 1)


def make_video_tokenizer(norm="none", frames=9, side=16, seed=0):
    """Returns a causal tokenizer of clips with random weights, 4 frames of 4x4 pixels a code."""
    config = configs.base("causal3d", "vq")
    config.data.update(frames=frames, resolution=side)
    config.model.update(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, patch=2, norm=norm)
    config.model.update(halve_time=(0, 1), halve_space=(0,), shortcut=True)
    config.quantizer.update(num_codes=32, dim=8)
    config.loss.perceptual_weight = 0.0
    config.phases.joint = 1
    module = configs.make_tokenizer(config)
    shape = (1, *configs.spec_of(config).shape)
    variables = jax.jit(module.init)(jax.random.key(seed), jnp.zeros(shape))
    variables["params"]["quantizer"] = jax.tree.map(
        lambda x: 3 * x, variables["params"]["quantizer"]
    )
    return TrainedTokenizer(config, module, variables, 1)


def make_prior(tokenizer, name="masked", condition="none", ngrams=(), digits=False, **fields):
    """Returns a prior with random weights; `fields` are those of its condition."""
    config = make_prior_config(tokenizer, name, condition, ngrams, digits, **fields)
    module = configs.make_prior(config)
    params = jax.jit(partial(init_params, module))(jax.random.key(1))
    params = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, params)
    return TrainedPrior(config, tokenizer, module, params, 1)


def make_prior_config(tokenizer, name, condition="none", ngrams=(), digits=False, **fields):
    """Returns the config of a small prior, with its codes described."""
    modality = tokenizer.modality.name
    config = configs.base_prior(name, condition, modality)
    for field in tokenizer.modality.shape_fields:
        config.data[field] = tokenizer.config.data[field]
    config.prior.update({"layers": 1, "width": 32, "heads": 2})
    if ngrams:
        config.prior.update(ngrams=ngrams, ngram_bits=6, ngram_dim=4)
    if digits:
        config.prior.digits = True
    config.condition.update(fields)
    with config.unlocked():
        describe_codes(config, tokenizer, CLASSES)
    return config


def write(model, folder):
    """Writes a model to a folder, in the format of vq_jax, and returns the folder."""
    config, arrays, step = own_arrays(model, folder)
    write_folder(folder, arrays, step)
    configs.save(config, folder / "config.json")
    return folder


def bits(codes_N, weights):
    """Returns the bits of codes int [N] by weights [K] or [N, K]: the sum of log2(sum / weight)."""
    weights = np.asarray(weights, np.float64)
    if weights.ndim == 1:
        p_N = weights[codes_N] / weights.sum()
    else:
        p_N = np.take_along_axis(weights, codes_N[:, None], 1)[:, 0] / weights.sum(1)
    return float(-np.log2(p_N).sum())


def make_photo_codec(**model):
    """Makes a tokenizer with the entropy model "context", untrained and a little perturbed."""
    config = configs.base("cosine", "integer")
    config.data.resolution = 32
    config.model.update(width=8, encoder_blocks=1, decoder_blocks=1, **model)
    config.quantizer.update(dim=24, first=4, width=8)
    config.loss.update(reconstruction="l2", reconstruction_weight=15.0, codebook_weight=1 / 64)
    config.loss.perceptual_weight = 0.0
    config.phases.joint = 1
    module = configs.make_tokenizer(config)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    keys = iter(jax.random.split(jax.random.key(1), 200))
    params = jax.tree.map(
        lambda a: a + 0.003 * jax.random.normal(next(keys), a.shape), variables["params"]
    )
    return TrainedTokenizer(config, module, {"params": params}, 0)
