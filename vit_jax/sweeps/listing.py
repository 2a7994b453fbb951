"""Lists the runs below a folder: their state, progress, and best and last evaluation."""

import contextlib
import dataclasses
import datetime
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from vit_jax import storage
from vit_jax.errors import ConfigError, VitJaxError, printable
from vit_jax.rundir import workdir as workdirs
from vit_jax.sweeps import record as records
from vit_jax.sweeps.order import natural_order
from vit_jax.telemetry.jsonlines import read_jsonl

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
# A folder with one of these is a run; config.json alone may belong to a published checkpoint.
_MARKS = {METRICS, workdirs.SUMMARY, workdirs.DATASET, workdirs.CHECKPOINTS, records.RECORD}
_LARGEST_CONFIG = 2**20  # Bytes.
_LOWER_IS_BETTER = ("loss", "ece")


@dataclasses.dataclass(frozen=True)
class RunState:
    """A run, as its work directory shows it now.

    Attributes:
      path: its work directory: the listed folder, as it was given, and the path below it. So it is
        relative to the current directory if that folder was.
      state: one of `vit_jax.sweeps.record.STATUSES`; "model": a converted model, which no run
        trained; "broken": a file is damaged or missing.
      step: last step that was logged or saved; None: none yet.
      total_steps: of the run; None: unknown.
      metric: the metric of the two next fields: checkpoint.best_metric, or else the first top1 or
        loss of an evaluation; "": none was measured yet.
      best: its best value so far.
      best_step: the first step with that value.
      last: its last value.
      changed: when the run itself last wrote a file (metrics, a checkpoint, an error), in ISO 8601
        with the time zone; an evaluation of the run does not count. "": never.
      error: why it failed, stopped, is blocked or broken; "" if it did not or it is unknown.
    """

    path: str
    state: str
    step: int | None = None
    total_steps: int | None = None
    metric: str = ""
    best: float | None = None
    best_step: int | None = None
    last: float | None = None
    changed: str = ""
    error: str = ""


def list_runs(folder: str | os.PathLike) -> list[RunState]:
    """Returns every run in a folder and below it, by path. Runs inside of runs are not searched.

    Args:
      folder: a local or mounted folder.

    Raises:
      ConfigError: it is not a folder, or cannot be read.

    Example:
      >>> for run in list_runs("runs"):
      ...     print(run.path, run.state, run.step, run.metric)
      runs/longer finished 12 test/top1
      runs/quickstart finished 12 test/top1
    """
    root = pathlib.Path(folder)
    with storage.reported(ConfigError, f"{folder} cannot be read"):
        os.listdir(root)
    return [_read(workdir) for workdir in _find(root)]


def _find(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the work directories in order; unreadable folders below `root` are skipped."""
    for path, folders, files in os.walk(root):
        if _MARKS & {*folders, *files}:
            folders.clear()
            yield pathlib.Path(path)
        visible = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(visible, key=natural_order)


def _read(workdir: pathlib.Path) -> RunState:
    path, changed = str(workdir), _changed(workdir)
    try:
        record = records.read(workdir)
        state = records.status(workdir, record)
        has_metrics = (workdir / METRICS).exists()
        lines = read_jsonl(workdir / METRICS) if has_metrics else []
        config, summary = _config(workdir, record), records.read_summary(workdir)
        step = max(records.newest_step(workdir), *(line["step"] for line in lines), -1)
        if not (has_metrics or summary) and step >= 0:
            return RunState(path, "model", step=step, changed=changed)
        return RunState(
            path,
            state,
            step=step if step >= 0 else None,
            total_steps=summary.get("total_steps"),
            **_metric(config, lines),
            changed=changed,
            error=records.reason(workdir, record, state),
        )
    except (VitJaxError, TypeError, ValueError, KeyError, AttributeError, OSError) as error:
        message = str(error) if isinstance(error, VitJaxError) else f"damaged files: {error}"
        return RunState(path, "broken", changed=changed, error=message)


def _config(workdir: pathlib.Path, record: records.Record) -> dict[str, Any]:
    """Returns config.json; {} of a run of a sweep that has not begun to train."""
    path = workdir / workdirs.CONFIG
    try:
        return workdirs.read_json(path, limit=_LARGEST_CONFIG)
    except FileNotFoundError:
        if record != records.Record():
            return {}
        raise ConfigError(f"There is no {path}.") from None
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _metric(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the metric's name, its best value with the step, and its last value."""
    preferred = (config.get("checkpoint") or {}).get("best_metric") or ""
    endings = ("/top1", "/loss")
    measured = dict.fromkeys(
        name for line in lines for name in line if not name.startswith("train/")
    )
    names = [name for end in endings for name in measured if name.endswith(end)]
    name = next((name for name in (preferred, *names) if name in measured), "")
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    if not points:
        return {}
    choose = min if name.endswith(_LOWER_IS_BETTER) else max
    step, best = choose(points, key=lambda point: point[1])
    return {"metric": name, "best": best, "best_step": step, "last": points[-1][1]}


def _changed(workdir: pathlib.Path) -> str:
    """Returns the time of the run's last own progress; "" if it shows none.

    The work directory itself and the files in it that an evaluation writes do not count.
    """
    newest = 0.0
    for name in (*_MARKS, TIMING, workdirs.FAILURE):
        with contextlib.suppress(OSError):
            newest = max(newest, (workdir / name).stat().st_mtime)
    if not newest:
        return ""
    return datetime.datetime.fromtimestamp(newest).astimezone().isoformat(timespec="seconds")


# ----------------------------------------------------------------------------------------- table


def runs_table(runs: Sequence[RunState], folder: str | os.PathLike) -> Table:
    """Returns a table with a row for each run; paths are relative to `folder`, the listed one."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "step", "metric", "best", "last", "changed"):
        justify = "right" if name in ("step", "best", "last") else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for run in runs:
        state = f"{run.state}: {run.error.splitlines()[0]}" if run.error else run.state
        cells = (
            os.path.relpath(run.path, folder),
            state,
            _progress(run),
            run.metric,
            f"{_value(run.metric, run.best)} at {run.best_step:,}" if run.metric else "",
            _value(run.metric, run.last) if run.metric else "",
            run.changed[:16].replace("T", " "),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _progress(run: RunState) -> str:
    step = "-" if run.step is None else f"{run.step:,}"
    return step if run.total_steps is None else f"{step} of {run.total_steps:,}"


def _value(name: str, value: float | None) -> str:
    assert value is not None  # A run with a metric has its values.
    return f"{value:.2%}" if name.endswith(("top1", "top5")) else f"{value:.4f}"
