"""Draws the training curves of several runs over each other."""

import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_jax.analysis.figures import (
    COLOURS,
    STYLE,
    draw_line,
    format_axes,
    is_wide,
    legend_label,
    save,
    scale_axes,
    shorten,
    use_log_scale,
)
from vit_jax.analysis.runs import Run
from vit_jax.errors import ConfigError, DataError

_LARGEST_LEGEND = 60  # Runs.
_COLUMNS = 3
# Runs with at most so many values in a panel have markers of different shapes. The numbers of
# shapes and of colours have no common factor: 66 runs have different pairs.
_FEW_POINTS, _MARKERS = 3, "os^Dv<>pP*X"
# In points: the last run's markers, the largest difference between two runs, and the whole range.
# Each run has smaller open markers than the one before it, so that equal values hide none.
_SMALLEST, _SIZE_STEP, _SIZE_RANGE = 5.0, 4.0, 16.0
# The unit of a panel's y axis, by the end of the metric's name.
_UNITS = {
    "loss": ("Loss", "nats per example"),
    "top1": ("Accuracy", "share of examples right"),
    "lr": ("Learning rate", "learning rate"),
    "img_per_s": ("Throughput", "images per second"),
}


def overlay(runs: Sequence[Run], out: epath.PathLike) -> None:
    """Draws training loss, evaluations, learning rate and throughput, a colour for each run.

    The x axis shows steps, or images seen if the runs have different batch sizes. Runs with one to
    three values have open markers of their own shape, smaller for later runs: equal values are
    nested.

    Args:
      runs: from `vit_jax.analysis.runs.read_runs`; their lengths may differ.
      out: the image to write, .png or .svg.

    Raises:
      ConfigError: there are more runs than a legend can name.
      DataError: nothing can be drawn yet, or the file cannot be written.
    """
    if len(runs) > _LARGEST_LEGEND:
        raise ConfigError(f"{len(runs)} runs are too many for a figure: at most {_LARGEST_LEGEND}.")
    evaluated = dict.fromkeys(name for run in runs for name in run.evaluated)
    names = ["train/loss", *(name for name in evaluated if name.endswith(("/loss", "/top1")))]
    names += ["train/lr", "speed/img_per_s"]
    names = [name for name in names if any(run.series(name) for run in runs)]
    if not names:
        raise DataError("The runs have no loss, accuracy or throughput to draw yet.")
    by_images = len({run.config["batch_size"] for run in runs}) > 1
    rows = -(-len(names) // _COLUMNS)
    columns = min(len(names), _COLUMNS)
    with matplotlib.rc_context(STYLE):
        legend_rows = -(-len(runs) // columns)
        figure = Figure(
            figsize=(4.3 * columns, 3.1 * rows + 0.2 * legend_rows + 0.2), layout="constrained"
        )
        all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in all_axes[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(all_axes, names, strict=False):
            _panel(axes, name, runs, by_images=by_images)
        handles, labels = _legend(all_axes[: len(names)])
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=1.6)
        save(figure, out)


def _panel(axes: Axes, name: str, runs: Sequence[Run], *, by_images: bool) -> None:
    """Draws a metric of all runs that have it."""
    drawn = [
        (i, run, points, look)
        for i, (run, look) in enumerate(zip(runs, _styles(), strict=False))
        if (points := run.series(name))
    ]
    few = [i for i, _, points, _ in drawn if len(points) <= _FEW_POINTS]
    for i, run, points, (colour, style) in drawn:
        steps, series = np.array(points, np.float64).T
        shown = shorten(run.name, 40).replace("$", r"\$")
        before = len(axes.lines)
        draw_line(
            axes,
            steps * (run.config["batch_size"] if by_images else 1),
            series,
            label=legend_label(shown),
            colour=colour,
        )
        for line in axes.lines[before:]:
            line.set_linestyle(style)
            if i in few:
                size = _marker_size(few.index(i), len(few))
                line.set(marker=_MARKERS[i % len(_MARKERS)], markersize=size)
                line.set(markerfacecolor="none", markeredgewidth=1.5)
    values = [np.array(points, np.float64)[:, 1] for _, _, points, _ in drawn]
    kind, unit = _UNITS[name.rpartition("/")[2]]
    title = f"{name} {_train_loss(runs)}" if name == "train/loss" else name
    axes.set(title=title, xlabel="images seen" if by_images else "step (optimizer updates)")
    axes.set_ylabel(unit)
    format_axes(axes)
    scale_axes(axes, kind, np.concatenate(values))
    # Of learning rates, which begin or end at 0, the largest of each run are compared.
    peaks = np.array([series.max() for series in values])
    if kind == "Learning rate" and is_wide(peaks):
        use_log_scale(axes, smallest=peaks.min() / 10, largest=peaks.max())


def _marker_size(position: int, count: int) -> float:
    """Returns the size in points of a run's markers, the `position`-th of `count` runs."""
    step = min(_SIZE_STEP, _SIZE_RANGE / max(count - 1, 1))
    return _SMALLEST + step * (count - 1 - position)


def _train_loss(runs: Sequence[Run]) -> str:
    """Returns how the training losses of the runs are computed, if any is not as evaluations'."""
    kinds = {run.train_loss for run in runs}
    return kinds.pop() if len(kinds) == 1 else "(computed differently)"


def _styles() -> itertools.chain:
    """Returns colours and line styles, all colours with one style before the next style."""
    pairs = ((colour, style) for style in ("-", "--", ":", "-.") for colour in COLOURS)
    return itertools.chain(pairs, itertools.cycle([("black", "-")]))


def _legend(all_axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Returns one entry for each run, from the first panel that shows it."""
    entries: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return list(entries.values()), list(entries)
