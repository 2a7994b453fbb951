"""Draws the accuracy of each class with its confidence interval."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vit_jax.analysis.figures import BLUE, GREY, LITERAL_TEXT, STYLE, InlineFigure, save, shorten
from vit_jax.evals.classification import ClassificationReport
from vit_jax.evals.intervals import wilson

_SHOWN = 40  # Classes: of more, the least and the most accurate half as many each.


def class_accuracy(
    report: ClassificationReport,
    class_names: Sequence[str],
    out_png: epath.PathLike,
    *,
    subject: str = "",
) -> Figure:
    """Draws the classes with examples by accuracy, the lowest first, with Wilson intervals.

    Args:
      report: the metrics.
      class_names: of its classes.
      out_png: the image to write.
      subject: what was evaluated, such as the method, a line above the title; "": none.

    Returns:
      The figure, which a notebook shows.

    Raises:
      DataError: the file cannot be written.
    """
    (present,) = np.nonzero(report.class_count)
    order = present[np.argsort(report.class_accuracy[present], kind="stable")]
    shown = order
    if len(order) > _SHOWN:
        shown = np.concatenate([order[: _SHOWN // 2], order[-_SHOWN // 2 :]])
    counts, shares = report.class_count[shown], report.class_accuracy[shown]
    intervals = np.array(
        [wilson(round(s * n), n) for s, n in zip(shares.tolist(), counts.tolist(), strict=True)]
    )
    with matplotlib.rc_context(STYLE | LITERAL_TEXT):
        figure = InlineFigure(figsize=(7.0, 1.1 + 0.2 * len(shown)), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(len(shown))
        errors = np.abs(intervals.T - shares)
        axes.errorbar(
            shares, rows, xerr=errors, fmt="o", color=BLUE, ecolor=GREY, markersize=4, elinewidth=1
        )
        axes.axvline(report.top1, color=GREY, linewidth=1, linestyle="--")
        labels = [
            f"{shorten(class_names[int(i)], 30)} ({n:,})"
            for i, n in zip(shown, counts, strict=True)
        ]
        axes.set_yticks(rows, labels, fontsize=8)
        axes.set_ylim(len(shown) - 0.4, -0.6)  # The least accurate on top, clear of the edges.
        axes.set(xlim=(-0.02, 1.02), xlabel="share of the class that is right, 95% interval")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        half = f", {_SHOWN // 2} least and most accurate" if len(order) > _SHOWN else ""
        above = f"{shorten(subject, 80)}\n" if subject else ""
        axes.set_title(f"{above}Accuracy by class (examples){half}; dashed: all {report.top1:.2%}")
        save(figure, out_png)
    return figure
