"""A causal tokenizer of your own videos, 17 frames of 64x64 pixels, 4 frames of 8x8 pixels a latent.

    python -m vq_jax.main --config=configs/video_folder.py --config.data.folder=my_videos
    python -m vq_jax.main --mode=compress --workdir=runs/video_folder --input=my.mp4 --output=my.vqz

On parts of three real clips, 770 steps took 22 minutes on two shared CPU cores with other work beside: 27.8 to
32.5 dB at .13 bits per pixel-frame, 4 to 13 dB below H.264, HEVC and AV1 at equal bits (see experiments/video).
"""

from vq_jax.config import base


def get_config():
    config = base(model="causal3d", quantizer="residual/vq", discriminator="patchgan3d")
    config.data.source = "folder"
    config.data.frames = 17
    config.data.resolution = 64
    config.data.resize = 0  # crops of frames as they are
    config.data.crop = "random"
    config.data.batch_size = 4

    config.model.patch = 4
    config.model.ch = 64
    config.model.ch_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    config.model.halve_space = (0,)
    config.model.halve_time = (0, 1)
    config.model.norm = "none"
    config.model.z_channels = 128
    config.model.shortcut = True
    config.quantizer.levels = 4
    config.quantizer.dropout = 0.25  # --quality takes fewer levels
    config.quantizer.inner.num_codes = 256
    config.quantizer.inner.dim = 64
    config.kmeans_batches = 16

    config.phases.autoencoder = 150
    config.phases.quantizer = 20
    config.phases.joint = 600
    config.save_every = 200
    config.log_every = 20
    config.loss.reconstruction = "l2"
    config.loss.perceptual_weight = 0.0

    config.optim.lr = 5e-4
    config.optim.muon_lr = 0.006
    config.optim.lr_end = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.clip_norm = 1.0
    config.optim.weight_decay = 1e-4
    config.ema_decay = 0.99
    return config
