"""A residual VQ-VAE for image compression with four rates, one for each number of levels kept.

    python -m vq_jax.main --config=configs/codec.py            # photographs
    python -m vq_jax.main --config=configs/codec.py:emoji
    python -m vq_jax.main --config=configs/codec.py:folder --config.data.folder=PATH

Training times are for two CPU cores, of which one to two were free.
Photographs: 20 minutes, 32.65 dB at 2.25 bits per pixel on tiles of the two held-out photographs.
Emoji: 10 minutes, 27.50 dB.
experiments/codec compares this recipe with JPEG, WebP and AVIF.
"""

from vq_jax.config import base


def get_config(source="photos"):
    config = base(model="vqvae", quantizer="residual/vq")
    config.data.source = source
    config.data.resolution = 32 if source == "emoji" else 64
    config.data.resize = None if source == "emoji" else 0  # 0: crop without resizing first
    config.data.crop = "center" if source == "emoji" else "random"
    config.data.batch_size = 16

    # A position covers 4x4 pixels and takes 9 bits per level: at most .56 bits per pixel and level.
    config.model.hidden = 128
    config.model.res_hidden = 64
    config.quantizer.levels = 4
    config.quantizer.dropout = 1.0  # train every image with a random number of levels
    config.quantizer.inner.num_codes = 512
    config.quantizer.inner.dim = 32
    config.kmeans_batches = 32

    config.phases.autoencoder = 500
    config.phases.quantizer = 50
    config.phases.joint = 4000
    config.save_every = 500
    config.log_every = 20

    config.loss.reconstruction = "l2"
    config.loss.perceptual_weight = 0.0
    config.optim.lr = 1e-3
    config.optim.lr_end = 3e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.clip_norm = 1.0
    config.ema_decay = 0.995
    return config
