"""Training on the emoji images revives a collapsed codebook, whose entries are all equal."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import prepare

from vq_jax.config import base, make_tokenizer
from vq_jax.data.pipeline import eval_batches, train_batches
from vq_jax.tasks.train_tokenizer import make_recipe
from vq_jax.training.steps import TokenizerPhase, init_state, train_step

# Number of steps of 16 images that reach over 80% of 64 codes. The statistics follow quickly (decay
# 0.9), and entries below a tenth of the mean count are revived. IBQ needs more steps, because it
# compares inner products and its entropy term acts slowly.
STEPS = {
    "vq": 60,
    "gumbel": 60,
    "residual": 60,
    "ibq": 240,
    "simvq": 60,
    "multiscale": 60,
    "hierarchy": 60,
}


def make_config(family):
    name, *option = family.split()
    config = base("vqvae2" if name == "hierarchy" else "vqvae", name)
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
    """Sets every entry to the first entry, and the counts to their initial values."""
    name = jax.tree_util.keystr(path)
    if "quantizer" not in name or any(part in name for part in ("map", "blends", "conditions")):
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
    state = jax.jit(
        partial(init_state, recipe, spec=jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))
    )(jax.random.key(0))
    generator = state.generator
    params, stats = jax.tree_util.tree_map_with_path(collapse, (generator.params, generator.stats))
    state = state.replace(generator=generator.replace(params=params, stats=stats))

    @jax.jit
    def codes_of(generator, images):
        variables = {"params": generator.params, **generator.stats}
        z = tokenizer.apply(variables, images, method="encode")
        return tokenizer.apply(variables, z, method="quantize")[1]

    def usage(generator):
        """Returns the share of codes that occur in the validation images."""
        books, size = tokenizer.quantizer.code_shape or (1,), tokenizer.quantizer.num_codes
        used = np.zeros((*books, size), bool)
        for batch in eval_batches(emoji.val, config.data, prepare(config.data, False)):
            codes = np.asarray(codes_of(generator, batch["x"]))[batch["valid"]]
            for book, book_codes in enumerate(codes.reshape(-1, len(used)).T):
                used[book, book_codes] = True
        return used.mean()

    assert usage(state.generator) < 0.05
    step = jax.jit(
        partial(train_step, recipe=recipe, phase=TokenizerPhase("joint", STEPS[family], 0))
    )
    batches = train_batches(emoji.train, config.data, 0, prepare(config.data))
    for _ in range(STEPS[family]):
        state, _ = step(state, next(batches), jax.random.key(1))
    assert usage(state.generator) > 0.8
