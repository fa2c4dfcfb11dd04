"""VAR on 32x32 emoji: a next-scale prior over a pyramid of codes, 1, 2, 4 and 8 a side, 85 an image.

    python -m vq_jax.main --config=configs/default.py:multiscale
    python -m vq_jax.main --config=configs/var_emoji.py
    python -m vq_jax.main --mode=sample --workdir=runs/var_emoji --label="Food & Drink"

The emoji are embedded in the package. Train the tokenizer first, as above. 800 steps took 15 minutes on two shared CPU
cores with other work beside: 6.78 bits a code, Frechet distance 214.6 (see experiments/var_emoji).
"""

from vq_jax.config import base_prior


def get_config():
    config = base_prior("next_scale")
    config.tokenizer = "runs/default-multiscale"
    config.data.source = "emoji"
    config.data.batch_size = 32

    config.prior.layers = 6
    config.prior.width = 192
    config.prior.heads = 6
    config.prior.dropout = 0.3

    config.sampling.guidance = 2.0
    config.sampling.guidance_schedule = "linear"
    config.sampling.top_p = 0.95

    config.phases.prior = 800
    config.log_every = 20
    config.save_every = 200
    config.optim.lr = 1e-3
    config.optim.lr_end = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.ema_decay = 0.99
    return config
