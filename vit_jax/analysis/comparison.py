"""Compares runs: how their configs differ, what they cost, and what their evaluations gave."""

import dataclasses
import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vit_jax.analysis.cell_texts import cell_texts
from vit_jax.analysis.runs import Point, Run, read_runs
from vit_jax.config import CLASSIFICATION_METRICS
from vit_jax.telemetry.progress import format_duration

# In characters: a longer value of a key has a line of its own for each run, wrapped at this width.
_LONGEST_CELL, _WIDTH, _REPR_WIDTH = 24, 100, 160


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Runs side by side, shown as tables; every list has a value for each run, in their order.

    Attributes:
      runs: what their work directories say.
      differences: the keys of the configs in which runs differ, or the element of a list, such as
        data.train_transforms[2].method; None: a run has no such key, for
        example because it has another evaluation.
      last: the metrics of all evaluations and the training loss, with step and value of the last
        measurement; None: a run does not measure it.
      best: the metrics of evaluations, with the first step of their best value and that value.
    """

    runs: Sequence[Run]
    differences: Mapping[str, list[Any]]
    last: Mapping[str, list[Point | None]]
    best: Mapping[str, list[Point | None]]

    def __repr__(self) -> str:
        """Returns the text of `tables`."""
        text = io.StringIO()
        console = Console(file=text, width=_REPR_WIDTH, highlight=False, emoji=False)
        console.print(self.tables())
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def tables(self) -> Group:
        """Returns three tables with a column for each run: cost, evaluations, differing keys."""
        cost, results = map(self._table, ("Cost", "Evaluations"))
        for name, describe in _COSTS.items():
            cost.add_row(name, *(describe(run) for run in self.runs))
        for name, points in self.last.items():
            results.add_row(f"{name}, last", *(_point(name, point) for point in points))
            if name in self.best:
                row = (_point(name, point) for point in self.best[name])
                results.add_row(f"{name}, best", *row)
        return Group(cost, "", results, "", *self._keys())

    def _keys(self) -> Iterator[RenderableType]:
        """Returns a table of the keys that differ; below it, keys with a long value."""
        if not self.differences:
            yield "The configs are equal."
            return
        table = self._table("Config keys that differ")
        cells = {key: cell_texts(values) for key, values in self.differences.items()}
        long = {key for key, row in cells.items() if max(map(len, row)) > _LONGEST_CELL}
        for key, row in cells.items():
            if key not in long:
                table.add_row(key, *row)
        yield table if table.row_count else Text("Config keys that differ", style="bold")
        for key in (key for key in cells if key in long):
            yield Text(key)
            for value in dict.fromkeys(cells[key]):
                equal = zip(self.runs, cells[key], strict=True)
                names = ", ".join(run.name for run, text in equal if text == value)
                # Also in a file, which has no width.
                yield Constrain(Padding(Text(f"{names}: {value}"), (0, 0, 0, 2)), _WIDTH)

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
      >>> [line for line in repr(comparison).splitlines() if line.startswith("seed")]
      ['seed           0       1']
    """
    runs = read_runs(workdirs)
    if out is not None:
        from vit_jax.analysis.overlay import overlay

        overlay(runs, out)
    evaluated = list(dict.fromkeys(name for run in runs for name in run.evaluated))
    return Comparison(
        runs=runs,
        differences=_differences(runs),
        last={name: [run.last(name) for run in runs] for name in ("train/loss", *evaluated)},
        best={
            name: [run.best(name) for run in runs]
            for name in evaluated
            if name.rpartition("/")[2] in CLASSIFICATION_METRICS  # Others have no best value.
        },
    )


def _differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for run in runs for key in run.config)
    differences: dict[str, list[Any]] = {}
    for key in keys:
        differences |= _differing_parts(key, [run.config.get(key) for run in runs])
    return differences


def _differing_parts(name: str, values: list[Any]) -> dict[str, list[Any]]:
    """Returns the smallest parts that differ, by name, such as data.train_transforms[2].method.

    Lists are compared element by element if they have equal lengths, and dicts key by key if they
    have equal keys.
    """
    if all(value == values[0] for value in values):
        return {}
    parts: dict[str, list[Any]] = {}
    if all(isinstance(value, list) for value in values) and len(set(map(len, values))) == 1:
        for i, elements in enumerate(zip(*values, strict=True)):
            parts |= _differing_parts(f"{name}[{i}]", list(elements))
    elif all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        for key in values[0]:
            parts |= _differing_parts(f"{name}.{key}", [value[key] for value in values])
    return parts or {name: values}


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
    "trained parameters": lambda run: _number(run, "params_trained"),
    "steps": _steps,
    "images per step": lambda run: f"{run.config['batch_size']:,}",
    "epochs": _epochs,
    # timing.jsonl has no line after the last update.
    "time before last eval and save": _time,
    "device-hours before them": _device_hours,
    "img/s, median": _speed,
    "devices": _devices,
    "training loss": lambda run: run.train_loss or "as evaluated",
}
