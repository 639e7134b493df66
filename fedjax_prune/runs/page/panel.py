"""A panel of the page: one picture with its title, its words and its data."""

import csv
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_prune.runs.page.read import Line
from fedjax_prune.runs.settings import SettingsError

NEEDED = ("altair", "vl_convert")
"""What the extra `report` installs."""
PIP = "pip install 'fedjax_prune[report]'"
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c510a",
    "#7f7f7f",
)
"""Okabe and Ito's colours, for colour-blind readers, without the pale yellow."""
_DASHES = ((1, 0), (6, 3), (2, 2))
"""Patterns of lines, one after another when the colours are used up."""
MOST_POINTS = 60
"""Points of a line; of longer ones every n-th is drawn, and the last."""

Values = Sequence[Mapping[str, Any]]


class Panel(NamedTuple):
    """A picture of the page.

    Attributes:
      name: of its files, `NAME.png` and `NAME.svg`, and of its data.
      title: above it.
      words: below the title: what is drawn, and how it is to be read.
      chart: an Altair chart that reads the data `NAME`.
      values: its data, a mapping for each mark, all with the same fields.
    """

    name: str
    title: str
    words: str
    chart: Any
    values: Values

    def spec(self) -> dict[str, Any]:
        """The picture with its data, as Vega-Lite reads it."""
        spec = self.chart.to_dict()
        # Its address would be the only one in the page.
        del spec["$schema"]
        spec["datasets"] = {self.name: as_csv(self.values)}
        # What a screen reader says of the picture.
        spec["description"] = f"{self.title}. {self.words}"
        return spec | {"config": STYLE}


def is_installed() -> bool:
    """Whether pictures can be drawn here."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def require_installed() -> None:
    """Refuses to draw without the extra.

    Raises:
      SettingsError: with the command that installs it.
    """
    if not is_installed():
        raise SettingsError([f"pictures need Altair and vl-convert: {PIP}"])


def data_of(name: str, *numbers: str) -> Any:
    """The data of a panel, for its chart.

    Args:
      name: of the panel.
      numbers: fields that are numbers although the chart does not measure them.
    """
    import altair as alt

    parse = dict.fromkeys(numbers, "number") or alt.Undefined
    return alt.NamedData(name=name, format=alt.CsvDataFormat(type="csv", parse=parse))


def round_axis() -> Any:
    """The horizontal axis of rounds, from 0 on."""
    import altair as alt

    axis = alt.Axis(tickCount=5, tickMinStep=1, format="d")
    return alt.X("round:Q", title="round", axis=axis, scale=alt.Scale(zero=True))


def each(chart: Any, field: str, names: Sequence[str], columns: int) -> Any:
    """A picture for each value of a field, below its name; one has no name.

    Args:
      chart: of all values.
      field: of the data.
      names: the values of the field, in order.
      columns: pictures side by side.
    """
    import altair as alt

    if len(names) == 1:
        return chart
    parts = [
        chart.transform_filter(alt.datum[field] == name).properties(title=name)
        for name in names
    ]
    return alt.concat(*parts, columns=columns)


def each_line(chart: Any, values: Values, lines: Sequence[Line]) -> Any:
    """A picture for each line that has values, below its name.

    Args:
      chart: of all values.
      values: with the field `line`.
      lines: of the page; a single one is not named.
    """
    names = in_order(values, "line")
    if len(lines) > 1 and len(names) == 1:
        return chart.properties(title=names[0])
    return each(chart, "line", names, columns=3)


def in_order(values: Values, field: str) -> list[Any]:
    """The different values of a field, in the order of the data."""
    return list(dict.fromkeys(value[field] for value in values))


def colour_of(lines: Sequence[Line]) -> Any:
    """A colour for each line, the same in all panels."""
    return colour("line", [line.name for line in lines])


def colour(field: str, names: Sequence[str]) -> Any:
    """A colour for each value of a field, in this order."""
    import altair as alt

    scale = alt.Scale(domain=names, range=[PALETTE[i % 8] for i in range(len(names))])
    return alt.Color(f"{field}:N", scale=scale, legend=_legend(names))


def dash_of(lines: Sequence[Line]) -> Any:
    """A pattern for each line, which differs where colours repeat."""
    return dash("line", [line.name for line in lines])


def dash(field: str, names: Sequence[str]) -> Any:
    """A pattern for each value of a field, which differs where colours repeat."""
    import altair as alt

    dashes = [list(_DASHES[i // 8 % 3]) for i in range(len(names))]
    scale = alt.Scale(domain=names, range=dashes)
    return alt.StrokeDash(f"{field}:N", scale=scale, legend=_legend(names))


def _legend(names: Sequence[str]) -> Any:
    """The legend of colours and patterns, which Vega-Lite merges; None for one line."""
    import altair as alt

    if len(names) == 1:
        return None
    # About 7 pixels a letter, and what the symbol and the gap take.
    columns = max(1, min(6, 900 // (7 * max(map(len, names)) + 45)))
    return alt.Legend(title=None, columns=columns, symbolType="stroke", symbolOpacity=1)


def thinned(items: Sequence[Any], most: int = MOST_POINTS) -> list[Any]:
    """Every n-th item, so that at most about `most` are left, and the last.

    Examples:
      >>> thinned(range(7), most=3)
      [0, 3, 6]
    """
    step = -(-len(items) // most)
    kept = list(items[:: max(1, step)])
    if len(items) and (len(items) - 1) % max(1, step):
        kept.append(items[-1])
    return kept


def as_csv(values: Values) -> str:
    """Values with a head line; numbers have five digits, and no number is empty."""
    stream = io.StringIO()
    if values:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(values[0])
        writer.writerows([_short(x) for x in row.values()] for row in values)
    return stream.getvalue()


def _short(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    return value


STYLE: dict[str, Any] = {
    "background": "white",
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "view": {"stroke": None, "continuousHeight": 220, "continuousWidth": 270},
    "axis": {
        "gridColor": "#e8e8e8",
        "domainColor": "#888",
        "tickColor": "#888",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelColor": "#333",
        "titleColor": "#333",
    },
    "title": {"fontSize": 12, "fontWeight": "normal", "color": "#333"},
    "legend": {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "labelLimit": 320,
        "symbolStrokeWidth": 2.5,
        "orient": "bottom",
        "columns": 3,
        "titleFontWeight": "normal",
    },
    "line": {"strokeWidth": 1.8},
    "concat": {"spacing": 24},
}
"""How all pictures look; Vega-Lite's `config`."""
