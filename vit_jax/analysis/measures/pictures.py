"""Draws images and maps of their patches as panels of a figure."""

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit_jax.analysis import figures

_SIDE = 1.7  # Of a panel, in inches.


def panels(
    rows: int, columns: int, *, image_size: tuple[int, int], margin: float = 0.25
) -> tuple[Figure, np.ndarray]:
    """Returns a figure and its axes [rows, columns], without ticks, in the shape of the images.

    Args:
      rows: number of rows.
      columns: number of columns.
      image_size: height and width of an image, in pixels.
      margin: height of the text above a panel, in inches.
    """
    height, width = (_SIDE * side / max(image_size) for side in image_size)
    figure = figures.InlineFigure(
        # A single narrow column leaves room for the title.
        figsize=(max(columns * (width + 0.1), 4.5), rows * (height + margin) + 0.5),
        layout="constrained",
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    return figure, grid


def draw_image(axes: Axes, pixels: UInt8[np.ndarray, "height width channels"]) -> None:
    """Draws an image; its axes are pixels."""
    grey = pixels.shape[-1] == 1
    axes.imshow(
        pixels[..., 0] if grey else pixels,
        cmap="gray" if grey else None, vmin=0, vmax=255,
        # Pixels of small images stay pixels; large ones are scaled down smoothly.
        interpolation="nearest" if max(pixels.shape) < 100 else "antialiased",
    )  # fmt: skip


def draw_map(axes: Axes, values: np.ndarray, image_size: tuple[int, int], **options):
    """Draws a value or colour of each patch over the area of the image; returns Matplotlib's image.

    Args:
      axes: to draw on.
      values: [rows, columns], or colours [rows, columns, 3].
      image_size: height and width of the image, in pixels.
      **options: of Matplotlib's imshow.
    """
    height, width = image_size
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    return axes.imshow(values, extent=extent, interpolation="nearest", **options)


def mark_patch(
    axes: Axes,
    patch: tuple[int, int],
    grid: tuple[int, int],
    image_size: tuple[int, int],
    *,
    colour: str,
) -> None:
    """Outlines a patch (row, column) of a grid on an image or a map."""
    height, width = image_size[0] / grid[0], image_size[1] / grid[1]
    corner = (patch[1] * width - 0.5, patch[0] * height - 0.5)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=2))
