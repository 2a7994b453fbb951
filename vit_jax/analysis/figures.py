"""Draws a run's training curves and predictions; defines the style of all figures.

Figures need no display and use Okabe and Ito's colours, which colour-blind readers can distinguish.
A new image replaces an older one only when it is complete.
"""

import bisect
import io
import itertools
import re
import warnings
from collections.abc import Sequence
from typing import Any
from unicodedata import east_asian_width

import matplotlib
import numpy as np
from etils import epath
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from vit_jax import storage
from vit_jax.analysis import pixels
from vit_jax.errors import DataError
from vit_jax.telemetry import notes
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.telemetry.progress import format_count

BLUE, VERMILLION, SKY = "#0072B2", "#D55E00", "#56B4E9"
COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", SKY, "#E69F00")
GREY = "#666666"
# Matplotlib's stubs list the keys of rcParams as literals.
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
}
# A dollar sign in a class name starts no formula.
LITERAL_TEXT: dict[Any, Any] = {"text.parse_math": False}


class InlineFigure(Figure):
    """A figure that a notebook shows, also without Matplotlib's `pyplot`."""

    def _repr_png_(self) -> bytes:
        return rendered(self, "png")


def shorten(name: str, width: int = 24) -> str:
    """Returns at most `width` printable characters of a name, the last an ellipsis if it was cut.

    Characters of double width, such as Chinese ones, count twice.
    """
    name = "".join(char if char.isprintable() else " " for char in name)
    ends = list(itertools.accumulate(1 + (east_asian_width(char) in "WF") for char in name))
    if not ends or ends[-1] <= width:
        return name
    return name[: bisect.bisect_right(ends, width - 1)].rstrip() + "…"


def legend_label(text: str) -> str:
    """Returns the text as a label; Matplotlib omits labels with a leading underscore."""
    return f" {text}" if text.startswith("_") else text


def save(figure: Figure, out: epath.PathLike) -> None:
    """Writes an image atomically: as SVG if the name ends in .svg, else as PNG.

    Raises:
      DataError: the file cannot be written.
    """
    out = epath.Path(out)
    content = rendered(figure, "svg" if out.suffix == ".svg" else "png")
    with storage.reported(DataError, f"{out} cannot be written"):
        storage.make_folder(out.parent)
        storage.write_bytes(out, content)


def rendered(figure: Figure, kind: str) -> bytes:
    """Returns the bytes of a "png" or "svg" file, equal for equal figures."""
    content = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # A fixed salt for the ids inside an SVG and no date: the bytes are reproducible.
        with matplotlib.rc_context({"svg.hashsalt": "vit_jax"}):
            figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
    _warn_of_missing_glyphs(caught)
    return content.getvalue()


def _warn_of_missing_glyphs(caught: list[warnings.WarningMessage]) -> None:
    """Warns once of all characters that the font lacks; Matplotlib warns at each occurrence."""
    missing = []
    for warning in caught:
        if glyph := re.match(r"Glyph (\d+) .*missing from", str(warning.message)):
            missing.append(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if missing:
        notes.note(
            "The font of the images has no glyphs for "
            f"{format_count(len(set(missing)), 'character')} of the names, such as "
            f"{''.join(list(dict.fromkeys(missing))[:5])}: they are drawn as boxes. "
            "Install a font that has them, such as Noto Sans CJK JP, and add "
            '"font.family: DejaVu Sans, Noto Sans CJK JP" to ~/.config/matplotlib/matplotlibrc.'
        )


# ---------------------------------------------------------------------------------------- curves


def curves(
    metrics_jsonl: epath.PathLike, out_png: epath.PathLike, *, train_loss: str = ""
) -> Figure:
    """Draws loss, accuracy and learning rate over the steps of a run.

    Args:
      metrics_jsonl: lines {"step": t, "train/loss": .., "test/top1": .., "train/lr": ..}. The
        three panels show the names that end in loss, in top1 or accuracy, and in lr.
      out_png: the image to write.
      train_loss: what makes the training loss another quantity than an evaluation's, for the
        legend, such as "with Mixup" (`vit_jax.optim.train_loss_difference`).

    Returns:
      The figure, which a notebook shows.

    Raises:
      DataError: the file is missing, damaged, or has nothing to draw.
    """
    records = read_jsonl(metrics_jsonl)
    panels = [
        (title, unit, series)
        for title, unit, endings in (
            ("Loss", "loss (nats per example)", ("loss",)),
            ("Accuracy", "share of examples right", ("top1", "accuracy")),
            ("Learning rate", "learning rate", ("lr",)),
        )
        if (series := _series(records, endings))
    ]
    if not panels:
        raise DataError(f"{metrics_jsonl} has no loss, accuracy or learning rate to draw yet.")
    with matplotlib.rc_context(STYLE):
        entries = max(len(series) for _, _, series in panels)
        figure = InlineFigure(
            figsize=(4.3 * len(panels), 3.3 + 0.2 * entries), layout="constrained"
        )
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, unit, series) in zip(all_axes, panels, strict=True):
            for (name, (steps, values)), colour in zip(
                series.items(), itertools.cycle(COLOURS), strict=False
            ):
                shown = shorten(name, 40).replace("$", r"\$")
                shown += f" {train_loss}" if name == "train/loss" and train_loss else ""
                label = legend_label(f"{shown}: {_legend_value(title, values)}")
                draw_line(axes, steps, values, label=label, colour=colour)
            axes.set(title=title, xlabel="step (optimizer updates)", ylabel=unit)
            format_axes(axes)
            scale_axes(axes, title, np.concatenate([values for _, values in series.values()]))
            # Below the axes: inside, it would cover lines.
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), handlelength=1.6)
        save(figure, out_png)
    return figure


Series = dict[str, tuple[np.ndarray, np.ndarray]]


def _series(records: list[dict], endings: tuple[str, ...]) -> Series:
    """Returns steps and finite values of each metric whose name ends in one of `endings`."""
    names = dict.fromkeys(
        name for record in records for name in record if name.split("/")[-1] in endings
    )
    series = {}
    for name in sorted(names, key=lambda name: (not name.startswith("train"), name)):
        points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        if points:
            steps, values = np.array(points, np.float64).T
            series[name] = (steps, values)
    return series


def _legend_value(title: str, values: np.ndarray) -> str:
    """Returns the legend's number: the last value, or the largest logged learning rate.

    The learning rate may have been higher between two logged steps.
    """
    if title == "Learning rate":
        return f"largest logged {values.max():.3g}"
    return f"{values[-1]:.2%}" if title == "Accuracy" else f"{values[-1]:.4g}"


def draw_line(
    axes: Axes, steps: np.ndarray, values: np.ndarray, *, label: str, colour: str
) -> None:
    """Draws a metric: with dots if there are few values, with a running mean if there are many."""
    if len(values) <= 40:
        style = {"markersize": 3, "linewidth": 1.4, "clip_on": False}
        axes.plot(steps, values, "-o", color=colour, label=label, **style)
    elif len(values) <= 150:
        axes.plot(steps, values, color=colour, linewidth=1.4, label=label)
    else:
        axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3)
        axes.plot(steps, _running_mean(values), color=colour, linewidth=1.5, label=label)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over a centred window of 1/50 of the run, narrower at both ends."""
    half = max(1, len(values) // 100)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    reach = np.minimum(half, np.minimum(centre, len(values) - 1 - centre))
    return (sums[centre + reach + 1] - sums[centre - reach]) / (2 * reach + 1)


def whole_numbers(axis: Axis, *, most: int = 8) -> None:
    """Labels an axis, such as that of layers, at whole numbers."""
    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))


def format_axes(axes: Axes) -> None:
    """Formats the axis of steps, and draws the lines of the grid."""
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    whole_numbers(axes.xaxis, most=5)
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_xlim(left=0)


def scale_axes(axes: Axes, title: str, values: np.ndarray) -> None:
    """Scales the y axis by the panel's title: "Accuracy" in percent.

    A "Loss" or "Throughput" of a wide range is logarithmic. Others begin at zero.
    """
    if title == "Accuracy":
        low = values.min()
        axes.set_ylim(0 if low < 0.5 else max(0.0, 1 - 2 * (1 - low)), 1.01)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    elif title in ("Loss", "Throughput") and is_wide(values):
        use_log_scale(axes, smallest=values.min(), largest=values.max())
    else:
        axes.set_ylim(bottom=min(0.0, values.min()))
        if title == "Learning rate":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def is_wide(values: np.ndarray) -> bool:
    """Returns whether values are hard to tell apart on a linear axis: a factor above 20 between."""
    return bool(values.min() > 0 and values.max() > 20 * values.min())


def use_log_scale(axes: Axes, *, smallest: float, largest: float) -> None:
    """Makes the y axis logarithmic between two positive values; values below are not drawn."""
    axes.set_ylim(smallest / 1.2, largest * 1.2)
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _thousands(value: float, _: int) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:,.0f}"


# ----------------------------------------------------------------------------------- predictions


def predictions(
    images: pixels.Images,
    labels: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N C"],
    class_names: Sequence[str],
    out_png: epath.PathLike,
    *,
    num_shown: int = 40,
) -> Figure:
    """Draws images with the model's predictions: mistakes, the most confident first, then others.

    Args:
      images: decoded images, not those of `model.preprocess`: uint8 [n, h, w, c], or a list of
        uint8 [h, w, c] of any sizes; c = 1 (grey) or 3 (RGB). Floating-point values from 0 to 1 are
        scaled to 0 to 255.
      labels: true classes.
      probabilities: class probabilities; the largest is the prediction.
      class_names: C names.
      out_png: the image to write.
      num_shown: maximum number of images on the page; mistakes come before right images, and
        these are in the order given.

    Returns:
      The figure, which a notebook shows.

    Raises:
      DataError: there are no images, or an image has another shape, dtype or range of values.
    """
    if len(images) == 0:
        raise DataError("There are no images to draw predictions of: the split is empty.")
    drawn = pixels.as_uint8(images)
    predicted = probabilities.argmax(axis=-1)
    confidence = probabilities.max(axis=-1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")]
    right = np.flatnonzero(predicted == labels)
    shown = np.concatenate([worst, right])[:num_shown]
    names = [shorten(name) for name in class_names]
    longest = max(len(names[predicted[i]]) for i in shown)
    # A long name and the probability do not fit on one line.
    separator = "\n" if longest > 7 else "  "
    width = 1.25 * max(1, longest / 15)
    columns = min(int(10 / width), len(shown))
    rows = -(-len(shown) // columns)
    tallest = max(drawn[i].shape[0] / drawn[i].shape[1] for i in shown)
    height = width * tallest + (0.5 if separator == "\n" else 0.38)
    with matplotlib.rc_context({**STYLE, **LITERAL_TEXT, "font.size": 8}):
        figure = InlineFigure(
            figsize=(max(width * columns, 5.0), height * rows + 0.35), layout="constrained"
        )
        figure.suptitle(
            f"{len(images) - len(wrong):,} of {len(images):,} images right"
            + _order(len(wrong), num_shown),
            x=0.01,
            ha="left",
            fontsize=10,
            fontweight="bold",
        )
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        for axes, i in zip(grid, shown, strict=False):
            is_right = predicted[i] == labels[i]
            colour = BLUE if is_right else VERMILLION
            _draw_image(axes, drawn[i], colour=colour)
            axes.set_title(
                f"{'✓' if is_right else '✗'} {names[predicted[i]]}{separator}{confidence[i]:.0%}",
                fontsize=8,
                color=colour,
                fontweight="normal" if is_right else "bold",
                loc="center",
                pad=3,
            )
            if not is_right:
                axes.set_xlabel(f"true: {shorten(class_names[int(labels[i])], 20)}", labelpad=2)
        save(figure, out_png)
    return figure


def _order(num_wrong: int, num_shown: int) -> str:
    """Returns the end of the title: which mistakes come first."""
    if num_wrong > num_shown:
        return f"; the {num_shown:,} most confident of {num_wrong:,} mistakes"
    if num_wrong > 1:
        return f"; the {num_wrong:,} mistakes first, by confidence"
    return "; the mistake first" if num_wrong else ""


def _draw_image(axes: Axes, image: np.ndarray, *, colour: str) -> None:
    grey = image.shape[-1] == 1
    axes.imshow(
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255,
        # Pixels of small images stay pixels; large ones are scaled down smoothly.
        interpolation="nearest" if max(image.shape) < 100 else "antialiased",
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2)
