"""The page: pictures that answer to the mouse, tables, nothing loaded from outside."""

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from fedjax_prune.runs.page.panel import Panel

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:"
)
"""What the page may load: nothing. Vega makes functions from text."""

_PART = r"[-+]?\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?%?"
_NUMBER = re.compile(rf"|nan|{_PART}( ± {_PART})?|\d+-\d+")
"""`1,234.5`, `-0.1`, `2e-05`, `55.0% ± 1.2%`, or the rounds `5-20`."""

_CSS = """
body { font: 15px/1.5 "Liberation Sans", Arial, Helvetica, sans-serif; color: #222;
       max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin: 2.2em 0 .2em; }
p.words { color: #555; margin: .2em 0 .8em; max-width: 52em; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25em .9em .25em 0; border-bottom: 1px solid #ddd;
         vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
nav a { margin-right: 1.1em; white-space: nowrap; } a { color: #0072b2; }
.picture { overflow-x: auto; }
"""

_DRAW = """
for (const [name, spec] of Object.entries(specs)) {
  vegaEmbed(document.getElementById(name), spec, {
    mode: "vega-lite", renderer: "svg",
    actions: {export: true, source: false, compiled: false, editor: false},
  }).catch(error => { document.getElementById(name).textContent = String(error); });
}
"""


class Facts(NamedTuple):
    """A table of the page.

    Attributes:
      title: above it.
      words: below the title.
      columns: its head.
      rows: one cell for each column; numbers are put to the right.
    """

    title: str
    words: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def make_page(
    title: str, intro: str, parts: Sequence[Panel | Facts], script: str
) -> str:
    """Makes the page.

    Args:
      title: of the page.
      intro: a sentence below it.
      parts: in their order.
      script: JavaScript that defines `vegaEmbed`.

    Returns:
      HTML that loads nothing.
    """
    specs = {part.name: part.spec() for part in parts if isinstance(part, Panel)}
    links = " ".join(
        f'<a href="#{_anchor(part)}">{escape(part.title)}</a>' for part in parts
    )
    body = "\n".join(_section(part) for part in parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_CSS}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="words">{escape(intro)}</p>
<nav>{links}</nav>
{body}
<script>{_code(script)}</script>
<script>const specs = {_data(specs)};{_DRAW}</script>
</body>
</html>
"""


def _section(part: Panel | Facts) -> str:
    inside = (
        f'<div class="picture" id="{part.name}"></div>'
        if isinstance(part, Panel)
        else _table(part)
    )
    return (
        f'<section id="{_anchor(part)}">\n<h2>{escape(part.title)}</h2>\n'
        f'<p class="words">{escape(part.words)}</p>\n{inside}\n</section>'
    )


def _table(facts: Facts) -> str:
    right = [
        all(isinstance(row[i], int | float) or _is_number(row[i]) for row in facts.rows)
        for i in range(len(facts.columns))
    ]
    lines = [_cells("th", facts.columns, right)]
    lines += [_cells("td", row, right) for row in facts.rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _cells(tag: str, cells: Sequence[Any], right: Sequence[bool]) -> str:
    made = [
        f"<{tag}{' class=number' * is_right}>{escape(str(cell))}</{tag}>"
        for cell, is_right in zip(cells, right, strict=True)
    ]
    return f"<tr>{''.join(made)}</tr>"


def _is_number(cell: Any) -> bool:
    """Whether a text is a number, perhaps in percent or with an interval, or empty."""
    return _NUMBER.fullmatch(str(cell)) is not None


def _anchor(part: Panel | Facts) -> str:
    return "part-" + "".join(c if c.isalnum() else "-" for c in part.title.lower())


def _code(script: str) -> str:
    """JavaScript that a page may hold: no string in it ends the element."""
    return re.sub(r"<(/script|!--)", r"<\\\1", script, flags=re.IGNORECASE)


def _data(value: Any) -> str:
    """A value as JavaScript that a page may hold."""
    return json.dumps(value).replace("<", "\\u003c")
