"""Draws the figures of a scaling study, in the style of the papers.

Each function draws one figure; `vit_jax.analysis.figures.save` writes it as PNG or SVG.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Shaped
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.spatial import ConvexHull, QhullError

from vit_jax.analysis.figures import (
    COLOURS,
    GREY,
    LITERAL_TEXT,
    STYLE,
    VERMILLION,
    legend_label,
    shorten,
)
from vit_jax.scaling.intervals import Band

_SIZE = (3.9, 3.3)  # Inches, so small that text is legible on a page as narrow as a phone.
_TITLE = 32  # Characters of a title in a line: those of contours are narrow.
_COLUMN = 20  # Characters of a legend's entry of which two fit side by side.
_POINTS = {"markersize": 4.5, "linestyle": "none"}
_GRID = {"color": "#E6E6E6", "linewidth": 0.8}


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """The rows of a group, and the law fitted to them.

    Attributes:
      name: name of the group; "" if there is only one.
      x: x of the rows, above 0.
      y: y of the rows, above 0.
      role: role of each row: "fit", "behind" (behind the Pareto frontier, so not fitted), "held
        back" (test set) or "not fitted" (of a group without a law).
      line_x: points at which the law is drawn; None without a law.
      line_y: predictions at `line_x`.
      band_x: points at which the interval is drawn; None without an interval.
      band: interval at `band_x`; its ends may be infinite.
    """

    name: str
    x: Float[np.ndarray, "n"]
    y: Float[np.ndarray, "n"]
    role: Shaped[np.ndarray, "n"]
    line_x: Float[np.ndarray, "m"] | None = None
    line_y: Float[np.ndarray, "m"] | None = None
    band_x: Float[np.ndarray, "k"] | None = None
    band: Band | None = None


def law_figure(
    curves: Sequence[Curve], *, x_label: str, y_label: str, title: str, level: float
) -> Figure:
    """Draws error over scale on log axes: fitted rows, law, interval, and rows held back."""
    with matplotlib.rc_context(STYLE | LITERAL_TEXT):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for curve, colour in zip(curves, colours(len(curves)), strict=True):
            _curve(axes, curve, colour)
        _log_axes(axes, x_label=x_label, y_label=y_label, title=title)
        # Intervals may be far wider than the data.
        values = [line for c in curves for line in (c.y, c.line_y) if line is not None]
        limits = min(map(np.min, values)) / 1.15, max(map(np.max, values)) * 1.15
        axes.set_ylim(*limits)
        _few_ticks(axes.yaxis, *limits)
        if axes.collections:  # The last entry stands for the intervals of all groups.
            axes.collections[-1].set_label(f"{level * 100:.6g}% interval")
        _legend_below(figure)
    return figure


def _curve(axes: Axes, curve: Curve, colour: str) -> None:
    named = legend_label(f"{shorten(curve.name, 28)}, ") if curve.name else ""
    fitted = curve.role == "fit"
    for other, marker, face in (
        ("fit", "o", colour),
        ("behind", ".", colour),
        ("held back", "D", "white"),
        ("not fitted", "o", "white"),
    ):
        shown = curve.role == other
        if shown.any():
            label = f"{named}{shown.sum()} {'fitted' if other == 'fit' else other}"
            axes.plot(
                curve.x[shown], curve.y[shown], marker, color=colour, markerfacecolor=face,
                alpha=0.35 if other == "behind" else 1, label=label, **_POINTS,
            )  # fmt: skip
    if curve.line_x is not None and curve.line_y is not None:
        # Dashed beyond the fitted rows.
        last = curve.x[fitted].max() if fitted.any() else curve.line_x[-1]
        inside, beyond = curve.line_x <= last, curve.line_x >= last
        axes.plot(curve.line_x[inside], curve.line_y[inside], color=colour, linewidth=1.4)
        axes.plot(curve.line_x[beyond], curve.line_y[beyond], "--", color=colour, linewidth=1.4)
    if curve.band is not None and curve.band_x is not None:
        # Infinite or zero ends are replaced by values far outside the axes.
        low = np.maximum(curve.band.low, curve.band.estimate * 1e-3)
        high = np.minimum(curve.band.high, curve.band.estimate * 1e3)
        axes.fill_between(curve.band_x, low, high, color=colour, alpha=0.15, linewidth=0)


def data_size_figure(curves: Sequence[Curve], *, x_label: str, y_label: str, title: str) -> Figure:
    """Draws error over data size, with a line for each model; laws are not drawn.

    Lines go through the mean of rows at the same x, such as several seeds.
    """
    with matplotlib.rc_context(STYLE | LITERAL_TEXT):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for curve, colour in zip(curves, colours(len(curves)), strict=True):
            at = np.unique(curve.x)
            mean = [curve.y[curve.x == x].mean() for x in at]
            axes.plot(curve.x, curve.y, ".", color=colour, alpha=0.5, markersize=4)
            label = legend_label(shorten(curve.name, 28))
            axes.plot(at, mean, "-o", color=colour, markersize=4, label=label)
        _log_axes(axes, x_label=x_label, y_label=y_label, title=title)
        _legend_below(figure)
    return figure


def contours(
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
    n: Float[np.ndarray, "m"],
    d: Float[np.ndarray, "m"],
    y: Float[np.ndarray, "m"],
    *,
    held_back: Bool[np.ndarray, "m"],
    drawn: Bool[np.ndarray, "m"],
    path: tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]] | None,
    labels: tuple[str, str, str],
    title: str,
) -> Figure:
    """Draws L(N, D): contours of the law, rows as dots in the same colours, optimal N and D dashed.

    The contours end at the convex hull, in logs, of the rows that support them.

    Args:
      predict: the law: arrays of N and D -> y.
      n: number of parameters of the rows.
      d: number of examples of the rows.
      y: errors or losses of the rows.
      held_back: rows of the test set.
      drawn: rows between which the law is drawn.
      path: compute-optimal N and D for growing compute; None: not drawn.
      labels: labels of n, d and y.
      title: title of the figure.
    """
    with matplotlib.rc_context(STYLE | LITERAL_TEXT):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        limits = [(v.min() / 1.5, v.max() * 1.5) for v in (n, d)]
        grid_n, grid_d = (np.geomspace(v.min(), v.max(), 120) for v in (n[drawn], d[drawn]))
        mesh = np.meshgrid(grid_n, grid_d)
        inside = _in_hull(np.log(np.stack(mesh)), np.log(np.stack([n[drawn], d[drawn]])))
        level = np.ma.masked_where(~inside, predict(*mesh))
        low, high = min(y.min(), level.min()), max(y.max(), level.max())
        norm = LogNorm(low, high)
        levels = np.geomspace(low, high, 16)[1:-1]
        lines = axes.contour(grid_n, grid_d, level, levels, norm=norm, linewidths=1)
        axes.clabel(lines, fmt=lambda value: f"{value:.3g}", fontsize=7)
        for rows, marker in ((~held_back, "o"), (held_back, "D")):
            axes.scatter(
                n[rows], d[rows], c=y[rows], norm=norm, marker=marker, s=22, edgecolors="black",
                linewidths=0.5, zorder=3,
                label="held back" if marker == "D" and held_back.any() else None,
            )  # fmt: skip
        if path is not None:
            axes.plot(*path, "--", color=VERMILLION, linewidth=1.4, label="best for its compute")
        _log_axes(axes, x_label=labels[0], y_label=labels[1], title=title)
        axes.set(xlim=limits[0], ylim=limits[1])
        scalar = ScalarMappable(norm=norm)
        bar = figure.colorbar(scalar, ax=axes, label=labels[2])
        _few_ticks(bar.ax.yaxis, low, high)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2)
    return figure


def _in_hull(
    points: Float[np.ndarray, "2 h w"], rows: Float[np.ndarray, "2 m"]
) -> Bool[np.ndarray, "h w"]:
    """Returns which points lie within the convex hull of rows, up to rounding."""
    try:
        sides = ConvexHull(rows.T).equations  # normal . point + offset <= 0 inside.
    except QhullError:  # The rows lie on a line: all of the rectangle around them.
        return np.ones(points.shape[1:], bool)
    distances = np.einsum("sk,khw->shw", sides[:, :2], points) + sides[:, 2, None, None]
    return (distances <= 1e-9).all(0)


@dataclasses.dataclass(frozen=True, eq=False)
class Valley:
    """The rows of one compute budget, and the parabola in log x fitted to them.

    Attributes:
      budget: compute in FLOPs.
      x: x of the rows.
      y: y of the rows.
      line_x: points at which the parabola is drawn.
      line_y: its values.
      best: x at its minimum; None if the minimum is outside the rows.
    """

    budget: float
    x: Float[np.ndarray, "n"]
    y: Float[np.ndarray, "n"]
    line_x: Float[np.ndarray, "m"]
    line_y: Float[np.ndarray, "m"]
    best: float | None


def valleys(
    parabolas: Sequence[Valley],
    line: tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]] | None,
    *,
    x_label: str,
    y_label: str,
    title: str,
) -> Figure:
    """Draws IsoFLOP valleys, and below them their minima over the budgets.

    `line` has the budgets and best x of the minima's power law; None: not drawn.
    """
    with matplotlib.rc_context(STYLE | LITERAL_TEXT):
        figure = Figure(figsize=(_SIZE[0], 2 * _SIZE[1]), layout="constrained")
        upper, lower = figure.subplots(2, 1)
        for valley, colour in zip(parabolas, colours(len(parabolas)), strict=True):
            upper.plot(valley.x, valley.y, "o", color=colour, **_POINTS)
            label = f"{valley.budget:.3g} FLOPs"
            upper.plot(valley.line_x, valley.line_y, color=colour, linewidth=1.4, label=label)
            if valley.best is not None:
                minimum = np.interp(np.log(valley.best), np.log(valley.line_x), valley.line_y)
                upper.plot(valley.best, minimum, "v", color=colour, markersize=8)
                lower.plot(valley.budget, valley.best, "v", color=colour, markersize=8)
        _log_axes(upper, x_label=x_label, y_label=y_label, title=title)
        upper.legend(loc="best", fontsize=8)
        if line is not None:
            lower.plot(*line, "--", color=GREY, linewidth=1.4, zorder=0)
        _log_axes(lower, x_label="budget (FLOPs)", y_label=f"best {x_label}", title="Minima")
    return figure


def residuals(
    x: Float[np.ndarray, "n"],
    log_residuals: Float[np.ndarray, "n"],
    names: Sequence[str],
    *,
    x_label: str,
) -> Figure:
    """Draws the residuals log prediction - log y of every row over scale, by group name."""
    with matplotlib.rc_context(STYLE | LITERAL_TEXT):
        figure = Figure(figsize=(_SIZE[0], 2.4), layout="constrained")
        axes = figure.subplots()
        groups = list(dict.fromkeys(names))
        of_row = np.asarray(names)
        for name, colour in zip(groups, colours(len(groups)), strict=True):
            rows = of_row == name
            axes.plot(x[rows], log_residuals[rows], "o", color=colour, **_POINTS)
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set(xscale="log", xlabel=x_label, title="Residuals")
        axes.set_ylabel("log prediction \N{MINUS SIGN} log y")
        axes.grid(axis="y", **_GRID)
        _few_ticks(axes.xaxis, *axes.xaxis.get_data_interval())  # As in the law's figure.
    return figure


def _legend_below(figure: Figure) -> None:
    """Adds a legend below the axes, in two columns if they fit; the figure grows by its height."""
    _, labels = figure.axes[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) <= _COLUMN else 1
    figure.set_size_inches(_SIZE[0], _SIZE[1] + 0.18 * -(-len(labels) // columns))
    figure.legend(loc="outside lower center", ncols=columns, handlelength=1.6, columnspacing=1.2)


def colours(count: int) -> list[str]:
    """Returns a colour for each of `count` groups: COLOURS, or a colour map if there are more."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    scale = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, count))
    return [to_hex(colour) for colour in scale]


def _log_axes(axes: Axes, *, x_label: str, y_label: str, title: str) -> None:
    title = textwrap.fill(title, _TITLE)
    axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(which="major", **_GRID)
    for axis in (axes.xaxis, axes.yaxis):
        _few_ticks(axis, *axis.get_data_interval())


def _few_ticks(axis: Axis, low: float, high: float) -> None:
    """Labels an axis that shows less than a factor of 30, where powers of ten are too few ticks.

    Below a factor of 3 the ticks are at equal distances in the value, not in its log.
    """
    if 0 < low < high < 30 * low:
        subs = (1, 2, 3, 5, 7) if high < 8 * low else (1, 2, 5)
        even = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
        axis.set_major_locator(even if high < 3 * low else LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: int) -> str:
    return f"{value:.4g}" if not 1e4 <= value < 1e6 else f"{value:,.0f}"
