"""Checkpoints: the whole training state, written atomically, found again after a kill."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from metastep._errors import DataError

if TYPE_CHECKING:  # it takes a third of a second to import, and a run's first checkpoint comes after its first step
    import orbax.checkpoint as ocp

Tree = TypeVar("Tree")


class Checkpoints:
    """The newest `keep` states of one folder, by iteration.

    A state is a pytree of arrays; it is stored as the list of its leaves, and restored into the structure of
    a state of the same run. Half-written checkpoints never appear under their final name.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self._keep = folder.absolute(), keep
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _manager(self) -> "ocp.CheckpointManager":
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=_one_writer(),
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Iteration of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, iteration: int, state: Any) -> None:
        """Write a state; returns when it is safe on disk. An iteration is written once."""
        if iteration in self._manager.all_steps():
            return
        import orbax.checkpoint as ocp

        leaves = _stored(state)
        self._manager.save(iteration, args=ocp.args.StandardSave(leaves))

    def restore(self, like: Tree, iteration: int | None = None) -> Tree:
        """The state of an iteration (the newest by default), in the structure of `like`."""
        found = self.latest() if iteration is None else iteration
        if found is None:
            raise DataError(f"{self.folder} holds no checkpoint; train first, or without --resume")
        import orbax.checkpoint as ocp

        leaves, structure = jax.tree.flatten(like)
        wanted = _stored(like)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
        try:
            stored: Any = self._manager.restore(found, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise DataError(
                f"the checkpoint of iteration {found} in {self.folder} does not fit this run or is damaged "
                f"({str(error).splitlines()[0][:120]})"
            ) from error
        shaped = [
            jax.numpy.reshape(value, leaf.shape) for value, leaf in zip(stored, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, shaped)

    def close(self) -> None:
        """Release the folder."""
        if "_manager" in self.__dict__:
            self._manager.close()


class Elsewhere(Checkpoints):
    """The checkpoints of a run that another process writes and reads: here there are none."""

    def __init__(self) -> None:
        pass

    def latest(self) -> int | None:
        return None

    def save(self, iteration: int, state: Any) -> None:
        pass

    def close(self) -> None:
        pass


def _one_writer() -> "ocp.options.MultiprocessingOptions":
    """Of several processes the calling one writes, and does not wait for the others to do so too."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )


def _stored(state: Any) -> list[np.ndarray]:
    """The leaves as they are written, on the host: other processes may have other devices."""
    return [np.atleast_1d(leaf) for leaf in jax.device_get(jax.tree.leaves(state))]
