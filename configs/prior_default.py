"""A prior over the default tokenizer's codes, which samples emoji by category.

    python -m vq_jax.main --config=configs/prior_default.py
    python -m vq_jax.main --mode=sample --workdir=runs/prior_default --label="Food & Drink"
    python -m vq_jax.main --config=configs/prior_default.py:masked    # or :causal

Train the tokenizer first (configs/default.py).
"""

from vq_jax.config import base_prior


def get_config(prior="random_order"):
    config = base_prior(prior)
    config.tokenizer = "runs/default"
    config.data.source = "emoji"
    config.data.batch_size = 32

    config.prior.layers = 6
    config.prior.width = 192
    config.prior.heads = 6
    config.prior.dropout = 0.2

    config.sampling.temperature = 0.8

    config.phases.prior = 1000
    config.log_every = 20
    config.save_every = 500
    config.optim.lr = 1e-3
    config.optim.lr_end = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.ema_decay = 0.99
    if prior == "random_order":
        # Half of the images end up in row-by-row order, which is the order used for sampling.
        config.loss.permute = (1.0, 0.5, 0, 200)
    return config
