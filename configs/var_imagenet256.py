"""VAR on ImageNet at 256x256, after Tian et al. 2024: its tokenizer, then a next-scale prior of 16 to 30 layers.

    python -m vq_jax.main --config=configs/var_imagenet256.py
    python -m vq_jax.main --mode=tokenize --workdir=runs/var_imagenet256 --output=codes/var256 --flips
    python -m vq_jax.main --config=configs/var_imagenet256.py:d16    # or :d20, :d24, :d30

ImageNet must be prepared for TFDS by hand (`tfds:imagenet2012` explains how). Add --distributed
--config.parallel=jit to train on several hosts. With the authors' weights instead of the first two commands:

    python -m vq_jax.main --mode=import --input=vae_ch160v4096z32.pth --workdir=runs/var_imagenet256

This recipe has not been run. The authors have not released how the tokenizer was trained: the networks, the
codebook and the scales here are theirs, and losses and optimizer are VQGAN's with another weight. Epochs, batch and
learning rates of the priors are theirs. They report an FID of 3.55 for d16 and 1.97 for d30, with stochastic depth, a
linear schedule, a weight decay that changes, and gates that start larger (1e-3 to 1e-5 by depth; here 1e-5).
"""

from vq_jax.config import base, base_prior

# layers -> epochs, batch, learning rate of 256 images, its last share, weight decay
PRIORS = {
    16: (200, 768, 1e-4, 0.1, 0.05),
    20: (250, 768, 1e-4, 0.1, 0.05),
    24: (350, 768, 8e-5, 0.01, 0.05),
    30: (350, 1024, 8e-5, 0.01, 0.08),
}
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def get_config(part="tokenizer"):
    return tokenizer() if part == "tokenizer" else prior(int(part.removeprefix("d")))


def tokenizer():
    config = base(model="vqgan", quantizer="multiscale", discriminator="patchgan")
    config.data.source = "tfds:imagenet2012"
    config.data.resolution = 256
    config.data.crop = "random"
    config.data.batch_size = 256
    config.data.workers = 8
    config.dtype = "bfloat16"

    config.model.ch = 160
    config.model.ch_mult = (1, 1, 2, 2, 4)
    config.model.num_res_blocks = 2
    config.model.attn_resolutions = (16,)
    config.model.z_channels = 32
    config.model.quant_kernel = 3
    config.quantizer.num_codes = 4096
    config.quantizer.dim = 32
    config.quantizer.scales = SCALES
    config.quantizer.convolutions = 4

    config.loss.reconstruction = "l2"
    config.loss.perceptual_weight = 1.0
    config.discriminator.ndf = 64
    config.adversarial.loss = "hinge"
    config.adversarial.weight = 0.5
    config.phases.update(autoencoder=2000, quantizer=500, joint=100_000, adversarial=200_000)
    config.save_every = 5000
    config.log_every = 100
    for optim in (config.optim, config.disc_optim):
        optim.lr = 1e-4
        optim.b1 = 0.9
        optim.b2 = 0.95
        optim.warmup_steps = 1000
        optim.schedule = "cosine"
    config.ema_decay = 0.9999
    return config


def prior(depth):
    epochs, batch, lr, last, decay = PRIORS[depth]
    config = base_prior("next_scale")
    config.tokenizer = "runs/var_imagenet256"
    config.data.source = "codes"
    config.data.folder = "codes/var256"
    config.data.resolution = 256
    config.data.batch_size = batch
    config.parallel = "jit"
    config.dtype = "bfloat16"

    config.prior.layers = depth
    config.prior.width = 64 * depth
    config.prior.heads = depth
    config.prior.remat = True

    config.phases.prior = 1_281_167 * epochs // batch
    config.loss.label_dropout = 0.1
    config.optim.lr = lr * batch / 256
    config.optim.lr_end = last * config.optim.lr
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = config.phases.prior // 50
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.weight_decay = decay
    config.optim.clip_norm = 2.0
    # In the authors' terms cfg=1.5, top_k=900, top_p=.96.
    config.sampling.guidance = 2.5
    config.sampling.guidance_schedule = "linear"
    config.sampling.top_k = 900
    config.sampling.top_p = 0.96
    config.log_every = 100
    config.save_every = 5000
    config.eval_samples = 1024
    config.ema_decay = 0.9999
    return config
