"""Images of any size to codes and back, in tiles of bounded size.

An image is padded by mirroring at its lower and right edges, and cut into overlapping tiles. The codes of
a tile up to the middle of each overlap are kept. Decoded tiles are blended linearly in the middle of their
overlaps. For a tokenizer with a receptive field of at most 24 pixels around an output, the codes and
pixels equal those of the padded image as a whole. Norms over the whole map and attention see a tile
instead of the image.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vq_jax.codec.tiling import Cut, cut, mirrored
from vq_jax.data.images import to_float, to_uint8
from vq_jax.tokenizer import TrainedTokenizer

_SIDE = 576  # largest side of a tile, in pixels
_MARGIN = 32  # pixels of a tile beyond the part that is kept
# Sides are multiples of these numbers of pixels, so that few programs are compiled: the sides of tiles,
# and of an image that is one tile.
_STEP, _WHOLE_STEP = 32, 64
_LARGE_SIDE = 1152  # of tiles with a larger margin, whose overlap would cost too much otherwise
_AT_ONCE = 64  # largest number of tiles in a batch


class ImageTiler:
    """Images uint8 [H, W, C] to codes and back; a `tilers.Tiler`.

    The codes of an image are int32 [H / f, W / f, *code_shape], rounded up. If the tokenizer takes images
    of one size only, they are [tiles, *grid], tiles row by row.
    """

    sizes, least = 2, 1

    def __init__(self, tokenizer: TrainedTokenizer, side: int | None = None):
        self.tokenizer = tokenizer
        resolution = tokenizer.config.data.resolution
        self._channels = tokenizer.config.data.channels
        # Without strides, a tile counts as one code.
        if len(set(tokenizer.strides or ())) > 1:
            raise ValueError(f"tiles need equal strides, not {tokenizer.strides}")
        self._factor = tokenizer.strides[0] if tokenizer.strides else resolution
        self._tile, self._margin = 1, 0
        if tokenizer.strides:
            towers = tokenizer.module.encoder, tokenizer.module.decoder
            margin = max(_MARGIN, *(getattr(tower, "margin", 0) for tower in towers))
            side = side or (_SIDE if margin == _MARGIN else _LARGE_SIDE)
            self._tile = max(side, resolution, 4 * margin) // self._factor
            self._margin = -(-margin // self._factor)

    def check(self, image: Any) -> None:
        """Raises ValueError if it is no image that the tokenizer takes."""
        shape, dtype = np.shape(image), getattr(image, "dtype", None)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != self._channels or 0 in shape:
            raise ValueError(
                f"the image is {dtype} {shape}: make it uint8 [H, W, {self._channels}]"
            )

    def shape(self, image: np.ndarray) -> tuple[int, ...]:
        """Returns (H, W), the sizes that a file keeps."""
        return image.shape[:2]

    def nbytes(self, shape: Sequence[int]) -> int:
        """Returns the uncompressed bytes of an image of these sizes."""
        return math.prod(shape) * self._channels

    def units(self, shape: Sequence[int]) -> int:
        """Returns the number of pixels of an image of these sizes."""
        return math.prod(shape)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the positions of an image of these sizes."""
        rows, columns = (-(-side // self._factor) for side in shape)
        if self.tokenizer.strides:
            return rows, columns
        return rows * columns, *self.tokenizer.codes.grid

    def describe(self, places: Sequence[tuple[slice, ...]], shape: Sequence[int]) -> str:
        """Names the pixels of parts of a grid of codes, of an image of these sizes."""
        factor = self._factor
        return ", ".join(
            "rows {}-{}, columns {}-{}".format(
                *(
                    n
                    for s, side in zip(place, shape, strict=True)
                    for n in (s.start * factor, min(s.stop * factor, side) - 1)
                )
            )
            for place in places
        )

    def _cuts(self, shape: Sequence[int]) -> tuple[Cut, Cut]:
        """Cuts rows and columns of codes; those beyond the image are mirrored."""

        def of(side: int) -> Cut:
            if self.tokenizer.strides and _WHOLE_STEP < side <= self._tile * self._factor:
                step = math.lcm(_WHOLE_STEP, self._factor)
                side = min(-(-side // step) * step, self._tile * self._factor)
            step = max(1, _STEP // self._factor)
            return cut(-(-side // self._factor), self._tile, self._margin, step, self._factor)

        return of(shape[0]), of(shape[1])

    def _at_once(self, rows: Cut, columns: Cut) -> int:
        """Number of tiles in a batch: a power of two, together no larger than the largest tile."""
        fit = (self._tile * self._tile) // (rows.size * columns.size)
        if not self.tokenizer.strides:
            fit = _SIDE**2 // self._factor**2
        return 1 << (max(1, min(_AT_ONCE, fit)).bit_length() - 1)

    def encode(
        self,
        images: Sequence[np.ndarray],
        quality: float | None = None,
        encode: Callable[[jnp.ndarray, Any], Any] | None = None,
    ) -> list[np.ndarray]:
        """Encodes images; tiles of equal size share batches across images.

        Args:
          images: uint8 [H, W, C] each.
          quality: in [0, 1], of a model that takes it.
          encode: function of tiles [B, ...] and their qualities [B] to arrays [B, *grid, ...]; None encodes to
            codes.
        """
        for image in images:
            self.check(image)
        cuts = [self._cuts(image.shape[:2]) for image in images]

        def tiles() -> Iterator[tuple[int, np.ndarray]]:
            for image, (rows, columns) in zip(images, cuts, strict=True):
                for y in rows.starts:
                    for x in columns.starts:
                        tile = mirrored(image, rows.pixels(y), columns.pixels(x))
                        yield self._at_once(rows, columns), tile

        encode = encode or self.tokenizer.encode_unchecked

        def run(batch: np.ndarray) -> Any:
            return encode(jnp.asarray(to_float(batch)), _for_each(quality, batch))

        found, all_codes = _in_batches(tiles(), run), []
        for image, (rows, columns) in zip(images, cuts, strict=True):
            codes: Any = None
            for y in range(len(rows.starts)):
                for x in range(len(columns.starts)):
                    tile = next(found)
                    if codes is None:
                        one = tile.shape[len(self.tokenizer.codes.grid) :]
                        codes = np.empty((*self.grid(image.shape[:2]), *one), tile.dtype)
                    if not self.tokenizer.strides:
                        codes[y * len(columns.starts) + x] = tile
                        continue
                    (top, bottom), (left, right) = rows.share(y), columns.share(x)
                    into = codes[top:bottom, left:right]
                    here = tile[top - rows.starts[y] :, left - columns.starts[x] :]
                    into[...] = here[: into.shape[0], : into.shape[1]]
            all_codes.append(codes)
        return all_codes

    def decode(
        self,
        all_codes: Sequence[np.ndarray],
        shapes: Sequence[tuple[int, ...]],
        quality: float | None = None,
    ) -> Iterator[np.ndarray]:
        """Decodes codes to images uint8 [H, W, C] of the given sizes, one at a time.

        Codes may be those of the first levels of a residual tokenizer. For `quality` see `encode`.
        """
        cuts = [self._cuts(shape) for shape in shapes]

        def tiles() -> Iterator[tuple[int, np.ndarray]]:
            for codes, (rows, columns) in zip(all_codes, cuts, strict=True):
                for y, x in _order(rows, columns):
                    if self.tokenizer.strides:
                        top, left = rows.starts[y], columns.starts[x]
                        tile = mirrored(codes, (top, top + rows.size), (left, left + columns.size))
                    else:
                        tile = codes[y * len(columns.starts) + x]
                    yield self._at_once(rows, columns), tile

        def run(batch: np.ndarray) -> Any:
            return self.tokenizer.decode_unchecked(jnp.asarray(batch), _for_each(quality, batch))

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
        """Fills an image with the next tiles, row by row; only one row of tiles is held as floats."""
        ramp = {} if self._margin else {"ramp": 1e-3}
        down, across = rows.weights(**ramp), columns.weights(**ramp)
        _, width = columns.pixels(columns.starts[-1])
        band = np.zeros((rows.size * self._factor, width, self._channels), np.float32)
        for y, start in enumerate(rows.starts):
            for x in range(len(columns.starts)):
                left, right = columns.pixels(columns.starts[x])
                band[:, left:right] += next(tiles) * (down[y][:, None] * across[x])[..., None]
            after = [*rows.starts, start + rows.size][y + 1]
            done = (after - start) * self._factor
            into = image[start * self._factor : after * self._factor]
            for left in range(0, image.shape[1], _SIDE):
                part = into[:, left : left + _SIDE]
                part[...] = to_uint8(band[: part.shape[0], left : left + part.shape[1]])
            band[: len(band) - done] = band[done:]
            band[len(band) - done :] = 0.0


def _for_each(quality: float | None, batch: np.ndarray) -> jnp.ndarray | None:
    return None if quality is None else jnp.full(len(batch), quality, jnp.float32)


def _is_wide(rows: Cut, columns: Cut) -> bool:
    return len(columns.starts) > len(rows.starts)


def _order(rows: Cut, columns: Cut) -> Iterator[tuple[int, int]]:
    """Order in which tiles are decoded: along the shorter axis first, which is held as floats."""
    if _is_wide(rows, columns):
        return ((y, x) for x in range(len(columns.starts)) for y in range(len(rows.starts)))
    return itertools.product(range(len(rows.starts)), range(len(columns.starts)))


def _in_batches(
    tiles: Iterable[tuple[int, np.ndarray]], run: Callable[[np.ndarray], Any]
) -> Iterator[np.ndarray]:
    """Yields the result of `run` for each tile, in order.

    Args:
      tiles: pairs of the batch size for tiles of this shape, and a tile.
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
