"""The figures of the page, all without numbers: images, maps over the image, lines over layers."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vit_jax.analysis.walkthrough_page.elements import plain

_LARGEST = 448  # Pixels of the longer side of an image in the page.
_HEAT, _COLD = (214, 44, 180), (70, 70, 70)  # The colour of attention weights; and its opposite.


def data_uri(pixels: UInt8[np.ndarray, "h w *channels"], *, largest: int = _LARGEST) -> str:
    """Returns an image as a data URI: PNG, scaled down to at most `largest` pixels a side."""
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    image = Image.fromarray(pixels)
    if max(image.size) > largest:
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_tag(pixels: UInt8[np.ndarray, "h w *channels"], alt: str, *, style: str = "") -> str:
    """Returns an <img>; images of few pixels show them as squares."""
    few = " pixels" if max(pixels.shape[:2]) < 100 else ""
    return f'<img class="{style}{few}" src="{data_uri(pixels)}" alt="{plain(alt)}">'


def figure(body: str, caption: str) -> str:
    """Returns a figure with its caption, both HTML."""
    return f"<figure>{body}<figcaption>{caption}</figcaption></figure>"


def over_image(overlay: str, alt: str, *, grey: bool = False) -> str:
    """Returns the prepared image, which the page's style has once, with something drawn over it."""
    style = "grey" if grey else "colour"
    return f'<div class="picture {style}" role="img" aria-label="{plain(alt)}">{overlay}</div>'


def grid_lines(grid: tuple[int, int], chosen: int | None) -> str:
    """Returns the lines between patches, as an overlay; `chosen` is a patch with a frame."""
    rows, columns = grid
    lines = [f"M0 {y}H{columns}" for y in range(1, rows)]
    lines += [f"M{x} 0V{rows}" for x in range(1, columns)]
    frame = ""
    if chosen is not None:
        y, x = divmod(chosen, columns)
        frame = f'<rect class="chosen" x="{x}" y="{y}" width="1" height="1"/>'
    return (
        f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="under" d="{"".join(lines)}"/><path d="{"".join(lines)}"/>{frame}</svg>'
    )


def attention_map(
    weights: Float[np.ndarray, "patches"], grid: tuple[int, int], what: str,
    *, query: int | None = None,
) -> str:  # fmt: skip
    """Returns weights over the grey image: the largest is the most opaque.

    Args:
      weights: of the patches, in row-major order.
      grid: rows and columns.
      what: the weights' name, for readers who do not see the map.
      query: patch with a frame.
    """
    row, column = divmod(int(weights.argmax()), grid[1])
    alt = f"{what}: the largest weight is on the patch in row {row + 1}, column {column + 1}"
    alpha = weights.reshape(grid) / max(float(weights.max()), 1e-30)
    pixels = np.empty((*grid, 4), np.uint8)
    pixels[..., :3] = _HEAT
    pixels[..., 3] = np.rint(225 * alpha)
    heat = f'<img class="pixels" src="{data_uri(pixels)}" alt="">'
    frame = "" if query is None else _frame(query, grid)
    return over_image(heat + frame, alt, grey=True)


def _frame(patch: int, grid: tuple[int, int]) -> str:
    y, x = divmod(patch, grid[1])
    return (
        f'<svg viewBox="0 0 {grid[1]} {grid[0]}" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="chosen" x="{x}" y="{y}" width="1" height="1"/></svg>'
    )


def small_maps(maps: Sequence[tuple[str, str]], *, chosen: int | None = None) -> str:
    """Returns maps beside each other: (HTML label, map); `chosen` is highlighted."""
    items = "".join(
        f"<li{' class=chosen' if i == chosen else ''}>{drawn}<span>{label}</span></li>"
        for i, (label, drawn) in enumerate(maps)
    )
    return f'<ol class="maps">{items}</ol>'


def heat_map(values: Float[np.ndarray, "rows columns"], alt: str, *, chosen: int | None) -> str:
    """Returns values as a map: positive ones magenta, 0 white, negative ones grey."""
    largest = max(float(np.abs(values).max()), 1e-30)
    share = (values / largest)[..., None]
    white, heat, cold = np.array((255, 255, 255)), np.array(_HEAT), np.array(_COLD)
    pixels = white + np.abs(share) * (np.where(share > 0, heat, cold) - white)
    body = f'<img class="pixels" src="{data_uri(np.rint(pixels).astype(np.uint8))}" alt="">'
    frame = "" if chosen is None else _frame(chosen, values.shape)
    return (
        f'<div class="picture plain" role="img" aria-label="{plain(alt)}">{body}{frame}</div>'
    )  # fmt: skip


def line_chart(series: Sequence[tuple[str, Float[np.ndarray, "n"]]], alt: str) -> str:
    """Returns lines over layers from zero up: (CSS class, values)."""
    top = max(float(values.max()) for _, values in series)
    lines = []
    for style, values in series:
        x = np.linspace(6, 294, len(values)) if len(values) > 1 else np.array([150.0])
        y = 114 - 106 * values / max(top, 1e-30)
        points = [(f"{a:.1f}", f"{b:.1f}") for a, b in zip(x, y, strict=True)]
        dots = "".join(f'<circle cx="{a}" cy="{b}" r="3"/>' for a, b in points)
        path = " ".join(map(",".join, points))
        lines.append(f'<g class="{style}"><polyline points="{path}"/>{dots}</g>')
    return (
        f'<svg class="chart" viewBox="0 0 300 120" role="img" aria-label="{plain(alt)}">'
        f'<path class="axis" d="M2 114H298"/>{"".join(lines)}</svg>'
    )


_BOXES = ("norm", "attention", "+", "norm", "MLP", "+")


def block_diagram(chosen: int, *, parallel: bool) -> str:
    """Returns a block as boxes on the residual stream, with one of `_BOXES` highlighted."""
    names = ("norm", "attention + MLP", "+") if parallel else _BOXES
    chosen = {0: 0, 1: 1, 2: 2, 3: 0, 4: 1, 5: 2}[chosen] if parallel else chosen
    items = "".join(
        f'<li class="{"add" if name == "+" else "box"}{" chosen" if i == chosen else ""}">'
        f"<span>{name}</span></li>"
        for i, name in enumerate(names)
    )
    return f'<ol class="block" aria-hidden="true">{items}</ol>'
