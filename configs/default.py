"""The default recipe: a VQ-GAN on 32x32 emoji, 64 codes per image from a codebook of 512.

    python -m vq_jax.main --config=configs/default.py
    python -m vq_jax.main --config=configs/default.py:fsq     # any quantizer, e.g. residual/vq

The emoji are embedded in the package. Training takes under 5 minutes on two CPU cores.
Held-out PSNR is 23.0 dB and LPIPS .18, with 511 of 512 codes in use (see experiments/default).
"""

from vq_jax.config import base


def get_config(quantizer="vq"):
    # A hierarchy of codes needs latents at several resolutions.
    model = "vqvae2" if quantizer.startswith("hierarchy") else "vqvae"
    config = base(model=model, quantizer=quantizer, discriminator="patchgan")
    config.data.source = "emoji"
    config.data.resolution = 32
    config.data.batch_size = 16

    # On a CPU, strided convolutions learn more per hour than VQGAN's residual stacks.
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
    # VGG costs more than the rest of the step, so LPIPS is limited to the last phase and to
    # 4 images per step.
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
