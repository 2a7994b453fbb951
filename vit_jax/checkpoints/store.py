"""A run's own checkpoints, through Orbax: the only file that imports it, but for `preservation`.

A checkpoint is a folder `checkpoints/<step>` with the items `params`, `opt_state` and `ema` (empty
where there is no averaging), and `chrono`, a small JSON with the step, the clock and the arrays'
digests. It is written aside and renamed when complete, so a run that is killed during a save never
leaves a half one.
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
from absl import logging
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

ARRAYS = ("params", "opt_state", "ema")
# A checkpoint that cannot be read is moved aside under this suffix, never deleted.
BROKEN = "broken"
LOOP_STATE = "chrono"  # What the loop saves of itself; its name on disk since release 0.1.0.
DIGESTS = "digests"  # Of the arrays, in the loop state,
CHECKSUM = "checksum"  # and of all the rest of the loop state.
# Where a checkpoint goes before it is deleted, file by file: what is killed meanwhile must not
# leave half of one under its name. (In an object store there are no folders to move.)
DELETED = ".deleted"


class Store:
    """The checkpoints of one run. Use as a context manager: leaving waits for the last save."""

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
        """Opens or makes the folder.

        Args:
          folder: that holds the checkpoints, one folder a step.
          keep_last: how many of the newest to keep.
          keep_every_steps: those at multiples of this are kept for ever; 0: none.
          keep_steps: those of these steps are kept for ever.
          best_metric: the best one by this metric is kept as well; "": none.
          best_mode: "max" or "min": what is best.
          read_only: nothing is made or tidied up; do not save.
        """
        self.folder = storage.absolute(folder)
        self._newest_save: tuple[int, Sequence[str]] | None = None  # Its step and its items.
        self._best_metric = best_metric
        self._keep = preservation(
            last=keep_last,
            every_steps=keep_every_steps,
            steps=keep_steps,
            best_metric=best_metric,
            best_mode=best_mode,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            # Only with one are the metrics written: a run that goes on must know its best.
            best_fn=(lambda metrics: metrics[best_metric]) if best_metric else None,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else DELETED,
            # Orbax measures it by the wall clock, which may jump; `parallel.watch` bounds waits.
            async_options=ocp.AsyncOptions(timeout_secs=10**8),
        )
        # In a store there are no folders to move: what is deleted is deleted at once.
        local = storage.is_local(self.folder)
        self._tidies = not read_only and local and jax.process_index() == 0
        if local and not read_only:
            _check_name(self.folder)
        if self._tidies:
            _check_folders(self.folder, self.folder / DELETED)
        handlers = {item: ocp.StandardCheckpointHandler() for item in ARRAYS}
        with reading(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers={**handlers, LOOP_STATE: ocp.JsonCheckpointHandler()},
            )
        self._tidy()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        remote = not storage.is_local(self.folder)
        if error is not None and remote and self._manager.is_saving_in_progress():
            # TensorStore asks a store that does not answer for a quarter of an hour.
            logging.warning("%s\nThe save that is under way is waited for.", error)
        try:
            with self._saving():
                self._manager.close()
            self._tidy()
            if self._tidies:  # Not before: Orbax's thread may just have made it, to rename into it.
                with contextlib.suppress(OSError):  # What cannot be deleted harms nobody there.
                    os.rmdir(self.folder / DELETED)
        except CheckpointError as fault:
            if error is None:
                raise
            logging.warning("%s", fault)  # Not in place of what ended the run.

    def _tidy(self) -> None:
        trash = self.folder / DELETED
        if not self._tidies or not trash.exists():
            return
        for old in trash.iterdir():
            shutil.rmtree(old, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
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
          step: of the state.
          arrays: the trees `params`, `opt_state` and `ema`.
          loop_state: plain data that is kept beside them.
          metrics: by which the best checkpoint is chosen.
        """
        if storage.is_local(self.folder) and not self.folder.exists():
            raise CheckpointError(
                f"{self.folder} was there when the run began, and is not any more: the state after "
                f"{step} updates is not saved. If it was moved, move it back and start the same "
                "command again."
            )
        self._tidy()
        present = {item: arrays[item] for item in ARRAYS if jax.tree.leaves(arrays[item])}
        loop_state = {
            **loop_state,
            DIGESTS: {item: digests(tree) for item, tree in present.items()},
        }
        loop_state[CHECKSUM] = _checksum(loop_state)
        args = ocp.args.Composite(
            # Orbax has no empty items.
            **{item: ocp.args.StandardSave(tree) for item, tree in present.items()},
            **{LOOP_STATE: ocp.args.JsonSave(loop_state)},
        )
        named = {k: metrics[k] for k in (self._best_metric,) if k in metrics}
        # The train loop forbids implicit transfers, and Orbax's copies to the host are such.
        with self._saving(), jax.transfer_guard("allow"):
            self._manager.save(
                step,
                args=args,
                metrics=named if self._best_metric else None,
            )
        self._newest_save = step, list(present)

    def finish(self) -> None:
        """Returns when the last save is on disk, and nothing is there that is not to be kept.

        The last save is then looked up as a new process would do it.

        What a save supersedes is deleted after it, and a run that is killed meanwhile leaves some:
        the next save sees to it, but after the last one there is none. All processes must call
        this.

        Raises:
          CheckpointError: it could not be written, or the older ones not be deleted, or what was
            written is not found again.
        """
        with self._saving():
            self._manager.wait_until_finished()
            metrics = {step: self._manager.metrics(step) for step in self.steps()}
            for step in superseded(self._keep, metrics):
                self._manager.delete(step)
        self._check_newest_save()

    def _check_newest_save(self) -> None:
        """Raises CheckpointError if the last save cannot be listed, or its arrays not be opened."""
        if self._newest_save is None:
            return
        step, items = self._newest_save
        try:
            with reading(self.folder):
                self._manager.reload()  # Orbax remembers what it has saved.
            if step not in (steps := self.steps()):
                raise BrokenError(f"The checkpoints that are found are those of the steps {steps}")
            for item in items:
                self.shapes(step, item)
        except CheckpointError as error:
            raise CheckpointError(
                f"The checkpoint of step {step} was written to {self.folder}, and cannot be found "
                f"there again: {error}\nDo not rely on it. Start the same command in another "
                "--workdir, on another file system if there is one."
            ) from error

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises what its many layers raise, and later.
            raise CheckpointError(
                f"A checkpoint could not be written to {self.folder}: {brief(error)}\nThose that "
                "are complete are kept. Mend what hindered it (a full disk, a quota, permissions), "
                "then start the same command again: the run goes on from its newest checkpoint."
            ) from error

    def restore(
        self, step: int, targets: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads some of a checkpoint's items, laid out on the mesh as the targets say.

        All processes of a run must call this, and all return, or raise the same kind of error.

        Args:
          step: of the checkpoint.
          targets: for each wanted item a tree of `jax.ShapeDtypeStruct` with shardings; the
            mesh may be another than the one that saved, and the dtypes other than the saved.

        Returns:
          The arrays by item, and the loop state.

        Raises:
          MismatchError: the checkpoint is of another model.
          BrokenError: it is broken: files are missing, or are not what was written.
          CheckpointError: it cannot be read now: memory, permissions, a file system that is away.
        """
        arrays, loop_state = {}, {}
        try:
            arrays, loop_state = self._read(step, targets)
            fault = None
        except CheckpointError as error:
            fault = error
        # What one process cannot read, none has.
        words = exchange(f"{type(fault).__name__}: {fault}" if fault else "")
        for i, word in enumerate(words):
            if fault is None and word:
                name, _, message = word.partition(": ")
                fault = FAULTS[name](f"{message} (So says process {i}.)")
        if fault is not None:
            raise fault
        self._check_digests(step, arrays, loop_state.pop(DIGESTS, {}))
        return {
            item: jax.tree.map(_as, arrays.get(item, tree), tree) for item, tree in targets.items()
        }, loop_state

    def _read(self, step: int, targets: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The items of `targets` that are not empty, as they were saved; no process waits here."""
        folder = epath.Path(self.folder / str(step))
        with reading(folder):
            loop_state = ocp.JsonCheckpointHandler().restore(
                folder / LOOP_STATE, args=ocp.args.JsonRestore()
            )
            _check_loop_state(loop_state, step)
            for item in targets:
                if item in loop_state.get(DIGESTS, {}) and not storage.exists(folder / item):
                    raise FileNotFoundError(f"{item} is missing")
        # Then shapes: Orbax would pad or cut an array that does not fit.
        saved = self._check_shapes(step, targets)
        arrays = {}
        with reading(folder):
            for item, tree in targets.items():
                if jax.tree.leaves(tree):
                    # Straight from the item's handler: a `CheckpointManager` would wait for the
                    # other processes in between, and those that fail do not come.
                    arrays[item] = ocp.StandardCheckpointHandler().restore(
                        folder / item, args=ocp.args.StandardRestore(saved[item])
                    )
        return arrays, loop_state

    def restore_newest(
        self, targets: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole; sets broken ones aside, saying so.

        Returns:
          Its step, its arrays and its loop state, or None if there is none at all.

        Raises:
          CheckpointError: there are checkpoints, and none is whole; or one is of another model, or
            cannot be read now. Nothing is changed then.
        """
        steps = self.steps()
        errors = []
        for step in reversed(steps):
            try:
                arrays, loop_state = self.restore(step, targets)
            except BrokenError as error:
                logging.warning("%s", error)
                errors.append((step, error))
                continue
            for broken, _ in errors:
                self._quarantine(broken)
            return step, arrays, loop_state
        if errors:
            raise CheckpointError(
                f"None of the checkpoints {steps} in {self.folder} can be read: {errors[0][1]}. To "
                "start again, choose another --workdir."
            )
        return None

    def shapes(self, step: int, item: str) -> Any:
        """The tree of an item's arrays as `jax.ShapeDtypeStruct`s, from the metadata alone.

        Raises:
          CheckpointError: the metadata cannot be read.
        """
        with reading(self.folder / str(step)):
            metadata = self._manager.item_metadata(step).get(item)
            if metadata is None:
                if (self.folder / str(step) / item).exists():
                    raise FileNotFoundError(f"{item} has no metadata")
                return {}  # Nothing was saved under this name.
            tree = metadata.tree
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    def _check_shapes(self, step: int, targets: Mapping[str, Any]) -> dict[str, Any]:
        """The targets with the dtypes that were saved.

        Raises:
          MismatchError: they have other names or shapes than what was saved.
        """
        found = {}
        for item, tree in targets.items():
            shapes = self.shapes(step, item)
            saved = named_leaves(shapes)
            if lines := differences(saved, named_leaves(tree), prefix=f"{item}/"):
                raise MismatchError(
                    f"The checkpoint {self.folder / str(step)} is of another model:\n"
                    + "\n".join(lines)
                )
            found[item] = jax.tree_util.tree_map_with_path(
                lambda path, leaf, saved=saved: jax.ShapeDtypeStruct(
                    leaf.shape, saved[path_name(path)].dtype, sharding=leaf.sharding
                ),
                tree,
            )
        return found

    def _check_digests(
        self, step: int, arrays: Mapping[str, Any], saved: Mapping[str, Any]
    ) -> None:
        """Raises BrokenError if what was read is not what was saved; older ones have no digests."""
        for item, tree in arrays.items():
            if item not in saved:
                continue
            wrong = [name for name, got in digests(tree).items() if saved[item].get(name) != got]
            if wrong:
                raise BrokenError(
                    f"The checkpoint {self.folder / str(step)} is damaged: what it holds is not "
                    f"what was saved, in {item}/{wrong[0]}"
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
                logging.warning("Moved the broken checkpoint %s to %s.", source, target)
            except OSError as error:
                fault = storage.explain(error)
        # No process looks at the folder before.
        if fault := exchange(fault)[0]:
            raise CheckpointError(
                f"The broken checkpoint {source} cannot be moved aside: {fault}. Move it away "
                "yourself, and the run goes on from the one before."
            )
        self._manager.reload()


def _check_name(folder: epath.Path) -> None:
    """Raises CheckpointError for a local path that Orbax's file systems take for another."""
    text = os.fspath(folder)
    if "\\" in text:
        raise CheckpointError(
            f"{text}: checkpoints would be written to {text.replace(chr(92), '/')} (TensorStore "
            "takes a backslash for a slash). Choose a path without."
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{text!a}: no checkpoint can be written below a name that is not UTF-8. Choose "
            "another path."
        ) from None


def _check_folders(*folders: epath.Path) -> None:
    """Raises CheckpointError for one that is a link or a file: its contents may be somebody's."""
    for folder in folders:
        with storage.reported(CheckpointError, f"{folder} cannot be used", hint="Move it away."):
            storage.check_no_link(folder)
            if storage.exists(folder) and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is no folder")


def _checksum(loop_state: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(loop_state, sort_keys=True).encode())


def _check_loop_state(loop_state: Any, step: int) -> None:
    """Raises ValueError if it is not what was saved for this step; older ones have no checksum."""
    if not isinstance(loop_state, dict):
        raise ValueError(f"chrono holds {type(loop_state).__name__}, not an object")
    checksum, kept = loop_state.pop(CHECKSUM, None), loop_state.get(DIGESTS, {})
    if not isinstance(kept, dict) or not all(isinstance(names, dict) for names in kept.values()):
        raise ValueError("chrono holds no digests where they should be")
    if DIGESTS in loop_state and checksum != _checksum(loop_state):
        raise ValueError("chrono is not what was saved")
    if loop_state.get("step", step) != step:
        raise ValueError(f"it is of step {loop_state['step']!r}")


def _as(array: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
    return array if array.dtype == target.dtype else array.astype(target.dtype)
