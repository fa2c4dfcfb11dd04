"""A tokenizer of text: one code of 9 bits for 8 bytes, and a decoder that also reads the bytes before.

    python -m vq_jax.main --config=configs/text_kjv.py
    python -m vq_jax.main --config=configs/text_kjv.py:parallel

A quarter of an hour on two CPU cores: on held-out books, codes of 1.105 bits per byte by their entropy, and
.909 bits per byte given the codes (experiments/text). With `parallel`, codes of 9 bits for 4 bytes alone give
all bytes; it has not been run to the end.
"""

from vq_jax.config import base


def get_config(decoder="sequential"):
    if decoder not in ("sequential", "parallel"):
        raise ValueError(f"there is no variant {decoder!r}: use sequential or parallel")
    config = base(model="text_conv", quantizer="vq")
    config.data.source = "kjv"
    config.data.length = 256
    config.data.batch_size = 32

    config.model.factor = 8 if decoder == "sequential" else 4
    config.model.width = 192
    config.model.heads = 6
    config.model.layers = 1
    if decoder == "sequential":
        config.model.causal_layers = 3
        config.model.ngrams = (2, 3, 4)
    config.quantizer.num_codes = 512
    config.quantizer.dim = 32
    config.kmeans_batches = 8

    config.phases.autoencoder = 100
    config.phases.quantizer = 30
    config.phases.joint = 570
    config.log_every = 10
    config.save_every = 250

    config.optim.lr = 2e-3
    config.optim.muon_lr = 0.02
    config.optim.lr_end = 4e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 1.0
    config.ema_decay = 0.99
    return config
