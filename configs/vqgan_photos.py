"""A VQGAN on photographs: random 64-pixel crops of the embedded photographs, f8, 1,024 codes.

    python -m vq_jax.main --config=configs/vqgan_photos.py

Training runs at about 6 images/s on two busy CPU cores, which is about a quarter of an hour. This
recipe has not been run to the end.
"""

from vq_jax.config import base


def get_config():
    config = base(model="vqgan", quantizer="vq", discriminator="patchgan")
    config.data.source = "photos"
    config.data.resolution = 64
    config.data.resize = 0  # 0: crop without resizing first
    config.data.crop = "random"
    config.data.batch_size = 8

    config.model.ch = 32
    config.model.ch_mult = (1, 2, 2, 4)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = ()
    config.model.z_channels = 64
    config.quantizer.num_codes = 1024
    config.quantizer.dim = 32
    config.kmeans_batches = 32

    config.phases.autoencoder = 100
    config.phases.quantizer = 20
    config.phases.joint = 500
    config.phases.adversarial = 80
    config.save_every = 100
    config.log_every = 10

    config.loss.perceptual_from = "adversarial"
    config.loss.perceptual_weight = 0.5
    config.loss.perceptual_stride = 4
    config.discriminator.ndf = 32
    config.discriminator.n_layers = 2
    config.discriminator.norm = "group"
    config.adversarial.weight = 0.4
    config.adversarial.warmup_steps = 15
    config.adversarial.ramp_steps = 15

    config.optim.lr = 1e-3
    config.optim.lr_end = 5e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.clip_norm = 1.0
    config.disc_optim.lr = 2e-4
    config.disc_optim.b1 = 0.5
    config.ema_decay = 0.995
    return config
