"""Images of any size through a tokenizer, in tiles of bounded size: a medium of the codec.

A medium turns what it is made for into codes and back; the codec, its format and its commands know no
more of images than they ask of this class.

An image is mirrored over its lower and right edges to whole codes, and more, and cut into tiles that
overlap. Of a tile's codes those nearer to it than to its neighbours are kept; decoded tiles give way to each
other linearly, in the middle of where they overlap. A tokenizer that looks no further than 24 pixels around
what it makes gives the codes and pixels of that image taken whole. Norms over the whole map and attention
see a tile instead of it.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vq_jax.data.images import EXTENSIONS, read_image, save_image, to_float, to_uint8
from vq_jax.tokenizer import TrainedTokenizer

_SIDE = 576  # of a tile, in pixels, at most
_MARGIN = 32  # pixels by which a tile reaches over its share
_RAMP = 16  # pixels over which a decoded tile gives way to the next
# So that few programs are compiled, sides are multiples of so many pixels: of tiles, where an image
# takes several; and of an image that one tile holds, if it is larger than that, by mirroring.
_STEP, _WHOLE_STEP = 32, 64
_AT_ONCE = 64  # tiles in a batch at most


@dataclasses.dataclass(frozen=True)
class Cut:
    """One side of an image, cut into tiles; all in codes.

    Attributes:
      size: of each tile.
      starts: where tiles begin.
      seams: where one tile's share ends and the next one's begins; one fewer than tiles.
    """

    size: int
    starts: tuple[int, ...]
    seams: tuple[int, ...]


def cut(codes: int, tile: int, margin: int, step: int = 1) -> Cut:
    """Cuts a side into as few tiles as it takes, of equal size, that reach `margin` over their shares.

    Args:
      codes: along the side.
      tile: codes along a tile, at most.
      margin: codes, less than half a tile.
      step: tiles, where there are several, have a multiple of so many codes, unless they have the most.
    """
    if codes <= tile:
        return Cut(codes, (0,), ())
    count = math.ceil((codes - 2 * margin) / (tile - 2 * margin))
    least = math.ceil((codes + 2 * margin * (count - 1)) / count)
    size = min(-(-least // step) * step, tile)
    starts = [i * (codes - size) // (count - 1) for i in range(count)]
    seams = ((a + size + b) // 2 for a, b in itertools.pairwise(starts))
    return Cut(size, tuple(starts), tuple(seams))


class ImageTiles:
    """Images uint8 [H, W, C] to codes and back.

    The codes of an image are int32 [H / f, W / f, *code_shape], rounded up; where the tokenizer takes
    images of one size only, [tiles, *grid], tiles row by row.

    Attributes:
      tokenizer: whose codes.
      sizes: how many numbers `shape` has.
      unit: what they count.
      suffixes: of the files that `read` takes.
      suffix: of the file that `write` makes where no other is named.
    """

    sizes = 2
    unit = "pixel"
    suffixes = EXTENSIONS
    suffix = ".png"

    def __init__(self, tokenizer: TrainedTokenizer, side: int = _SIDE):
        self.tokenizer = tokenizer
        resolution = tokenizer.config.data.resolution
        self._channels = tokenizer.config.data.channels
        # Where there is no factor a tile is one code, as it were.
        self._factor = tokenizer.factor or resolution
        self._tile, self._margin = 1, 0
        if tokenizer.factor:
            self._tile = max(side, resolution, 4 * _MARGIN) // self._factor
            self._margin = -(-_MARGIN // self._factor)

    def read(self, path: Path) -> np.ndarray:
        """The image in a file, upright, with the channels that the tokenizer takes."""
        return read_image(path, self._channels)

    def write(self, image: np.ndarray, path: Path) -> None:
        """Writes it to a file, in the format that the suffix names."""
        save_image(image, path)

    def check(self, image: Any) -> None:
        """Raises ValueError unless it is an image that the tokenizer takes."""
        shape, dtype = np.shape(image), getattr(image, "dtype", None)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != self._channels or 0 in shape:
            raise ValueError(
                f"the image is {dtype} {shape}: make it uint8 [H, W, {self._channels}]"
            )

    def shape(self, image: np.ndarray) -> tuple[int, ...]:
        """What of an image's shape the model does not tell: (H, W)."""
        return image.shape[:2]

    def nbytes(self, shape: Sequence[int]) -> int:
        """How many bytes an image of this shape has, uncompressed."""
        return math.prod(shape) * self._channels

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the positions of an image of this shape."""
        rows, columns = (-(-side // self._factor) for side in shape)
        if self.tokenizer.factor:
            return rows, columns
        grid = self.tokenizer.grid
        return rows * columns, *grid[: len(grid) - len(self.tokenizer.code_shape)]

    def _cuts(self, shape: Sequence[int]) -> tuple[Cut, Cut]:
        """How rows and columns of codes are cut; those beyond the image are mirrored."""

        def of(side: int) -> Cut:
            if self.tokenizer.factor and _WHOLE_STEP < side <= self._tile * self._factor:
                step = math.lcm(_WHOLE_STEP, self._factor)
                side = min(-(-side // step) * step, self._tile * self._factor)
            step = max(1, _STEP // self._factor)
            return cut(-(-side // self._factor), self._tile, self._margin, step)

        return of(shape[0]), of(shape[1])

    def _at_once(self, rows: Cut, columns: Cut) -> int:
        """How many tiles make up a batch: a power of two, and together no more than a large tile."""
        fit = (self._tile * self._tile) // (rows.size * columns.size)
        if not self.tokenizer.factor:
            fit = _SIDE**2 // self._factor**2
        return 1 << (max(1, min(_AT_ONCE, fit)).bit_length() - 1)

    def encode(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The codes of images, tiles of equal size in one batch, whichever image they are of."""
        for image in images:
            self.check(image)
        cuts = [self._cuts(image.shape[:2]) for image in images]

        def tiles() -> Iterator[tuple[int, np.ndarray]]:
            for image, (rows, columns) in zip(images, cuts, strict=True):
                for y in rows.starts:
                    for x in columns.starts:
                        tile = _mirrored(image, self._pixels(rows, y), self._pixels(columns, x))
                        yield self._at_once(rows, columns), tile

        def run(batch: np.ndarray) -> Any:
            return self.tokenizer.encode_unchecked(jnp.asarray(to_float(batch)))

        found, all_codes = _in_batches(tiles(), run), []
        for image, (rows, columns) in zip(images, cuts, strict=True):
            codes = np.empty((*self.grid(image.shape[:2]), *self.tokenizer.code_shape), np.int32)
            for y in range(len(rows.starts)):
                for x in range(len(columns.starts)):
                    if not self.tokenizer.factor:
                        codes[y * len(columns.starts) + x] = next(found)
                        continue
                    (top, bottom), (left, right) = _share(rows, y), _share(columns, x)
                    into = codes[top:bottom, left:right]
                    here = next(found)[top - rows.starts[y] :, left - columns.starts[x] :]
                    into[...] = here[: into.shape[0], : into.shape[1]]
            all_codes.append(codes)
        return all_codes

    def decode(
        self, all_codes: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
    ) -> Iterator[np.ndarray]:
        """Images uint8 [H, W, C] of codes and shapes, in order and one at a time.

        Codes may be those of a residual tokenizer's first levels alone.
        """
        cuts = [self._cuts(shape) for shape in shapes]

        def tiles() -> Iterator[tuple[int, np.ndarray]]:
            for codes, (rows, columns) in zip(all_codes, cuts, strict=True):
                for y, x in _order(rows, columns):
                    if self.tokenizer.factor:
                        top, left = rows.starts[y], columns.starts[x]
                        tile = _mirrored(codes, (top, top + rows.size), (left, left + columns.size))
                    else:
                        tile = codes[y * len(columns.starts) + x]
                    yield self._at_once(rows, columns), tile

        def run(batch: np.ndarray) -> Any:
            return self.tokenizer.decode_unchecked(jnp.asarray(batch))

        decoded = _in_batches(tiles(), run)
        for shape, (rows, columns) in zip(shapes, cuts, strict=True):
            image = np.empty((*shape, self._channels), np.uint8)
            if _is_wide(rows, columns):
                turned = (tile.swapaxes(0, 1) for tile in decoded)
                self._assemble(image.swapaxes(0, 1), columns, rows, turned)
            else:
                self._assemble(image, rows, columns, decoded)
            yield image

    def _assemble(
        self, image: np.ndarray, rows: Cut, columns: Cut, tiles: Iterator[np.ndarray]
    ) -> None:
        """Fills an image with the tiles that come next, row by row; of floats it holds one row."""
        down, across = self._weights(rows), self._weights(columns)
        _, width = self._pixels(columns, columns.starts[-1])
        band = np.zeros((rows.size * self._factor, width, self._channels), np.float32)
        for y, start in enumerate(rows.starts):
            for x in range(len(columns.starts)):
                left, right = self._pixels(columns, columns.starts[x])
                band[:, left:right] += next(tiles) * (down[y][:, None] * across[x])[..., None]
            after = [*rows.starts, start + rows.size][y + 1]
            done = (after - start) * self._factor
            into = image[start * self._factor : after * self._factor]
            for left in range(0, image.shape[1], _SIDE):
                part = into[:, left : left + _SIDE]
                part[...] = to_uint8(band[: part.shape[0], left : left + part.shape[1]])
            band[: len(band) - done] = band[done:]
            band[len(band) - done :] = 0.0

    def _pixels(self, side: Cut, start: int) -> tuple[int, int]:
        """The pixels [from, to) of the tile that begins there."""
        return start * self._factor, (start + side.size) * self._factor

    def _weights(self, side: Cut) -> list[np.ndarray]:
        """Weights of each tile's pixels along a side, float32: at every pixel they add up to 1."""
        ramp = _RAMP if self._margin else 1e-3
        ends = [-np.inf, *(seam * self._factor for seam in side.seams), np.inf]
        weights = []
        for start, (first, last) in zip(side.starts, itertools.pairwise(ends), strict=True):
            place = np.arange(*self._pixels(side, start)) + 0.5
            rise, fall = (place - first) / ramp + 0.5, (last - place) / ramp + 0.5
            weights.append(np.clip(np.minimum(rise, fall), 0, 1).astype(np.float32))
        return weights


def _is_wide(rows: Cut, columns: Cut) -> bool:
    return len(columns.starts) > len(rows.starts)


def _order(rows: Cut, columns: Cut) -> Iterator[tuple[int, int]]:
    """Tiles in the order they are decoded: along the shorter side first, which is held in floats."""
    if _is_wide(rows, columns):
        return ((y, x) for x in range(len(columns.starts)) for y in range(len(rows.starts)))
    return itertools.product(range(len(rows.starts)), range(len(columns.starts)))


def _share(side: Cut, tile: int) -> tuple[int, int]:
    """The codes [from, to) that are kept of a tile."""
    ends = [0, *side.seams, side.starts[-1] + side.size]
    return ends[tile], ends[tile + 1]


def _mirrored(array: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """A window [from, to) of an array [H, W, ...], mirrored beyond its lower and right edges."""
    spans: list[Any] = []
    for (first, last), side in zip((rows, columns), array.shape, strict=False):
        if last <= side:
            spans.append(slice(first, last))
        else:
            there = np.arange(first, last) % (2 * side)
            spans.append(np.minimum(there, 2 * side - 1 - there))
    return array[spans[0]][:, spans[1]]


def _in_batches(
    tiles: Iterable[tuple[int, np.ndarray]], run: Callable[[np.ndarray], Any]
) -> Iterator[np.ndarray]:
    """What `run` makes of each tile, in order.

    Args:
      tiles: how many tiles of its shape make up a batch, and a tile.
      run: [B, ...] to [B, ...]; B is a power of two, so that few programs are compiled.
    """

    def flush(batch: list[np.ndarray]) -> Iterator[np.ndarray]:
        size = 1 << (len(batch) - 1).bit_length()
        empty = [np.zeros_like(batch[0])] * (size - len(batch))
        yield from np.asarray(run(np.stack(batch + empty)))[: len(batch)]

    batch: list[np.ndarray] = []
    for most, tile in tiles:
        if batch and (tile.shape != batch[0].shape or len(batch) == most):
            yield from flush(batch)
            batch = []
        batch.append(tile)
    if batch:
        yield from flush(batch)
