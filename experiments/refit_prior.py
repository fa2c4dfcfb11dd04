"""Gives an exported prior the tokenizer that was exported with --bits=8 after the prior was trained.

    python -m experiments.refit_prior --prior=emoji-prior --before=runs/emoji --after=emoji

It prints the share of the codes of held-out examples in which the two tokenizers differ, and writes the
fingerprint of the second one into the prior's file.
"""

import argparse
from pathlib import Path

import numpy as np

import vq_jax
from vq_jax.config import FILE, load, make_prepare
from vq_jax.data.pipeline import eval_batches
from vq_jax.interop.weights import stored_bits, write_folder
from vq_jax.modalities import open_source
from vq_jax.prior import TrainedPrior
from vq_jax.runs import read_prior
from vq_jax.tasks.model_files import own_arrays
from vq_jax.tokenizer import TrainedTokenizer


def share_changed(before: TrainedTokenizer, after: TrainedTokenizer) -> float:
    """Returns the share of held-out codes in which two tokenizers differ."""
    config, different, count = before.config, 0, 0
    for batch in eval_batches(open_source(config).val, config.data, make_prepare(config)):
        codes, others = (np.asarray(t.encode(batch["x"])) for t in (before, after))
        real = batch["valid"]
        different += (codes != others)[real].sum()
        count += codes[real].size
    return different / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("prior", "before", "after"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    flags = parser.parse_args()
    before, after = vq_jax.load(flags.before), vq_jax.load(flags.after)
    print(f"{share_changed(before, after):.2%} of held-out codes differ")
    module, params, _, step = read_prior(flags.prior)
    prior = TrainedPrior(load(flags.prior / FILE), after, module, params, step)
    _, arrays, step = own_arrays(prior, flags.prior)
    write_folder(flags.prior, arrays, step, stored_bits(flags.prior))


if __name__ == "__main__":
    main()
