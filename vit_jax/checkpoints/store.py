"""A run's checkpoints, through Orbax; only this file and `preservation` import it.

A checkpoint is a folder `checkpoints/<step>` with the items `params`, `opt_state` and `ema` (absent
without averaging), and `chrono`, a small JSON with the step, the clock and the arrays' digests. It
is written to a temporary folder and renamed when complete, so a run that is killed during a save
never leaves an incomplete checkpoint.
"""

import contextlib
import errno
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from vit_jax import storage
from vit_jax.checkpoints.digests import digests
from vit_jax.checkpoints.faults import (
    FAULTS,
    BrokenError,
    MismatchError,
    brief,
    differences,
    reading,
)
from vit_jax.checkpoints.preservation import preservation, superseded
from vit_jax.errors import CheckpointError
from vit_jax.parallel.processes import exchange
from vit_jax.parallel.rules import named_leaves, path_name
from vit_jax.telemetry import notes

ARRAYS = ("params", "opt_state", "ema")
# A broken checkpoint is moved to a folder with this suffix, never deleted.
BROKEN = "broken"
LOOP_STATE = "chrono"  # The item's name on disk since release 0.1.0.
DIGESTS = "digests"  # Key of the loop state: the arrays' digests.
CHECKSUM = "checksum"  # Key of the loop state: CRC-32 of all other keys.
# A checkpoint is moved to this folder before its files are deleted: a process that is killed
# meanwhile must not leave a partial checkpoint. (An object store has no folders to move.)
DELETED = ".deleted"


class Store:
    """The checkpoints of one run; a context manager that waits for the last save on exit."""

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        keep_last: int = 1,
        keep_every_steps: int = 0,
        keep_steps: Sequence[int] = (),
        best_metric: str = "",
        best_mode: str = "max",
        read_only: bool = False,
    ):
        """Opens or creates the folder.

        Args:
          folder: holds one folder for each checkpoint.
          keep_last: number of newest checkpoints to keep.
          keep_every_steps: keep checkpoints at multiples of this for good; 0: none.
          keep_steps: keep checkpoints of these steps for good.
          best_metric: also keep the best checkpoint by this metric; "": none.
          best_mode: "max" or "min".
          read_only: create and delete nothing; `save` must not be called.
        """
        self.folder = storage.absolute(folder)
        self._newest_save: tuple[int, Sequence[str]] | None = None  # Step and items.
        self._best_metric = best_metric
        self._policy = preservation(
            last=keep_last,
            every_steps=keep_every_steps,
            steps=keep_steps,
            best_metric=best_metric,
            best_mode=best_mode,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            # Orbax writes metrics only with a best_fn; a resumed run needs them to know its best.
            best_fn=(lambda metrics: metrics[best_metric]) if best_metric else None,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else DELETED,
            # Practically no timeout: Orbax measures it by the wall clock, which may jump.
            # `parallel.watch` bounds waits instead.
            async_options=ocp.AsyncOptions(timeout_secs=10**8),
        )
        local = storage.is_local(self.folder)
        self._empties_trash = not read_only and local and jax.process_index() == 0
        if local and not read_only:
            _check_name(self.folder)
        if self._empties_trash:
            _check_folders(self.folder, self.folder / DELETED)
        handlers = {item: ocp.StandardCheckpointHandler() for item in ARRAYS}
        with reading(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers={**handlers, LOOP_STATE: ocp.JsonCheckpointHandler()},
            )
        self._empty_trash()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        remote = not storage.is_local(self.folder)
        if error is not None and remote and self._manager.is_saving_in_progress():
            # TensorStore retries for a quarter of an hour if the store does not answer.
            notes.warn(f"{error}\nWaiting for the save in progress.")
        try:
            with self._saving():
                self._manager.close()
            self._empty_trash()
            # Not earlier: Orbax's thread may have just created the folder, to rename into it.
            if self._empties_trash:
                with contextlib.suppress(OSError):  # Files that cannot be deleted do no harm there.
                    os.rmdir(self.folder / DELETED)
        except CheckpointError as fault:
            if error is None:
                raise
            notes.warn(str(fault))  # Must not replace the error that ended the run.

    def _empty_trash(self) -> None:
        trash = self.folder / DELETED
        if not self._empties_trash or not trash.exists():
            return
        for old in trash.iterdir():
            shutil.rmtree(old, ignore_errors=True)

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, ascending."""
        with reading(self.folder):
            return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        arrays: Mapping[str, Any],
        loop_state: Mapping[str, Any],
        *,
        metrics: Mapping[str, float],
    ) -> None:
        """Starts writing a checkpoint; the arrays may be donated as soon as this returns.

        Args:
          step: number of updates that the state has had.
          arrays: the trees `params`, `opt_state` and `ema`; empty ones are not written.
          loop_state: plain data for JSON.
          metrics: must hold `best_metric` for the checkpoint to be a candidate for the best.
        """
        if storage.is_local(self.folder) and not self.folder.exists():
            raise CheckpointError(
                f"{self.folder} existed when the run began, and is gone: the state after {step} "
                "updates is not saved. If it was moved, move it back and start the same command "
                "again."
            )
        self._empty_trash()
        # Orbax cannot save an empty item.
        present = {item: arrays[item] for item in ARRAYS if jax.tree.leaves(arrays[item])}
        loop_state = {
            **loop_state,
            DIGESTS: {item: digests(tree) for item, tree in present.items()},
        }
        loop_state[CHECKSUM] = _checksum(loop_state)
        args = ocp.args.Composite(
            **{item: ocp.args.StandardSave(tree) for item, tree in present.items()},
            **{LOOP_STATE: ocp.args.JsonSave(loop_state)},
        )
        best = {k: metrics[k] for k in (self._best_metric,) if k in metrics}
        # The train loop forbids implicit transfers, but Orbax copies to the host with them.
        with self._saving(), jax.transfer_guard("allow"):
            self._manager.save(step, args=args, metrics=best if self._best_metric else None)
        self._newest_save = step, list(present)

    def finish(self) -> None:
        """Waits for the last save, deletes superseded checkpoints, and looks the save up again.

        Each save deletes the checkpoints that it supersedes. A run that is killed meanwhile leaves
        some, which the next save deletes; after the last save, this method does. The last save is
        then looked up as a new process would do it. All processes must call this.

        Raises:
          CheckpointError: the last save failed or is not found again, or a superseded checkpoint
            cannot be deleted.
        """
        with self._saving():
            self._manager.wait_until_finished()
            metrics = {step: self._manager.metrics(step) for step in self.steps()}
            for step in superseded(self._policy, metrics):
                self._manager.delete(step)
        self._check_newest_save()

    def _check_newest_save(self) -> None:
        """Raises CheckpointError if the last save is not listed, or its arrays cannot be opened."""
        if self._newest_save is None:
            return
        step, items = self._newest_save
        try:
            with reading(self.folder):
                self._manager.reload()  # Orbax caches the steps that it has saved.
            if step not in (steps := self.steps()):
                raise BrokenError(f"The folder has checkpoints of the steps {steps}")
            for item in items:
                self.shapes(step, item)
        except CheckpointError as error:
            raise CheckpointError(
                f"The checkpoint of step {step} was written to {self.folder}, but cannot be found "
                f"there again: {error}\nDo not rely on it. Start the same command in another "
                "--workdir, on another file system if there is one."
            ) from error

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax passes on the exceptions of its many layers, and later.
            raise CheckpointError(
                f"A checkpoint could not be written to {self.folder}: {brief(error)}\nComplete "
                "checkpoints are kept. Fix the cause (a full disk, a quota, permissions), then "
                "start the same command again: the run continues from its newest checkpoint."
            ) from error

    def restore(
        self, step: int, targets: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads items of a checkpoint to the devices.

        All processes of a run must call this, and all return, or raise the same type of error.

        Args:
          step: the checkpoint's step.
          targets: for each item to read, a tree of `jax.ShapeDtypeStruct` with shardings; meshes
            and dtypes may differ from those that were saved.

        Returns:
          The arrays by item, and the loop state.

        Raises:
          MismatchError: the checkpoint belongs to another model.
          BrokenError: files are missing or corrupt.
          CheckpointError: the checkpoint cannot be read now (memory, permissions, an unreachable
            file system).
        """
        arrays, loop_state = {}, {}
        try:
            arrays, loop_state = self._read(step, targets)
            fault = None
        except CheckpointError as error:
            fault = error
        # If one process cannot read it, all must raise: else the others would wait for it.
        texts = exchange(f"{type(fault).__name__}: {fault}" if fault else "")
        for i, text in enumerate(texts):
            if fault is None and text:
                name, _, message = text.partition(": ")
                fault = FAULTS[name](f"{message} (Reported by process {i}.)")
        if fault is not None:
            raise fault
        self._check_digests(step, arrays, loop_state.pop(DIGESTS, {}))
        return {
            item: jax.tree.map(_cast, arrays.get(item, tree), tree)
            for item, tree in targets.items()
        }, loop_state

    def _read(self, step: int, targets: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the non-empty items of `targets` in their saved dtypes, with no collective."""
        folder = epath.Path(self.folder / str(step))
        with reading(folder):
            loop_state = ocp.JsonCheckpointHandler().restore(
                folder / LOOP_STATE, args=ocp.args.JsonRestore()
            )
            _check_loop_state(loop_state, step)
            for item in targets:
                if item in loop_state.get(DIGESTS, {}) and not storage.exists(folder / item):
                    raise FileNotFoundError(f"{item} is missing")
        # Orbax would silently pad or cut an array of another shape.
        saved = self._check_shapes(step, targets)
        arrays = {}
        with reading(folder):
            for item, tree in targets.items():
                if jax.tree.leaves(tree):
                    # Through the item's handler: a `CheckpointManager` would wait for the other
                    # processes, which do not arrive if they fail.
                    arrays[item] = ocp.StandardCheckpointHandler().restore(
                        folder / item, args=ocp.args.StandardRestore(saved[item])
                    )
        return arrays, dict(loop_state)

    def restore_newest(
        self, targets: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """Reads the newest intact checkpoint; moves newer, broken ones aside with a warning.

        Returns:
          Step, arrays and loop state; None if there is no checkpoint at all.

        Raises:
          CheckpointError: all checkpoints are broken, or one belongs to another model or cannot be
            read now. Nothing is moved then.
        """
        steps = self.steps()
        errors = []
        for step in reversed(steps):
            try:
                arrays, loop_state = self.restore(step, targets)
            except BrokenError as error:
                notes.warn(str(error))
                errors.append((step, error))
                continue
            for broken, _ in errors:
                self._quarantine(broken)
            return step, arrays, loop_state
        if errors:
            raise CheckpointError(
                f"None of the checkpoints {steps} in {self.folder} can be read: {errors[0][1]}. To "
                "start from the beginning, choose another --workdir."
            )
        return None

    def shapes(self, step: int, item: str) -> Any:
        """Reads an item's metadata: a tree of `jax.ShapeDtypeStruct`; {} if it was not saved.

        Raises:
          CheckpointError: the metadata cannot be read.
        """
        with reading(self.folder / str(step)):
            metadata = self._manager.item_metadata(step).get(item)
            if metadata is None:
                if (self.folder / str(step) / item).exists():
                    raise FileNotFoundError(f"{item} has no metadata")
                return {}
            tree = metadata.tree
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    def _check_shapes(self, step: int, targets: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the targets with the dtypes that were saved.

        Raises:
          MismatchError: names or shapes differ from those that were saved.
        """
        saved_targets = {}
        for item, tree in targets.items():
            shapes = self.shapes(step, item)
            saved = named_leaves(shapes)
            if lines := differences(saved, named_leaves(tree), prefix=f"{item}/"):
                raise MismatchError(
                    f"The checkpoint {self.folder / str(step)} belongs to another model:\n"
                    + "\n".join(lines)
                )
            saved_targets[item] = jax.tree_util.tree_map_with_path(
                lambda path, leaf, saved=saved: jax.ShapeDtypeStruct(
                    leaf.shape, saved[path_name(path)].dtype, sharding=leaf.sharding
                ),
                tree,
            )
        return saved_targets

    def _check_digests(
        self, step: int, arrays: Mapping[str, Any], saved: Mapping[str, Any]
    ) -> None:
        """Raises BrokenError if an array's digest differs from the saved one.

        Checkpoints of release 0.1.0 have no digests.
        """
        for item, tree in arrays.items():
            if item not in saved:
                continue
            wrong = [name for name, got in digests(tree).items() if saved[item].get(name) != got]
            if wrong:
                raise BrokenError(
                    f"The checkpoint {self.folder / str(step)} is damaged: the values that were "
                    f"read are not those that were saved, in {item}/{wrong[0]}"
                    + (f" and {len(wrong) - 1} more" if wrong[1:] else "")
                )

    def _quarantine(self, step):
        source = self.folder / str(step)
        name, tries = f"{self.folder.name}.{BROKEN}.{step}", itertools.count(2)
        fault = ""
        if jax.process_index() == 0:
            try:
                while name in storage.names(self.folder.parent):
                    name = f"{self.folder.name}.{BROKEN}.{step}.{next(tries)}"
                storage.rename(source, target := self.folder.parent / name)
                notes.warn(f"Moved the broken checkpoint {source} to {target}.")
            except OSError as error:
                fault = storage.explain(error)
        # The other processes wait here until the folder has been moved.
        if fault := exchange(fault)[0]:
            raise CheckpointError(
                f"The broken checkpoint {source} cannot be moved aside: {fault}. Move it away "
                "yourself, and the run continues from the previous one."
            )
        self._manager.reload()


def _check_name(folder: epath.Path) -> None:
    """Raises CheckpointError for a local path that TensorStore would change or cannot encode."""
    text = os.fspath(folder)
    if "\\" in text:
        raise CheckpointError(
            f"{text}: checkpoints would be written to {text.replace(chr(92), '/')} (TensorStore "
            "reads a backslash as a slash). Choose a path without a backslash."
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{text!a}: no checkpoint can be written below a name that is not UTF-8. Choose "
            "another path."
        ) from None


def _check_folders(*folders: epath.Path) -> None:
    """Raises CheckpointError for a link or a file: it may lead to files of another owner."""
    for folder in folders:
        with storage.reported(CheckpointError, f"{folder} cannot be used", hint="Move it away."):
            storage.check_no_link(folder)
            if storage.exists(folder) and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is not a folder")


def _checksum(loop_state: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(loop_state, sort_keys=True).encode())


def _check_loop_state(loop_state: Any, step: int) -> None:
    """Raises ValueError if the loop state is corrupt or of another step.

    Checkpoints of release 0.1.0 have no checksum.
    """
    if not isinstance(loop_state, dict):
        raise ValueError(f"chrono holds {type(loop_state).__name__}, not an object")
    checksum, saved = loop_state.pop(CHECKSUM, None), loop_state.get(DIGESTS, {})
    if not isinstance(saved, dict) or not all(isinstance(names, dict) for names in saved.values()):
        raise ValueError("chrono holds no digests where they should be")
    if DIGESTS in loop_state and checksum != _checksum(loop_state):
        raise ValueError("chrono is not what was saved")
    if loop_state.get("step", step) != step:
        raise ValueError(f"it is of step {loop_state['step']!r}")


def _cast(array: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
    return array if array.dtype == target.dtype else array.astype(target.dtype)
