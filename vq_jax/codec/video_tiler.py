"""Clips of any length and size to codes and back, in overlapping tiles that stream through time.

The tokenizer is causal, and keeps its state from one group of frames to the next: a tile has the codes of its whole
clip, up to rounding. Of the clip, only the codes are held as a whole. All other memory depends on the size of a
frame, and is checked before it is allocated. Norms over frames see a tile instead of the frame.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.codec.tiling import Cut, cut, mirrored
from vq_jax.data.images import to_float, to_uint8
from vq_jax.data.video import MOST_PIXELS, RATES, Clip, as_clip
from vq_jax.errors import UserError
from vq_jax.files import free_memory
from vq_jax.models.video_layers import stream
from vq_jax.tokenizer import TrainedTokenizer

_SIDE = 256  # largest side of a tile, in pixels
_MARGIN = 24  # pixels of a tile beyond the part that is kept
_STEP = 32  # sides of tiles are multiples of it, or the largest
_PIXELS = 2**17  # of the frames of a tile that are processed together
_GROUPS = 8  # of frames that are processed together, at most


class VideoTiler:
    """Clips uint8 [T, H, W, C], or `Clip`s, to codes and back; a `tilers.Tiler`.

    The sizes of a clip are (T, H, W, numerator, denominator), the last two of its frames a second.
    """

    sizes, least = 5, 1

    def __init__(self, tokenizer: TrainedTokenizer, side: int = _SIDE):
        """Makes the tiler of a tokenizer of video."""
        self.tokenizer = tokenizer
        data = tokenizer.config.data
        self._channels = data.channels
        if tokenizer.strides is None or not any(tokenizer.alone):
            raise UserError("this tokenizer takes clips of the training size only")
        self._group, self._factor = tokenizer.strides[:2]
        self._tile = max(side, data.resolution) // self._factor
        self._margin = -(-_MARGIN // self._factor)

    def shape(self, clip: Any) -> tuple[int, ...]:
        clip = as_clip(clip)
        rate = min(max(clip.rate, RATES[0]), RATES[1]).limit_denominator(2**16)
        return (*clip.shape[:3], rate.numerator, rate.denominator)

    def nbytes(self, shape: Sequence[int]) -> int:
        return math.prod(shape[:3]) * self._channels

    def units(self, shape: Sequence[int]) -> int:
        return math.prod(shape[:3])

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        frames, height, width = shape[:3]
        return (
            1 + -(-(frames - 1) // self._group),
            -(-height // self._factor),
            -(-width // self._factor),
        )

    def _cuts(self, shape: Sequence[int]) -> tuple[Cut, Cut]:
        step = max(1, _STEP // self._factor)
        _, *sides = self.grid(shape)
        rows, columns = (cut(side, self._tile, self._margin, step, self._factor) for side in sides)
        return rows, columns

    def _positions(self, rows: Cut, columns: Cut) -> int:
        """Number of positions in time that are processed together, after the first one."""
        pixels = rows.size * columns.size * self._factor**2 * self._group
        return max(1, min(_GROUPS, _PIXELS // pixels))

    def _check(self, clip: Any) -> Clip:
        lazy = isinstance(clip, Clip)
        shape = clip.shape if lazy else np.shape(clip)
        dtype = np.uint8 if lazy else getattr(clip, "dtype", None)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != self._channels or 0 in shape:
            raise ValueError(
                f"the clip is {dtype} {shape}: make it uint8 [T, H, W, {self._channels}]"
            )
        return as_clip(clip)

    def _check_memory(self, shape: Sequence[int], method: str) -> None:
        """Raises UserError if the codes and the states of all tiles do not fit into the free memory."""
        rows, columns = self._cuts(shape)
        tokenizer, grid = self.tokenizer, self.grid(shape)
        sides = (rows.size, columns.size)
        x = jax.ShapeDtypeStruct((1, 1, *sides, *tokenizer.codes.code_shape), jnp.int32)
        if method == "encode_to_codes":
            pixels = (side * self._factor for side in sides)
            x = jax.ShapeDtypeStruct((1, 1, *pixels, self._channels), jnp.float32)
        _, state = jax.eval_shape(
            partial(stream, tokenizer.module, method=method), tokenizer.variables, x, None
        )
        of_tile = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        frames = self._group * self._positions(rows, columns)
        needed = (
            len(rows.starts) * len(columns.starts) * of_tile
            + 8 * frames * shape[1] * shape[2] * self._channels
            + 8 * math.prod(grid) * tokenizer.codes.books
        )
        if needed > 2**28 and needed > (free := free_memory()):
            raise UserError(
                f"a clip of {shape[0]:,} frames of {shape[2]}x{shape[1]} pixels takes "
                f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
            )

    # --- to codes ---

    def encode(self, clips: Sequence[Any]) -> list[np.ndarray]:
        return [self._encode(self._check(clip)) for clip in clips]

    def _encode(self, clip: Clip) -> np.ndarray:
        self._check_memory(clip.shape, "encode_to_codes")
        grid = self.grid(clip.shape)
        codes = np.empty((*grid, *self.tokenizer.codes.code_shape), np.int32)
        rows, columns = self._cuts(clip.shape)
        states: dict[tuple[int, int], Any] = {}
        start = 0
        for frames in self._groups(clip, self._positions(rows, columns)):
            for y, top in enumerate(rows.starts):
                for x, left in enumerate(columns.starts):
                    tile = _mirrored_frames(frames, rows.pixels(top), columns.pixels(left))
                    found, states[y, x] = self.tokenizer.encode_next(
                        jnp.asarray(to_float(tile)[None]), states.get((y, x))
                    )
                    (a, b), (c, d) = rows.share(y), columns.share(x)
                    into = codes[start : start + found.shape[1], a:b, c:d]
                    here = np.asarray(found)[0, : len(into), a - top :, c - left :]
                    into[...] = here[:, : into.shape[1], : into.shape[2]]
            start += found.shape[1]
        return codes

    def _groups(self, clip: Clip, positions: int) -> Iterator[np.ndarray]:
        """Yields the first frame alone, and then groups of frames; the last frame fills the last group."""
        wanted, held = 1, []
        for frame in clip.frames():
            held.append(frame)
            if len(held) == wanted:
                yield np.stack(held)
                wanted, held = positions * self._group, []
        if held:
            yield np.stack(held + held[-1:] * (wanted - len(held)))

    # --- from codes ---

    def decode(
        self, all_codes: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
    ) -> Iterator[Clip]:
        """Yields clips whose frames are decoded when they are read."""
        for codes, shape in zip(all_codes, shapes, strict=True):
            frames, height, width, *rate = shape
            if height * width > MOST_PIXELS or not RATES[0] <= Fraction(*rate) <= RATES[1]:
                raise UserError(
                    f"this file has {width}x{height} pixels and {rate[0]}/{rate[1]} frames a second, which "
                    "no video has: it was altered"
                )
            self._check_memory(shape, "decode_codes")

            def decoded(codes=codes, shape=shape) -> Iterator[np.ndarray]:
                return self._decode(codes, shape)

            yield Clip((frames, height, width, self._channels), Fraction(*rate), decoded)

    def _decode(self, codes: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        frames, height, width = shape[:3]
        rows, columns = self._cuts(shape)
        down, across = rows.weights(), columns.weights()
        step = self._positions(rows, columns)
        states: dict[tuple[int, int], Any] = {}
        made = 0
        for first, last in [(0, 1), *((i, i + step) for i in range(1, len(codes), step))]:
            part = codes[first:last]
            part = np.concatenate([part, np.repeat(part[-1:], last - first - len(part), axis=0)])
            total: np.ndarray | None = None
            for y, top in enumerate(rows.starts):
                for x, left in enumerate(columns.starts):
                    window = (top, top + rows.size), (left, left + columns.size)
                    tile = jnp.asarray(_mirrored_frames(part, *window)[None])
                    output, states[y, x] = self.tokenizer.decode_next(tile, states.get((y, x)))
                    if total is None:
                        sides = (
                            rows.pixels(rows.starts[-1])[1],
                            columns.pixels(columns.starts[-1])[1],
                        )
                        total = np.zeros((output.shape[1], *sides, self._channels), np.float32)
                    (a, b), (c, d) = rows.pixels(top), columns.pixels(left)
                    weight = (down[y][:, None] * across[x])[..., None]
                    total[:, a:b, c:d] += np.asarray(output)[0] * weight
            assert total is not None
            yield from to_uint8(total[: frames - made, :height, :width])
            made += len(total)


def _mirrored_frames(
    array: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
    """Returns a window of each frame of an array [T, H, W, ...], mirrored beyond its edges."""
    window = mirrored(np.moveaxis(array, 0, 2), rows, columns)
    return np.moveaxis(window, 2, 0)
