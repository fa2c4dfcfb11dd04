"""A language model of bytes: a causal prior over the identity tokenizer, on the King James Bible.

    python -m vq_jax.main --config=configs/bytes_kjv.py
    python -m vq_jax.main --config=configs/bytes_kjv.py:long

Half an hour on two CPU cores: 1.550 bits per byte of held-out books. The second command continues from the
weights of the first, with windows of 512 bytes in place of 256: a quarter of an hour more, 1.526 bits per byte
(experiments/text).
"""

from vq_jax.config import base_prior


def get_config(windows="short"):
    if windows not in ("short", "long"):
        raise ValueError(f"there is no variant {windows!r}: use short or long")
    config = base_prior("causal", modality="text")
    config.tokenizer = "bytes"
    config.data.source = "kjv"
    config.data.length = 256
    config.data.batch_size = 32

    config.prior.layers = 4
    config.prior.width = 192
    config.prior.heads = 6
    config.prior.dropout = 0.1
    config.prior.ngrams = (2, 3, 4, 5)
    config.prior.ngram_bits = 17
    config.prior.ngram_dim = 16
    # Without it, rare n-grams are learned by heart, and the held-out bits rise after three epochs.
    config.prior.ngram_dropout = 0.25
    config.eval_samples = 8

    config.phases.prior = 2400
    config.log_every = 20
    config.save_every = 500
    config.optim.lr = 2e-3
    config.optim.muon_lr = 0.02
    config.optim.lr_end = 4e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.ema_decay = 0.99
    if windows == "long":
        config.start_from = "runs/bytes_kjv"
        config.data.length = 512
        config.data.batch_size = 16
        config.phases.prior = 850
        config.optim.update(lr=5e-4, muon_lr=5e-3, lr_end=1e-5, warmup_steps=20)
    return config
