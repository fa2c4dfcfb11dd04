"""A class-conditional masked prior for ImageNet 256x256, 16 steps, after MaskGIT (173M params).

    python -m vq_jax.main --config=configs/vqgan_imagenet256.py
    python -m vq_jax.main --mode=tokenize --workdir=runs/vqgan_imagenet256 \\
        --output=codes/imagenet256 --flips --crops=5
    python -m vq_jax.main --config=configs/maskgit_imagenet256.py

ImageNet must be prepared for TFDS by hand (`tfds:imagenet2012` explains how). Train the tokenizer
and write its codes first, as above. Add --distributed to train on several hosts.

This recipe has not been run. MaskGIT reports an FID of 6.06, with its own tokenizer (rFID 2.28).
MaskGIT's published weights can be imported (see experiments/imported).
"""

from vq_jax.config import base_prior


def get_config():
    config = base_prior("masked")
    config.tokenizer = "runs/vqgan_imagenet256"
    config.data.source = "codes"
    config.data.folder = "codes/imagenet256"
    config.data.batch_size = 256
    config.data.resolution = 256
    config.parallel = "jit"
    config.dtype = "bfloat16"

    config.prior.layers = 24
    config.prior.width = 768
    config.prior.heads = 16
    config.prior.hidden = 3072
    config.prior.position = "learned"
    config.prior.norm = "bert"
    config.prior.activation = "gelu"
    config.prior.dropout = 0.1
    config.prior.scan = True

    config.phases.prior = 2_000_000
    config.loss.label_smoothing = 0.1
    config.loss.least_masked = 0.5
    config.optim.lr = 1e-4
    config.optim.b1 = 0.9
    config.optim.b2 = 0.96
    config.optim.weight_decay = 0.045
    config.optim.warmup_steps = 5000
    config.sampling.steps = 16
    config.log_every = 100
    config.save_every = 5000
    config.eval_every = 50_000
    config.eval_samples = 1024
    config.ema_decay = 0.9999
    return config
