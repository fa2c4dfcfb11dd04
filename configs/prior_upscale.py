"""A prior that enlarges emoji from 8x8 to 32x32, given the small image's codes.

    python -m vq_jax.main --config=configs/prior_upscale.py
    python -m vq_jax.main --mode=upscale --input=my.png --output=large.png
    python -m vq_jax.main --config=configs/prior_upscale.py:2      # by 2, from 16x16

Train the tokenizer first (configs/default.py).
"""

from vq_jax.config import base_prior


def get_config(factor="4"):
    config = base_prior("causal", "upscale")
    config.condition.factor = int(factor)
    config.tokenizer = "runs/default"
    config.data.source = "emoji"
    config.data.batch_size = 32

    config.prior.layers = 6
    config.prior.width = 192
    config.prior.heads = 6
    config.prior.dropout = 0.2

    config.phases.prior = 600
    config.sampling.temperature = 0.5  # low: stay close to the input image rather than vary it
    config.log_every = 20
    config.save_every = 300
    config.optim.lr = 1e-3
    config.optim.lr_end = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.ema_decay = 0.99
    return config
