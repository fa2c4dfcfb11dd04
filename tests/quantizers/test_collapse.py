"""A collapsed codebook, all entries equal, comes back to life in training on the emoji."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.config import base, make_tokenizer
from vq_jax.data.pipeline import eval_batches, train_batches
from vq_jax.tasks.train_tokenizer import make_recipe
from vq_jax.training.steps import Phase, init_state, train_step

# Steps of 16 images to above 80% of 64 codes, with statistics that follow fast (decay .9) and revival
# below a tenth of the mean; IBQ chooses by products, and its entropy term takes longer.
STEPS = {
    "vq": 60,
    "gumbel": 60,
    "residual": 60,
    "ibq": 240,
    "simvq": 60,
    "multiscale": 60,
}


def make_config(family):
    name, *option = family.split()
    config = base("vqvae", name)
    config.model.update(hidden=16, res_hidden=8, num_res_blocks=1)
    section = config.quantizer.inner if "inner" in config.quantizer else config.quantizer
    section.update(num_codes=64, dim=8, decay=0.9, revive_below=0.1)
    if option:
        section.codebook = option[0]
    config.data.batch_size = 16
    config.loss.perceptual_weight = 0.0
    config.optim.lr = 2e-3
    config.phases.joint = STEPS[family]
    return config


def collapse(path, leaf):
    """Every entry where the first one is, every statistic as in `Codebook`'s start."""
    name = jax.tree_util.keystr(path)
    if "quantizer" not in name or "map" in name or "blends" in name:
        return leaf
    if "cluster_size" in name:
        return jnp.ones_like(leaf)
    axis = leaf.ndim - 1 if "bias" in name else leaf.ndim - 2
    return jnp.broadcast_to(jax.lax.slice_in_dim(leaf, 0, 1, axis=axis), leaf.shape)


@pytest.mark.slow
@pytest.mark.parametrize("family", STEPS)
def test_a_collapsed_codebook_recovers(family, emoji):
    config = make_config(family)
    tokenizer = make_tokenizer(config)
    recipe = make_recipe(config)
    state = jax.jit(partial(init_state, recipe, image_shape=(32, 32, 3)))(jax.random.key(0))
    generator = state.generator
    params, stats = jax.tree_util.tree_map_with_path(collapse, (generator.params, generator.stats))
    state = state.replace(generator=generator.replace(params=params, stats=stats))

    @jax.jit
    def codes_of(generator, images):
        variables = {"params": generator.params, **generator.stats}
        z = tokenizer.apply(variables, images, method="encode")
        return tokenizer.apply(variables, z, method="quantize")[1]

    def usage(generator):
        books, size = tokenizer.quantizer.code_shape or (1,), tokenizer.quantizer.num_codes
        seen = np.zeros((*books, size), bool)
        for batch in eval_batches(emoji.val, config.data):
            codes = np.asarray(codes_of(generator, batch["image"]))[batch["valid"]]
            for book, of_book in enumerate(codes.reshape(-1, len(seen)).T):
                seen[book, of_book] = True
        return seen.mean()

    assert usage(state.generator) < 0.05
    step = jax.jit(partial(train_step, recipe=recipe, phase=Phase("joint", STEPS[family], 0)))
    batches = train_batches(emoji.train, config.data, seed=0)
    for _ in range(STEPS[family]):
        state, _ = step(state, next(batches), jax.random.key(1))
    assert usage(state.generator) > 0.8
