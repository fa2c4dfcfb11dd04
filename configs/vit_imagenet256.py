"""ViT-VQGAN base on ImageNet at 256x256, after Yu et al. 2021 and thuanz123/enhancing-transformers.

    python -m vq_jax.main --config=configs/vit_imagenet256.py

ImageNet must be prepared for TFDS by hand (`tfds:imagenet2012` explains how). Add --distributed
--config.parallel=jit to train on several hosts.

This recipe has not been run. It differs from enhancing-transformers in the discriminator, a PatchGAN and not
StyleGAN's; in rotary positions, with which images of other sizes can be coded; and in details of the layers: GELU, biases
of queries, keys and values, and one more layer with tanh next to latents and pixels, as in the paper.
"""

from vq_jax.config import base


def get_config():
    config = base(model="vit", quantizer="vq", discriminator="patchgan")
    config.data.source = "tfds:imagenet2012"
    config.data.resolution = 256
    config.data.crop = "random"
    config.data.batch_size = 256
    config.data.workers = 8
    config.dtype = "bfloat16"

    config.model.patch = 8
    config.model.update(layers=12, width=768, heads=12, hidden=3072)
    config.model.update(norm="layer", activation="gelu")
    config.model.remat_encoder = config.model.remat_decoder = True
    config.quantizer.num_codes = 8192
    config.quantizer.dim = 32
    config.quantizer.distance = "cosine"

    config.loss.reconstruction = "l2"
    config.loss.perceptual_weight = 0.1
    config.adversarial.weight = 0.1
    config.adversarial.adaptive_limit = 0.0
    config.adversarial.r1_weight = 10.0
    config.adversarial.r1_every = 16
    config.phases.update(autoencoder=2000, quantizer=500, joint=50_000, adversarial=450_000)
    config.save_every = 5000
    config.log_every = 100
    for optim in (config.optim, config.disc_optim):
        optim.lr = 1e-4
        optim.lr_end = 1e-5
        optim.schedule = "cosine"
        optim.warmup_steps = 5000
        optim.b1 = 0.9
        optim.b2 = 0.99
        optim.weight_decay = 1e-4
    config.ema_decay = 0.999
    return config
