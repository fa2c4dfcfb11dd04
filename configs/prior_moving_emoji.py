"""A prior over the codes of moving emoji: samples clips, continues them, fills gaps in time and space.

    python -m vq_jax.main --config=configs/prior_moving_emoji.py
    python -m vq_jax.main --mode=sample --workdir=runs/prior_moving_emoji --count=8
    python -m vq_jax.main --config=configs/prior_moving_emoji.py:masked    # or :causal

Train the tokenizer first (configs/video_moving_emoji.py). 600 steps took 25 minutes on two shared CPU cores with other
work beside: 3.69 bits a code of 8, a good entropy model, but too few for samples in which emoji can be recognised (see
experiments/video).
"""

from vq_jax.config import base_prior


def get_config(prior="random_order"):
    config = base_prior(prior, modality="video")
    config.tokenizer = "runs/video_moving_emoji"
    config.data.source = "moving_emoji"
    config.data.frames = 17
    config.data.resolution = 32
    config.data.batch_size = 8

    config.prior.layers = 6
    config.prior.width = 192
    config.prior.heads = 6
    config.prior.dropout = 0.0  # no clip is seen twice

    config.phases.prior = 600
    config.log_every = 20
    config.save_every = 100
    config.optim.lr = 1e-3
    config.optim.muon_lr = 0.02
    config.optim.lr_end = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.ema_decay = 0.99
    config.eval_samples = 128
    config.eval_references = 256
    if prior == "random_order":
        # A quarter of the clips end up in a random order, which fills gaps; the others row by row, which is the
        # order used for sampling.
        config.loss.permute = (1.0, 0.25, 0, 150)
    return config
