"""A class-conditional prior for ImageNet 256x256, trained from random to raster order, after RAR.

    python -m vq_jax.main --config=configs/vqgan_imagenet256.py
    python -m vq_jax.main --mode=tokenize --workdir=runs/vqgan_imagenet256 \\
        --output=codes/imagenet256 --flips --crops=5
    python -m vq_jax.main --config=configs/rar_imagenet256.py

ImageNet must be prepared for TFDS by hand (`tfds:imagenet2012` explains how). Train the tokenizer
and write its codes first, as above. Add --distributed to train on several hosts.

This recipe has not been run. RAR reports an FID of 1.95 for its B model (261 million params, with
MaskGIT's tokenizer). In RAR the class also modulates the layers. Here the class is only the first
token, and the model has 173 million params.
"""

from vq_jax.config import base_prior


def get_config():
    config = base_prior("random_order")
    config.tokenizer = "runs/vqgan_imagenet256"
    config.data.source = "codes"
    config.data.folder = "codes/imagenet256"
    config.data.batch_size = 2048
    config.data.resolution = 256
    config.parallel = "jit"
    config.dtype = "bfloat16"

    config.prior.layers = 24
    config.prior.width = 768
    config.prior.heads = 16
    config.prior.hidden = 3072
    config.prior.norm = "layer"
    config.prior.activation = "gelu"
    config.prior.dropout = 0.1
    config.prior.scan = True

    config.phases.prior = 250_000  # 400 epochs
    config.loss.permute = (1.0, 0.0, 125_000, 187_500)
    config.optim.lr = 4e-4
    config.optim.lr_end = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 62_500
    config.optim.b1 = 0.9
    config.optim.b2 = 0.96
    config.optim.weight_decay = 0.03
    config.sampling.guidance = 4.0
    config.sampling.guidance_schedule = "cosine"
    config.log_every = 100
    config.save_every = 5000
    config.eval_every = 50_000
    config.eval_samples = 1024
    config.ema_decay = 0.9999
    return config
