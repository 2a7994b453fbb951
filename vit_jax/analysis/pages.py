"""The frame, the style and the tables of HTML pages that need no other file and no network."""

import html
from collections.abc import Iterable, Sequence

# Figures are drawn black on white. In dark mode they are inverted, with the hues turned back.
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #595959; --line: #d9d9d9;
  --box: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e5e5; --paper: #1a1a1a; --soft: #ababab;
  --line: #404040; --box: #262626; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.4rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; }
h3 { font-size: 1rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; } td.text { white-space: normal; min-width: 16rem; }
code { background: var(--box); padding: .1rem .3rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.5rem; align-items: start; margin: 1.5rem 0; }
figure { margin: 0; }
summary { cursor: pointer; padding: .4rem 0; } dt { font-weight: 700; } dd { margin: 0 0 .5rem; }
a { color: inherit; }
@media (max-width: 36rem) { table { font-size: .8rem; } th, td { padding-right: .45rem;
  white-space: normal; vertical-align: top; } th:last-child, td:last-child { padding-right: 0; }
  td.text { min-width: 9rem; } }
"""


def document(title: str, body: Iterable[str], *, style: str = "") -> str:
    """Returns a page.

    Args:
      title: text.
      body: parts of HTML.
      style: CSS beside that of all pages.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table that scrolls by itself where it is wider than the window.

    Args:
      rows: text; the first row has the names of the columns.
    """
    head, *rest = rows
    lines = [
        "<tr>" + "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head) + "</tr>"
    ]
    for row in rest:
        cells = "".join(
            f"<td{' class=text' if len(cell) > 60 else ''}>{html.escape(cell)}</td>" for cell in row
        )
        lines.append(f"<tr>{cells}</tr>")
    return '<div class="scroll" tabindex="0"><table>' + "\n".join(lines) + "</table></div>"
