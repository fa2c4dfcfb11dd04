"""A language model of bytes: a causal prior over the identity tokenizer, on the King James Bible."""

from vq_jax.config import base_prior


def get_config():
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
    return config
