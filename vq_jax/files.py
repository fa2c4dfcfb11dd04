"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vq_jax.errors import UserError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path, of the same suffix, whose file takes a name once all of it is written.

    Raises:
      UserError: it cannot be written; what was there before still is.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise UserError(f"cannot write {path}: {reason}") from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write(data: bytes, path: Path) -> None:
    """Writes a file, its folder too; see `writing`."""
    with writing(path) as temporary:
        temporary.write_bytes(data)
