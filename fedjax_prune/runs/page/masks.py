"""What masks leave: density of layers, churn, channels; MACs and bytes."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_prune.pruning.masks import KERNELS
from fedjax_prune.runs.metrics import bytes_sent
from fedjax_prune.runs.page.panel import (
    Panel,
    colour_of,
    dash_of,
    data_of,
    each,
    each_line,
    in_order,
    round_axis,
    thinned,
)
from fedjax_prune.runs.page.read import Line
from fedjax_prune.runs.record import Record

MOST_POINTS = 25
"""Rounds of a layer that are drawn."""
_SPARSITY, _CHANNELS = "sparsity/", "channels/"
_SAVINGS = {
    "theoretical": "MACs of an image, if sparse kernels were free",
    "realisable": "MACs of an image, on dense hardware",
    "bytes": "bytes of a round",
}


_SIZE = {"width": 270, "height": 180}
"""Of a picture of one line, in pixels."""


def density(lines: Sequence[Line]) -> Panel | None:
    """Share of each layer's weights that masks keep, over rounds; None without."""
    import altair as alt

    values = []
    for line in lines:
        rows = thinned(
            [r for r in line.runs[0].rounds if "sparsity/all" in r], MOST_POINTS
        )
        values += [
            {
                "line": line.name,
                "layer": name.removeprefix(_SPARSITY).removesuffix("/kernel"),
                "round": row["round"],
                "density": 100 * (1 - row[name]),
            }
            for row in rows
            for name in row
            if name.startswith(_SPARSITY) and _may_be_pruned(name)
        ]
    if not values:
        return None
    chart = (
        alt.Chart(data_of("density"))
        .mark_line()
        .encode(
            x=round_axis(),
            y=alt.Y(
                "density:Q", title="kept weights (%)", scale=alt.Scale(domain=[0, 100])
            ),
            color=_by_depth("layer", values),
            tooltip=["layer:N", "round:Q", alt.Tooltip("density:Q", format=".1f")],
        )
    )
    return Panel(
        name="density",
        title="Mask density of each layer",
        words="Share of a layer's weights that the masks of a round keep; the first "
        "seed of each run. Layers go from dark (first) to bright (last).",
        chart=each_line(chart.properties(**_SIZE), values, lines),
        values=values,
    )


def channels(lines: Sequence[Line]) -> Panel | None:
    """Channels and hidden units that masks leave, over rounds; None without."""
    import altair as alt

    values = []
    for line in lines:
        rows = thinned(line.runs[0].rounds, MOST_POINTS)
        values += [
            {
                "line": line.name,
                "group": name.removeprefix(_CHANNELS),
                "round": row["round"],
                "channels": row[name],
            }
            for row in rows
            for name in row
            if name.startswith(_CHANNELS)
        ]
    if not values:
        return None
    chart = (
        alt.Chart(data_of("channels_left"))
        .mark_line(interpolate="step-after")
        .encode(
            x=round_axis(),
            y=alt.Y("channels:Q", title="channels left", scale=alt.Scale(zero=True)),
            color=_by_depth("group", values),
            tooltip=["group:N", "round:Q", "channels:Q"],
        )
    )
    return Panel(
        name="channels_left",
        title="Channels left",
        words="Channels and hidden units that masks do not remove; the first seed of "
        "each run. Groups go from dark (first) to bright (last).",
        chart=each_line(chart.properties(**_SIZE), values, lines),
        values=values,
    )


def churn(lines: Sequence[Line]) -> Panel | None:
    """Share of mask entries that changed since an earlier round; None without."""
    import altair as alt

    values = [
        {
            "line": line.name,
            "round": record.round,
            "since": record.churn_since,
            "churn": 100 * float(np.mean(shares)),
        }
        for line in lines
        for record in _with_churn(line)
        if (shares := [x for name, x in record.churn.items() if _may_be_pruned(name)])
    ]
    if not values:
        return None
    # Masks that never change would have an axis without a length.
    is_still = all(value["churn"] == 0 for value in values)
    scale = alt.Scale(domain=[0, 1]) if is_still else alt.Scale(zero=True)
    chart = (
        alt.Chart(data_of("churn"))
        .mark_line(point=alt.OverlayMarkDef(size=22))
        .encode(
            x=round_axis(),
            y=alt.Y("churn:Q", title="changed mask entries (%)", scale=scale),
            color=colour_of(lines),
            strokeDash=dash_of(lines),
            tooltip=[
                alt.Tooltip("line:N", title="run"),
                "round:Q",
                alt.Tooltip("since:Q", title="compared with round"),
                alt.Tooltip("churn:Q", title="changed (%)", format=".3~g"),
            ],
        )
    )
    return Panel(
        name="churn",
        title="Mask churn",
        words="Share of the mask entries of a kernel or an embedding that differ from "
        "those of the record before, mean of these arrays; the first seed of each run."
        f"{_resumed(lines)}",
        chart=chart.properties(width=560),
        values=values,
    )


def savings(lines: Sequence[Line]) -> Panel | None:
    """MACs and bytes of rounds as shares of those without masks; None without."""
    import altair as alt

    values: list[dict[str, Any]] = []
    for line in lines:
        rows = [row for row in line.runs[0].rounds if "macs/realisable" in row]
        for row in thinned(rows, 2 * MOST_POINTS):
            shares = {
                "theoretical": row["macs/theoretical"],
                "realisable": row["macs/realisable"],
                "bytes": bytes_sent(row) / row["bytes/dense"],
            }
            values += [
                {
                    "line": line.name,
                    "what": _SAVINGS[name],
                    "round": row["round"],
                    "share": 100 * share,
                }
                for name, share in shares.items()
            ]
    if not values:
        return None
    chart = (
        alt.Chart(data_of("savings"))
        .mark_line()
        .encode(
            x=round_axis(),
            y=alt.Y(
                "share:Q",
                title="of the unpruned (%)",
                scale=alt.Scale(domainMin=0, nice=True),
            ),
            color=colour_of(lines),
            strokeDash=dash_of(lines),
            tooltip=["line:N", "round:Q", alt.Tooltip("share:Q", format=".1f")],
        )
        .properties(**_SIZE)
    )
    return Panel(
        name="savings",
        title="MACs and bytes under masks",
        words="As shares of the same round without masks; the first seed of each run.",
        chart=each(chart, "what", list(_SAVINGS.values()), columns=3),
        values=values,
    )


def _may_be_pruned(name: str) -> bool:
    """Whether a path ends like those of arrays that masks prune in all methods."""
    return name.rpartition("/")[2] in KERNELS


def _resumed(lines: Sequence[Line]) -> str:
    """Names the records that a resumed run compares with where it went on."""
    found = [
        f"round {record.round} with round {record.churn_since}"
        + f" ({line.name})" * (len(lines) > 1)
        for line in lines
        for before, record in itertools.pairwise(_with_churn(line))
        if record.churn_since != before.round
    ]
    if not found:
        return ""
    return f" A resumed run compares with where it went on: {', '.join(found)}."


def _with_churn(line: Line) -> list[Record]:
    return [record for record in line.runs[0].records if record.churn]


def _by_depth(field: str, values: Sequence[dict[str, Any]]) -> Any:
    """Colours from dark to bright in the order in which rows name the layers."""
    import altair as alt

    names = in_order(values, field)
    return alt.Color(
        f"{field}:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names, scheme="viridis"),
        legend=alt.Legend(columns=6),
    )
