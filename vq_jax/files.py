"""Atomic file writes, standard streams, and the cache folder."""

import atexit
import contextlib
import errno
import importlib.util
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vq_jax.errors import UserError, first_line

# The models that ship with the package, a folder each.
WEIGHTS = Path(__file__).parent / "weights"
STDIO = Path("-")  # standard input, or standard output
# Temporary files and folders that are not complete yet.
_unfinished: set[Path] = set()

# System errors that the user can correct, with advice. All other errors are bugs.
_ADVICE = {
    errno.ENOSPC: "free some space, or use another folder",
    errno.EDQUOT: "free some space, or use another folder",
    errno.EACCES: "use a path that you have permission for",
    errno.EPERM: "use a path that you have permission for",
    errno.EROFS: "use a folder that can be written",
    errno.ENOTDIR: "give a folder",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EIO: "the disk may be damaged",
}


def shipped() -> list[Path]:
    """Returns the folders of the models that ship with the package."""
    return sorted(path.parent for path in WEIGHTS.glob("*/config.json"))


def ships(folder: Path) -> bool:
    """Whether a folder is that of a model that ships with the package, where nothing is written."""
    return folder.resolve().parent == WEIGHTS.resolve()


def expanded(path: str | Path) -> Path:
    """Expands a leading ~ or ~USER of a path; ~USER of an unknown user stays unchanged."""
    return Path(os.path.expanduser(path))


def cache_folder() -> Path:
    """Returns the folder of cached files.

    It is $VQ_JAX_CACHE if set, or $XDG_CACHE_HOME/vq_jax if set, or ~/.cache/vq_jax.
    """
    if folder := os.environ.get("VQ_JAX_CACHE"):
        return expanded(folder)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "vq_jax"


def system_mistake(e: BaseException | None) -> str | None:
    """Describes, in one line, the system error that an exception or one of its causes reports.

    Returns:
      the path if known, the error and advice; None if there is no system error in `_ADVICE`.
    """
    seen: set[int] = set()
    while e is not None and id(e) not in seen:
        seen.add(id(e))
        if isinstance(e, OSError) and e.errno in _ADVICE:
            path = os.fsdecode(e.filename) if isinstance(e.filename, str | bytes) else ""
            return f"{path + ': ' if path else ''}{e.strerror}: {_ADVICE[e.errno]}"
        for number, advice in _ADVICE.items():  # C++ libraries report errors only in the text.
            if (description := os.strerror(number)) in str(e):
                match = re.search(r"(/[^\s\"':\]]+)", str(e))
                return f"{match[1] + ': ' if match else ''}{description}: {advice}"
        e = e.__cause__ or e.__context__
    return None


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with the same suffix; removes the file at the end.

    For `STDIO`, it is in the system's folder of temporary files. The length of its name does not
    depend on `path`, which may be as long as the system allows.
    """
    folder = Path(tempfile.gettempdir()) if path == STDIO else path.parent
    temporary = folder / f".{secrets.token_hex(8)}.tmp{path.suffix[:16]}"
    _unfinished.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _unfinished.discard(temporary)


def folder_of_process(prefix: str) -> Path:
    """Makes a temporary folder, which is removed when the process ends, by Ctrl-C, too."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _unfinished.add(folder)
    atexit.register(_remove, folder)
    return folder


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def discard_unfinished() -> None:
    """Removes all unfinished files and folders; for a process that is about to end."""
    for path in list(_unfinished):
        _remove(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path and renames it at the end.

    Args:
      path: the file to write; its folder is created if necessary. `STDIO` is standard output.

    Raises:
      UserError: the file cannot be written; an existing file is unchanged.
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
            if isinstance(e, FileExistsError):
                reason = f"{path.parent} is not a folder"
            raise UserError(f"cannot write {path}: {reason}") from e


def write(data: bytes, path: Path) -> None:
    """Writes a file atomically, and creates its folder if necessary; see `writing`."""
    with writing(path) as temporary:
        temporary.write_bytes(data)


def read(path: Path) -> bytes:
    """Reads a file; `STDIO` is standard input.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if path == STDIO else path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e


def package_folder(package: str, missing: str) -> Path:
    """Returns the folder of an installed package.

    Args:
      package: its name.
      missing: the error's text if it is not installed.

    Raises:
      UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(missing)
    return Path(spec.origin).parent


def check_new(folder: Path) -> None:
    """Raises UserError if a folder exists and is not empty, or if its path is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists: give a new or empty folder")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Writes a folder atomically: yields a temporary folder and renames it at the end.

    Args:
      folder: the folder to write; it must not exist, or be empty.

    Raises:
      UserError: the folder exists and is not empty, or it cannot be written.
    """
    check_new(folder)
    with unfinished(folder) as temporary:
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if folder.exists():
                folder.rmdir()
            temporary.replace(folder)
        except OSError as e:
            raise UserError(f"cannot write {folder}: {e.strerror or e}") from e


def free_memory() -> int:
    """Returns the bytes of free memory; 4 GiB if the system does not report them."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 4 * 2**30
