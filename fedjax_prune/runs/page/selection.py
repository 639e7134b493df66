"""Which channels gates select: by client and by class, how evenly, and never."""

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.runs.metrics import entropy
from fedjax_prune.runs.page.panel import (
    Panel,
    colour_of,
    data_of,
    each,
    each_line,
    in_order,
    thinned,
)
from fedjax_prune.runs.page.read import Line
from fedjax_prune.runs.record import CLASS_CLIENTS, CLASS_EXAMPLES, Record

MOST_LINES = 3
"""Lines whose channels are drawn one by one."""
MOST_LAYERS = 9
"""Layers of a line that are drawn: the first, the last, and some between."""
MOST_ROWS = 40
"""Clients or classes that are drawn: the first ones."""
WIDTH = 270
"""Of a layer's picture, in pixels."""
_NEVER = (240, 190, 165)
"""Red, green and blue of a channel that is never selected."""
_ALWAYS = (8, 48, 107)
_LEVELS = 15
_UNKNOWN = (190, 190, 190)
"""Of a class without examples."""
_KEY = "dark: kept by every example; pale: by few; reddish: by none"
_KEY_OF_CLASSES = f"{_KEY}; grey: a class without test examples"
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Channels from one number below a picture to the next."""
_LABEL = 11
"""Height of a row's label, in pixels."""


class Rows(NamedTuple):
    """Shares of clients or classes, and what they are called.

    Attributes:
      names: of the rows.
      shares: layer -> [rows, channels] in [0, 1].
    """

    names: Sequence[str]
    shares: Mapping[str, np.ndarray]


def gated_records(lines: Sequence[Line]) -> dict[str, Record]:
    """Line -> the newest record of its first seed with gates of clients who trained."""
    found = {}
    for line in lines:
        records = [
            r for r in line.runs[0].records if r.selected and (r.examples > 0).any()
        ]
        if records:
            found[line.name] = records[-1]
    return found


def evenness(lines: Sequence[Line]) -> Panel | None:
    """Used channels and entropy by client and layer; None without gates."""
    import altair as alt

    values, found = [], gated_records(lines)
    for name, record in list(found.items())[:MOST_LINES]:
        present = np.flatnonzero(record.examples > 0)[:MOST_ROWS]
        for layer, shares in record.selected.items():
            selected = np.asarray(shares[present], np.float64)
            measured = {
                "channels used at all": (selected > 0).mean(axis=1),
                "entropy, 100 % = all equally often": entropy(selected),
            }
            values += [
                {
                    "of": f"{name}: {what}" if len(lines) > 1 else what,
                    "layer": layer,
                    "client": int(client),
                    "share": 100 * float(share),
                }
                for what, shares in measured.items()
                for client, share in zip(record.clients[present], shares, strict=True)
            ]
    if not values:
        return None
    num_layers = len({x["layer"] for x in values})
    size = {"width": 360, "height": max(60, min(480, 20 * num_layers))}
    chart = (
        alt.Chart(data_of("evenness", "client"))
        .mark_rect()
        .encode(
            x=alt.X(
                "client:O",
                title="client",
                axis=alt.Axis(labelAngle=0, labelOverlap=True),
            ),
            y=alt.Y("layer:N", title=None, sort=in_order(values, "layer")),
            color=alt.Color(
                "share:Q",
                title="%",
                scale=alt.Scale(scheme="viridis", domain=[0, 100]),
                legend=alt.Legend(gradientLength=240),
            ),
            tooltip=[
                alt.Tooltip("client:O"),
                alt.Tooltip("layer:N"),
                alt.Tooltip("share:Q", title="%", format=".1f"),
            ],
        )
        .properties(**size)
    )
    return Panel(
        name="evenness",
        title="How evenly clients select channels",
        words="Of the newest recorded cohort of each run's first seed (at most "
        f"{MOST_LINES} runs, {MOST_ROWS} clients).",
        chart=each(chart, "of", in_order(values, "of"), columns=2),
        values=values,
    )


def of_clients(lines: Sequence[Line]) -> Panel | None:
    """How often each client's data select each channel; None without gates."""
    found = {}
    for name, record in gated_records(lines).items():
        present = record.examples > 0
        shares = {layer: x[present] for layer, x in record.selected.items()}
        found[name] = Rows(list(map(str, record.clients[present])), shares)
    return _grid(
        "by_client",
        "Channels that clients select",
        "A row is a client of the newest recorded cohort, in the order of ids",
        found,
        title_of_rows="client",
        key=_KEY,
        named=len(lines) > 1,
    )


def of_classes(lines: Sequence[Line]) -> Panel | None:
    """How often the examples of each class select each channel; None if unknown."""
    found = {}
    for line in lines:
        record = gated_records(lines).get(line.name)
        if record is None or not record.classes:
            continue
        found[line.name] = Rows(line.runs[0].classes, record.classes)
    return _grid(
        "by_class",
        "Channels that classes select",
        f"A row is a class: its first {CLASS_EXAMPLES} test examples with the gates of "
        f"the first {CLASS_CLIENTS} clients of the newest recorded cohort (mean)",
        found,
        title_of_rows="class",
        key=_KEY_OF_CLASSES,
        named=len(lines) > 1,
    )


def never(lines: Sequence[Line]) -> Panel | None:
    """Channels that no client has selected, by layer; None without gates."""
    import altair as alt

    values = [
        {
            "line": name,
            "layer": layer,
            "never": 100 * float((shares[record.examples > 0] == 0).all(0).mean()),
        }
        for name, record in gated_records(lines).items()
        for layer, shares in record.selected.items()
    ]
    if not values:
        return None
    chart = (
        alt.Chart(data_of("never"))
        .mark_bar()
        .encode(
            x=alt.X(
                "never:Q",
                title="channels never selected (%)",
                scale=alt.Scale(domain=[0, 100]),
            ),
            y=alt.Y("layer:N", title=None, sort=in_order(values, "layer")),
            color=colour_of(lines).legend(None),
            tooltip=["line:N", "layer:N", alt.Tooltip("never:Q", format=".1f")],
        )
        .properties(width=250, height=alt.Step(16))
    )
    return Panel(
        name="never",
        title="Channels never selected",
        words="By no training example of any client of the newest recorded cohort; the "
        "first seed of each run.",
        chart=each_line(chart, values, lines),
        values=values,
    )


def picture_of(shares: np.ndarray) -> str:
    """Shares as a PNG picture, in an address that loads nothing.

    Args:
      shares: [rows, channels] in [0, 1]; NaN is grey. 0 has a colour of its own.

    Returns:
      `data:image/png;base64,...`, each share at least 2 pixels wide and 6 high.
    """
    from PIL import Image

    ramp = np.linspace(1, 0, _LEVELS)[:, None]
    blues = 255 * ramp + np.array(_ALWAYS)[None] * (1 - ramp)
    palette = np.concatenate([[_NEVER], blues, [_UNKNOWN]]).astype(np.uint8)
    level = np.ceil(np.nan_to_num(shares.astype(np.float64)) * _LEVELS)
    level = np.where(np.isnan(shares), _LEVELS + 1, level).astype(np.uint8)
    wide = max(2, -(-2 * WIDTH // level.shape[1]))
    picture = Image.fromarray(level.repeat(6, axis=0).repeat(wide, axis=1), "P")
    picture.putpalette(palette.tobytes())
    stream = BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _grid(
    name: str,
    title: str,
    words: str,
    found: Mapping[str, Rows],
    *,
    title_of_rows: str,
    key: str,
    named: bool,
) -> Panel | None:
    """A picture for each layer of each line; None without lines.

    Args:
      name: of the panel.
      title: of the panel.
      words: what a row is.
      found: line -> its rows.
      title_of_rows: what a row is, in a word.
      key: what the colours mean.
      named: whether a line is named.
    """
    import altair as alt

    values, grids = [], []
    for line, rows in list(found.items())[:MOST_LINES]:
        parts = []
        for layer in thinned(list(rows.shares), MOST_LAYERS - 1):
            shares = rows.shares[layer][:MOST_ROWS]
            of = f"{line}/{layer}"
            values.append({"of": of, "x": 0, "y": 0, "url": picture_of(shares)})
            image = _image(name, of, shares.shape, rows.names, title_of_rows)
            parts.append(
                image.properties(title=alt.Title(layer, fontSize=11, anchor="start"))
            )
        grid = alt.concat(*parts, columns=3, spacing=14)
        if named:
            grid = grid.properties(title=line)
        grids.append(grid)
    if not grids:
        return None
    return Panel(
        name=name,
        title=title,
        words=f"{words}; a column is a channel. The darker, the larger the share of "
        "examples that keep it; reddish channels are never kept. The first seed, at "
        f"most {MOST_LINES} runs, {MOST_LAYERS} layers and {MOST_ROWS} rows.",
        # The PNG stands alone, without these words.
        chart=alt.vconcat(*grids, title=alt.Title(key, anchor="start")),
        values=values,
    )


def _centred(num_channels: int) -> Any:
    """An axis with the numbers of about eight channels below their middles."""
    import altair as alt

    step = next((s for s in _STEPS if num_channels <= 8 * s), num_channels)
    return alt.Axis(
        grid=False,
        values=[channel + 0.5 for channel in range(0, num_channels, step)],
        labelExpr="floor(datum.value)",
    )


def _image(
    name: str, of: str, shape: tuple[int, ...], names: Sequence[str], title: str
) -> Any:
    import altair as alt

    height = max(60, min(220, _LABEL * shape[0]))
    x, y = alt.Scale(domain=[0, shape[1]], nice=False), [shape[0], 0]
    every = -(-_LABEL * shape[0] // height)
    labels = alt.Axis(
        grid=False,
        ticks=False,
        labelLimit=70,
        values=[row + 0.5 for row in range(0, shape[0], every)],
        labelExpr=f"{json.dumps(names[: shape[0]])}[floor(datum.value)]",
    )
    return (
        alt.Chart(data_of(name))
        .transform_filter(alt.datum.of == of)
        .mark_image(
            width=WIDTH, height=height, align="left", baseline="top", aspect=False
        )
        .encode(
            x=alt.X("x:Q", title="channel", scale=x, axis=_centred(shape[1])),
            y=alt.Y(
                "y:Q",
                title=title,
                scale=alt.Scale(domain=y, nice=False),
                axis=labels,
            ),
            url="url:N",
        )
        .properties(width=WIDTH, height=height)
    )
