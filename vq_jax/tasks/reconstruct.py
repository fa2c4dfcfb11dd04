"""Sends files of any size through a trained tokenizer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.codec.tilers import make_tiler
from vq_jax.errors import UserError
from vq_jax.runs import find, load_tokenizer
from vq_jax.tasks.files import change_files, check_input, check_output, each, pair_files
from vq_jax.tokenizer import TrainedTokenizer


def reconstruct(
    workdir: Path,
    *,
    input: Path,
    output: Path,
    side_by_side: bool = False,
    tokens: int | None = None,
) -> None:
    """`--mode=reconstruct`: writes the reconstruction of a file, or of each file in a folder.

    Args:
      workdir: the run's folder.
      input: a file, or a folder whose tree is mirrored in `output`.
      output: the file, or folder, to write.
      side_by_side: whether to put the original to the left of the reconstruction.
      tokens: number of codes to decode, the first of each example, of a model that takes fewer; None is all.

    Raises:
      UserError: the model takes no fewer codes, there is no such run or file, or a file could not be read or written.
    """
    check_input(input)
    modality = modalities.of(configs.load(find(workdir) / configs.FILE))
    name = None if modality.suffixes else lambda path: path.name
    pairs = pair_files(
        input, output, modality.suffixes, modality.suffix, modality.noun, name, modality.is_one
    )
    check_output(pairs[0][1], modality.writes)
    tokenizer = load_tokenizer(workdir)
    _check_tokens(tokenizer, tokens)
    if side_by_side:
        example = modality.to_raw(np.zeros(tokenizer.spec.shape, np.float32))
        modality.side_by_side(example, example)  # fails if the modality has no such form

    def work(items: list[Any]) -> Iterator[Any]:
        for x in items:
            y = reconstruct_one(tokenizer, x, tokens)
            yield modality.side_by_side(x, y) if side_by_side else y

    change_files(
        pairs,
        read=lambda path: modality.read(path, tokenizer.config.data),
        work=lambda items: each(items, work),
        write=modality.write,
        verb="reconstructed",
        nbytes=lambda x: x.nbytes,
    )


def _check_tokens(tokenizer: TrainedTokenizer, tokens: int | None) -> None:
    if tokens is None:
        return
    if not tokenizer.module.takes_first_codes:
        raise UserError(
            "tokens: this model needs all codes; a model of the kind 'titok' takes the first ones alone"
        )
    if not 1 <= tokens <= tokenizer.codes.length:
        raise UserError(f"tokens is {tokens}: use 1 to {tokenizer.codes.length}")


def reconstruct_one(
    tokenizer: TrainedTokenizer, x: np.ndarray, tokens: int | None = None
) -> np.ndarray:
    """Sends a raw example of any size, such as an image uint8 [H, W, C], through a tokenizer.

    Args:
      tokenizer: the tokenizer.
      x: the example.
      tokens: number of codes to decode, the first of each tile; None is all.
    """
    tiler = make_tiler(tokenizer)
    codes = [c if tokens is None else c[:, :tokens] for c in tiler.encode([x])]
    return next(tiler.decode(codes, [tiler.shape(x)]))
