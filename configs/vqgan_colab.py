"""A VQGAN for a free Colab TPU or GPU: CIFAR-10 at 32x32, f4, 1,024 codes, bfloat16.

    python -m vq_jax.main --config=configs/vqgan_colab.py --workdir=/content/drive/MyDrive/vqgan

With pmap, eight TPU cores share the batch. A killed session resumes from its last checkpoint.
This recipe has not been timed on Colab. 20,000 steps at batch size 128 are 51 epochs of CIFAR-10.
"""

from vq_jax.config import base


def get_config():
    config = base(model="vqgan", quantizer="vq", discriminator="patchgan")
    config.dtype = "bfloat16"
    config.data.source = "tfds:cifar10"
    config.data.resolution = 32
    config.data.batch_size = 128

    config.model.ch = 64
    config.model.ch_mult = (1, 2, 4)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (8,)
    config.model.z_channels = 128
    config.quantizer.num_codes = 1024
    config.quantizer.dim = 32

    config.phases.autoencoder = 1000
    config.phases.quantizer = 200
    config.phases.joint = 10_000
    config.phases.adversarial = 8800
    config.save_every = 1000
    config.log_every = 50

    config.loss.perceptual_weight = 0.5
    config.loss.perceptual_from = "joint"
    config.discriminator.ndf = 64
    config.discriminator.n_layers = 2
    config.discriminator.norm = "group"
    config.adversarial.warmup_steps = 200
    config.adversarial.ramp_steps = 500

    config.optim.lr = 4e-4
    config.optim.lr_end = 4e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 500
    config.optim.clip_norm = 1.0
    config.disc_optim.lr = 2e-4
    config.disc_optim.b1 = 0.5
    config.ema_decay = 0.999
    return config
