"""Damaged copies of `.vqz` files."""

import struct
import zlib


def mutated(data, count, rng):
    """Yields (number, bytes) of damaged copies of a file.

    Those of odd numbers get a correct checksum, so that the checks behind it are tested, too.
    """
    for i in range(count):
        body = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            kind, position = rng.integers(4), int(rng.integers(len(body) + 1))
            if kind == 0 and position < len(body):
                body[position] = rng.integers(256)
            elif kind == 1:
                body[position:position] = rng.bytes(rng.integers(1, 9))
            elif kind == 2:
                del body[position:]
            else:
                body[9:9] = b"\xff" * int(rng.integers(1, 5))  # very large sizes
        if i % 2:
            body[-4:] = struct.pack("<I", zlib.crc32(body[:-4]))
        yield i, bytes(body)
