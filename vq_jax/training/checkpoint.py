"""Checkpoints on disk. This is the only module that uses Orbax."""

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

# Name of the iterator's position in a checkpoint, beside the trees.
_DATA = "data"
# The length and CRC-32 of each file of a checkpoint, written once the checkpoint is complete. Orbax
# checks its indices but not its arrays, so it would not notice a changed bit.
_CHECKSUMS = "checksums.json"


class _Damaged(Exception):
    """A checkpoint that cannot be read, or has changed since it was written."""


def _position_file() -> str:
    """Returns the name of the file in which Grain stores this process's position in the data."""
    return f"process_{jax.process_index()}-of-{jax.process_count()}.json"


class Checkpoints:
    """Saves the checkpoints of one run in the background, keeps the newest, and restores them.

    A checkpoint is a folder `<step>` with a subfolder for each tree given to `save`, so that each
    tree can be read separately.
    """

    def __init__(self, folder: Path, keep: int = 2, *, writes: bool = True):
        """Opens a folder of checkpoints.

        Args:
          folder: the folder; it need not exist yet.
          keep: number of checkpoints to keep.
          writes: False for a process that only reads, and must not remove the unfinished files of a
            process that writes.
        """
        self._folder = folder.absolute()
        self._saving: tuple[int, Any] | None = None
        with _SilencedLog():
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=writes and jax.process_index() == 0,
            )

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints."""
        with _SilencedLog():
            return [c.step for c in self._checkpointer.checkpoints]

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None if there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, trees: dict[str, Any], iterator: Any) -> None:
        """Starts saving trees of arrays and the data iterator's position.

        Call it before the iterator is advanced for step `step`. It returns once the arrays are
        copied. It replaces a checkpoint of the same step, such as a damaged one.
        """
        self._finish_saving()
        response = self._checkpointer.save_checkpointables_async(
            step, {**trees, _DATA: iterator}, force=True, overwrite=True
        )
        self._saving = (step, response)
        response.on_complete(lambda _: self._seal(step))

    def _seal(self, step: int) -> None:
        """Writes the checksums of a complete checkpoint; one without checksums is not verified."""
        folder = self._folder / str(step)
        if jax.process_index() or not folder.is_dir() or (folder / _CHECKSUMS).exists():
            return
        try:
            sums = {str(p.relative_to(folder)): _checksum(p) for p in _files(folder)}
            temporary = folder / f".{_CHECKSUMS}.tmp"
            temporary.write_text(json.dumps(sums))
            temporary.replace(folder / _CHECKSUMS)
        except FileNotFoundError:  # Removed, because there is a newer checkpoint.
            pass

    def restore(
        self, trees: dict[str, Any], iterator: Any = None, *, before: int | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Restores trees and the position of `iterator` from the newest checkpoint.

        If that checkpoint is damaged, logs a warning and uses the one before it.

        Args:
          trees: name -> tree of arrays or shapes with the wanted structure; the restored arrays get
            the same sharding.
          iterator: the data iterator to restore, or None.
          before: if given, only checkpoints of earlier steps are used.

        Returns:
          the step of the checkpoint; name -> tree of arrays.

        Raises:
          UserError: the arrays of the checkpoint have other names or shapes (the text lists them),
            it was written by another number of processes, or no checkpoint can be read.
        """
        self._finish_saving()
        names = [*trees] if iterator is None else [*trees, _DATA]
        while (step := self._newest_undamaged(names, before)) is not None:
            try:
                return step, self._restore(step, trees, iterator)
            except _Damaged as e:
                if jax.process_count() > 1:  # The other processes may have restored this step.
                    raise UserError(
                        f"checkpoint {self._folder / str(step)} is damaged ({e}): remove it"
                    ) from e
                self._warn(step, e)
                before = step
        raise UserError(
            f"no checkpoint in {self._folder} can be read: use another workdir, or remove that "
            "folder to start from scratch"
        )

    def _newest_undamaged(self, names: list[str], before: int | None) -> int | None:
        """Returns the newest step whose files match their checksums; process 0 decides for all."""
        newest = -1
        if jax.process_index() == 0:
            for step in sorted(self.steps(), reverse=True):
                if before is None or step < before:
                    try:
                        self._verify(step, names)
                    except _Damaged as e:
                        self._warn(step, e)
                    else:
                        newest = step
                        break
        if jax.process_count() > 1:
            newest = int(multihost_utils.broadcast_one_to_all(np.int32(newest)))
        return None if newest < 0 else newest

    def _warn(self, step: int, e: _Damaged) -> None:
        path = self._folder / str(step)
        log.warning("warning: checkpoint %s is damaged (%s): skipped", path, e)

    def _restore(self, step: int, trees: dict[str, Any], iterator: Any) -> dict[str, Any]:
        if differences := self._differences(step, trees):
            shown = "; ".join(differences[:6])
            more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
            raise UserError(
                f"checkpoint {step} in {self._folder} does not fit this config: {shown}{more}; use "
                "the config and version of vq_jax that it was trained with, or another workdir"
            )
        wanted = {name: jax.tree.map(_abstract, tree) for name, tree in trees.items()}
        if iterator is not None:
            self._check_processes(step)
            wanted[_DATA] = iterator
        try:
            with _SilencedLog():
                restored = self._checkpointer.load_checkpointables(step, wanted)
        except Exception as e:  # For a damaged file, Orbax may raise anything.
            if (self._folder / str(step) / _CHECKSUMS).exists():
                raise  # The checksums match, so the files are not damaged.
            raise _Damaged(first_line(e)[:200]) from e
        return {name: restored[name] for name in trees}

    def _verify(self, step: int, names: list[str]) -> None:
        """Raises `_Damaged` if files of these trees are missing or differ from their checksums."""
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
                    matches = _checksum(folder / file) == expected
                except FileNotFoundError as e:
                    raise _Damaged(f"{file} is missing") from e
                except OSError as e:
                    raise _Damaged(f"{file} cannot be read: {e.strerror}") from e
                if not matches:
                    raise _Damaged(f"{file} does not match its checksum")

    def _differences(self, step: int, trees: dict[str, Any]) -> list[str]:
        """Lists the arrays whose names or shapes differ between `trees` and the checkpoint."""
        try:
            with _SilencedLog():
                saved = self._checkpointer.checkpointables_metadata(step).metadata
        except Exception as e:
            raise _Damaged(first_line(e)[:200]) from e
        differences = []
        for name, tree in trees.items():
            if not saved.get(name):
                raise _Damaged(f"the index of {name} cannot be read")
            wanted, found = _shapes(tree), _shapes(saved[name])
            for path in sorted(wanted.keys() | found.keys()):
                a, b = wanted.get(path, "absent"), found.get(path, "absent")
                if a != b:
                    differences.append(f"{path} is {a} in this config, {b} in the checkpoint")
        return differences

    def _check_processes(self, step: int) -> None:
        """Raises UserError if a checkpoint was written by another number of processes."""
        positions = list((self._folder / str(step) / _DATA).glob("process_*-of-*.json"))
        if positions and not any(p.name == _position_file() for p in positions):
            count = positions[0].stem.rpartition("-")[2]
            raise UserError(
                f"checkpoint {step} in {self._folder} was written by {count} processes and has no "
                f"position in the data for {jax.process_count()}: start {count} processes"
            )

    def _finish_saving(self) -> None:
        if self._saving is not None:
            step, response = self._saving
            response.result()
            self._seal(step)
            self._saving = None

    def wait(self) -> None:
        """Blocks until all saves are on disk, and closes the folder."""
        self._finish_saving()
        self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def read_newest(workdir: Path, name: str, shapes: Any) -> tuple[int, Any]:
    """Reads one tree of a run's newest checkpoint onto this process's first device.

    Args:
      workdir: the run's folder.
      name: name of the tree.
      shapes: a tree of arrays or shapes with the same structure.

    Returns:
      the step of the checkpoint; the tree.

    Raises:
      UserError: there is no checkpoint yet, or none that fits.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"no checkpoint in {workdir}: train there first")
    with Checkpoints(folder, writes=False) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UserError(f"no checkpoint in {workdir}: wait until training has saved one")
        step, trees = checkpoints.restore({name: wanted})
    return step, trees[name]


class _SilencedLog:
    """Silences Orbax's log for expected errors."""

    def __enter__(self) -> None:
        self._before = absl_logging.get_verbosity()
        absl_logging.set_verbosity(absl_logging.FATAL)

    def __exit__(self, *_: object) -> None:
        absl_logging.set_verbosity(self._before)


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))


def _checksum(path: Path) -> list[int]:
    """Computes [length in bytes, CRC-32] of a file."""
    length, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            length, crc = length + len(block), zlib.crc32(block, crc)
    return [length, crc]


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a tree's leaves, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(_key(k)) for k in path): tuple(np.array(leaf.shape).tolist())
        for path, leaf in leaves
    }


def _key(k: Any) -> Any:
    """Returns the dict key, index or attribute name in an entry of a JAX key path."""
    for attribute in ("key", "idx", "name"):
        if hasattr(k, attribute):
            return getattr(k, attribute)
    return k
