"""Draws an image and heat maps over it in a grid of panels."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit_jax.analysis import figures

COLOUR_MAP = "inferno"
_HEIGHT_OF_LINE = 0.14  # Inches.

Pixels = UInt8[np.ndarray, "height width channels"]
# Title, image, and the map over it; None: the image alone.
Panel = tuple[str, Pixels, Float[np.ndarray, "row column"] | None]


def draw(
    panels: Sequence[Panel],
    *,
    columns: int,
    scale: tuple[str, str],
    from_zero: bool,
    opacity: float,
    marked: tuple[int, int, int, int] | None = None,
    size: float = 1.9,
) -> Figure:
    """Draws panels, each map in colours of its own scale.

    Args:
      panels: see `Panel`.
      columns: panels in a row, at most.
      scale: texts at the ends of the colour bar, the smallest first.
      from_zero: whether the scales begin at 0, rather than at each map's smallest value.
      opacity: of the maps; below 1 the image shows through in grey.
      marked: top, left, height, width of a rectangle in the first panel, in pixels.
      size: width of a panel in inches.
    """
    rows = math.ceil(len(panels) / columns)
    height, width = panels[0][1].shape[:2]
    lines = max(title.count("\n") + 1 for title, _, _ in panels)
    aspect = min(max(height / width, 0.4), 2.5)
    figure = figures.InlineFigure(
        figsize=(
            max(size * columns + 0.3, 4.0),
            rows * (size * aspect + lines * _HEIGHT_OF_LINE) + 0.4,
        ),
        layout="constrained",
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (title, image, values) in zip(grid, panels, strict=False):
        _draw_panel(axes, image, values, from_zero=from_zero, opacity=opacity)
        axes.set_title(title, fontsize=8, fontweight="normal", loc="left", pad=3)
    if marked:
        top, left, tall, wide = marked
        for colour, line in (("white", 3.0), (figures.VERMILLION, 1.5)):
            grid[0].add_patch(
                Rectangle(
                    (left - 0.5, top - 0.5), wide, tall,
                    fill=False, edgecolor=colour, linewidth=line,
                )
            )  # fmt: skip
    # In a single row it is below the maps, not below the image before them.
    maps = (len(panels) - 1) / len(panels) if rows == 1 else 1.0
    shrink = max(0.6 * maps, 0.1)
    middle = (1 - maps / 2 - shrink / 2) / (1 - shrink)
    bar = figure.colorbar(
        ScalarMappable(cmap=COLOUR_MAP), ax=list(grid), orientation="horizontal",
        aspect=60, shrink=shrink, pad=0.02, anchor=(middle, 1.0),
    )  # fmt: skip
    bar.set_ticks([0, 1], labels=scale)
    bar.ax.tick_params(labelsize=8, length=0)
    return figure


def _draw_panel(
    axes: Axes, image: Pixels, values: np.ndarray | None, *, from_zero: bool, opacity: float
) -> None:
    height, width, channels = image.shape
    # Pixels of small images stay pixels; large ones are scaled down smoothly.
    smooth = "nearest" if max(height, width) < 100 else "antialiased"
    shown = image if channels == 3 else image.mean(axis=-1)
    if values is None:
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
        return
    grey = image.mean(axis=-1)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    low = 0.0 if from_zero else float(values.min())
    axes.imshow(
        values,
        cmap=COLOUR_MAP,
        vmin=low,
        # A map of equal values has the colour of the smallest.
        vmax=max(float(values.max()), low + 1e-12),
        alpha=opacity,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )
