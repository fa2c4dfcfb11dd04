"""Fetches weight files from the Hugging Face Hub, and uploads folders to it.

Files are data here: nothing in them is executed. The address of the Hub is $HF_ENDPOINT if set; a private
repository needs $HF_TOKEN or a login (`hf auth login`).
"""

import contextlib
import dataclasses
import importlib.util
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from vq_jax.console import stderr
from vq_jax.errors import UserError, first_line
from vq_jax.files import system_mistake
from vq_jax.interop.extras import ORIGIN
from vq_jax.interop.weights import CONFIG, INDEX, PIPELINE_PARTS, SHARD, SUFFIXES, weight_files

PREFIX = "hf:"
_SHOWN = 8  # names in a message
_BESIDE = (CONFIG, "config.yaml", ORIGIN, "code_counts.npz")


@dataclasses.dataclass(frozen=True)
class Place:
    """A repository, and a file or folder in it; "" is its root."""

    repository: str
    path: str = ""

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}{'/' * bool(self.path)}{self.path}"


def is_place(text: str | Path) -> bool:
    """Whether an argument names a place at the Hub, hf:OWNER/NAME[/FILE]."""
    return str(text).startswith(PREFIX)


def parse(text: str | Path) -> Place:
    """Parses hf:OWNER/NAME[/FILE].

    Raises:
      UserError: it is no such name.
    """
    parts = str(text).removeprefix(PREFIX).strip("/").split("/")
    named = len(parts) >= 2 and all(re.fullmatch(r"[\w.-]+", part) for part in parts[:2])
    if not named or not all(map(_is_plain, parts)):
        raise UserError(f"{text} is no place at the Hub: give hf:OWNER/NAME, or hf:OWNER/NAME/FILE")
    return Place("/".join(parts[:2]), "/".join(parts[2:]))


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and "\\" not in part


def check_installed() -> None:
    """Raises UserError if the package of the Hub is missing."""
    if not importlib.util.find_spec("huggingface_hub"):
        raise UserError("the Hub needs huggingface_hub: pip install 'vq_jax[hub]'")


@contextlib.contextmanager
def _as_user_errors(place: Place, verb: str) -> Iterator[None]:
    """Turns what goes wrong between here and the Hub into one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as e:
        raise UserError(
            f"{place} cannot be {verb}: it is gated; accept its terms on its page, and log in with "
            "'hf auth login'"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise UserError(
            f"{place} cannot be {verb}: there is no such repository, or it is private; log in with "
            "'hf auth login' or set HF_TOKEN"
        ) from e
    except errors.HfHubHTTPError as e:
        status = e.response.status_code if e.response is not None else 0
        login = "; log in with 'hf auth login', or set HF_TOKEN" if status in (401, 403) else ""
        raise UserError(f"{place} cannot be {verb}: {first_line(e)}{login}") from e
    except errors.HFValidationError as e:
        raise UserError(f"{place} is no name of a repository: {first_line(e)}") from e
    except UserError:
        raise
    except errors.OfflineModeIsEnabled as e:
        raise UserError(f"{place} cannot be {verb}: HF_HUB_OFFLINE is set") from e
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as e:
        raise UserError(
            f"{place} cannot be {verb}: the Hub cannot be reached; connect to the internet, or give a file "
            "that is on this machine"
        ) from e
    except (OSError, ValueError, RuntimeError) as e:
        # Such as a file of another size than announced.
        if system_mistake(e) is not None:
            raise
        raise UserError(f"{place} cannot be {verb}: {first_line(e)}") from e


def fetch(place: Place) -> Path:
    """Fetches the weights at a place, with their config, into the Hub's own cache.

    Args:
      place: a weight file; or a folder with one, whose format is the first of `weights.SUFFIXES` that it has.

    Returns:
      the file, or the folder, on this machine.

    Raises:
      UserError: there are no weights, or several to choose from; they do not fit on the disk; or the Hub cannot
        be reached.
    """
    check_installed()
    from huggingface_hub import HfApi, constants, hf_hub_download

    with _as_user_errors(place, "fetched"):
        info = HfApi().model_info(place.repository, files_metadata=True)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
        sizes = {n: size for n, size in sizes.items() if all(map(_is_plain, n.split("/")))}
        if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
            raise UserError(f"{place} cannot be fetched: the Hub names no commit")
        wanted, found = choose(list(sizes), place)
        total = sum(sizes[name] for name in wanted)
        cache = Path(constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        if total > (free := shutil.disk_usage(cache).free):
            raise UserError(
                f"{place} has {total / 1e6:,.2f} MB, and {free / 1e6:,.2f} MB are free in {cache}"
            )
        stderr(f"fetching {_listed(wanted)} ({total / 1e6:,.1f} MB) of {place.repository}")
        for name in wanted:
            path = Path(hf_hub_download(place.repository, name, revision=info.sha))
            folder = path.parents[name.count("/")]
    return folder / found


def choose(names: Sequence[str], place: Place) -> tuple[list[str], str]:
    """Chooses files of a repository.

    Args:
      names: of all its files.
      place: what is wanted of it.

    Returns:
      the files to fetch; and the file or folder to read.

    Raises:
      UserError: see `fetch`.
    """
    folder = place.path
    if folder in names:
        parent, _, name = folder.rpartition("/")
        return [folder, *_shards(names, parent, name), *_beside(names, parent)], folder
    inside = _files_in(names, folder)
    if "model_index.json" in inside:
        part = next((p for p in PIPELINE_PARTS if _files_in(names, _join(folder, p))), "")
        folder = _join(folder, part)
        inside = _files_in(names, folder)
    files = weight_files(inside)
    if len(files) > 1:
        raise UserError(
            f"{place} has several weight files ({_listed(files)}): give one, as in "
            f"{_listed([str(Place(place.repository, _join(folder, files[0])))])}"
        )
    if not files:
        raise UserError(f"{place} has no weight file (*{', *'.join(SUFFIXES)})")
    shards, path = _shards(names, folder, files[0]), _join(folder, files[0])
    return [*shards, path, *_beside(names, folder)], folder


def _shards(names: Sequence[str], folder: str, name: str) -> list[str]:
    """The shards of an index; none for another file."""
    if not name.endswith(INDEX):
        return []
    suffix = "." + name.removesuffix(INDEX).rpartition(".")[2]
    inside = _files_in(names, folder)
    return [_join(folder, n) for n in inside if n.endswith(suffix) and SHARD.search(n)]


def _beside(names: Sequence[str], folder: str) -> list[str]:
    """The files beside the weights that are read, too."""
    return [path for name in _BESIDE if (path := _join(folder, name)) in names]


def _listed(names: Sequence[str]) -> str:
    """Names of a stranger's files for a message, without control characters."""
    shown = ", ".join(ascii(name)[1:-1] for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}".strip("/")


def _files_in(names: Sequence[str], folder: str) -> list[str]:
    """Names of the files of a folder, without those of its folders."""
    start = f"{folder}/" if folder else ""
    rest = [name.removeprefix(start) for name in names if name.startswith(start)]
    return sorted(name for name in rest if "/" not in name)


def check_login(place: Place) -> None:
    """Raises UserError if nothing can be uploaded to a place: no login, or no whole repository."""
    check_installed()
    from huggingface_hub import get_token

    if place.path:
        raise UserError(f"{place} is a file or folder: push to a repository, hf:OWNER/NAME")
    if not get_token():
        raise UserError("push needs a login: run 'hf auth login', or set HF_TOKEN")


def upload(folder: Path, place: Place) -> str:
    """Uploads a folder as a commit, in place of weights of before; makes the repository if there is none.

    Returns:
      its address.

    Raises:
      UserError: the Hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _as_user_errors(place, "pushed"):
        address = HfApi().create_repo(place.repository, exist_ok=True)
        HfApi().upload_folder(
            repo_id=place.repository,
            folder_path=folder,
            commit_message="Upload by vq_jax",
            delete_patterns=[f"*{suffix}" for suffix in SUFFIXES],
        )
    return str(address)
