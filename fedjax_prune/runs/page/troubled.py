"""Clients that diverged, were dropped or attacked: how often, and their losses."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.runs.page.panel import (
    MOST_POINTS,
    PALETTE,
    Panel,
    data_of,
    in_order,
    round_axis,
    thinned,
)
from fedjax_prune.runs.page.read import Line, PageRun
from fedjax_prune.runs.record import MOST_TROUBLED

FLAGS = {
    "clients/dropped": "loss, update or gates not finite",
    "clients/clipped": "message clipped",
    "clients/absent": "did not report",
    "clients/slow": "made fewer steps",
    "clients/hostile": "attacked",
}
"""Field of a row with ids of clients -> what was wrong with them."""
MOST_CLIENTS = 8
"""Clients of a line who are named and followed: those with the most such rounds.

At most as many as there are colours.
"""
MOST_LINES = 6
"""Lines whose losses are drawn."""
_MEDIAN = "median client"


class Trouble(NamedTuple):
    """A client with which something was wrong.

    Attributes:
      line: name of its line.
      client: id.
      words: what was wrong, and in how many rounds.
      last: its loss in the last recorded round in which it was finite; None if there
        is none.
    """

    line: str
    client: int
    words: str
    last: float | None


def troubled(lines: Sequence[Line]) -> list[Trouble]:
    """The clients of each line's first seed with which something was wrong."""
    found = []
    for line in lines:
        run = line.runs[0]
        counts = _counts(run)
        for client in _most(counts):
            words = [f"{FLAGS[f]} in {_rounds(n)}" for f, n in counts[client].items()]
            finite = [x for _, x in _losses(run, client) if x is not None]
            last = finite[-1] if finite else None
            found.append(Trouble(line.name, client, "; ".join(words), last))
    return found


def losses(lines: Sequence[Line]) -> Panel | None:
    """Losses of these clients beside all others'; None without such clients."""
    import altair as alt

    values: list[dict[str, Any]] = []
    for line in lines:
        run = line.runs[0]
        clients = _most(_counts(run))
        if not clients or len({x["line"] for x in values}) == MOST_LINES:
            continue
        curves = {f"client {client}": _drawn(run, client) for client in clients}
        if not any(curves.values()):
            continue
        curves[_MEDIAN] = thinned(_medians(run))
        lost = [
            of for of, points in curves.items() if any(x is None for _, x in points)
        ]
        values += [
            {
                "line": line.name,
                "of": of,
                "round": n,
                "loss": loss,
                "row": lost.index(of) if loss is None else None,
            }
            for of, points in curves.items()
            for n, loss in points
        ]
    if not values:
        return None
    names = in_order(values, "line")
    charts = [_chart([x for x in values if x["line"] == name]) for name in names]
    if len(lines) > 1:
        charts = [c.properties(title=n) for c, n in zip(charts, names, strict=True)]
    # Each picture has its own clients, so it has its own legend.
    chart = alt.concat(*charts, columns=2).resolve_scale(color="independent")
    return Panel(
        name="troubled",
        title="Losses of clients that diverged, were dropped or attacked",
        words="A dot is a recorded round in which the client took part; a cross above "
        "the picture is one in which its loss was not finite. Rounds in which a client "
        "diverged, was clipped or attacked are recorded beside those of report.every "
        f"(the first {MOST_TROUBLED} of a run). Of more than {MOST_POINTS} rounds of a "
        f"client not all are drawn, and of more than {MOST_LINES} runs with such "
        "clients the first ones. The scale is logarithmic above 1.",
        chart=chart,
        values=values,
    )


def _chart(values: Sequence[dict[str, Any]]) -> Any:
    """Finite losses of a line's clients, and a row of crosses above for each of them.

    Args:
      values: of one line.
    """
    import altair as alt

    names = [of for of in in_order(values, "of") if of != _MEDIAN]
    names.sort(key=lambda name: int(name.split()[1]))
    colours = alt.Color(
        "of:N",
        title=None,
        scale=alt.Scale(
            domain=[_MEDIAN, *names], range=["black", *PALETTE[: len(names)]]
        ),
        legend=alt.Legend(columns=5),
    )
    data = data_of("troubled", "loss", "row")
    # Vega complains of an axis for which it finds no rounds, as without crosses.
    across = round_axis().scale(domain=[0, max(value["round"] for value in values)])
    base = (
        alt.Chart(data)
        .transform_filter(alt.datum.line == values[0]["line"])
        .encode(x=across, color=colours)
    )
    finite = (
        base.transform_filter("isValid(datum.loss)")
        .mark_line(point=alt.OverlayMarkDef(size=30))
        .encode(
            y=alt.Y("loss:Q", title="training loss", scale=alt.Scale(type="symlog")),
            tooltip=["of:N", "round:Q", alt.Tooltip("loss:Q", format=".4~g")],
        )
    )
    lost = (
        base.transform_filter("!isValid(datum.loss)")
        .mark_point(shape="cross", angle=45, size=50, filled=True, opacity=1)
        .encode(
            y=alt.Y(
                "row:Q",
                # Pixels above the upper edge.
                scale=alt.Scale(domain=[0, 1], range=[-9, -18], zero=False),
                axis=None,
            ),
            tooltip=["of:N", "round:Q"],
        )
    )
    layers = alt.layer(finite, lost).resolve_scale(y="independent")
    return layers.properties(width=400, height=200)


def _counts(run: PageRun) -> dict[int, Counter[str]]:
    """Client -> field -> in how many rounds it was named there."""
    found: dict[int, Counter[str]] = {}
    for row in run.rounds:
        for field in FLAGS:
            for client in str(row.get(field, "")).split():
                found.setdefault(int(client), Counter())[field] += 1
    return found


def _most(counts: dict[int, Counter[str]]) -> list[int]:
    by_rounds = sorted(counts, key=lambda client: (-counts[client].total(), client))
    return by_rounds[:MOST_CLIENTS]


def _rounds(count: int) -> str:
    return f"{count} round" if count == 1 else f"{count} rounds"


def _losses(run: PageRun, client: int) -> list[tuple[int, float | None]]:
    """Recorded rounds of a client with its losses; None for one that is not finite.

    A round in which it made no step has no loss.
    """
    found = []
    for record in run.records:
        trained = (record.clients == client) & (record.examples > 0)
        for loss in record.loss[trained].tolist():
            found.append((record.round, loss if math.isfinite(loss) else None))
    return found


def _drawn(run: PageRun, client: int) -> list[tuple[int, float | None]]:
    """Not too many of `_losses`; the lost ones are thinned by themselves."""
    found = _losses(run, client)
    finite = [point for point in found if point[1] is not None]
    lost = [point for point in found if point[1] is None]
    return thinned(finite) + thinned(lost)


def _medians(run: PageRun) -> list[tuple[int, float]]:
    found = []
    for record in run.records:
        finite = record.loss[np.isfinite(record.loss) & (record.examples > 0)]
        if finite.size:
            found.append((record.round, float(np.median(finite))))
    return found
