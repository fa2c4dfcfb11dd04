"""Files that are there whole or not at all."""

import os
from pathlib import Path

from vq_jax.errors import UserError


def write(data: bytes, path: Path) -> None:
    """Writes a file, its folder too; it has its name once it is complete.

    Raises:
      UserError: it cannot be written; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e
