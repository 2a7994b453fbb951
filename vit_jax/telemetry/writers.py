"""Writes the metrics of a run, one line per step, to files, TensorBoard and Weights & Biases.

metrics.jsonl   metrics that the config determines: equal to the bit if the run is repeated
timing.jsonl    measurements of the machine: img/s, waits, utilisation
tb/             both, as TensorBoard events
W&B             both, if `log.wandb_project` is set

The contract with the train loop: commit(t) and flush() come before the checkpoint of step t is
written. So a file is never behind a checkpoint. On resume at step s all lines up to s exist, the
lines after s are removed, and the loop writes them again.
"""

import contextlib
import math
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError, DataError
from vit_jax.telemetry import notes
from vit_jax.telemetry.jsonlines import JsonLines, cut_after
from vit_jax.telemetry.tensorboard import EventFile

Number = int | float | np.generic | np.ndarray  # Arrays have shape ().


class MetricWriter:
    """Writes metrics and timings of one run into its work directory.

    NaN and infinities become null in the files: JSON has no such values, and null keeps a column
    numeric (pandas reads it as NaN). TensorBoard and W&B receive the original values.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        resume_step: int | None,
        tensorboard: bool,
        wandb_project: str,
        config: dict[str, Any],
        last_line: int | None = None,
        is_main: bool = True,
    ):
        """Removes lines after `resume_step`, and opens the files for appending.

        Args:
          workdir: the work directory of the run; created if it does not exist.
          resume_step: step of the state that the run resumes from; None: the run starts from
            scratch, and metrics of an earlier attempt are removed.
          tensorboard: whether to write events to workdir/tb.
          wandb_project: project on Weights & Biases; "": off.
          config: config of the run, shown by W&B.
          last_line: value of `last_step` when the state was saved; None: unknown. If the file
            ends earlier, someone changed it, and a warning names the lost steps.
          is_main: whether this process writes: `jax.process_index() == 0`. In the others all
            methods do nothing.

        Raises:
          ConfigError: a W&B project is set, but W&B is not installed.
          DataError: an existing file is damaged, or the work directory cannot be written.
        """
        self.last_step: int | None = None
        """Step of the last line in metrics.jsonl; None: no line yet, or not the main process."""
        self._pending: dict[str, float | int] = {}
        self._pending_step: int | None = None
        self._is_main = is_main
        self._sinks: list[EventFile | _Wandb] = []
        if not is_main:
            return
        workdir = epath.Path(workdir)
        with storage.reported(DataError, f"{workdir} cannot be created"):
            storage.make_folder(workdir)
        last_kept = -1 if resume_step is None else resume_step
        self.last_step = cut_after(workdir / "metrics.jsonl", last_step=last_kept)
        cut_after(workdir / "timing.jsonl", last_step=last_kept)
        if last_line is not None and (self.last_step is None or self.last_step < last_line):
            notes.warn(
                f"{workdir / 'metrics.jsonl'} ends at step {self.last_step}, but it had step "
                f"{last_line} when the state of step {resume_step} was saved: lines are lost. If "
                "you have them, stop the run, restore them and start it again."
            )
        if wandb_project:
            is_new = resume_step is None
            self._sinks.append(_Wandb(workdir, project=wandb_project, config=config, is_new=is_new))
        if tensorboard:
            self._sinks.append(EventFile(workdir / "tb", first_step=last_kept + 1))
        self._metrics = JsonLines(workdir / "metrics.jsonl")
        self._timing = JsonLines(workdir / "timing.jsonl")

    def write(self, step: int, values: Mapping[str, Number]) -> None:
        """Adds values to the line of `step`; `commit` writes the line.

        Args:
          step: number of the step; the step before it must have been committed.
          values: Python or NumPy numbers, not device arrays.

        Raises:
          ValueError: the step is out of order, or the line already has a name.
        """
        if not self._is_main:
            return
        if self._pending_step not in (None, step):
            raise ValueError(f"write({step}) before commit({self._pending_step}).")
        if self.last_step is not None and step <= self.last_step:
            raise ValueError(
                f"write({step}): metrics.jsonl already has step {self.last_step}, and a step has "
                "one line. After resuming, skip all steps up to `last_step`."
            )
        if twice := sorted(set(values) & (set(self._pending) | {"step"})):
            raise ValueError(f"write({step}): {', '.join(twice)} is already in the line.")
        self._pending.update({name: _python_number(value) for name, value in values.items()})
        self._pending_step = step

    def commit(self, step: int) -> None:
        """Writes the line of `step`, if `write` was called for it.

        Raises:
          ValueError: the pending values belong to another step.
        """
        if self._pending_step is None:
            return
        if self._pending_step != step:
            raise ValueError(f"commit({step}) after write({self._pending_step}).")
        self._metrics.append({"step": step, **_without_nonfinite(self._pending)})
        for sink in self._sinks:
            sink.write(step, self._pending)
        self.last_step = step
        self._pending, self._pending_step = {}, None

    def write_timing(self, step: int, values: Mapping[str, Number]) -> None:
        """Writes a line of values that vary between repeated runs; needs no commit."""
        if not self._is_main:
            return
        numbers = {name: _python_number(value) for name, value in values.items()}
        self._timing.append({"step": step, **_without_nonfinite(numbers)})
        for sink in self._sinks:
            sink.write(step, numbers)

    def flush(self) -> None:
        """Writes all committed lines to the disk; call it before saving a checkpoint.

        Raises:
          DataError: a file cannot be written, or was deleted or replaced.
        """
        if not self._is_main:
            return
        self._metrics.flush()
        self._timing.flush()
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Flushes and closes. Drops an uncommitted line, since its step will be repeated.

        Raises:
          DataError: a file cannot be written, or was deleted or replaced.
        """
        if not self._is_main:
            return
        with contextlib.ExitStack() as stack:  # Closes all, also if one fails.
            for sink in (*self._sinks, self._timing, self._metrics):
                stack.callback(sink.close)
        self._sinks = []

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except DataError as second:
            if error is None:
                raise
            if str(second) != str(error):  # The first error reaches the user.
                notes.warn(str(second))


class _Wandb:
    """Weights & Biases, one run per work directory.

    After a resume W&B ignores repeated steps. This loses nothing: their values are equal, because a
    run is a function of its config.
    """

    def __init__(self, workdir: epath.Path, *, project: str, config: dict[str, Any], is_new: bool):
        try:
            import wandb  # pyright: ignore[reportMissingImports]  # Optional.
        except ImportError as error:
            raise ConfigError(
                f'log.wandb_project is "{project}", but Weights & Biases is not installed. '
                'Install it with: pip install -e ".[wandb]", or leave log.wandb_project empty.'
            ) from error
        id_file = workdir / "wandb_run_id"
        with storage.reported(DataError, str(id_file)):
            if is_new or not storage.exists(id_file):
                storage.write_bytes(id_file, secrets.token_hex(4).encode() + b"\n")
            run_id = storage.read_bytes(id_file).decode(errors="replace").strip()
        self._run = wandb.init(
            project=project,
            name=storage.absolute(workdir).name,
            id=run_id,
            resume="allow",  # Continue the run of this id if there is one.
            config=config,
            allow_val_change=True,  # The command has already accepted a changed config.
            dir=str(workdir) if storage.is_local(workdir) else None,  # None: W&B's default folder.
        )

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Does nothing: W&B's own process sends the values."""

    def close(self) -> None:
        self._run.finish()


def _python_number(value: Number) -> float | int:
    """Returns the value as a Python int or float; float32 converts to float64 exactly."""
    number = value.item() if isinstance(value, np.generic | np.ndarray) else value
    if not isinstance(number, int | float):
        raise TypeError(f"A metric is a number on the host, not {type(value).__name__}.")
    return number


def _without_nonfinite(values: Mapping[str, float | int]) -> dict[str, float | int | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
