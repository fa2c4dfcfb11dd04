"""Codes of integers under a learned model of their neighbourhoods: the entropy model "context".

A grid of codes is cut into tiles. A tile is coded alone, as a segment with a checksum of its own, so that a
damaged byte costs one tile. Within a tile, codes come in the stages of `quantizers.context`, whose networks
compute integers: a mean and a scale for each code, alike on all machines. Codes with the same table of
probabilities, which these integers name, are coded together.

The payload of a file consists of

    4       CRC-32 of the sizes, and of what the file's header says
    1-5 a   the sizes of all segments in bytes, tiles row by row: varints
    tile
    ...     the segments: the CRC-32 of the codes' payload, and the payload (see `bitstream.Encoder`)
"""

import dataclasses
import decimal
import functools
import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.codec import bitstream
from vq_jax.codec.bitstream import Decoder, Encoder, Header
from vq_jax.codec.image_tiler import ImageTiler
from vq_jax.errors import UserError
from vq_jax.files import free_memory
from vq_jax.quantizers import context
from vq_jax.quantizers.context import FRACTIONS, SCALES, STAGES
from vq_jax.tokenizer import TrainedTokenizer

_TILE = 96  # largest side of a tile, in positions
_STEP = 16  # tiles are filled up to multiples of it, so that few programs are compiled
_TOTAL = 2**22  # approximate sum of a table's weights
_ESCAPES = 4 * context.LARGEST + 1  # distances that a code can have
_CRC = 4
# The search weighs distortion more than training did: fewer codes move, and the curve of PSNR is highest on held-out
# photographs of BSDS500 (2 to 4 are alike).
_SEARCH = 3.0


@dataclasses.dataclass(frozen=True)
class Table:
    """Probabilities of a code's distance from the mean, rounded down.

    Attributes:
      reach: largest distance, up or down; the last symbol stands for all larger ones.
      model: of the symbols, distance + reach.
      bits: of each symbol, float32.
    """

    reach: int
    model: Any
    bits: np.ndarray


@functools.cache
def tables() -> tuple[Table, ...]:
    """Makes the table of each scale and each fraction of a mean: scale * FRACTIONS + fraction.

    Only exponentials need more than exact or correctly rounded arithmetic; they are computed to 40 digits, so that
    all machines make the same tables.
    """
    found = []
    with decimal.localcontext(prec=40):
        for scale in range(SCALES):
            s = decimal.Decimal(2) ** (decimal.Decimal(scale) / 4 - decimal.Decimal("4.5"))
            reach = min(math.ceil(15 * s) + 1, context.LARGEST)
            # exp(-x / s) at all x = n / (2 FRACTIONS) that occur
            factor = (-1 / (2 * FRACTIONS * s)).exp()
            powers = [decimal.Decimal(1)]
            while len(powers) <= 2 * FRACTIONS * (reach + 2):
                powers.append(powers[-1] * factor)
            # The probability of more than x, for x >= 0
            above = np.array([float(p / (1 + p)) for p in powers])
            for fraction in range(FRACTIONS):
                found.append(_table(reach, fraction, above))
    return tuple(found)


def _table(reach: int, fraction: int, above: np.ndarray) -> Table:
    # Twice FRACTIONS times the edges k + 1/2 - mean between neighbouring distances
    edge = FRACTIONS * (2 * np.arange(-reach - 1, reach + 1) + 1) - 2 * fraction
    tail = above[np.abs(edge)]
    below = np.where(edge >= 0, 1 - tail, tail)
    # On each side, the difference of small numbers is accurate.
    p = np.where(edge[:-1] >= 0, tail[:-1] - tail[1:], below[1:] - below[:-1])
    p = np.append(p, below[0] + np.where(edge[-1] >= 0, tail[-1], 1 - tail[-1]))
    weights = np.floor(p * _TOTAL) + 1.0
    bits = -np.log2(weights / weights.sum()).astype(np.float32)
    bits[-1] += math.log2(_ESCAPES)
    return Table(reach, bitstream.table(weights), bits)


class ContextModel:
    """Images under the predictions of an `IntegerQuantizer`'s networks."""

    def __init__(self, tokenizer: TrainedTokenizer, tiler: ImageTiler):
        """Makes the model.

        Raises:
          UserError: the networks' sums may leave the integers that float32 holds.
        """
        self._tokenizer, self._module, self._tiler = tokenizer, tokenizer.module, tiler
        self._half = tokenizer.module.quantizer.largest
        self._variables = tokenizer.variables
        try:
            context.check_exact(tokenizer.variables["params"]["quantizer"]["context"])
        except ValueError as e:
            raise UserError(f"this model cannot code: {e}") from e
        self._sensitivity = jax.jit(partial(self._module.apply, method=_sensitivity))
        self._predict = jax.jit(partial(_predict, self._module), static_argnames="stage")

    def compress(self, image: np.ndarray, quality: int, effort: int) -> tuple[Header, bytes]:
        """Compresses an image uint8 [H, W, C].

        Args:
          image: of any size.
          quality: 1 to 100.
          effort: 0 rounds latents. 1 moves an integer by one, towards what the network expects, where the bits
            saved are worth the distortion.

        Returns:
          the file's header, and its payload.

        Raises:
          UserError: latents are not finite.
        """
        (y,) = self._tiler.encode([image], _unit(quality), self._tokenizer.encode_latents)
        fingerprint = self._tokenizer.fingerprint[: bitstream.FINGERPRINT]
        shape = self._tiler.shape(image)
        header = Header(fingerprint, "context", shape, y.shape[-1], bytes([quality]))
        return header, self.put(y / self._module.quantizer.step, header, effort)

    def price(self, quality: float) -> np.ndarray:
        """Returns what an error of one step of each dimension costs, in bits, float32 [D].

        Training weighed the squared error of a value, in steps of the model, against the bits of a latent.
        """
        loss, values = self._tokenizer.config.loss, math.prod(self._tokenizer.spec.shape)
        weight = loss.reconstruction_weight / loss.data_variance / max(loss.codebook_weight, 1e-9)
        weight *= math.prod(self._tokenizer.codes.grid) / values * self._module.quantizer.step**2
        return weight * np.asarray(self._sensitivity(self._variables, jnp.float32(quality)))

    def put(self, y: np.ndarray, header: Header, effort: int) -> bytes:
        """Chooses the integers of latents float32 [H, W, D], in steps, and codes them; see `compress`."""
        if not np.isfinite(y).all():
            raise UserError(
                "the model gives latents that are not finite: it cannot code this image"
            )
        quality = _unit(header.metadata[0])
        price = _SEARCH * self.price(quality) if effort else None
        segments = []
        for place in _tiles(y.shape[:2]):
            encoder, tile = Encoder(), y[place]
            choose = partial(_choose, encoder, tile, price, self._half)
            self._visit(tile.shape[:2], quality, choose)
            payload = encoder.finish(padded=False)
            segments.append(_crc(payload) + payload)
        sizes = b"".join(bitstream.varint(len(segment)) for segment in segments)
        return _crc(_sealed(header) + sizes) + sizes + b"".join(segments)

    def read(
        self, payload: bytes, header: Header, salvage: bool
    ) -> tuple[np.ndarray, int, list[tuple[slice, slice]]]:
        """Reads the codes of a file.

        Args:
          payload, header: what `compress` returned.
          salvage: whether a damaged tile gets the codes of 0.

        Returns:
          codes int16 [H, W, D], the quality, and the places of damaged tiles.

        Raises:
          UserError: the header or the sizes of the segments are damaged, or a segment is and `salvage` is False.
        """
        (quality,), dim = header.metadata, self._module.quantizer.dim
        if not 1 <= quality <= 100 or header.levels != dim:
            raise UserError("the header of this file does not fit its model: it was altered")
        grid = self._tiler.grid(header.shape)
        count = math.prod(-(-n // _TILE) for n in grid)
        if count * (_CRC + 1) + _CRC > len(payload):
            raise UserError(
                f"the sizes in this file's header need {count:,} segments, more than its payload of "
                f"{len(payload):,} bytes can hold: it was altered"
            )
        segments = _segments(payload, count, _sealed(header), salvage)
        needed = 2 * math.prod(grid) * dim + self._tiler.nbytes(header.shape)
        if needed > 2**28 and needed > (free := free_memory()):
            raise UserError(
                f"the image needs {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
            )
        places = list(_tiles(grid))
        codes = np.full((*grid, dim), self._half, np.int16)
        damaged = []
        for place, segment in zip(places, segments, strict=True):
            inside = codes[place]
            try:
                if _crc(segment[_CRC:]) != segment[:_CRC]:
                    raise UserError("a part of this file is damaged: give salvage for the others")
                decoder = Decoder(segment[_CRC:])
                inside += self._visit(
                    inside.shape[:2], _unit(quality), partial(_read, decoder, self._half)
                )
            except UserError:
                if not salvage:
                    raise
                damaged.append(place)
        if len(damaged) == len(places):
            raise UserError("every part of this file is damaged: nothing can be read")
        return codes, quality, damaged

    def decode(self, codes: np.ndarray, shape: tuple[int, ...], quality: int) -> np.ndarray:
        """Decodes codes to an image uint8 [H, W, C] of the given height and width."""
        return next(self._tiler.decode([codes], [shape], quality=_unit(quality)))

    def _visit(self, size: tuple[int, ...], quality: float, code: Any) -> np.ndarray:
        """Visits the codes of a tile, stage by stage.

        Args:
          size: of the tile, in positions.
          quality: in [0, 1].
          code: (positions bool [H, W], dims, tables int [n], means int [n]) -> codes int32 [n].

        Returns:
          the integers, int16 [H, W, D].
        """
        filled = tuple(-(-n // _STEP) * _STEP for n in size)
        quantizer = self._module.quantizer
        codes = np.zeros((*filled, quantizer.dim), np.int16)
        for stage in range(STAGES):
            table, mean = self._predict(
                self._variables, codes, jnp.float32(quality), size, stage=stage
            )
            here = context.places(filled[0], filled[1], stage)
            here[size[0] :], here[:, size[1] :] = False, False
            dims = quantizer.dims(stage)
            rows, columns = np.nonzero(here)
            found = code(
                here[: size[0], : size[1]],
                dims,
                np.asarray(table)[rows, columns].reshape(-1),
                np.asarray(mean)[rows, columns].reshape(-1),
            )
            codes[rows, columns, dims] = found.reshape(len(rows), dims.stop - dims.start)
        return codes[: size[0], : size[1]]


def _unit(quality: int) -> float:
    """A quality of 1 to 100 as a number in [0, 1]."""
    return (quality - 1) / 99


def _sensitivity(module: Any, quality: jax.Array) -> jax.Array:
    return module.decoder.sensitivity(quality)


def _predict(module: Any, variables: Any, codes: jax.Array, quality, size, *, stage: int):
    """Names the table of each code of a stage, int16, and its mean rounded down, int16: [H, W, dims].

    Args:
      module, variables: the tokenizer.
      codes: int16 [H, W, D], 0 beyond the tile.
      quality: in [0, 1].
      size: of the tile.
      stage: its number.
    """
    rows, columns = jnp.indices(codes.shape[:2])
    inside = (rows < size[0]) & (columns < size[1])

    def apply(tokenizer: Any):
        y = codes[None].astype(jnp.float32)
        return tokenizer.quantizer.predict_stage(y, quality[None], stage, inside)

    mean, scale = module.apply(variables, method=apply)
    whole = jnp.floor(mean / FRACTIONS)
    fraction = mean - FRACTIONS * whole
    return (scale * FRACTIONS + fraction)[0].astype(jnp.int16), whole[0].astype(jnp.int16)


def _choose(encoder, y, price, half, here, dims, table_n, mean_n) -> np.ndarray:
    """Chooses the codes of a stage and codes them; returns int32 [n]."""
    y_n = y[here][:, dims].reshape(-1)
    codes_n = np.clip(np.rint(y_n), -half, half).astype(np.int32)
    order, groups = _groups(table_n)
    sorted_codes, sorted_means = codes_n[order], mean_n[order].astype(np.int32)
    if price is not None:
        sorted_y = y_n[order]
        weights = np.broadcast_to(price[dims], (here.sum(), len(price[dims]))).reshape(-1)[order]
    escaped = []
    for index, rows in groups:
        table = tables()[index]
        distance = sorted_codes[rows] - sorted_means[rows]
        if price is not None:
            wanted, fraction = sorted_y[rows] - sorted_means[rows], index % FRACTIONS / FRACTIONS
            distance = _cheaper(table, fraction, distance, wanted, weights[rows])
            sorted_codes[rows] = np.clip(distance + sorted_means[rows], -half, half)
            distance = sorted_codes[rows] - sorted_means[rows]
        symbol = _symbols(table, distance)
        encoder.put(symbol, table.model)
        escaped.append(distance[symbol == 2 * table.reach + 1])
    beyond = np.concatenate(escaped) if escaped else np.zeros(0, np.int32)
    encoder.put(beyond + 2 * context.LARGEST, bitstream.uniform(_ESCAPES))
    codes_n[order] = sorted_codes
    return codes_n


def _cheaper(
    table: Table, fraction: float, distance: np.ndarray, wanted: np.ndarray, price: np.ndarray
) -> np.ndarray:
    """Moves integers by one towards the mean, where the bits saved are worth the distortion."""
    nearer = distance + np.sign(fraction - distance).astype(np.int32)
    saved = table.bits[_symbols(table, distance)] - table.bits[_symbols(table, nearer)]
    worse = price * ((wanted - nearer) ** 2 - (wanted - distance) ** 2)
    return np.where(saved > worse, nearer, distance)


def _symbols(table: Table, distance: np.ndarray) -> np.ndarray:
    beyond = np.abs(distance) > table.reach
    return np.where(beyond, 2 * table.reach + 1, distance + table.reach).astype(np.int32)


def _read(decoder, half, here, dims, table_n, mean_n) -> np.ndarray:
    """Reads the codes of a stage, int32 [n]."""
    order, groups = _groups(table_n)
    distance = np.empty(len(order), np.int32)
    beyond = np.zeros(len(order), bool)
    for index, rows in groups:
        table = tables()[index]
        symbol = decoder.take(rows.stop - rows.start, table.model)
        distance[rows] = symbol - table.reach
        beyond[rows] = symbol == 2 * table.reach + 1
    escapes = decoder.take(int(beyond.sum()), bitstream.uniform(_ESCAPES))
    distance[beyond] = escapes - 2 * context.LARGEST
    codes_n = np.empty(len(order), np.int32)
    codes_n[order] = distance + mean_n[order]
    return np.clip(codes_n, -half, half)


def _groups(table_n: np.ndarray) -> tuple[np.ndarray, list[tuple[int, slice]]]:
    """Sorts codes by their tables: the order, and each table with its part of the sorted codes."""
    order = np.argsort(table_n, kind="stable")
    counts = np.bincount(table_n, minlength=SCALES * FRACTIONS)
    ends = np.cumsum(counts)
    return order, [
        (int(i), slice(int(ends[i] - counts[i]), int(ends[i]))) for i in np.flatnonzero(counts)
    ]


def _tiles(grid: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Yields the places of a grid's tiles, row by row; along an axis they are of about equal size."""
    cuts = []
    for n in grid:
        count = -(-n // _TILE)
        edges = [n * i // count for i in range(count + 1)]
        cuts.append([slice(a, b) for a, b in itertools.pairwise(edges)])
    for rows in cuts[0]:
        for columns in cuts[1]:
            yield rows, columns


def _sealed(header: Header) -> bytes:
    """What the header says, for the checksum before the sizes."""
    return b"".join(map(bitstream.varint, (*header.shape, header.levels))) + header.metadata


def _segments(payload: bytes, count: int, sealed: bytes, salvage: bool) -> list[bytes]:
    """Cuts a payload into its segments."""
    place, sizes = _CRC, []
    for _ in range(count):
        size, place = bitstream.read_varint(payload, place)
        sizes.append(size)
    if _crc(sealed + payload[_CRC:place]) != payload[:_CRC]:
        raise UserError("the beginning of this file is damaged: nothing can be read")
    if not salvage and place + sum(sizes) != len(payload):
        raise UserError("this file is truncated or altered: its segments have other sizes")
    found = []
    for size in sizes:
        found.append(payload[place : place + size])
        place += size
    return found


def _crc(data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data))
