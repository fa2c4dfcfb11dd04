"""Checkpoints on disk: the only file that names Orbax."""

import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vq_jax.errors import UserError, first_line

log = logging.getLogger("vq_jax")

# What the iterator's position is kept under, beside the trees.
_DATA = "data"
# Written into a checkpoint once it is complete: the length and CRC-32 of each of its files. Orbax
# checks its indices but not its arrays, where a changed bit would pass unseen.
_CHECKSUMS = "checksums.json"


class _Damaged(Exception):
    """A checkpoint that cannot be read, or reads other than it was written."""


def _position_file() -> str:
    """The file that Grain keeps this process's place in the data in."""
    return f"process_{jax.process_index()}-of-{jax.process_count()}.json"


class Checkpoints:
    """The checkpoints of one run: saved in the background, the newest `keep` of them kept.

    A checkpoint is a folder `<step>` with a subfolder for each tree given to `save`, so that a tree
    can be read without the others.
    """

    def __init__(self, folder: Path, keep: int = 2, *, writes: bool = True):
        """Opens a folder of checkpoints.

        Args:
          folder: where they lie, or will.
          keep: how many stay.
          writes: False for a reader, who leaves what another process is just writing alone.
        """
        self._folder = folder.absolute()
        self._saving: tuple[int, Any] | None = None
        with _Quiet():
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=writes and jax.process_index() == 0,
            )

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints."""
        with _Quiet():
            return [c.step for c in self._checkpointer.checkpoints]

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None where there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, trees: dict[str, Any], iterator: Any) -> None:
        """Starts saving trees of arrays and the data iterator's position.

        Call it before the iterator is advanced for step `step`. Returns once the arrays are copied.
        A checkpoint of the same step (a damaged one, say) is replaced.
        """
        self._finish_saving()
        response = self._checkpointer.save_checkpointables_async(
            step, {**trees, _DATA: iterator}, force=True, overwrite=True
        )
        self._saving = (step, response)
        response.on_complete(lambda _: self._seal(step))

    def _seal(self, step: int) -> None:
        """Writes the checksums of a complete checkpoint; one killed before that is read on trust."""
        folder = self._folder / str(step)
        if jax.process_index() or not folder.is_dir() or (folder / _CHECKSUMS).exists():
            return
        try:
            sums = {str(p.relative_to(folder)): _checksum(p) for p in _files(folder)}
            temporary = folder / f".{_CHECKSUMS}.tmp"
            temporary.write_text(json.dumps(sums))
            temporary.replace(folder / _CHECKSUMS)
        except FileNotFoundError:  # a newer checkpoint has taken its place
            pass

    def restore(
        self, trees: dict[str, Any], iterator: Any = None, *, before: int | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Reads trees of the newest checkpoint back, and moves `iterator` to where it stood.

        A damaged checkpoint is named in a warning, and the one before is read.

        Args:
          trees: name -> tree of arrays (or shapes) of the structure wanted; the arrays read are
            laid out over devices as these are.
          iterator: the data iterator to move, or None to leave the position unread.
          before: only checkpoints of earlier steps are looked at, where it is given.

        Returns:
          the checkpoint's step; name -> tree of arrays.

        Raises:
          UserError: the checkpoint's arrays have other names or shapes (the text lists them), or it
            was written by another number of processes, or there is none that can be read.
        """
        self._finish_saving()
        names = [*trees] if iterator is None else [*trees, _DATA]
        while (step := self._newest_sound(names, before)) is not None:
            try:
                return step, self._restore(step, trees, iterator)
            except _Damaged as e:
                if jax.process_count() > 1:  # the others may have read it
                    raise UserError(f"checkpoint {self._folder / str(step)}: {e}") from e
                self._pass_over(step, e)
                before = step
        raise UserError(
            f"no checkpoint in {self._folder} can be read: take another --workdir, or remove that "
            "folder to start anew"
        )

    def _newest_sound(self, names: list[str], before: int | None) -> int | None:
        """The newest step whose files are as they were written; process 0 decides for all."""
        found = -1
        if jax.process_index() == 0:
            for step in sorted(self.steps(), reverse=True):
                if before is None or step < before:
                    try:
                        self._verify(step, names)
                    except _Damaged as e:
                        self._pass_over(step, e)
                    else:
                        found = step
                        break
        if jax.process_count() > 1:
            found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        return None if found < 0 else found

    def _pass_over(self, step: int, e: Exception) -> None:
        place = self._folder / str(step)
        log.warning("warning: checkpoint %s is damaged (%s): passed over", place, e)

    def _restore(self, step: int, trees: dict[str, Any], iterator: Any) -> dict[str, Any]:
        if differences := self._differences(step, trees):
            shown = "; ".join(differences[:6])
            more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
            raise UserError(
                f"checkpoint {step} in {self._folder} does not fit this config: {shown}{more}. "
                "Use the config (and version of vq_jax) it was trained with, or another --workdir"
            )
        wanted = {name: jax.tree.map(_abstract, tree) for name, tree in trees.items()}
        if iterator is not None:
            self._check_processes(step)
            wanted[_DATA] = iterator
        try:
            with _Quiet():
                restored = self._checkpointer.load_checkpointables(step, wanted)
        except Exception as e:  # whatever a damaged file makes Orbax, or a parser below it, raise
            if (self._folder / str(step) / _CHECKSUMS).exists():
                raise  # its files are sound: something else is wrong
            raise _Damaged(first_line(e)[:200]) from e
        return {name: restored[name] for name in trees}

    def _verify(self, step: int, names: list[str]) -> None:
        """Raises `_Damaged` where files of the named parts are not as they were written."""
        folder = self._folder / str(step)
        for name in names:
            if not (folder / name).is_dir():
                raise _Damaged(f"{name} is missing")
        try:
            sums = json.loads((folder / _CHECKSUMS).read_text())
        except FileNotFoundError:
            return
        except ValueError as e:
            raise _Damaged(f"{_CHECKSUMS} cannot be read") from e
        for file, expected in sums.items():
            if Path(file).parts[0] in names or len(Path(file).parts) == 1:
                try:
                    sound = _checksum(folder / file) == expected
                except FileNotFoundError as e:
                    raise _Damaged(f"{file} is missing") from e
                except OSError as e:
                    raise _Damaged(f"{file} cannot be read: {e.strerror}") from e
                if not sound:
                    raise _Damaged(f"{file} is not as it was written")

    def _differences(self, step: int, trees: dict[str, Any]) -> list[str]:
        try:
            with _Quiet():
                saved = self._checkpointer.checkpointables_metadata(step).metadata
        except Exception as e:
            raise _Damaged(first_line(e)[:200]) from e
        found = []
        for name, tree in trees.items():
            if not saved.get(name):
                raise _Damaged(f"the index of {name} cannot be read")
            here, there = _shapes(tree), _shapes(saved[name])
            for path in sorted(here.keys() | there.keys()):
                a, b = here.get(path, "absent"), there.get(path, "absent")
                if a != b:
                    found.append(f"{path} is {a} here, {b} there")
        return found

    def _check_processes(self, step: int) -> None:
        positions = list((self._folder / str(step) / _DATA).glob("process_*-of-*.json"))
        if positions and not any(p.name == _position_file() for p in positions):
            count = positions[0].stem.rpartition("-")[2]
            raise UserError(
                f"checkpoint {step} in {self._folder} was written by {count} processes, and the "
                f"place in the data of {jax.process_count()} cannot be told from it: start {count}"
            )

    def _finish_saving(self) -> None:
        if self._saving is not None:
            step, response = self._saving
            response.result()
            self._seal(step)
            self._saving = None

    def wait(self) -> None:
        """Blocks until everything started is on disk."""
        self._finish_saving()
        self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def read_newest(workdir: Path, name: str, shapes: Any) -> tuple[int, Any]:
    """One tree of a run's newest checkpoint, on this process's first device.

    Args:
      workdir: the run's folder.
      name: of the tree.
      shapes: a tree of arrays or shapes of its structure.

    Returns:
      the checkpoint's step; the tree.

    Raises:
      UserError: there is no checkpoint yet, or none that fits.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), shapes)
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"no checkpoint in {workdir}: train there first")
    with Checkpoints(folder, writes=False) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UserError(f"no checkpoint in {workdir}: let the training save one first")
        step, trees = checkpoints.restore({name: wanted})
    return step, trees[name]


class _Quiet:
    """Keeps the libraries' log to itself where an error is expected and told in our own words."""

    def __enter__(self) -> None:
        self._before = absl_logging.get_verbosity()
        absl_logging.set_verbosity(absl_logging.FATAL)

    def __exit__(self, *_: object) -> None:
        absl_logging.set_verbosity(self._before)


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))


def _checksum(path: Path) -> list[int]:
    """[length in bytes, CRC-32] of a file."""
    length, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            length, crc = length + len(block), zlib.crc32(block, crc)
    return [length, crc]


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(_key(k)) for k in path): tuple(np.array(leaf.shape).tolist())
        for path, leaf in leaves
    }


def _key(k: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(k, attribute):
            return getattr(k, attribute)
    return k
