"""MAGVIT-v2's tokenizer of UCF-101 (Yu et al. 2023): 17 frames of 128x128 pixels to 5x16x16 codes of 18 bits.

    python -m vq_jax.main --mode=plan --config=configs/magvit2_ucf101.py --devices=8
    python -m vq_jax.main --config=configs/magvit2_ucf101.py

After section 3 and appendix A of the paper, whose code is not public: causal convolutions, strides (4, 8, 8), LFQ
of 18 bits with entropy loss, LPIPS of frames, and a discriminator in three dimensions with the non-saturating loss and
LeCAM. Three things differ. Frames are halved by strided convolutions, the decoder has no adaptive norms, and the
discriminator is `patchgan3d`. It has not been trained: shapes and cost were checked.
"""

from vq_jax.config import base


def get_config():
    config = base(model="causal3d", quantizer="lfq", discriminator="patchgan3d")
    config.data.source = "tfds:ucf101"
    config.data.frames = 17
    config.data.resolution = 128
    config.data.crop = "random"
    config.data.batch_size = 256
    config.dtype = "bfloat16"
    config.parallel = "jit"

    config.model.ch = 128
    config.model.ch_mult = (1, 2, 2, 4)
    config.model.num_res_blocks = 4
    config.model.halve_time = (1, 2)
    config.model.halve_space = (0, 1, 2)
    config.model.z_channels = 512
    config.model.remat_encoder = config.model.remat_decoder = True
    config.quantizer.bits = 18

    config.loss.reconstruction = "l2"
    config.loss.perceptual_weight = 0.1
    config.adversarial.loss = "non_saturating"
    config.adversarial.weight = 0.1
    config.adversarial.adaptive_limit = 0.0
    config.adversarial.lecam_weight = 0.001
    config.phases.adversarial = 500_000

    for section in (config.optim, config.disc_optim):
        section.lr = 1e-4
        section.b1 = 0.0
        section.b2 = 0.99
        section.schedule = "cosine"
        section.warmup_steps = 1000
    return config
