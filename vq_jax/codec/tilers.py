"""Tilers: examples of any size to codes and back, one for each modality.

The codec and its commands ask a tiler for all that depends on what an example is. Files are read and
written by the modality.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from vq_jax.codec.image_tiler import ImageTiler
from vq_jax.codec.text_tiler import TextTiler
from vq_jax.codec.video_tiler import VideoTiler
from vq_jax.data.pipeline import pad_rows
from vq_jax.tokenizer import TrainedTokenizer

_BATCH = 1024


class Tiler(Protocol):
    """Turns raw examples of any size into codes and back.

    Attributes:
      sizes: number of sizes that `shape` returns.
      least: the smallest of such a size.
    """

    sizes: int
    least: int

    def shape(self, x: Any) -> tuple[int, ...]:
        """Returns the sizes of an example that the model does not fix, all `least` or more."""

    def nbytes(self, shape: Sequence[int]) -> int:
        """Returns the uncompressed bytes of an example of these sizes."""

    def units(self, shape: Sequence[int]) -> int:
        """Returns the number of units (pixels) of an example of these sizes."""

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the positions of an example of these sizes."""

    def encode(self, xs: Sequence[Any]) -> list[np.ndarray]:
        """Encodes examples to codes int32 [*grid, *code_shape].

        Raises:
          ValueError: an example has another shape or type than the tokenizer takes.
        """

    def decode(
        self, all_codes: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
    ) -> Iterator[Any]:
        """Decodes codes to raw examples of the given sizes, in order."""


class RowTiler:
    """Arrays [N, ...] of examples of one size, such as the vectors of a file; a `Tiler`."""

    sizes = least = 1

    def __init__(self, tokenizer: TrainedTokenizer):
        self._tokenizer, self._modality = tokenizer, tokenizer.modality

    def shape(self, x: np.ndarray) -> tuple[int, ...]:
        return (len(x),)

    def nbytes(self, shape: Sequence[int]) -> int:
        spec = self._tokenizer.spec
        return shape[0] * int(np.prod(spec.shape)) * spec.dtype.itemsize

    def units(self, shape: Sequence[int]) -> int:
        return shape[0] * self._modality.units(self._tokenizer.spec.shape)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0], *self._tokenizer.codes.grid)

    def encode(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        encode, from_raw = self._tokenizer.encode_unchecked, self._modality.from_raw
        for x in xs:
            self._tokenizer.check(x)
        return [self._in_batches(lambda part: encode(jnp.asarray(from_raw(part))), x) for x in xs]

    def decode(
        self, all_codes: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
    ) -> Iterator[np.ndarray]:
        for codes in all_codes:
            decoded = self._in_batches(
                lambda c: self._tokenizer.decode_unchecked(jnp.asarray(c)), codes
            )
            yield self._modality.to_raw(self._modality.output(decoded))

    def _in_batches(self, run: Callable, rows: np.ndarray) -> np.ndarray:
        """Runs a compiled function on batches of one size; the last is padded."""
        found = []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            size = min(_BATCH, 1 << (len(part) - 1).bit_length())
            found.append(np.asarray(run(pad_rows(part, size)))[: len(part)])
        return np.concatenate(found)


# modality -> tiler of examples of any size; others have rows of examples of one size
TILERS: dict[str, Callable[[TrainedTokenizer], Tiler]] = {
    "image": ImageTiler,
    "text": TextTiler,
    "video": VideoTiler,
}


def make_tiler(tokenizer: TrainedTokenizer) -> Tiler:
    """Makes the tiler of a tokenizer's modality."""
    return TILERS.get(tokenizer.modality.name, RowTiler)(tokenizer)
