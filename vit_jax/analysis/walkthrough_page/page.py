"""Puts the steps into one HTML page that needs no other file and no network."""

import importlib.resources
import itertools
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax.analysis.walkthrough_page import drawing
from vit_jax.analysis.walkthrough_page.attention_steps import attention_steps
from vit_jax.analysis.walkthrough_page.elements import Elements, escape
from vit_jax.analysis.walkthrough_page.input_steps import input_steps
from vit_jax.analysis.walkthrough_page.mlp_steps import mlp_steps
from vit_jax.analysis.walkthrough_page.output_steps import output_steps
from vit_jax.analysis.walkthrough_page.step import Context, Step
from vit_jax.analysis.walkthrough_page.trace import Trace

_FOOT = (
    "Every number is computed by the checkpoint in float32, and rounded for the page: to four "
    "significant digits of the largest number of a table or line, with at least three digits after "
    "the point. Vectors show their first components and the last. The script element “numbers” of "
    "this page has all shown numbers with nine digits. Layers, heads, patches and tokens are "
    "counted from one."
)


def page(
    trace: Trace, *, pixels: UInt8[np.ndarray, "h w c"], labels: tuple[str, ...] | None,
    checkpoint: str, image_name: str, notes: Sequence[str],
) -> str:  # fmt: skip
    """Returns the page.

    Args:
      trace: the forward pass.
      pixels: the prepared image to be drawn.
      labels: class names; None: unknown.
      checkpoint: what the page is about.
      image_name: of the image.
      notes: on the checkpoint.
    """
    elements = Elements(trace.arrays)
    context = Context(trace, elements, pixels, labels)
    steps = [
        *input_steps(context), *attention_steps(context), *mlp_steps(context),
        *output_steps(context),
    ]  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>One image through {escape(checkpoint)}</title>\n"
        f"<style>{_text('page.css')}{_images(pixels)}</style></head>\n"
        f"<body{' class=few' if max(pixels.shape[:2]) < 100 else ''}>\n"
        '<a class="skip" href="#step-1">To the first step</a>\n'
        f"<header><h1>One image through a Vision Transformer</h1><p>{escape(checkpoint)} · "
        f"{escape(image_name)}</p></header>\n"
        f'<div class="layout">{_contents(steps)}<main>{_sections(steps)}</main></div>\n'
        '<div class="controls"><div class="progress"></div>'
        '<button type="button" aria-label="Previous step" title="Arrow left">← Back</button>'
        '<p class="position"></p>'
        '<button type="button" aria-label="Next step" title="Arrow right">Next →</button></div>\n'
        f'<p class="hidden" aria-live="polite"></p><footer><p>{_FOOT}</p>{_notes(notes)}</footer>\n'
        f'<script type="application/json" id="numbers">{_numbers(steps, elements)}</script>\n'
        f"<script>{_text('page.js')}</script></body></html>\n"
    )


def _text(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _notes(notes: Sequence[str]) -> str:
    return f"<p>The checkpoint: {escape('; '.join(notes))}.</p>" if notes else ""


def _images(pixels: UInt8[np.ndarray, "h w c"]) -> str:
    """Returns the style's images, which the page has once and shows many times."""
    height, width, channels = pixels.shape
    grey = pixels[..., 0] if channels == 1 else np.asarray(Image.fromarray(pixels).convert("L"))
    return (
        f':root {{ --ratio: {width} / {height}; --colour-image: url("{drawing.data_uri(pixels)}"); '
        f'--grey-image: url("{drawing.data_uri(grey)}"); }}'
    )


def _contents(steps: Sequence[Step]) -> str:
    """Returns the list of steps, in groups."""
    parts, numbered = [], enumerate(steps, start=1)
    for part, group in itertools.groupby(numbered, key=lambda entry: entry[1].part):
        items = "".join(
            f'<li><a href="#step-{i}"><span>{i}</span><span>{step.title}</span></a></li>'
            for i, step in group
        )
        parts.append(f"<p>{part}</p><ol>{items}</ol>")
    return f'<nav aria-label="Steps">{"".join(parts)}</nav>'


def _sections(steps: Sequence[Step]) -> str:
    return "\n".join(
        f'<section id="step-{i}" data-step="{step.key}" aria-labelledby="title-{i}">'
        f'<p class="kicker">{step.part}</p><h2 id="title-{i}">{step.title}</h2>'
        f"{step.body}</section>"
        for i, step in enumerate(steps, start=1)
    )


def _numbers(steps: Sequence[Step], elements: Elements) -> str:
    """Returns {step: {name/index: number}} as JSON."""
    by_step = {
        step.key: {
            name: value
            for name, value in elements.shown.items()
            if f'data-number="{name}"' in step.body
        }
        for step in steps
    }
    return json.dumps(by_step)
