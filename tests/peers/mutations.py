"""Damaged copies of files."""

import os
import struct
import zlib


def number(count):
    """How many damaged files a test opens: a fifth, or all `count` with the environment variable VQ_JAX_ALL_MUTATIONS.

    Tests of up to 200 files open all of them.
    """
    return count if os.environ.get("VQ_JAX_ALL_MUTATIONS") or count <= 200 else count // 5


def mutated(data, count, rng):
    """Yields (number, bytes) of damaged copies of a `.vqz` file.

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
