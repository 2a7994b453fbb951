"""A run's own checkpoints, through Orbax: the only file that imports it.

A checkpoint is a folder `checkpoints/<step>` with the items `params`, `opt_state` and `ema` (empty
where there is no averaging), and `chrono`, a small JSON with the step and the clock. It is written
aside and renamed when complete, so a run that is killed during a save never leaves a half one.
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from vit_jax.errors import CheckpointError
from vit_jax.parallel.rules import path_name

ARRAYS = ("params", "opt_state", "ema")
# A checkpoint that cannot be read is moved aside under this suffix, never deleted.
BROKEN = "broken"


class Store:
    """The checkpoints of one run. Use as a context manager: leaving waits for the last save."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep_last: int = 1,
        keep_every_steps: int = 0,
        best_metric: str = "",
        best_mode: str = "max",
        read_only: bool = False,
    ):
        """Opens or makes the folder.

        Args:
          folder: that holds the checkpoints, one folder a step.
          keep_last: how many of the newest to keep.
          keep_every_steps: those at multiples of this are kept for ever; 0: none.
          best_metric: the best one by this metric is kept as well; "": none.
          best_mode: "max" or "min": what is best.
          read_only: nothing is made or tidied up; do not save.
        """
        self.folder = folder.absolute()
        self._best_metric = best_metric
        keep: list[Any] = [policies.LatestN(keep_last)]
        if keep_every_steps:
            keep.append(policies.EveryNSteps(keep_every_steps))
        if best_metric:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    reverse=best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        handlers = {item: ocp.StandardCheckpointHandler() for item in ARRAYS}
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_handlers={**handlers, "chrono": ocp.JsonCheckpointHandler()},
        )

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        arrays: Mapping[str, Any],
        chrono: Mapping[str, Any],
        *,
        metrics: Mapping[str, float],
    ) -> None:
        """Starts writing a checkpoint; the arrays may be donated as soon as this returns.

        Args:
          step: of the state.
          arrays: the trees `params`, `opt_state` and `ema`.
          chrono: plain data that is kept beside them.
          metrics: by which the best checkpoint is chosen.
        """
        args = ocp.args.Composite(
            **{
                item: ocp.args.StandardSave(arrays[item])
                for item in ARRAYS
                if jax.tree.leaves(arrays[item])  # Orbax has no empty items.
            },
            chrono=ocp.args.JsonSave(dict(chrono)),
        )
        # A step that was not evaluated cannot be the best.
        best = self._best_metric in metrics
        # The train loop forbids implicit transfers, and Orbax's copies to the host are such.
        with jax.transfer_guard("allow"):
            self._manager.save(
                step,
                args=args,
                metrics={self._best_metric: metrics[self._best_metric]} if best else None,
            )

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def restore(
        self, step: int, targets: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads some of a checkpoint's items, laid out on the mesh as the targets say.

        Args:
          step: of the checkpoint.
          targets: for each wanted item a tree of `jax.ShapeDtypeStruct` with shardings; the
            mesh may be another than the one that saved.

        Returns:
          The arrays by item, and the chrono.

        Raises:
          CheckpointError: the checkpoint is broken, or it is of another model.
        """
        # Shapes first: Orbax would pad or cut an array that does not fit.
        self._check_shapes(step, targets)
        wanted = {item: tree for item, tree in targets.items() if jax.tree.leaves(tree)}
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()},
                    chrono=ocp.args.JsonRestore(),
                ),
            )
            arrays = {item: restored[item] for item in wanted}
            return {**targets, **arrays}, restored["chrono"]
        except Exception as error:  # Orbax raises what its many layers raise.
            raise CheckpointError(
                f"The checkpoint {self.folder / str(step)} cannot be read: {error}"
            ) from error

    def restore_newest(
        self, targets: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """Reads the newest checkpoint that can be read; sets broken ones aside, saying so.

        Returns:
          Its step, its arrays and its chrono, or None if there is none at all.

        Raises:
          CheckpointError: there are checkpoints, and none can be read; or one is of another model.
        """
        steps = self.steps()
        errors = []
        for step in reversed(steps):
            try:
                arrays, chrono = self.restore(step, targets)
            except MismatchError:
                raise
            except CheckpointError as error:
                logging.warning("%s", error)
                errors.append((step, error))
                continue
            for broken, _ in errors:
                self._set_aside(broken)
            return step, arrays, chrono
        if errors:
            raise CheckpointError(
                f"None of the checkpoints {steps} in {self.folder} can be read: {errors[0][1]}. To "
                "start anew, choose another --workdir."
            )
        return None

    def shapes(self, step: int, item: str) -> Any:
        """The tree of an item's arrays as `jax.ShapeDtypeStruct`s, from the metadata alone.

        Raises:
          CheckpointError: the metadata cannot be read.
        """
        try:
            metadata = self._manager.item_metadata(step).get(item)
            if metadata is None:
                if (self.folder / str(step) / item).exists():
                    raise FileNotFoundError(f"{item} has no metadata")
                return {}  # Nothing was saved under this name.
            tree = metadata.tree
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint {self.folder / str(step)} cannot be read: {error}"
            ) from error

    def _check_shapes(self, step, targets):
        for item, tree in targets.items():
            saved, wanted = _named_shapes(self.shapes(step, item)), _named_shapes(tree)
            if saved == wanted:
                continue
            lines = [
                f"  {item}/{name}: checkpoint {saved.get(name, 'lacks it')}, "
                f"model {wanted.get(name, 'lacks it')}"
                for name in sorted(saved.keys() | wanted.keys())
                if saved.get(name) != wanted.get(name)
            ]
            more = f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else ""
            raise MismatchError(
                f"The checkpoint {self.folder / str(step)} is of another model:\n"
                + "\n".join(lines[:20])
                + more
            )

    def _set_aside(self, step):
        source = self.folder / str(step)
        name, tries = f"{self.folder.name}.{BROKEN}.{step}", itertools.count(2)
        target = self.folder.parent / name
        while target.exists():
            target = self.folder.parent / f"{name}.{next(tries)}"
        if jax.process_index() == 0:
            source.rename(target)
        logging.warning("Moved the broken checkpoint %s to %s.", source, target)
        self._manager.reload()


class MismatchError(CheckpointError):
    """A checkpoint whose arrays have other names or shapes than the model's."""


def _named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        path_name(path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
