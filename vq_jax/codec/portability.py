"""Checks that two machines compute the same probabilities, for coders that depend on a model's outputs.

A file keeps the platform, the version of JAX and a CRC-32 of what the model computes for a fixed input.
A reader computes the CRC-32 again, and refuses a file whose probabilities it would not reproduce.
"""

import jax

from vq_jax.errors import UserError

SIZE = 8  # bytes of `metadata`
_PLATFORMS = ("cpu", "gpu", "tpu")


def metadata(outputs_crc: bytes) -> bytes:
    """Returns what a file keeps: platform, version of JAX, and the CRC-32 (4 bytes) of the outputs."""
    backend = jax.default_backend()
    platform = _PLATFORMS.index(backend) if backend in _PLATFORMS else 255
    version = bytes(min(int(n), 255) for n in jax.__version_info__[:3])
    return bytes([platform]) + version + outputs_crc


def check(saved: bytes, outputs_crc: bytes, advice: str) -> None:
    """Checks what a file keeps against this machine.

    Args:
      saved: what `metadata` gave where the file was written.
      outputs_crc: the CRC-32 that this machine computes.
      advice: how to write files that read everywhere.

    Raises:
      UserError: this machine computes other outputs.
    """
    if saved[4:] == outputs_crc:
        return
    there = dict(enumerate(_PLATFORMS)).get(saved[0], "another platform")
    version = ".".join(map(str, saved[1:4]))
    raise UserError(
        "this file is coded by the probabilities of a model, and this machine "
        f"({jax.default_backend()}, JAX {jax.__version__}) computes others than the one it was written "
        f"on ({there}, JAX {version}): decompress it on such a machine, or compress again "
        f"with {advice}, which reads everywhere; if it is the same machine, the file was altered"
    )
