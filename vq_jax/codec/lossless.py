"""Texts without loss: codes under their entropy model, then the bytes under the decoder's distribution.

A text is cut into windows of the training size, and these into batches. A batch has as many windows as 2^14
bytes and 2^22 logits of codes allow, a power of two, and no more than the text has, rounded up to one. Each
window is written in the way that takes the fewest bits:

    way       what is written
    0         its bytes, at 8 bits each
    1 + 2 m   its codes under the m-th of the entropy models available, then its bytes given the codes
    2 + 2 m   its codes under the m-th model; the likeliest bytes given the codes are its bytes

The payload has, batch by batch, the ways of its windows, with weights one plus the number of times that each
way was used in earlier batches; the codes of each model, for all windows that use it together, in the order
of `PriorModel` or level by level; the bytes given codes, with weights floor(2^23 p) + 1, window by window, or
of a sequential decoder place by place; and the stored bytes. Codes that span no byte of the text are not
written, and the decoder sees zeros there. Writing and reading run the same compiled programs on the same
shapes; see `portability`.
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
from vq_jax.codec.bitstream import CODE_MODELS, Decoder, Encoder
from vq_jax.codec.entropy import CodeModel
from vq_jax.codec.text_tiler import TextTiler
from vq_jax.errors import UserError
from vq_jax.tokenizer import TrainedTokenizer

PORTABLE_TEXT = "lossy and entropy='fixed'"  # the arguments for files that read on every machine
_BYTES = 256
_AT_ONCE = 2**14  # bytes of a batch of windows, at least one window
_LOGITS = 2**22  # logits of the codes of a batch, at least those of one window
_VISITS = 4  # of the decoder, for the check of its outputs
_STORED = 0  # a way
_DECODER = 1 << len(CODE_MODELS)  # the decoder's bit among the models in use

# The places (rows, tokens) of symbols in a batch, and their weights [n, K], or [K] for all.
Visit = tuple[tuple[np.ndarray, np.ndarray], np.ndarray]


class ByteModel:
    """The bytes of a batch of windows, under the decoder's distribution given their codes."""

    def __init__(self, tokenizer: TrainedTokenizer):
        module, self._variables = tokenizer.module, tokenizer.variables
        self._decode = tokenizer.decode_unchecked
        self.sequential = module.sequential
        self._begin = jax.jit(partial(module.apply, method="begin"))
        self._step = jax.jit(partial(module.apply, method="step"), donate_argnums=4)

    def logits(self, codes: np.ndarray) -> np.ndarray | None:
        """Returns the logits of all bytes, float32 [B, L, 256]; None if the decoder is sequential."""
        if self.sequential:
            return None
        return np.asarray(self._decode(jnp.asarray(codes)))

    def visit(
        self,
        codes: np.ndarray,
        logits_BLK: np.ndarray | None,
        inside_BL: np.ndarray,
        code: Callable,
        most: int | None = None,
    ) -> np.ndarray:
        """Visits the bytes of a batch.

        Args:
          codes: int32 [B, *grid, *code_shape].
          logits_BLK: from `logits`.
          inside_BL: bool, True for bytes to visit.
          code: ((rows, places), logits float32 [n, 256]) -> the bytes int [n] at these places.
          most: number of places to visit; None visits all.

        Returns:
          int32 [B, L].
        """
        x_BL = np.zeros(inside_BL.shape, np.int32)
        inside_BL = inside_BL & (np.arange(inside_BL.shape[1]) < (most or inside_BL.shape[1]))
        if not inside_BL.any():
            return x_BL
        if logits_BLK is not None:
            where = np.nonzero(inside_BL)
            x_BL[where] = code(where, logits_BLK[where])
            return x_BL
        context, cache = self._begin(self._variables, jnp.asarray(codes))
        before_B = np.zeros(len(x_BL), np.int32)
        for n in range(int(np.flatnonzero(inside_BL.any(axis=0)).max()) + 1):
            logits_BK, cache = self._step(self._variables, context, before_B, n, cache)
            rows = np.flatnonzero(inside_BL[:, n])
            where = rows, np.full(len(rows), n)
            x_BL[where] = code(where, np.asarray(logits_BK)[rows])
            before_B = x_BL[:, n].copy()
        return x_BL


class Lossless:
    """Writes texts uint8 [N] to bytes, and reads them back."""

    def __init__(self, tiler: TextTiler, models: Mapping[str, CodeModel]):
        """Makes the coder.

        Args:
          tiler: of the tokenizer.
          models: the entropy models of its codes, by name; models may be added later.
        """
        self.tokenizer, self._tiler, self._models = tiler.tokenizer, tiler, models
        self._bytes = ByteModel(self.tokenizer)
        spec = self.tokenizer.codes
        most = min(_AT_ONCE // tiler.length, _LOGITS // (spec.length * spec.num_codes))
        self._most = 1 << (max(1, most).bit_length() - 1)
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
        names = [name for name in CODE_MODELS if name in names]
        ways, used, size = _Ways(len(names)), 0, 1
        for part, size in self._tiler.batches(self._count(len(x)), self._most):
            used |= self._put_batch(encoder, x, names, ways, part, size)
        named = sum(1 << CODE_MODELS.index(name) for name in names)
        crc = struct.pack("<I", zlib.crc32(x.tobytes()))
        return bytes([named, used]) + crc + self._check(used, size)

    def _put_batch(
        self,
        encoder: Encoder,
        x: np.ndarray,
        names: list[str],
        ways: "_Ways",
        part: slice,
        size: int,
    ) -> int:
        """Writes a batch of windows; returns the bits of the models in use."""
        x_BL = self._tiler.windows(x, part, size)
        inside_BL, inside_BN = self._tiler.inside(len(x), part, size)
        encoded = np.asarray(self.tokenizer.encode_unchecked(jnp.asarray(x_BL)))
        codes_BN = np.where(inside_BN, encoded.reshape(size, -1), 0)
        of_models = [_recorded(self._models[name].visit, codes_BN, inside_BN) for name in names]
        codes = codes_BN.reshape(encoded.shape)
        logits_BLK = self._bytes.logits(codes)
        exact_B: np.ndarray = np.zeros(size, bool)
        if logits_BLK is not None:
            exact_B = ((logits_BLK.argmax(-1) == x_BL) | ~inside_BL).all(axis=1)
        visit = partial(self._visit_bytes, codes, logits_BLK)
        visits, given_bits_B = _recorded(visit, x_BL, inside_BL & ~exact_B[:, None])
        # Models whose outputs are NaN are not used.
        bits = np.nan_to_num(
            np.stack(
                [
                    8.0 * inside_BL.sum(axis=1),
                    *(
                        np.where(exact_B == alone, bits_B + given_bits_B, np.inf)
                        for _, bits_B in of_models
                        for alone in (False, True)
                    ),
                ]
            ),
            nan=np.inf,
        )
        way_B = np.where(inside_BL.any(axis=1), bits.argmin(axis=0), _STORED)
        ways.put(encoder, way_B[: part.stop - part.start])
        used = _DECODER if (way_B != _STORED).any() else 0
        for m, (of_model, _) in enumerate(of_models):
            uses_B = (way_B + 1) // 2 == m + 1
            _write(encoder, of_model, codes_BN, uses_B)
            used |= int(uses_B.any()) << CODE_MODELS.index(names[m])
        _write(encoder, visits, x_BL, way_B % 2 == 1)
        stored_BL = inside_BL & (way_B == _STORED)[:, None]
        encoder.put(x_BL[stored_BL], bitstream.uniform(_BYTES))
        return used

    def take(self, decoder: Decoder, metadata: bytes, length: int) -> np.ndarray:
        """Reads a text uint8 [length].

        Raises:
          UserError: it was written with other models, or this machine computes other probabilities.
        """
        named, used, (crc,) = metadata[0], metadata[1], struct.unpack("<I", metadata[2:6])
        if named >= _DECODER or used & ~(named | _DECODER):
            raise UserError("the header of this file does not fit its model: it was altered")
        names = [name for i, name in enumerate(CODE_MODELS) if named >> i & 1]
        for i, name in enumerate(CODE_MODELS):
            if used >> i & 1 and name not in self._models:
                raise UserError(f"this file cannot be read: {bitstream.NEEDS[name]}")
        count = self._count(length)
        size = next((size for _, size in self._tiler.batches(count, self._most)), 1)
        own = self._check(used, size)
        if own[:4] != metadata[6:10]:
            raise UserError(
                "this file is coded by other counts of the training codes, or by another prior, than "
                "those of this model: name the run it was made with"
            )
        portability.check(metadata[10:], own[-4:], PORTABLE_TEXT)
        x, ways = np.zeros((count, self._tiler.length), np.uint8), _Ways(len(names))
        for part, size in self._tiler.batches(count, self._most):
            x[part] = self._take_batch(decoder, names, ways, length, part, size)
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
        ways: "_Ways",
        length: int,
        part: slice,
        size: int,
    ) -> np.ndarray:
        """Reads a batch of windows, uint8 [rows, L]."""
        inside_BL, inside_BN = self._tiler.inside(length, part, size)
        rows = part.stop - part.start
        way_B = np.pad(ways.take(decoder, rows), (0, size - rows))
        codes_BN = np.zeros(inside_BN.shape, np.int32)
        for m, name in enumerate(names):
            wanted_BN = inside_BN & ((way_B + 1) // 2 == m + 1)[:, None]
            if not wanted_BN.any():
                continue
            if name not in self._models:
                raise UserError("the header of this file does not fit its payload: it was altered")
            codes_BN += self._models[name].visit(wanted_BN, partial(_read, decoder))
        codes = codes_BN.reshape(size, *self.tokenizer.codes.shape)
        logits_BLK = self._bytes.logits(codes) if (way_B != _STORED).any() else None
        given_BL = inside_BL & (way_B % 2 == 1)[:, None]
        x_BL = self._visit_bytes(codes, logits_BLK, given_BL, partial(_read, decoder))
        alone_B = (way_B % 2 == 0) & (way_B != _STORED)
        if logits_BLK is not None:
            x_BL[alone_B] = logits_BLK[alone_B].argmax(-1)
        stored_BL = inside_BL & (way_B == _STORED)[:, None]
        x_BL[stored_BL] = decoder.take(int(stored_BL.sum()), bitstream.uniform(_BYTES))
        return x_BL[:rows].astype(np.uint8)

    def _count(self, length: int) -> int:
        """Number of windows of a text."""
        return -(-length // self._tiler.length)

    def _visit_bytes(
        self,
        codes: np.ndarray,
        logits_BLK: np.ndarray | None,
        inside_BL: np.ndarray,
        code: Callable,
    ) -> np.ndarray:
        def weigh(where, logits_nK):
            return code(where, entropy.weights(logits_nK))

        return self._bytes.visit(codes, logits_BLK, inside_BL, weigh)

    def _check(self, used: int, size: int) -> bytes:
        """Returns a CRC-32 of the models in use, and what `portability` keeps of their outputs."""
        of_models = outputs = b""
        for i, name in enumerate(CODE_MODELS):
            if used >> i & 1:
                of_models += self._models[name].identity
                outputs += self._models[name].outputs_crc(size)
        if used & _DECODER:
            outputs += self._bytes_crc(size)
        crc = struct.pack("<I", zlib.crc32(outputs))
        return struct.pack("<I", zlib.crc32(of_models)) + portability.metadata(crc)

    def _bytes_crc(self, size: int) -> bytes:
        """CRC-32 of what the decoder computes for fixed codes, in batches of `size` windows."""
        if size not in self._checks:
            spec = self.tokenizer.codes
            codes = np.arange(size * spec.length).reshape(size, *spec.shape) % spec.num_codes
            codes = codes.astype(np.int32)
            fixed = entropy.FixedSymbols()
            everything: np.ndarray = np.ones((size, self._tiler.length), bool)
            self._bytes.visit(codes, self._bytes.logits(codes), everything, fixed, _VISITS)
            self._checks[size] = fixed.crc()
        return self._checks[size]


class _Ways:
    """Codes the ways of windows by how often each was used in earlier batches."""

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
    """Visits symbols of a batch; returns their weights, and the bits of each row, float64 [B]."""
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
