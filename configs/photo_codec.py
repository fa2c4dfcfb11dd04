"""A codec of photographs: a transform that starts as JPEG's, integers, and a learned entropy model.

    python -m experiments.photo_codec.prepare photos_train.zip photos
    python -m vq_jax.main --config=configs/photo_codec.py --config.data.folder=photos
    python -m vq_jax.main --mode=compress --workdir=runs/photo_codec --input=my.png --output=my.vqz --quality=40

One model has all rates: every image of a batch is trained for a quality drawn from 0 to 1, and --quality=1 to 100 takes
any of them. 12,000 steps took 64 minutes on two shared CPU cores with other work beside. On Kodak: 27.3 dB at .15 bits a pixel,
32.2 dB at .5, 36.1 dB at 1.0; see experiments/photo_codec.
"""

from vq_jax.config import base


def get_config():
    config = base(model="cosine", quantizer="integer")
    config.data.source = "folder"
    config.data.folder = "photos"
    config.data.resolution = 128
    config.data.resize = 0  # crops of photographs as they are
    config.data.crop = "random"
    config.data.batch_size = 12

    # 120 of the 192 frequencies of a square of 8x8 pixels and three colours.
    config.quantizer.dim = 120
    config.quantizer.width = 96
    config.kmeans_batches = 0

    config.phases.joint = 12000
    config.save_every = 200
    config.log_every = 20

    # Bits a pixel, and 15 times the squared error in squares of a step.
    config.loss.reconstruction = "l2"
    config.loss.reconstruction_weight = 15.0
    config.loss.codebook_weight = 1 / 64
    config.loss.perceptual_weight = 0.0

    config.optim.lr = 3e-3
    config.optim.muon_lr = 0.006
    config.optim.lr_end = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.clip_norm = 1.0
    config.ema_decay = 0.99
    return config
