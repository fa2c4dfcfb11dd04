"""A prior over the codes of the tokenizer of text, which writes text.

    python -m vq_jax.main --config=configs/prior_text_kjv.py
    python -m vq_jax.main --config=configs/prior_text_kjv.py:masked          # also fills gaps
    python -m vq_jax.main --config=configs/prior_text_kjv.py:random_order    # also fills gaps, that of text-kjv-prior

Train the tokenizer first (configs/text_kjv.py). Two and a half minutes on two CPU cores: the codes take 1.051
bits per byte of held-out books. The variant `masked` has not been run to the end.
"""

from vq_jax.config import base_prior


def get_config(prior="causal"):
    config = base_prior(prior, modality="text")
    config.tokenizer = "runs/text_kjv"
    config.data.source = "kjv"
    config.data.length = 256
    config.data.batch_size = 64

    config.prior.layers = 4
    config.prior.width = 192
    config.prior.heads = 6
    config.prior.dropout = 0.1
    config.eval_samples = 16

    config.phases.prior = 600
    config.log_every = 20
    config.save_every = 250
    config.optim.lr = 2e-3
    config.optim.lr_end = 4e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.ema_decay = 0.99
    return config
