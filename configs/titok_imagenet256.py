"""TiTok on ImageNet at 256x256: an image as 64 tokens, single-stage, after bytedance/1d-tokenizer.

    python -m vq_jax.main --config=configs/titok_imagenet256.py           # 64 tokens
    python -m vq_jax.main --config=configs/titok_imagenet256.py:128
    python -m vq_jax.main --mode=reconstruct --workdir=runs/titok_imagenet256 --tokens=16 \\
        --input=my.png --output=out.png

ImageNet must be prepared for TFDS by hand (`tfds:imagenet2012` explains how). Add --distributed
--config.parallel=jit to train on several hosts.

This recipe has not been run. The networks are those of the authors' bl64 (a base encoder and a large decoder,
8,192 codes of 64 dimensions). Half of the examples keep their first tokens only (nested dropout, as in FlexTok), so
that an image can be decoded from any number of them; the authors' model has no such dropout.
"""

from vq_jax.config import base


def get_config(tokens="64"):
    config = base(model="titok", quantizer="vq", discriminator="patchgan")
    config.data.source = "tfds:imagenet2012"
    config.data.resolution = 256
    config.data.crop = "random"
    config.data.batch_size = 256
    config.data.workers = 8
    config.dtype = "bfloat16"

    config.model.patch = 16
    config.model.tokens = int(tokens)
    config.model.update(layers=12, width=768, heads=12)
    config.model.update(decoder_layers=24, decoder_width=1024, decoder_heads=16)
    config.model.nested_dropout = 0.5
    config.model.remat_encoder = config.model.remat_decoder = True
    config.quantizer.num_codes = 8192
    config.quantizer.dim = 64

    config.loss.reconstruction = "l2"
    config.loss.perceptual_weight = 1.0
    config.adversarial.loss = "hinge"
    config.adversarial.weight = 0.1
    config.phases.update(autoencoder=2000, quantizer=500, joint=500_000, adversarial=500_000)
    config.save_every = 5000
    config.log_every = 100
    for optim in (config.optim, config.disc_optim):
        optim.lr = 1e-4
        optim.lr_end = 1e-5
        optim.schedule = "cosine"
        optim.warmup_steps = 10_000
        optim.b1 = 0.9
        optim.b2 = 0.99
        optim.weight_decay = 1e-4
        optim.clip_norm = 1.0
    config.ema_decay = 0.999
    return config
