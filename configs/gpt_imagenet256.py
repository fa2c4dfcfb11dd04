"""A class-conditional autoregressive prior for ImageNet 256x256, after LlamaGen-B (111M params).

    python -m vq_jax.main --config=configs/vqgan_imagenet256.py:16384
    python -m vq_jax.main --mode=tokenize --workdir=runs/vqgan_imagenet256-16384 \\
        --output=codes/imagenet256-16384 --flips --crops=5
    python -m vq_jax.main --config=configs/gpt_imagenet256.py

ImageNet must be prepared for TFDS by hand (`tfds:imagenet2012` explains how). Train the tokenizer
and write its codes first, as above. Add --distributed to train on several hosts.

This recipe has not been run. LlamaGen reports an FID of 5.46 for its B model, with its own
tokenizer and a guidance of 2.
"""

from vq_jax.config import base_prior


def get_config():
    config = base_prior("causal")
    config.tokenizer = "runs/vqgan_imagenet256-16384"
    config.data.source = "codes"
    config.data.folder = "codes/imagenet256-16384"
    config.data.batch_size = 256
    config.data.resolution = 256
    config.parallel = "jit"
    config.dtype = "bfloat16"

    config.prior.layers = 12
    config.prior.width = 768
    config.prior.heads = 12
    config.prior.dropout = 0.1
    config.prior.scan = True

    config.phases.prior = 1_500_000  # 300 epochs
    config.optim.lr = 1e-4
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.05
    config.sampling.guidance = 2.0
    config.log_every = 100
    config.save_every = 5000
    config.eval_every = 50_000
    config.eval_samples = 1024
    config.ema_decay = 0.9999
    return config
