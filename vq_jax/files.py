"""Files that are there whole or not at all, standard streams, and the cache folder."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vq_jax.errors import UserError, first_line

STDIO = Path("-")  # standard input, or standard output
# Temporary files and folders that are being written.
_unfinished: set[Path] = set()

# What the system refuses, with what to do; anything else is an error of the program's.
_REFUSED = {
    errno.ENOSPC: "free some space, or name another place",
    errno.EDQUOT: "free some space, or name another place",
    errno.EACCES: "name a place that you may use",
    errno.EPERM: "name a place that you may use",
    errno.EROFS: "name a place that can be written",
    errno.ENOTDIR: "name a folder",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EIO: "the disk may be damaged",
}


def expanded(path: str | Path) -> Path:
    """A path with a leading ~ as the user's home; one of a user that there is not stays as it is."""
    return Path(os.path.expanduser(path))


def cache_folder() -> Path:
    """Where derived files are kept: $VQ_JAX_CACHE, else $XDG_CACHE_HOME/vq_jax, else ~/.cache."""
    if folder := os.environ.get("VQ_JAX_CACHE"):
        return expanded(folder)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "vq_jax"


def system_mistake(e: BaseException | None) -> str | None:
    """One line about what the system has refused, in an exception or what it came from; or None."""
    seen: set[int] = set()
    while e is not None and id(e) not in seen:
        seen.add(id(e))
        if isinstance(e, OSError) and e.errno in _REFUSED:
            place = os.fsdecode(e.filename) if isinstance(e.filename, str | bytes) else ""
            return f"{place + ': ' if place else ''}{e.strerror}: {_REFUSED[e.errno]}"
        for number, advice in _REFUSED.items():  # libraries in C++ tell it in words
            if (words := os.strerror(number)) in str(e):
                found = re.search(r"(/[^\s\"':\]]+)", str(e))
                return f"{found[1] + ': ' if found else ''}{words}: {advice}"
        e = e.__cause__ or e.__context__
    return None


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix; what is left of it is removed at the end.

    Its name does not grow with that of `path`, which may be as long as the system allows.
    """
    folder = Path(tempfile.gettempdir()) if path == STDIO else path.parent
    temporary = folder / f".{secrets.token_hex(8)}.tmp{path.suffix[:16]}"
    _unfinished.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _unfinished.discard(temporary)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def discard_unfinished() -> None:
    """Removes what is being written, where the process is about to end."""
    for path in list(_unfinished):
        _remove(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path, of the same suffix, whose file takes a name once all of it is written.

    Args:
      path: the file to write, whose folder is made; `STDIO` is standard output.

    Raises:
      UserError: it cannot be written; what was there before still is.
    """
    with unfinished(path) as temporary:
        try:
            if path != STDIO:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if path == STDIO:
                sys.stdout.buffer.write(temporary.read_bytes())
                sys.stdout.buffer.flush()
            else:
                temporary.replace(path)
        except BrokenPipeError:
            raise
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else first_line(e)
            if isinstance(e, FileExistsError):  # of its folder
                reason = f"{path.parent} is no folder"
            raise UserError(f"cannot write {path}: {reason}") from e


def write(data: bytes, path: Path) -> None:
    """Writes a file, its folder too; see `writing`."""
    with writing(path) as temporary:
        temporary.write_bytes(data)


def read(path: Path) -> bytes:
    """All of a file, or of standard input.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if path == STDIO else path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e
