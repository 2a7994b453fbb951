"""Metrics of a run, one line a step, to files and to those who draw them.

metrics.jsonl   what the config decides: the same bits whenever and wherever the run is repeated
timing.jsonl    what the machine decides: img/s, waits, utilisation
tb/             both, as TensorBoard events
W&B             both, if `log.wandb_project` is set

The contract with the train loop: commit(t) and flush() come before the checkpoint of step t is
written. Then a file is never behind a checkpoint, and on resume at step s the lines up to s are
all there, the lines after s are removed, and the loop writes them again.
"""

import contextlib
import math
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError, DataError
from vit_jax.telemetry.jsonlines import JsonLines, cut_after
from vit_jax.telemetry.tensorboard import EventFile

Number = int | float | np.generic | np.ndarray  # Arrays have shape ().


class MetricWriter:
    """Writes metrics and timings of one run into its work directory.

    Not-a-number and the infinities become null in the files: JSON has no word for them, and null
    keeps a column numeric (pandas reads it as NaN). TensorBoard and W&B are told the truth.
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
        """Cut what an earlier process wrote after `resume_step`, and open for appending.

        Args:
          workdir: of the run; made if it is not there.
          resume_step: step of the state that the run continues from; None: from scratch, and
            whatever metrics an earlier attempt left in `workdir` are removed.
          tensorboard: write events to workdir/tb.
          wandb_project: project on Weights & Biases; "": off.
          config: of the run, shown by W&B.
          last_line: what `last_step` was when the state was saved; None: not known. If the file
            ends before, somebody has changed it, and a warning says what is lost.
          is_main: whether this process writes: `jax.process_index() == 0`. The others make the
            same calls, and nothing comes of them.

        Raises:
          ConfigError: W&B is asked for and not installed.
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
        with storage.reported(DataError, f"{workdir} cannot be made"):
            storage.make_folder(workdir)
        last_kept = -1 if resume_step is None else resume_step
        self.last_step = cut_after(workdir / "metrics.jsonl", last_step=last_kept)
        cut_after(workdir / "timing.jsonl", last_step=last_kept)
        if last_line is not None and (self.last_step is None or self.last_step < last_line):
            logging.warning(
                "%s ends at step %s; it went to step %s when the state of step %s was saved: lines "
                "are lost. If you have them, stop the run, put them back and start it again.",
                *(workdir / "metrics.jsonl", self.last_step, last_line, resume_step),
            )
        if wandb_project:
            fresh = resume_step is None
            self._sinks.append(_Wandb(workdir, project=wandb_project, config=config, fresh=fresh))
        if tensorboard:
            self._sinks.append(EventFile(workdir / "tb", first_step=last_kept + 1))
        self._metrics = JsonLines(workdir / "metrics.jsonl")
        self._timing = JsonLines(workdir / "timing.jsonl")

    def write(self, step: int, values: Mapping[str, Number]) -> None:
        """Add values to the line of `step`, which commit() will write.

        Args:
          step: one step at a time: the one before must have been committed.
          values: on the host: Python or NumPy numbers (`jax.device_get` what is on a device).

        Raises:
          ValueError: a step that is out of order, or a name that this line already has.
        """
        if not self._is_main:
            return
        if self._pending_step not in (None, step):
            raise ValueError(f"write({step}) before commit({self._pending_step}).")
        if self.last_step is not None and step <= self.last_step:
            raise ValueError(
                f"write({step}): metrics.jsonl already has step {self.last_step}, and a step has "
                "one line. After resuming, skip what `last_step` says has been written."
            )
        if twice := sorted(set(values) & (set(self._pending) | {"step"})):
            raise ValueError(f"write({step}): {', '.join(twice)} is already in the line.")
        self._pending.update({name: _python_number(value) for name, value in values.items()})
        self._pending_step = step

    def commit(self, step: int) -> None:
        """Write the line of `step`; without a write() for it, there is no line.

        Raises:
          ValueError: the values written are of another step.
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
        """Write one line of values that differ from one run to the next; no commit is needed."""
        if not self._is_main:
            return
        numbers = {name: _python_number(value) for name, value in values.items()}
        self._timing.append({"step": step, **_without_nonfinite(numbers)})
        for sink in self._sinks:
            sink.write(step, numbers)

    def flush(self) -> None:
        """Return when every committed line is on the disk: call it before saving a checkpoint.

        Raises:
          DataError: a file cannot be written, or is no longer there.
        """
        if not self._is_main:
            return
        self._metrics.flush()
        self._timing.flush()
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Flush and close. A line that was not committed is dropped: its step will be redone.

        Raises:
          DataError: a file cannot be written, or is no longer there.
        """
        if not self._is_main:
            return
        with contextlib.ExitStack() as stack:  # One that fails does not spare the others.
            for open_one in (*self._sinks, self._timing, self._metrics):
                stack.callback(open_one.close)
        self._sinks = []

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except DataError as second:
            if error is None:
                raise
            if str(second) != str(error):  # The first one goes on to the user.
                logging.warning("%s", second)


class _Wandb:
    """Weights & Biases, one run per work directory.

    W&B cannot forget steps: after a resume it ignores those it has seen. They would have had the
    same values, because a run is a pure function of its config.
    """

    def __init__(self, workdir: epath.Path, *, project: str, config: dict[str, Any], fresh: bool):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f'log.wandb_project is "{project}", but Weights & Biases is not installed. '
                'Install it with: pip install -e ".[wandb]", or leave log.wandb_project empty.'
            ) from error
        id_file = workdir / "wandb_run_id"
        with storage.reported(DataError, str(id_file)):
            if fresh or not storage.exists(id_file):
                storage.write_bytes(id_file, secrets.token_hex(4).encode() + b"\n")
            run_id = storage.read_bytes(id_file).decode(errors="replace").strip()
        self._run = wandb.init(
            project=project,
            name=storage.absolute(workdir).name,
            id=run_id,
            resume="allow",  # Continue the run of this id if there is one.
            config=config,
            allow_val_change=True,  # The command has already agreed to a changed config.
            dir=str(workdir) if storage.is_local(workdir) else None,  # None: W&B's own place.
        )

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing to do: its own process sends what it is given."""

    def close(self) -> None:
        self._run.finish()


def _python_number(value: Number) -> float | int:
    """The same value as a Python int or float: float32 widens to float64 exactly."""
    number = value.item() if isinstance(value, np.generic | np.ndarray) else value
    if not isinstance(number, int | float):
        raise TypeError(f"A metric is a number on the host, not {type(value).__name__}.")
    return number


def _without_nonfinite(values: Mapping[str, float | int]) -> dict[str, float | int | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
