"""VAR on 32x32 emoji: a pyramid of codes (1, 2, 4 and 8 a side, 85 an image), then a next-scale prior.

    python -m vq_jax.main --config=configs/var_emoji.py
    python -m vq_jax.main --config=configs/var_emoji.py:prior
    python -m vq_jax.main --mode=sample --workdir=runs/var_emoji-prior --label="Food & Drink"

The emoji are embedded in the package.
"""

from vq_jax.config import base, base_prior


def get_config(stage="tokenizer"):
    return prior() if stage == "prior" else tokenizer()


def tokenizer():
    config = base(model="vqvae", quantizer="multiscale", discriminator="patchgan")
    config.data.source = "emoji"
    config.data.resolution = 32
    config.data.batch_size = 16

    # On a CPU, strided convolutions learn more per hour than VQGAN's residual stacks.
    config.model.hidden = 128
    config.model.res_hidden = 64
    config.quantizer.num_codes = 512
    config.quantizer.dim = 16
    config.quantizer.scales = (1, 2, 4, 8)
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


def prior():
    config = base_prior("next_scale")
    config.tokenizer = "runs/var_emoji"
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
