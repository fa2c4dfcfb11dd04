"""Codes as bytes: the `.vqz` format, and the range coder that fills it.

This module knows nothing of what the codes stand for. A file consists of, in this order:

    bytes   what
    3       "VQZ"
    1       version of the format: 3 for context, 2 for lossless and stored, otherwise 1
    4       the tokenizer: the first bytes of its fingerprint
    1       low half: the entropy model, 0 fixed, 1 static, 2 prior, 3 lossless, 4 stored or 5 context; high
            half: number of sizes
    1-5 a   the sizes of the example, such as height and width: varints, seven bits a byte, lowest
    size    first, the high bit set if another byte follows; only that of a text may be 0
    1-5     codes a position, a varint: the number of levels kept, of a residual tokenizer
    0       fixed: nothing
    4       static: CRC-32 of the table of counts, int64, little-endian
    14      prior: the first 2 bytes of its fingerprint; CRC-32 of the codes, int32 little-endian; the
            platform, 0 CPU, 1 GPU, 2 TPU or 255; three bytes of JAX's version; CRC-32 of what the prior
            computes for fixed codes (see `portability`)
    18      lossless: a byte with the entropy models of codes that were available, and one with the models
            that were used, a bit each (1 fixed, 2 static, 4 prior, 8 the decoder); CRC-32 of the text;
            CRC-32 of the CRC-32 of the counts and the fingerprint of the prior, if used; and as for a
            prior, platform, version and CRC-32 of outputs
    0       stored: nothing
    1       context: the quality, 1 to 100
    ...     the symbols, range coded; with more than 16,384, padded with zeros to a byte for every 256
            beyond, so that a few bytes cannot claim a vast example (context has a limit of its own). Codes
            are symbols, and of lossless also ways and bytes
    4       CRC-32 of all bytes before, little-endian

Fixed and static code level by level, each row by row, with equal weights or with counts plus one. Prior
codes the windows of the prior's grid row by row, in batches whose size is a power of two; in a batch, code
by code in the prior's order, or group by group along the Halton order, with weights floor(2^23 p) + 1. The
payload of lossless is described in `lossless`, that of context in `context`; that of stored is the text.

The range coder is constriction's (words of 32 bits, a state of 64, probabilities of 24 bits, which
`Categorical(perfect=False)` and `Uniform` make from the weights). Its words are big-endian, and cut after the
last byte that is needed: a decoder reads zeros beyond the end. A symbol costs log2(sum / weight) bits, and up
to one percent more if 24 bits are few for the number of symbols.
"""

import dataclasses
import struct
import zlib
from typing import Any

import constriction
import numpy as np

from vq_jax.errors import UserError

models, queue = constriction.stream.model, constriction.stream.queue

MAGIC, VERSION = b"VQZ", 3
SUFFIX = ".vqz"
# Bytes of an entropy model's metadata in the header, by name; the order is that of their numbers.
METADATA = {"fixed": 0, "static": 4, "prior": 14, "lossless": 18, "stored": 0, "context": 1}
CODE_MODELS = ("fixed", "static", "prior")  # the entropy models that all tokenizers can have
# What to do if an entropy model is missing.
NEEDS = {
    "static": (
        "entropy 'static' needs the counts of the training codes, code_counts.npz, in the tokenizer's "
        "folder; compress writes them if the training data are available; for a file made elsewhere, copy "
        "them from there"
    ),
    "prior": "entropy 'prior' needs a prior: name the prior's run in place of the tokenizer's",
    "context": (
        "entropy 'context' needs a tokenizer of images with the quantizer 'integer' and a model that takes a "
        "quality, such as 'cosine'"
    ),
}
FINGERPRINT = 4
# The payload of so many codes may be empty; the others need a byte for every 256.
_FREE, _CODES_A_BYTE = 2**14, 256
_MOST = 2**31  # of a size
_CHUNK = 2**20  # symbols decoded in one call at most
_INVALID = "this file's header is not valid: the file was altered, or written by a faulty program"


@dataclasses.dataclass(frozen=True)
class Header:
    """What precedes the payload.

    Attributes:
      fingerprint: first 4 bytes of the tokenizer's fingerprint.
      entropy: a name in `METADATA`.
      shape: the sizes of the example.
      levels: number of codes a position.
      metadata: the entropy model's own bytes, as many as `METADATA` says.
    """

    fingerprint: bytes
    entropy: str
    shape: tuple[int, ...]
    levels: int
    metadata: bytes = b""


def pack(header: Header, payload: bytes) -> bytes:
    """Returns the bytes of a file with this header and payload."""
    kind = list(METADATA).index(header.entropy)
    if len(header.fingerprint) != FINGERPRINT or len(header.metadata) != METADATA[header.entropy]:
        raise ValueError(f"{header} does not fit the format")
    version = {"context": 3, "lossless": 2, "stored": 2}.get(header.entropy, 1)
    body = MAGIC + bytes([version]) + header.fingerprint + bytes([kind | len(header.shape) << 4])
    body += b"".join(map(varint, (*header.shape, header.levels))) + header.metadata + payload
    return body + struct.pack("<I", zlib.crc32(body))


def unpack(data: bytes, salvage: bool = False) -> tuple[Header, bytes]:
    """Inverts `pack`.

    Args:
      data: the bytes of a file.
      salvage: whether a wrong checksum of a file of "context" is no error: its parts have their own.

    Raises:
      UserError: it is not such a file, of a newer version, truncated or altered.
    """
    data = bytes(data)
    if data[: len(MAGIC)] != MAGIC:
        raise UserError(f"this is not a {SUFFIX} file: it does not begin with {MAGIC.decode()}")
    if data[3:4] > bytes([VERSION]):
        raise UserError(
            f"this file is of version {data[3]} of the format, newer than this program's {VERSION}: "
            "update vq_jax"
        )
    body, crc = data[:-4], data[-4:]
    if len(body) < 9 or struct.pack("<I", zlib.crc32(body)) != crc:
        in_segments = len(body) >= 9 and body[8] & 15 == list(METADATA).index("context")
        if not (salvage and in_segments):
            advice = "; give salvage to read what is left" if in_segments else ""
            raise UserError(
                f"this file is truncated or altered: its checksum does not match{advice}"
            )
        body = data  # its end may be missing
    kind, sizes = body[8] & 15, body[8] >> 4
    if not 1 <= body[3] <= VERSION or kind >= len(METADATA) or not sizes:
        raise UserError(_INVALID)
    place, numbers = 9, []
    for _ in range(sizes + 1):
        number, place = read_varint(body, place)
        numbers.append(number)
    entropy = list(METADATA)[kind]
    metadata, payload = body[place : place + METADATA[entropy]], body[place + METADATA[entropy] :]
    if len(metadata) < METADATA[entropy]:
        raise UserError(_INVALID)
    *shape, levels = numbers
    if not levels:
        raise UserError(_INVALID)
    return Header(body[4:8], entropy, tuple(shape), levels, metadata), payload


def varint(number: int) -> bytes:
    """Returns a number as bytes, as described above."""
    if not 0 <= number < _MOST:
        raise ValueError(f"a size of {number} does not fit the format")
    result = b""
    while number >= 128:
        result, number = result + bytes([number & 127 | 128]), number >> 7
    return result + bytes([number])


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Reads the number at a place; returns it and the place after it."""
    number = 0
    for i, byte in enumerate(data[place : place + 5]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            if number >= _MOST or (i and not byte):
                break
            return number, place + i + 1
    raise UserError(_INVALID)


# --- entropy models ---------------------------------------------------------------------------------

# Model of a symbol in constriction; None if there is only one symbol and nothing to code.
Model = Any


def uniform(symbols: int) -> Model:
    """Returns the model of equally likely symbols, log2(symbols) bits each."""
    return models.Uniform(symbols) if symbols > 1 else None


def table(weights_K: np.ndarray) -> Model:
    """Returns the model with weights, positive integers [K]."""
    if len(weights_K) == 1:
        return None
    # Integers and their sums are exact in float64, so that all machines agree.
    return models.Categorical(np.asarray(weights_K, np.float64), perfect=False)


class Encoder:
    """Codes to a payload, first in, first out."""

    def __init__(self):
        self._coder = queue.RangeEncoder()
        self._count = 0

    def put(self, codes_N: np.ndarray, model: Model) -> None:
        """Appends codes int [N] under one model of `uniform` or `table`."""
        self._count += len(codes_N)
        if model is not None and len(codes_N):
            self._coder.encode(np.ascontiguousarray(codes_N, np.int32), model)

    def put_each(self, codes_N: np.ndarray, weights_NK: np.ndarray) -> None:
        """Appends codes int [N], each with its own weights, positive integers [N, K]."""
        self._count += len(codes_N)
        if weights_NK.shape[1] > 1 and len(codes_N):
            family = models.Categorical(perfect=False)
            codes_N = np.ascontiguousarray(codes_N, np.int32)
            self._coder.encode(codes_N, family, np.asarray(weights_NK, np.float64))

    def finish(self, padded: bool = True) -> bytes:
        """Returns the payload, the shortest number that decodes to the codes.

        Args:
          padded: whether it is filled up to the bytes that so many codes need, see `least_bytes`.
        """
        words = self._coder.get_compressed()
        before, (low, width) = self._coder.pos()
        # Any number in [low, low + width) after the words before will do. Beyond 2^64 it would carry into
        # these words: only numbers on their side of the carry fit.
        window = [*words[before : before + 2], 0, 0][:2]
        if int(window[0]) << 32 | int(window[1]) < low:
            first, end = 0, low + width - 2**64
        else:
            first, end = low, min(low + width, 2**64)
        for size in range(9):
            unit = 256 ** (8 - size)
            number = -(-first // unit) * unit
            if number < end:
                break
        tail = number.to_bytes(8, "big")[:size]
        payload = (words[:before].astype(">u4").tobytes() + tail).rstrip(b"\0")
        return payload.ljust(least_bytes(self._count), b"\0") if padded else payload


class Decoder:
    """Reads the codes of a payload, in the order they were put."""

    def __init__(self, payload: bytes):
        padded = payload.ljust(-(-len(payload) // 4) * 4, b"\0")
        self._coder = queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def take(self, count: int, model: Model) -> np.ndarray:
        """Reads int32 [count] under one model.

        Raises:
          UserError: no codes give this payload.
        """
        if model is None:
            return np.zeros(count, np.int32)
        codes_N = np.empty(count, np.int32)
        for start in range(0, count, _CHUNK):
            part = codes_N[start : start + _CHUNK]
            part[...] = self._decode(model, len(part))
        return codes_N

    def take_each(self, weights_NK: np.ndarray) -> np.ndarray:
        """Reads int32 [N], each with its own weights."""
        if weights_NK.shape[1] == 1 or not len(weights_NK):
            return np.zeros(len(weights_NK), np.int32)
        return self._decode(models.Categorical(perfect=False), np.asarray(weights_NK, np.float64))

    def _decode(self, *arguments: Any) -> np.ndarray:
        try:
            return self._coder.decode(*arguments)
        except AssertionError as e:
            raise UserError("this file's payload cannot be decoded: it was altered") from e


def least_bytes(codes: int) -> int:
    """Returns the smallest length of a payload with so many codes; see the module's docstring."""
    return max(0, -(-(codes - _FREE) // _CODES_A_BYTE))


def check_size(codes: int, payload: bytes) -> None:
    """Raises UserError if a payload is too short for so many codes, before any is decoded."""
    if least_bytes(codes) > len(payload):
        raise UserError(
            f"the sizes in this file's header need {codes:,} codes, more than its payload of "
            f"{len(payload):,} bytes can hold: it was altered"
        )
