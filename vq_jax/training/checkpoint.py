"""Checkpoints on disk: the only file that names Orbax."""

from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from vq_jax.errors import UserError

# What the iterator's position is kept under, beside the trees.
_DATA = "data"


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
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=writes and jax.process_index() == 0,
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, trees: dict[str, Any], iterator: Any) -> None:
        """Starts saving trees of arrays and the data iterator's position.

        Call it before the iterator is advanced for step `step`. Returns once the arrays are copied.
        """
        self._checkpointer.save_checkpointables_async(step, {**trees, _DATA: iterator}, force=True)

    def restore(self, step: int, trees: dict[str, Any], iterator: Any = None) -> dict[str, Any]:
        """Reads trees back, and moves `iterator` to where it stood.

        Args:
          step: of the checkpoint.
          trees: name -> tree of arrays (or shapes) of the structure wanted; the arrays read are
            laid out over devices as these are.
          iterator: the data iterator to move, or None to leave the position unread.

        Returns:
          name -> tree of arrays.

        Raises:
          UserError: the checkpoint's arrays have other names or shapes; the text lists them.
        """
        wanted = {name: jax.tree.map(_abstract, tree) for name, tree in trees.items()}
        if iterator is not None:
            wanted[_DATA] = iterator
        try:
            restored = self._checkpointer.load_checkpointables(step, wanted)
        except Exception as e:
            if differences := self._differences(step, trees):
                shown = "; ".join(differences[:6])
                more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
                raise UserError(
                    f"checkpoint {step} in {self._checkpointer.directory} does not fit this "
                    f"config: {shown}{more}. Use the config it was trained with, or another "
                    "--workdir"
                ) from e
            raise
        return {name: restored[name] for name in trees}

    def _differences(self, step: int, trees: dict[str, Any]) -> list[str]:
        saved = self._checkpointer.checkpointables_metadata(step).metadata
        found = []
        for name, tree in trees.items():
            here, there = _shapes(tree), _shapes(saved.get(name, {}))
            for path in sorted(here.keys() | there.keys()):
                a, b = here.get(path, "absent"), there.get(path, "absent")
                if a != b:
                    found.append(f"{path} is {a} here, {b} there")
        return found

    def wait(self) -> None:
        """Blocks until everything started is on disk."""
        self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


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
