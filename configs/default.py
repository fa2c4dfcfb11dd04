"""The default: a VQ-GAN on the embedded emoji, 32x32, 64 codes an image out of 512.

    python -m vq_jax.main --config=configs/default.py
    python -m vq_jax.main --config=configs/default.py:fsq     # or any other quantizer, as residual/vq

Under 5 minutes on two CPU cores. Held-out PSNR 23.0 dB, LPIPS .18, 511 of 512 codes in use (see
experiments/default).
"""

from vq_jax.config import base


def get_config(quantizer="vq"):
    config = base(model="vqvae", quantizer=quantizer, discriminator="patchgan")
    config.data.source = "emoji"
    config.data.resolution = 32
    config.data.batch_size = 16

    # Strided convolutions: on a CPU they learn more an hour than VQGAN's residual towers.
    config.model.hidden = 128
    config.model.res_hidden = 64
    for section in (config.quantizer, config.quantizer.get("inner", {})):
        for field, value in (("num_codes", 512), ("dim", 16)):
            if field in section:
                section[field] = value
    config.kmeans_batches = 32

    config.phases.autoencoder = 300
    config.phases.quantizer = 50
    config.phases.joint = 2200
    config.phases.adversarial = 150
    config.save_every = 500
    config.log_every = 10

    config.loss.reconstruction = "l2"
    # VGG costs more than all the rest here, so it only sharpens the last part, on 4 images a step.
    config.loss.perceptual_from = "adversarial"
    config.loss.perceptual_weight = 0.1
    config.loss.perceptual_stride = 4

    config.discriminator.ndf = 32
    config.discriminator.n_layers = 2
    config.discriminator.norm = "group"
    config.adversarial.warmup_steps = 20
    config.adversarial.ramp_steps = 20
    config.adversarial.weight = 0.1

    config.optim.lr = 1.5e-3
    config.optim.lr_end = 3e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 1.0
    config.disc_optim.lr = 5e-4
    config.disc_optim.b1 = 0.5
    config.ema_decay = 0.99
    return config
