"""Texts without loss: codes under their entropy model, then the bytes under the decoder's distribution.

A text is cut into windows of the training size, in batches. Each window is written in the way that takes
the fewest bits: as it is, at 8 bits a byte; or as codes, under one of the entropy models, and then the bytes
under the decoder's distribution given the codes, or nothing if the codes alone give all bytes.

The payload has, batch by batch, the ways of its windows, the codes, the bytes given codes, and the bytes
that are stored. Windows that use one model are coded together, in the order of `PriorModel`. Writing and
reading run the same compiled programs on the same shapes; see `portability`.
"""

import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.codec import bitstream, entropy, portability
from vq_jax.codec.bitstream import Decoder, Encoder
from vq_jax.codec.entropy import CodeModel
from vq_jax.codec.text_tiler import TextTiler
from vq_jax.errors import UserError
from vq_jax.tokenizer import TrainedTokenizer

PORTABLE_TEXT = "lossy and entropy='static'"  # the arguments for files that read on every machine
_BYTES = 256
_AT_ONCE = 2**14  # bytes of a batch of windows, at least one window
_VISITS = 4  # of a model, for the check of its outputs
_STORED = 0  # the way of a window whose bytes are stored; 1 + 2 m and 2 + 2 m are those of model m

# The places (rows, tokens) of symbols in a batch, and their weights [n, K], or [K] for all.
Visit = tuple[tuple[np.ndarray, np.ndarray], np.ndarray]


class ByteModel:
    """The bytes of a batch of windows, under the decoder's distribution given their codes."""

    def __init__(self, tokenizer: TrainedTokenizer):
        module, self._variables = tokenizer.module, tokenizer.variables
        self._sequential = module.sequential
        self._begin = jax.jit(partial(module.apply, method="begin"))
        self._step = jax.jit(partial(module.apply, method="step"), donate_argnums=4)
        self._decode = jax.jit(partial(module.apply, method="decode_codes"))

    def visit(
        self, codes: np.ndarray, inside_BL: np.ndarray, code: Callable, most: int | None = None
    ) -> np.ndarray:
        """Visits the bytes of a batch; see `PriorModel.visit_tokens`.

        Args:
          codes: int32 [B, *grid, *code_shape].
          inside_BL: bool, True for bytes to visit.
          code: ((rows, places), logits float32 [n, 256]) -> the bytes int [n] at these places.
          most: largest number of positions visited; None visits all.

        Returns:
          int32 [B, L].
        """
        x_BL = np.zeros(inside_BL.shape, np.int32)
        if not inside_BL.any():
            return x_BL
        if not self._sequential:
            logits_BLK = np.asarray(self._decode(self._variables, jnp.asarray(codes)))
            inside_BL = inside_BL & (np.arange(inside_BL.shape[1]) < (most or inside_BL.shape[1]))
            where = np.nonzero(inside_BL)
            x_BL[where] = code(where, logits_BLK[where])
            return x_BL
        context, cache = self._begin(self._variables, jnp.asarray(codes))
        before_B = np.zeros(len(x_BL), np.int32)
        last = int(np.flatnonzero(inside_BL.any(axis=0)).max()) + 1
        for n in range(min(last, most or last)):
            logits_BK, cache = self._step(self._variables, context, before_B, n, cache)
            rows = np.flatnonzero(inside_BL[:, n])
            where = rows, np.full(len(rows), n)
            x_BL[where] = code(where, np.asarray(logits_BK)[rows])
            before_B = x_BL[:, n].copy()
        return x_BL

    def exact(self, codes: np.ndarray, x_BL: np.ndarray) -> np.ndarray:
        """Returns bool [B], whether the codes alone give all bytes of a window."""
        if self._sequential:
            return np.zeros(len(x_BL), bool)
        logits_BLK = np.asarray(self._decode(self._variables, jnp.asarray(codes)))
        return (logits_BLK.argmax(-1) == x_BL).all(axis=1)


class Lossless:
    """Writes texts uint8 [N] to bytes, and reads them back, all of them."""

    def __init__(self, tiler: TextTiler, models: Mapping[str, CodeModel]):
        """Makes the coder.

        Args:
          tiler: of the tokenizer.
          models: the entropy models of its codes, by name; models may be added later.
        """
        self.tokenizer, self._tiler, self._models = tiler.tokenizer, tiler, models
        self._bytes = ByteModel(self.tokenizer)
        self._most = max(1, _AT_ONCE // tiler.length)
        self._checks: dict[int, bytes] = {}

    def put(self, encoder: Encoder, x: np.ndarray, names: list[str]) -> bytes:
        """Writes a text.

        Args:
          encoder: takes the payload.
          x: uint8 [N].
          names: the entropy models that may be used.

        Returns:
          the metadata for the header.
        """
        self._tiler.check(x)
        names = [name for name in bitstream.CODE_MODELS if name in names]
        seen, used, size = _Ways(len(names)), 0, 1
        for part, size in self._tiler.batches(-(-len(x) // self._tiler.length), self._most):
            x_BL = self._tiler.windows(x, part, size)
            inside_BL, inside_BN = self._inside(len(x), part, size)
            codes = np.asarray(self.tokenizer.encode_unchecked(jnp.asarray(x_BL)))
            # Codes beyond the text are not written: the decoder sees zeros there.
            codes_BN = np.where(inside_BN, codes.reshape(size, -1), 0)
            codes = codes_BN.reshape(codes.shape)
            of_models = [_recorded(self._models[name].visit, codes_BN, inside_BN) for name in names]
            exact_B = self._bytes.exact(codes, x_BL)
            of_bytes = _recorded(partial(self._visit_bytes, codes), x_BL, inside_BL)
            bits = np.full((1 + 2 * len(names), size), np.inf)
            bits[_STORED] = 8 * inside_BL.sum(axis=1)
            for m, (_, bits_B) in enumerate(of_models):
                bits[1 + 2 * m] = bits_B + of_bytes[1]
                bits[2 + 2 * m] = np.where(exact_B, bits_B, np.inf)
            way_B = bits.argmin(axis=0)[inside_BL.any(axis=1)]
            seen.put(encoder, way_B)
            way_B = np.pad(way_B, (0, size - len(way_B)))
            for m, (visits, _) in enumerate(of_models):
                uses_B = (way_B + 1) // 2 == m + 1
                _write(encoder, visits, codes_BN, uses_B)
                used |= int(uses_B.any()) << bitstream.CODE_MODELS.index(names[m])
            given_B = way_B % 2 == 1
            _write(encoder, of_bytes[0], x_BL, given_B)
            used |= int(given_B.any()) << len(bitstream.CODE_MODELS)
            stored_BL = inside_BL & (way_B == _STORED)[:, None]
            encoder.put(x_BL[stored_BL], bitstream.uniform(_BYTES))
        named = sum(1 << bitstream.CODE_MODELS.index(name) for name in names)
        return (
            bytes([named, used])
            + struct.pack("<I", zlib.crc32(x.tobytes()))
            + self._check(used, size)
        )

    def take(self, decoder: Decoder, metadata: bytes, length: int) -> np.ndarray:
        """Reads a text uint8 [length].

        Raises:
          UserError: it was written with other models, or this machine computes other probabilities.
        """
        named, used, (crc,) = metadata[0], metadata[1], struct.unpack("<I", metadata[2:6])
        names = [n for i, n in enumerate(bitstream.CODE_MODELS) if named >> i & 1]
        if used & ~(named & 7 | 1 << len(bitstream.CODE_MODELS)):
            raise UserError("the header of this file does not fit its model: it was altered")
        for name in names:
            if name not in self._models:
                raise UserError(f"this file cannot be read: {bitstream.NEEDS[name]}")
        count = -(-length // self._tiler.length)
        size = next((size for _, size in self._tiler.batches(count, self._most)), 1)
        own = self._check(used, size)
        if own[:4] != metadata[6:10]:
            raise UserError(
                "this file is coded by other counts of the training codes, or by another prior, than "
                "those of this model: name the run it was made with"
            )
        portability.check(metadata[10:], own[-4:], PORTABLE_TEXT)
        x, seen = np.zeros((count, self._tiler.length), np.uint8), _Ways(len(names))
        for part, size in self._tiler.batches(count, self._most):
            x[part] = self._take_batch(decoder, names, seen, length, part, size)
        found = x.reshape(-1)[:length]
        if zlib.crc32(found.tobytes()) != crc:
            raise UserError(
                "the bytes of this file differ from those that were written: it was altered, or the "
                "models compute other probabilities here"
            )
        return found

    def _take_batch(
        self,
        decoder: Decoder,
        names: list[str],
        seen: "_Ways",
        length: int,
        part: slice,
        size: int,
    ) -> np.ndarray:
        inside_BL, inside_BN = self._inside(length, part, size)
        rows = part.stop - part.start
        way_B = np.pad(seen.take(decoder, rows), (0, size - rows))
        codes_BN = np.zeros(inside_BN.shape, np.int32)
        for m, name in enumerate(names):
            uses_B = (way_B + 1) // 2 == m + 1
            wanted_BN = inside_BN & uses_B[:, None]
            if wanted_BN.any():
                codes_BN += self._models[name].visit(wanted_BN, partial(_read, decoder))
        codes = codes_BN.reshape(size, *self.tokenizer.codes.shape)
        given_B, exact_B = way_B % 2 == 1, (way_B % 2 == 0) & (way_B > 0)
        given_BL = inside_BL & given_B[:, None]
        x_BL = self._visit_bytes(codes, given_BL, partial(_read, decoder))
        if exact_B.any():
            decoded = self.tokenizer.decode_unchecked(jnp.asarray(codes))
            x_BL[exact_B] = self.tokenizer.modality.to_raw(decoded)[exact_B]
        stored_BL = inside_BL & (way_B == _STORED)[:, None]
        x_BL[stored_BL] = decoder.take(int(stored_BL.sum()), bitstream.uniform(_BYTES))
        return x_BL[:rows].astype(np.uint8)

    def _visit_bytes(self, codes: np.ndarray, inside_BL: np.ndarray, code: Callable) -> np.ndarray:
        def weigh(where, logits_nK):
            return code(where, entropy.weights(logits_nK))

        return self._bytes.visit(codes, inside_BL, weigh)

    def _inside(self, length: int, part: slice, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns bool [size, L], True for bytes of the text, and [size, N] for codes that span any."""
        spec, window = self.tokenizer.codes, self._tiler.length
        place = part.start * window + np.arange(size * window).reshape(size, window)
        inside_BL = place < length
        positions = int(np.prod(spec.grid))
        factor = window // positions if self.tokenizer.strides else window
        first_BP = part.start * window + np.arange(size)[:, None] * window
        inside_BP = first_BP + np.arange(positions) * (factor if factor < window else 0) < length
        return inside_BL, np.repeat(inside_BP, spec.books, axis=1)

    def _check(self, used: int, size: int) -> bytes:
        """Returns a CRC-32 of the models in use, and what `portability` keeps of their outputs."""
        of_models = outputs = b""
        for i, name in enumerate(bitstream.CODE_MODELS):
            if used >> i & 1:
                of_models += self._models[name].identity
                outputs += self._models[name].outputs_crc(size)
        if used >> len(bitstream.CODE_MODELS):
            outputs += self._bytes_crc(size)
        crc = struct.pack("<I", zlib.crc32(outputs))
        return struct.pack("<I", zlib.crc32(of_models)) + portability.metadata(crc)

    def _bytes_crc(self, size: int) -> bytes:
        """CRC-32 of what the decoder computes for fixed codes, in batches of `size` windows."""
        if size not in self._checks:
            spec, outputs = self.tokenizer.codes, b""
            codes = np.arange(size * spec.length).reshape(size, *spec.shape) % spec.num_codes

            def fixed(where, logits_nK):
                nonlocal outputs
                outputs += logits_nK.tobytes()
                return (7 * where[0] + 3 * where[1]) % _BYTES

            everything: np.ndarray = np.ones((size, self._tiler.length), bool)
            self._bytes.visit(codes.astype(np.int32), everything, fixed, _VISITS)
            self._checks[size] = struct.pack("<I", zlib.crc32(outputs))
        return self._checks[size]


class _Ways:
    """Codes the ways of windows by how often each was used before."""

    def __init__(self, models: int):
        self._counts = np.ones(1 + 2 * models, np.int64)

    def put(self, encoder: Encoder, way_B: np.ndarray) -> None:
        encoder.put(way_B, bitstream.table(self._counts))
        self._add(way_B)

    def take(self, decoder: Decoder, count: int) -> np.ndarray:
        way_B = decoder.take(count, bitstream.table(self._counts))
        self._add(way_B)
        return way_B

    def _add(self, way_B: np.ndarray) -> None:
        self._counts += np.bincount(way_B, minlength=len(self._counts))


def _recorded(
    visit: Callable[..., Any], symbols_BN: np.ndarray, inside_BN: np.ndarray
) -> tuple[list[Visit], np.ndarray]:
    """Visits all symbols of a batch; returns their weights, and the bits of each row, float64 [B]."""
    visits: list[Visit] = []
    bits_B = np.zeros(len(symbols_BN))

    def code(where, weights):
        symbols_n = symbols_BN[where]
        places = (np.arange(len(symbols_n)), symbols_n)[-weights.ndim :]
        bits_n = np.log2(weights.sum(axis=-1)) - np.log2(weights[places])
        np.add.at(bits_B, where[0], bits_n)
        visits.append((where, weights.astype(np.uint32)))
        return symbols_n

    visit(inside_BN, code)
    return visits, bits_B


def _write(
    encoder: Encoder, visits: list[Visit], symbols_BN: np.ndarray, uses_B: np.ndarray
) -> None:
    """Writes the symbols of the rows that are used, in the order they were visited."""
    for where, weights in visits:
        kept_n = uses_B[where[0]]
        symbols_n = symbols_BN[where][kept_n]
        if weights.ndim == 1:
            encoder.put(symbols_n, bitstream.table(weights))
        else:
            encoder.put_each(symbols_n, weights[kept_n])


def _read(
    decoder: Decoder, where: tuple[np.ndarray, np.ndarray], weights: np.ndarray
) -> np.ndarray:
    """Reads the symbols at some places."""
    if weights.ndim == 1:
        return decoder.take(len(where[0]), bitstream.table(weights))
    return decoder.take_each(weights)
