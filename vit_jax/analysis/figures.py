"""Images of a run: its curves, and some of its predictions. How all images look.

They are drawn without a display, in Okabe and Ito's colours, which the colour-blind can tell apart,
and replace an older image only when they are complete.
"""

import bisect
import io
import itertools
import re
import warnings
from collections.abc import Sequence
from unicodedata import east_asian_width

import matplotlib
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from vit_jax import storage
from vit_jax.errors import DataError
from vit_jax.telemetry.jsonlines import read_jsonl

BLUE, VERMILLION, SKY = "#0072B2", "#D55E00", "#56B4E9"
COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", SKY, "#E69F00")
GREY = "#666666"
STYLE = {
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
NAMES_AS_THEY_ARE = {"text.parse_math": False}  # A dollar in a class's name is no formula.


def shorten(name: str, width: int = 14) -> str:
    """The name, or its beginning and an ellipsis: `width` characters at most, all with a shape.

    Letters of double width, such as Chinese ones, count twice.
    """
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    ends = list(itertools.accumulate(1 + (east_asian_width(letter) in "WF") for letter in name))
    if not ends or ends[-1] <= width:
        return name
    return name[: bisect.bisect_right(ends, width - 1)].rstrip() + "…"


def legend_label(text: str) -> str:
    """The text as a label: Matplotlib leaves those that begin with an underscore out of legends."""
    return f" {text}" if text.startswith("_") else text


def save(figure: Figure, out: epath.PathLike) -> None:
    """Write an image whole or not at all, as PNG or, where the name ends in .svg, as SVG.

    Raises:
      DataError: it cannot be written there.
    """
    out = epath.Path(out)
    picture = rendered(figure, "svg" if out.suffix == ".svg" else "png")
    with storage.reported(DataError, f"{out} cannot be written"):
        storage.make_folder(out.parent)
        storage.write_bytes(out, picture)


def rendered(figure: Figure, kind: str) -> bytes:
    """An image's file as bytes: equal for equal figures.

    Args:
      figure: what is drawn.
      kind: "png" or "svg".
    """
    picture = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # A fixed salt for the names inside an SVG, and no date.
        with matplotlib.rc_context({"svg.hashsalt": "vit_jax"}):
            figure.savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    _say_what_is_missing(caught)
    return picture.getvalue()


def _say_what_is_missing(caught: list[warnings.WarningMessage]) -> None:
    """Warns once of all letters that the font lacks: Matplotlib does for each, at each place."""
    letters = []
    for warning in caught:
        if glyph := re.match(r"Glyph (\d+) .*missing from", str(warning.message)):
            letters.append(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if letters:
        logging.log_first_n(
            logging.WARNING,
            "The font of the images has no shapes for %d letters of the names, such as %s: they "
            "are boxes. Install a font that has them, Noto Sans CJK JP say, and write the line "
            '"font.family: DejaVu Sans, Noto Sans CJK JP" into ~/.config/matplotlib/matplotlibrc.',
            1,
            len(set(letters)),
            "".join(list(dict.fromkeys(letters))[:5]),
        )


# ---------------------------------------------------------------------------------------- curves


def curves(metrics_jsonl: epath.PathLike, out_png: epath.PathLike) -> None:
    """Loss, accuracy and learning rate over the steps of a run.

    Args:
      metrics_jsonl: lines {"step": t, "train/loss": .., "test/top1": .., "train/lr": ..}: names
        that end in loss, in top1 or accuracy, and in lr make up the three panels.
      out_png: the image.

    Raises:
      DataError: the file is missing, damaged, or has nothing to draw.
    """
    records = read_jsonl(metrics_jsonl)
    panels = [
        (title, unit, found)
        for title, unit, endings in (
            ("Loss", "loss (nats per example)", ("loss",)),
            ("Accuracy", "share of examples right", ("top1", "accuracy")),
            ("Learning rate", "learning rate", ("lr",)),
        )
        if (found := _series(records, endings))
    ]
    if not panels:
        raise DataError(f"{metrics_jsonl} has no loss, accuracy or learning rate to draw yet.")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.3 * len(panels), 3.3), layout="constrained")
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, unit, found) in zip(all_axes, panels, strict=True):
            for (name, (steps, values)), colour in zip(found.items(), _cycle(found), strict=True):
                shown = shorten(name, 40).replace("$", r"\$")
                label = legend_label(f"{shown}: {_gist(title, values)}")
                _line(axes, steps, values, label=label, colour=colour)
            axes.set(title=title, xlabel="step (optimizer updates)", ylabel=unit)
            axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
            axes.set_xlim(left=0)
            _scale(axes, title, found)
            axes.legend(loc="best", handlelength=1.6)
        save(figure, out_png)


Series = dict[str, tuple[np.ndarray, np.ndarray]]


def _series(records: list[dict], endings: tuple[str, ...]) -> Series:
    """Steps and finite values of each metric whose last word is one of `endings`."""
    names = dict.fromkeys(
        name for record in records for name in record if name.split("/")[-1] in endings
    )
    found = {}
    for name in sorted(names, key=lambda name: (not name.startswith("train"), name)):
        points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        if points:
            steps, values = np.array(points, np.float64).T
            found[name] = (steps, values)
    return found


def _gist(title: str, values: np.ndarray) -> str:
    """The one number to remember of a metric: its last, or how high the learning rate went.

    Between two logged steps it may have been higher yet.
    """
    if title == "Learning rate":
        return f"largest logged {values.max():.3g}"
    return f"{values[-1]:.2%}" if title == "Accuracy" else f"{values[-1]:.4g}"


def _cycle(found: Series) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(found))]


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, *, label: str, colour: str) -> None:
    """One metric: dots while they can be told apart, a running mean over the noise of many."""
    if len(values) <= 40:
        style = {"markersize": 3, "linewidth": 1.4, "clip_on": False}
        axes.plot(steps, values, "-o", color=colour, label=label, **style)
    elif len(values) <= 150:
        axes.plot(steps, values, color=colour, linewidth=1.4, label=label)
    else:
        axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3)
        axes.plot(steps, _running_mean(values), color=colour, linewidth=1.5, label=label)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a fiftieth of the run, narrower at both ends."""
    half = max(1, len(values) // 100)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    reach = np.minimum(half, np.minimum(centre, len(values) - 1 - centre))
    return (sums[centre + reach + 1] - sums[centre - reach]) / (2 * reach + 1)


def _scale(axes: Axes, title: str, found: Series) -> None:
    """The y axis: shares as percent, wide losses logarithmic, all else from zero."""
    values = np.concatenate([values for _, values in found.values()])
    if title == "Accuracy":
        low = values.min()
        axes.set_ylim(0 if low < 0.5 else max(0.0, 1 - 2 * (1 - low)), 1.01)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    elif title == "Loss" and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=min(0.0, values.min()))
        if title == "Learning rate":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _thousands(value: float, _: int) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:,.0f}"


# ----------------------------------------------------------------------------------- predictions


def predictions(
    images: UInt8[np.ndarray, "N H W ch"],
    labels: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N C"],
    class_names: Sequence[str],
    out_png: epath.PathLike,
    *,
    num_shown: int = 40,
    num_wrong: int = 8,
) -> None:
    """A page of images with the model's predictions, some of its mistakes first.

    Args:
      images: grey (ch = 1) or RGB (ch = 3), 0 to 255.
      labels: true classes.
      probabilities: of each class; the greatest is the prediction.
      class_names: C names.
      out_png: the image.
      num_shown: images on the page, at most.
      num_wrong: mistakes that come first, at most: those the model was surest of. After them
        the others follow in the order given, right or wrong.

    Raises:
      DataError: there are no images.
    """
    if len(images) == 0:
        raise DataError("There are no images to draw predictions of: the split is empty.")
    predicted = probabilities.argmax(axis=-1)
    confidence = probabilities.max(axis=-1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:num_wrong]
    rest = np.setdiff1d(np.arange(len(images)), worst)
    shown = np.concatenate([worst, rest])[:num_shown]
    columns = min(8, len(shown))
    rows = -(-len(shown) // columns)
    names = [shorten(name) for name in class_names]
    # Long names and the probability do not fit beside each other.
    separator = "\n" if max(len(names[predicted[i]]) for i in shown) > 7 else "  "
    height = 1.25 * images.shape[1] / images.shape[2] + (0.5 if separator == "\n" else 0.38)
    with matplotlib.rc_context(STYLE | NAMES_AS_THEY_ARE | {"font.size": 8}):
        figure = Figure(
            figsize=(max(1.25 * columns, 5.0), height * rows + 0.35), layout="constrained"
        )
        figure.suptitle(
            f"{len(images) - len(wrong):,} of {len(images):,} images right"
            + ("", "; the surest mistake first", f"; the {len(worst)} surest mistakes first")[
                min(len(worst), 2)
            ],
            x=0.01,
            ha="left",
            fontsize=10,
            fontweight="bold",
        )
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        for axes, i in zip(grid, shown, strict=False):
            right = predicted[i] == labels[i]
            colour = BLUE if right else VERMILLION
            _picture(axes, images[i], colour=colour)
            axes.set_title(
                f"{'✓' if right else '✗'} {names[predicted[i]]}{separator}{confidence[i]:.0%}",
                fontsize=8,
                color=colour,
                fontweight="normal" if right else "bold",
                loc="center",
                pad=3,
            )
            if not right:
                axes.set_xlabel(f"true: {shorten(class_names[labels[i]], 13)}", labelpad=2)
        save(figure, out_png)


def _picture(axes: Axes, image: np.ndarray, *, colour: str) -> None:
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
