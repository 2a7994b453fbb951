"""Draws the confusion matrix and the reliability diagram of an evaluation."""

from collections.abc import Sequence

import matplotlib
import matplotlib.colors
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vit_jax.analysis.figures import (
    GREY,
    LITERAL_TEXT,
    SKY,
    STYLE,
    VERMILLION,
    InlineFigure,
    save,
    shorten,
)
from vit_jax.errors import DataError
from vit_jax.evals.classification import TOP, ClassificationReport
from vit_jax.telemetry.progress import format_count

_NAMED_CLASSES = 25  # Up to this many classes, rows and columns have names and cells have numbers.
_CELLS = 250  # Per side, at most: more would not be visible.


def confusion(
    report: ClassificationReport,
    class_names: Sequence[str],
    out_png: epath.PathLike,
    *,
    subject: str = "",
) -> Figure:
    """Draws the confusion matrix, the reliability diagram and the most common mistakes.

    Args:
      report: of the evaluation; its top-5 accuracy is shown for more than five classes.
      class_names: a name for each class.
      out_png: the image to write.
      subject: what was evaluated, a line above the metrics; "": none.

    Returns:
      The figure, which a notebook shows.

    Raises:
      DataError: the report has no confusion matrix.
    """
    if report.confusion is None:
        raise DataError(
            "This report has no confusion matrix: its examples have several labels each, or there "
            "are more than 4096 classes."
        )
    with matplotlib.rc_context(STYLE | LITERAL_TEXT):
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
        figure = InlineFigure(figsize=(11.5, 6.8), layout=layout)
        figure.suptitle(
            (f"{shorten(subject, 120)}\n" if subject else "") + _metrics(report),
            x=0.01,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.75, 1))[0]
        _matrix(left, report.confusion, class_names)
        above, below = right.subfigures(2, 1, squeeze=False, height_ratios=(1.15, 1))[:, 0]
        _reliability(above.subplots(), report)
        _most_common_mistakes(below.subplots(), report.confusion, class_names)
        save(figure, out_png)
    return figure


def _metrics(report: ClassificationReport) -> str:
    assert report.confusion is not None
    top5 = f"top-5 {report.top5:.2%} · " if len(report.confusion) > TOP else ""
    return (
        f"{format_count(report.count, 'example')} · top-1 {report.top1:.2%} · {top5}"
        f"loss {report.loss:.4f} · calibration error {report.ece:.2%}"
    )


def _matrix(figure: SubFigure, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Draws the shares of each true class; many classes are merged into blocks by their maximum."""
    axes = figure.subplots()
    classes = len(counts)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    block = -(-classes // _CELLS)
    drawn = _largest_of_blocks(shares, block)
    image = axes.imshow(
        drawn,
        cmap="Blues",
        # The square root makes rare mistakes visible beside the diagonal.
        norm=matplotlib.colors.PowerNorm(0.5, vmin=0, vmax=1),
        interpolation="nearest",
        extent=(-0.5, len(drawn) * block - 0.5, len(drawn) * block - 0.5, -0.5),
    )
    axes.set(title="Confusion matrix", xlabel="predicted class", ylabel="true class")
    for spine in axes.spines.values():
        spine.set(visible=True)
    colour_bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
    note = "" if block == 1 else f" (largest of {block} × {block} classes)"
    colour_bar.set_label(f"share of the true class{note}")
    colour_bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    colour_bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    colour_bar.outline.set_visible(False)
    if classes > _NAMED_CLASSES:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
        return
    names = [shorten(name) for name in class_names]
    upright = max(map(len, names)) <= 3
    axes.set_xticks(range(classes), names, rotation=0 if upright else 45)
    if not upright:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), names)
    for true, predicted in np.argwhere(counts):
        axes.text(
            predicted,
            true,
            f"{counts[true, predicted]:,}",
            ha="center",
            va="center",
            fontsize=9 if classes <= 12 else 6.5,
            color="white" if shares[true, predicted] > 0.4 else "black",
        )


def _largest_of_blocks(shares: np.ndarray, block: int) -> np.ndarray:
    """Returns the maximum over block × block cells: [C, C] -> [ceil(C / block), ...]."""
    padded = np.pad(shares, (0, -len(shares) % block))
    side = len(padded) // block
    return padded.reshape(side, block, side, block).max(axis=(1, 3))


def _reliability(axes: Axes, report: ClassificationReport) -> None:
    """Draws accuracy over confidence (Guo et al. 2017), and the share of examples per bin."""
    bins = len(report.bin_count)
    centres = (np.arange(bins) + 0.5) / bins
    share = report.bin_count / report.count
    axes.bar(centres, share, width=1 / bins, color="#DDDDDD", label="share of examples")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="ideal")
    occupied = report.bin_count > 0
    axes.plot(
        report.bin_confidence[occupied],
        report.bin_accuracy[occupied],
        "-o",
        color=VERMILLION,
        markersize=4,
        linewidth=1.4,
        label="accuracy",
    )
    axes.set(
        title="Reliability", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02)
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    # Below the axes: inside, it would cover the line somewhere.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, handlelength=1.6)


def _most_common_mistakes(axes: Axes, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Draws the largest off-diagonal cells, with class names."""
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:10]
    pairs = [divmod(int(cell), len(counts)) for cell in order if mistakes.flat[cell] > 0]
    axes.set_title("Most common mistakes")
    if not pairs:
        axes.set_axis_off()
        axes.text(0, 0.9, "None: every example is right.", transform=axes.transAxes, va="top")
        return
    amounts = [mistakes[pair] for pair in pairs]
    names = [
        f"{shorten(class_names[true], 18)} → {shorten(class_names[predicted], 18)}"
        for true, predicted in pairs
    ]
    bars = axes.barh(range(len(pairs)), amounts, color=SKY, height=0.7)
    axes.bar_label(bars, padding=3, fontsize=8, fmt="{:,.0f}")
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="examples (true → predicted)", xlim=(0, 1.12 * max(amounts)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
