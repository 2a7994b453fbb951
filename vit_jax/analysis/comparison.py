"""Compares runs: how their configs differ, what they cost, and what their evaluations gave."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vit_jax.analysis.overlay import overlay
from vit_jax.analysis.runs import Point, Run, read_runs
from vit_jax.telemetry.progress import format_duration


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs side by side; every list has a value for each run, in their order.

    Attributes:
      runs: what their work directories say.
      differences: the keys of the configs in which runs differ; None: a run has no such key, for
        example because it has another evaluation.
      last: the metrics of all evaluations and the training loss, with step and value of the last
        measurement; None: a run does not measure it.
      best: the metrics of evaluations, with the first step of their best value and that value.
    """

    runs: Sequence[Run]
    differences: Mapping[str, list[Any]]
    last: Mapping[str, list[Point | None]]
    best: Mapping[str, list[Point | None]]

    def tables(self) -> Group:
        """Returns three tables with a column for each run: cost, evaluations, differing keys."""
        cost, results, keys = map(self._table, ("Cost", "Evaluations", "Config keys that differ"))
        for name, describe in _COSTS.items():
            cost.add_row(name, *(describe(run) for run in self.runs))
        for name, points in self.last.items():
            results.add_row(f"{name}, last", *(_point(name, point) for point in points))
            if name in self.best:
                row = (_point(name, point) for point in self.best[name])
                results.add_row(f"{name}, best", *row)
        for key, values in self.differences.items():
            keys.add_row(key, *("-" if value is None else str(value) for value in values))
        return Group(cost, "", results, "", keys if self.differences else "The configs are equal.")

    def _table(self, title: str) -> Table:
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        table.add_column(overflow="fold")
        for run in self.runs:
            table.add_column(Text(run.name), overflow="fold", justify="right")
        return table


def compare_runs(
    workdirs: Sequence[epath.PathLike], *, out: epath.PathLike | None = None
) -> Comparison:
    """Compares at least two runs of vit_jax.train, finished or not, of any lengths.

    Args:
      workdirs: their work directories.
      out: an image of their curves to write, .png or .svg; None: none.

    Raises:
      ConfigError: there are fewer than two runs, one is given twice, or there are too many for an
        image.
      CheckpointError: a path is no work directory, such as a published checkpoint; or it is broken.
      DataError: the metrics of a run are damaged, or the image cannot be written.

    Example:
      >>> comparison = compare_runs(["runs/quickstart", "runs/longer"], out="comparison.png")
      >>> comparison.differences["seed"]
      [0, 1]
    """
    runs = read_runs(workdirs)
    if out is not None:
        overlay(runs, out)
    evaluated = list(dict.fromkeys(name for run in runs for name in run.evaluated))
    return Comparison(
        runs=runs,
        differences=_differences(runs),
        last={name: [run.last(name) for run in runs] for name in ("train/loss", *evaluated)},
        best={name: [run.best(name) for run in runs] for name in evaluated},
    )


def _differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


# ---------------------------------------------------------------------------------- cells of tables


def _point(name: str, point: Point | None) -> str:
    if point is None:
        return "-"
    step, value = point
    number = f"{value:.2%}" if name.endswith(("top1", "top5")) else f"{value:.4f}"
    return f"{number} at {step:,}"


def _number(run: Run, key: str) -> str:
    value = run.summary.get(key)
    return f"{value:,}" if isinstance(value, int) else "-"


def _steps(run: Run) -> str:
    total = run.summary.get("total_steps")
    return f"{run.steps:,}" if total in (None, run.steps) else f"{run.steps:,} of {total:,}"


def _epochs(run: Run) -> str:
    examples = run.summary.get("examples")
    return f"{run.steps * run.config['batch_size'] / examples:.2f}" if examples else "-"


def _time(run: Run) -> str:
    point = run.last("time/wall_s")
    return format_duration(point[1]) if point else "-"


def _device_hours(run: Run) -> str:
    point = run.last("time/device_hours")
    return f"{point[1]:.3g}" if point else "-"


def _speed(run: Run) -> str:
    """Returns the median over the logged intervals: the first one is slower."""
    rates = [value for _, value in run.series("speed/img_per_s")]
    return f"{statistics.median(rates):,.0f}" if rates else "-"


def _devices(run: Run) -> str:
    count, kind = run.summary.get("num_devices"), run.summary.get("device")
    return f"{count} x {kind}" if kind else "-"


_COSTS: dict[str, Callable[[Run], str]] = {
    "parameters": lambda run: _number(run, "params"),
    "steps": _steps,
    "images per step": lambda run: f"{run.config['batch_size']:,}",
    "epochs": _epochs,
    "time": _time,
    "device-hours": _device_hours,
    "img/s, median": _speed,
    "devices": _devices,
    "training loss": lambda run: run.train_loss or "as evaluated",
}
