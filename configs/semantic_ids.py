"""Semantic IDs: a residual VQ of feature vectors, 3 levels of 256, after TIGER's RQ-VAE.

    python -m vq_jax.main --config=configs/semantic_ids.py
    python -m vq_jax.main --mode=tokenize --config=semantic_ids --output=ids.parquet

Half a minute on two CPU cores (experiments/semantic_ids has the figures). The embedded data are
EfficientNet-lite0's features of emoji, with their names. Your own vectors, in .npy, .npz or parquet files:

    python -m vq_jax.main --config=configs/semantic_ids.py --workdir=runs/mine \\
        --config.data.source=vectors --config.data.folder=PATH --config.data.dim=768
"""

from vq_jax.config import base


def get_config():
    config = base(model="vector_mlp", quantizer="residual/vq")
    config.data.source = "emoji_features"
    config.data.dim = 1280
    config.data.batch_size = 256

    config.model.hidden = (512, 256, 128)
    config.quantizer.levels = 3
    config.quantizer.inner.num_codes = 256
    config.quantizer.inner.dim = 64
    config.quantizer.inner.beta = 0.25
    # Fewer items share a code than with the default, 0.01.
    config.quantizer.inner.revive_below = 0.2
    config.kmeans_batches = 13

    config.phases.autoencoder = 200
    config.phases.quantizer = 100
    config.phases.joint = 700
    config.save_every = 1000

    config.loss.reconstruction = "l2"
    config.optim.lr = 1e-3
    config.optim.lr_end = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 1.0
    config.ema_decay = 0.99
    return config
