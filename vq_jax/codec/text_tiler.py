"""Texts of any size to codes and back, in windows of the training size."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from vq_jax.data.pipeline import pad_rows
from vq_jax.errors import UserError
from vq_jax.tokenizer import TrainedTokenizer

_MOST = 2**31 - 1  # bytes of a text
_AT_ONCE = 64  # largest number of windows in a batch


class TextTiler:
    """Bytes uint8 [N] of any length to codes and back; a `Tiler`.

    A text is cut into windows, and the last one is filled up with zeros. Codes of zeros alone are left
    out.
    """

    sizes, least = 1, 0

    def __init__(self, tokenizer: TrainedTokenizer):
        """Makes the tiler of a tokenizer of texts."""
        self.tokenizer = tokenizer
        (self.length,) = tokenizer.spec.shape
        # Bytes between the first bytes of neighbouring positions; a window's positions share all if it
        # is encoded as a whole.
        self._factor = tokenizer.strides[0] if tokenizer.strides else self.length

    def check(self, x: np.ndarray) -> None:
        """Raises ValueError if x is no text, and UserError if it is too large."""
        if getattr(x, "dtype", None) != np.uint8 or np.ndim(x) != 1:
            kind = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise ValueError(f"the text is {kind}: make it bytes, or uint8 [N]")
        if len(x) > _MOST:
            raise UserError(f"the text has {len(x):,} bytes: at most {_MOST:,} fit one file")

    def shape(self, x: np.ndarray) -> tuple[int, ...]:
        return (len(x),)

    def nbytes(self, shape: Sequence[int]) -> int:
        return shape[0]

    def units(self, shape: Sequence[int]) -> int:
        return shape[0]

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.tokenizer.strides:
            return (-(-shape[0] // self._factor),)
        return (-(-shape[0] // self.length), *self.tokenizer.codes.grid)

    def batches(self, count: int, most: int = _AT_ONCE) -> Iterator[tuple[slice, int]]:
        """Yields slices of `count` windows, and the batch size, which depends on the count alone."""
        size = min(most, 1 << max(0, count - 1).bit_length())
        for start in range(0, count, size):
            yield slice(start, min(start + size, count)), size

    def windows(self, x: np.ndarray, part: slice, size: int) -> np.ndarray:
        """Returns some windows of a text, int32 [size, L], with zeros beyond its end."""
        cut = x[part.start * self.length : part.stop * self.length]
        found = np.zeros((size, self.length), np.int32)
        found.reshape(-1)[: len(cut)] = cut
        return found

    def inside(self, length: int, part: slice, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which bytes and codes of some windows belong to a text.

        Args:
          length: bytes of the text.
          part, size: as for `windows`.

        Returns:
          bool [size, L], True for bytes of the text; bool [size, N], True for codes that span any.
        """
        spec = self.tokenizer.codes
        first_B = (part.start + np.arange(size)) * self.length
        inside_BL = first_B[:, None] + np.arange(self.length) < length
        step = self._factor if self.tokenizer.strides else 0
        positions = int(np.prod(spec.grid))
        inside_BP = first_B[:, None] + step * np.arange(positions) < length
        return inside_BL, np.repeat(inside_BP, spec.books, axis=1)

    def encode(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._encode(x) for x in xs]

    def _encode(self, x: np.ndarray) -> np.ndarray:
        self.check(x)
        grid, spec = self.grid((len(x),)), self.tokenizer.codes
        codes = np.zeros((-(-len(x) // self.length), *spec.shape), np.int32)
        for part, size in self.batches(len(codes)):
            found = self.tokenizer.encode_unchecked(jnp.asarray(self.windows(x, part, size)))
            codes[part] = np.asarray(found)[: part.stop - part.start]
        flat = codes.reshape(-1, *spec.code_shape)[: int(np.prod(grid))]
        return flat.reshape(*grid, *spec.code_shape)

    def decode(
        self, all_codes: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
    ) -> Iterator[np.ndarray]:
        modality = self.tokenizer.modality
        for codes, (length,) in zip(all_codes, shapes, strict=True):
            count = -(-length // self.length)
            windows = window_codes(codes, count, self.tokenizer)
            x = np.empty((count, self.length), np.uint8)
            for part, size in self.batches(count):
                batch = jnp.asarray(pad_rows(windows[part], size))
                decoded = self.tokenizer.decode_unchecked(batch)
                x[part] = modality.to_raw(decoded)[: part.stop - part.start]
            yield x.reshape(-1)[:length]


def window_codes(codes: np.ndarray, count: int, tokenizer: TrainedTokenizer) -> np.ndarray:
    """Returns the codes of a text, window by window: int32 [count, *codes.grid, ...], zeros at the end."""
    spec = tokenizer.codes
    after = codes.shape[codes.ndim - len(spec.code_shape) :] if spec.code_shape else ()
    positions = int(np.prod(spec.grid))
    flat = codes.reshape(-1, *after)
    return pad_rows(flat, count * positions).reshape(count, *spec.grid, *after)
