"""VQGAN f16 on ImageNet at 256x256, after the two released recipes of taming-transformers.

    python -m vq_jax.main --config=configs/vqgan_imagenet256.py           # 1,024 codes
    python -m vq_jax.main --config=configs/vqgan_imagenet256.py:16384     # 16,384 codes

ImageNet must be prepared for TFDS by hand (`tfds:imagenet2012` explains how). Add --distributed
--config.parallel=jit to train on several hosts.

This recipe has not been run to the end. taming reports an rFID of 7.94 for 1,024 codes and 4.98 for
16,384. This recipe differs in that it computes in bfloat16 and evaluates averaged params.
"""

from vq_jax.config import base


def get_config(codes="1024"):
    config = base(model="vqgan", quantizer="vq", discriminator="patchgan")
    config.data.source = "tfds:imagenet2012"
    config.data.resolution = 256
    config.data.crop = "random"
    config.data.batch_size = 96
    config.data.workers = 8
    config.dtype = "bfloat16"

    config.model.ch = 128
    config.model.ch_mult = (1, 1, 2, 2, 4)
    config.model.num_res_blocks = 2
    config.model.attn_resolutions = (16,)
    config.model.z_channels = 256
    config.quantizer.num_codes = int(codes)
    config.quantizer.dim = 256
    config.quantizer.codebook = "gradient"
    # taming weights the codebook loss by .25 and the commitment loss by 1:
    # .25 * (codebook + 4 * commitment).
    config.quantizer.beta = 4.0
    config.loss.codebook_weight = 0.25
    config.quantizer.revive_below = 0.0
    config.kmeans_batches = 0

    config.loss.reconstruction = "l1"
    config.loss.perceptual_weight = 1.0
    config.discriminator.ndf = 64
    config.discriminator.norm = "batch"
    config.adversarial.loss = "hinge"
    # The 1,024-code recipe starts the discriminator after 250,001 steps, the other at step 0.
    if codes == "1024":
        config.phases.update(joint=250_001, adversarial=250_000)
        config.discriminator.n_layers = 3
        config.adversarial.weight = 0.8
    else:
        config.phases.update(adversarial=500_000)
        config.discriminator.n_layers = 2
        config.adversarial.weight = 0.75
    config.save_every = 5000
    config.log_every = 100
    config.eval_every = 50_000

    for optim in (config.optim, config.disc_optim):
        optim.lr = 4.5e-6 * config.data.batch_size
        optim.b1 = 0.5
        optim.b2 = 0.9
    config.ema_decay = 0.9999
    return config
