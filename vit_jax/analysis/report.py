"""The report of all measures: an HTML page that needs no other file and no network."""

import base64
import html
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax import storage
from vit_jax.analysis import pages
from vit_jax.analysis.measures.registry import MOST_IMAGES
from vit_jax.analysis.measures.result import Result
from vit_jax.analysis.outcomes import Analysis, Outcome, number_text, path_parts
from vit_jax.telemetry.progress import format_count

NAME = "report.html"
_OPEN_ROWS, _MOST_ROWS = 30, 400  # Of a table: more are folded, or in the files only.
_LONGEST_NAME = 60  # In a heading.
_LARGEST_SVG = 300_000  # Bytes; a larger figure is a PNG.
_INCOMPLETE = (
    "Measures are missing: the analysis was running when this page was written. If it was ended, "
    "compute them into another folder with"
)
_MOST_LISTED = 50  # Images whose locations are listed.
_SIZES_DIFFER = (
    "The models differ in size, so not every number can be compared directly. Entropy depends on "
    "the number of tokens: that of uniform attention over n tokens is ln n. Distances are in "
    "pixels of each model's own prepared image. Compare both with those of uniform attention."
)
_FROM_ONE = ("layer", "head", "component", "row", "column", "image", "query")  # As in the figures.
_MOST_BAD = 50  # Unreadable images that are listed; analysis.json has all.

# Of a figure's readable width, how much it has at least on a phone, which shows it more closely.
_PHONE = 0.8

# Figures with photographs or maps are not inverted in dark mode. A figure is as wide as its box at
# most; on a phone, a wide one scrolls by itself.
_STYLE = """
body { max-width: 76rem; }
nav ol { columns: 16rem; padding-left: 2rem; } nav li { break-inside: avoid; padding: .15rem 0; }
.shows { font-size: 1.05rem; } .definition { max-width: 60rem; } figcaption p { margin: .4rem 0; }
tbody th { font-weight: 600; padding-top: .8rem; } td.number { text-align: right; }
td.name { padding-left: 1rem; }
.skip { position: absolute; left: -100vw; } .skip:focus { position: static; }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
section > h2 { margin-top: 1rem; }
.figures > figure { min-width: 0; }
figure img { width: 100%; max-width: 100%; height: auto; display: block; background: #fff; }
.beside figure > h3 { margin: 0 0 .4rem; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: var(--box); padding: .7rem 1rem; overflow-wrap: anywhere;
  margin: .5rem 0; font-size: .85rem; }
.reason { background: var(--box); padding: .5rem 1rem; }
.failed { border-left: .4rem solid #d55e00; }
@media (max-width: 36rem) { figure img { min-width: var(--narrow); } }
@media (prefers-color-scheme: dark) { img.drawn { filter: invert(.9) hue-rotate(180deg); }
  img.photo { filter: brightness(.9); } }
@media print { nav, .skip { display: none; } figure, .reason { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .scroll { overflow: visible; } }
"""


def page(analysis: Analysis) -> str:
    """Returns the report, with the figures that were written into the folder of the analysis.

    Args:
      analysis: its folder has the files.
    """
    names = [subject.name for subject in analysis.subjects]
    single = f"Analysis of {short_name(names[0])}"
    title = single if len(names) == 1 else f"Comparison of {len(names)} checkpoints"
    measures = analysis.measures()
    shown = [name for name in measures if any(o.result is not None for o in analysis.of(name))]
    others = [name for name in measures if name not in shown]
    body = [
        '<a class="skip" href="#results">To the results</a>',
        f"<header><h1>{html.escape(title)}</h1>",
        *_subjects(analysis),
        f"<p>Images: {html.escape(analysis.images)}.</p>",
        *_locations(analysis),
        *_bad_images(analysis),
        *_walkthroughs(analysis),
        *_missing(analysis),
        "</header>",
        *_contents(analysis, shown, others),
        '<main id="results">',
        *_overview(analysis),
    ]
    for name in shown:
        body += _section(analysis, name)
    if others:
        body.append('<section id="absent"><h2>Without a result</h2>')
        body += [_reason(analysis, o) for name in others for o in analysis.of(name)]
        body.append("</section>")
    body += [
        "</main>",
        f'<footer class="soft"><p>vit_jax {html.escape(analysis.version)}. All numbers: '
        '<a href="analysis.json">analysis.json</a> and the files beside each figure. Layers, '
        "heads, rows and columns are counted from 1 here, and from 0 in the arrays of the files."
        "</p></footer>",
    ]
    return pages.document(title, body, style=_STYLE)


def short_name(name: str) -> str:
    """Returns the last two parts of a path, of a step those of its run; other names as they are."""
    end = "/".join(path_parts(name)[-2:])
    return end if len(end) <= _LONGEST_NAME else f"…{end[1 - _LONGEST_NAME :]}"


def _subjects(analysis: Analysis) -> list[str]:
    parts = []
    for index, subject in enumerate(analysis.subjects):
        heading = f"<h2>{_label(analysis, index)}</h2>" if len(analysis.subjects) > 1 else ""
        parts.append(f"{heading}<pre>{html.escape(subject.description)}</pre>")
    return parts


def _label(analysis: Analysis, index: int) -> str:
    return html.escape(f"{index + 1}. {short_name(analysis.subjects[index].name)}")


def _missing(analysis: Analysis) -> list[str]:
    """Returns the measures of an analysis that was ended, and the flags that compute them."""
    if not analysis.missing:
        return []
    flags = f"--only={','.join(analysis.missing)} --out=FOLDER"
    text = f"{_INCOMPLETE} <code>{html.escape(flags)}</code>."
    return [f'<p class="reason failed">{text}</p>']


def _locations(analysis: Analysis) -> list[str]:
    """Returns a list of the images, folded; of many, where it is."""
    if not analysis.locations:
        return []
    if len(analysis.locations) > _MOST_LISTED:
        return ['<p class="soft">analysis.json lists the images.</p>']
    items = [f"<li>{html.escape(location)}</li>" for location in analysis.locations]
    count = format_count(len(items), "image")
    return [f"<details><summary>List of {count}</summary><ol>", *items, "</ol></details>"]


def _bad_images(analysis: Analysis) -> list[str]:
    if not analysis.bad:
        return []
    items = [
        f"<li>{html.escape(location)}: {html.escape(message)}</li>"
        for location, message in list(analysis.bad.items())[:_MOST_BAD]
    ]
    more = len(analysis.bad) - len(items)
    items += [f"<li>{more:,} more, see analysis.json</li>"] if more else []
    return [
        f"<details><summary>{len(analysis.bad):,} could not be read and are left out</summary>",
        "<ul>",
        *items,
        "</ul></details>",
    ]


def _contents(analysis: Analysis, shown: Sequence[str], others: Sequence[str]) -> list[str]:
    links = [("overview", "Overview")] if analysis.numbers() else []
    links += [(name, _title(analysis, name)) for name in shown]
    links += [("absent", "Without a result")] if others else []
    items = [f'<li><a href="#{anchor}">{html.escape(text)}</a></li>' for anchor, text in links]
    return ['<nav aria-label="Contents"><h2>Contents</h2><ol>', *items, "</ol></nav>"]


def _title(analysis: Analysis, measure: str) -> str:
    results = [outcome.result for outcome in analysis.of(measure)]
    titles = [getattr(result, "title", "") for result in results if result is not None]
    return next(filter(None, titles), measure.replace("_", " ").capitalize())


def _overview(analysis: Analysis) -> list[str]:
    """Returns the table of the summaries, a column for each checkpoint."""
    if not (tables := analysis.numbers()):
        return []
    count = len(analysis.subjects)
    heads = [_label(analysis, i) for i in range(count)] if count > 1 else ["value"]
    lines = [f'<th scope="col">{head}</th>' for head in ["number", *heads, "unit"]]
    lines = ["<thead><tr>", *lines, "</tr></thead>"]
    for measure, numbers in tables.items():
        title = html.escape(_title(analysis, measure))
        lines.append(
            f'<tbody><tr><th scope="rowgroup" colspan="{count + 2}"><a href="#{measure}">'
            f"{title}</a></th></tr>"
        )
        for name, unit, values in numbers:
            cells = "".join(f'<td class="number">{number_text(value)}</td>' for value in values)
            text = html.escape(name.replace("_", " "))
            lines.append(
                f'<tr><td class="name">{text}</td>{cells}<td>{html.escape(unit)}</td></tr>'
            )
        lines.append("</tbody>")
    return [
        '<section id="overview"><h2>Overview</h2>',
        *_differing_sizes(analysis),
        '<div class="scroll" tabindex="0"><table>',
        *lines,
        "</table></div></section>",
    ]


def _differing_sizes(analysis: Analysis) -> list[str]:
    """Returns what to know where the numbers of models of different sizes are compared."""
    if not (sizes := analysis.differing_sizes()):
        return []
    texts = [f"{name}: {', '.join(row)}" for name, row in sizes.items()]
    text = f"{_SIZES_DIFFER} In the order of the checkpoints: {'; '.join(texts)}."
    return [f'<p class="reason">{html.escape(text)}</p>']


def _walkthroughs(analysis: Analysis) -> list[str]:
    """Returns links to pages of their own."""
    links = [
        f'<a href="{html.escape(analysis.relative(file))}">{html.escape(outcome.result.title)}'
        f"</a> of {html.escape(outcome.result.image_name)}"
        + (f" ({_of(analysis, outcome)})" if len(analysis.subjects) > 1 else "")
        for outcome in analysis.of("walkthrough")
        for file in outcome.files
    ]
    return [f"<p>{'; '.join(links)}.</p>"] if links else []


def _section(analysis: Analysis, measure: str) -> list[str]:
    outcomes = analysis.of(measure)
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    body = [f'<section id="{measure}"><h2>{html.escape(_title(analysis, measure))}</h2>']
    body.append(f'<p class="shows">{html.escape(getattr(results[0], "shows", ""))}</p>')
    several = len(outcomes) > 1
    images = [_Image.of(outcome) for outcome in outcomes]
    if several:
        # Beside each other only where each has the width at which its text can be read.
        width = max(image.readable_points if image else 0 for image in images)
        columns = f"repeat(auto-fit, minmax(min(100%, {width:.0f}pt), 1fr))"
        style = f' style="grid-template-columns: {columns}"' if width else ""
        body.append(f'<div class="figures beside"{style}>')
    for outcome, image in zip(outcomes, images, strict=True):
        if outcome.result is None:
            body.append(_reason(analysis, outcome))
        else:
            body.append(_figure(analysis, outcome, image, named=several))
    body.append(f"</div>{_definition(results[0])}" if several else "")
    for outcome in outcomes:
        if isinstance(outcome.result, Result):
            body += _numbers(analysis, outcome, named=several)
    return [*body, "</section>"]


def _definition(result: Any) -> str:
    """Returns how a measure is computed, and the source of its formula, as HTML."""
    if not isinstance(result, Result):
        return ""
    most = MOST_IMAGES.get(result.name)
    limit = f" At most {most} images are measured here." if most else ""
    return (
        '<details class="definition"><summary>Definition and source</summary><p class="soft">'
        f"{html.escape(result.definition)}{limit} Source: {html.escape(result.source)}.</p>"
        "</details>"
    )


def _of(analysis: Analysis, outcome: Outcome) -> str:
    """Returns the names of what an outcome is of, as HTML."""
    return " and ".join(_label(analysis, index) for index in outcome.subjects)


def _reason(analysis: Analysis, outcome: Outcome) -> str:
    of = f" ({_of(analysis, outcome)})" if len(analysis.subjects) > 1 else ""
    return (
        f'<p class="reason {"failed" if outcome.failed else ""}"><b>'
        f"{html.escape(outcome.measure.replace('_', ' '))}</b>{of} {outcome.state}: "
        f"{html.escape(outcome.reason)}</p>"
    )


def _figure(analysis: Analysis, outcome: Outcome, image: "_Image | None", *, named: bool) -> str:
    """Returns the figure of a result with its caption, and links to its files."""
    result, heading = outcome.result, f"<h3>{_of(analysis, outcome)}</h3>" if named else ""
    links = ", ".join(
        f'<a href="{html.escape(analysis.relative(file))}">{html.escape(file.name)}</a>'
        for file in outcome.files
    )
    if not isinstance(result, Result):  # A page of its own.
        return f"<figure>{heading}<p>{links}</p></figure>"
    label = f"{result.title} of {short_name(result.checkpoint)}"
    drawn = image.tag(label) if image else ""
    images = f"{format_count(result.num_images, 'image')}. " if result.num_images else ""
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in result.notes)
    return (
        f"<figure>{heading}{drawn}<figcaption>"
        f"{'' if named else _definition(result)}{notes}<p>{images}{outcome.seconds:.1f} s. {links}"
        "</p></figcaption></figure>"
    )


class _Image(NamedTuple):
    """The figure of a result, as it stands in the page.

    Attributes:
      kind: media type.
      content: of the file.
      is_photo: whether it has an image, and not lines alone.
      points: the width at which it was drawn.
    """

    kind: str
    content: bytes
    is_photo: bool
    points: float

    @classmethod
    def of(cls, outcome: Outcome) -> "_Image | None":
        """Returns the figure that was written; None of a result without a figure."""
        files = {file.suffix: file for file in outcome.files}
        if ".svg" not in files:
            return None
        svg = storage.read_bytes(files[".svg"])
        found = re.search(rb'<svg[^>]*?width="([\d.]+)pt"', svg)
        points, is_photo = float(found[1]) if found else 400.0, b"<image" in svg
        if len(svg) > _LARGEST_SVG:
            return cls("image/png", storage.read_bytes(files[".png"]), is_photo, points)
        return cls("image/svg+xml", svg, is_photo, points)

    @property
    def readable_points(self) -> float:
        """The least width at which text that was drawn with 9 points is easy to read."""
        return 0.85 * self.points

    def tag(self, label: str) -> str:
        """Returns the image inside the page, not much larger than it was drawn."""
        data, label = base64.b64encode(self.content).decode(), html.escape(label)
        return (
            '<div class="scroll">'
            f'<img class="{"photo" if self.is_photo else "drawn"}" alt="{label}; the numbers are '
            f'in the files linked below." style="max-width: min(100%, {1.25 * self.points:.0f}pt); '
            f'--narrow: {_PHONE * self.readable_points:.0f}pt" '
            f'src="data:{self.kind};base64,{data}"></div>'
        )


def _numbers(analysis: Analysis, outcome: Outcome, *, named: bool) -> list[str]:
    """Returns the table of a result: open if it is short, folded, or left to the files."""
    size = next(iter(outcome.result.arrays().values())).values.size
    if size > _MOST_ROWS:
        return []
    rows = _rows(outcome.result)
    is_open = " open" if size <= _OPEN_ROWS and not named else ""
    of = f" of {_of(analysis, outcome)}" if named else ""
    return [
        f"<details{is_open}><summary>Numbers{of}</summary>",
        pages.table(rows),
        "</details>",
    ]


def _rows(result: Result) -> list[list[str]]:
    """Returns the arrays that have the axes of the first one, as the rows of a table.

    The ends of an interval stand beside their mean.
    """
    arrays = result.arrays()
    first = next(iter(arrays.values()))
    ends = {name: (f"{name}_low", f"{name}_high") for name in arrays}
    ends = {name: pair for name, pair in ends.items() if set(pair) <= arrays.keys()}
    hidden = {end for pair in ends.values() for end in pair}
    shown = {
        name: array
        for name, array in arrays.items()
        if array.axes == first.axes and array.values.dtype.kind in "biuf" and name not in hidden
    }
    heads = [
        name.replace("_", " ") + (f" ({array.unit})" if array.unit else "")
        for name, array in shown.items()
    ]
    names = result.coordinates()
    rows = [[*first.axes, *heads]]
    for index in np.ndindex(first.values.shape):
        cells = [
            str(names[axis][i] if axis in names else i + (axis in _FROM_ONE))
            for axis, i in zip(first.axes, index, strict=True)
        ]
        for name, array in shown.items():
            interval = [number_text(arrays[end].values[index].item()) for end in ends.get(name, ())]
            between = f" ({' to '.join(interval)})" if interval else ""
            cells.append(number_text(array.values[index].item()) + between)
        rows.append(cells)
    return rows
