"""Where the time of runs goes, and how well lanes are used."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_prune.runs.page.bands import band_chart, banded, points
from fedjax_prune.runs.page.panel import Panel, data_of
from fedjax_prune.runs.page.read import Line, PageRun

PARTS = {
    "compile": "#cc79a7",
    "train": "#0072b2",
    "evaluate": "#e69f00",
    "save": "#7f7f7f",
}
"""Part of the time -> its colour."""


def split(run: PageRun) -> dict[str, float]:
    """Seconds of PARTS in all rounds and the preparation."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for row in run.rows:
        evaluating = row.get("seconds/evaluate", 0.0)
        saving = row.get("seconds/save", 0.0)
        seconds["compile"] += row.get("seconds/compile", 0.0)
        seconds["evaluate"] += evaluating
        seconds["save"] += saving
        seconds["train"] += row["seconds"] - evaluating - saving
    return seconds


def time(lines: Sequence[Line]) -> Panel:
    """Seconds to compile, train, evaluate and save, as one bar a line."""
    import altair as alt

    values: list[dict[str, Any]] = []
    for line in lines:
        parts = [split(run) for run in line.runs]
        values += [
            {
                "line": line.name,
                "part": name,
                "seconds": float(np.mean([part[name] for part in parts])),
                "place": place,
            }
            for place, name in enumerate(PARTS)
        ]
    colours = alt.Scale(domain=list(PARTS), range=list(PARTS.values()))
    chart = (
        alt.Chart(data_of("time"))
        .mark_bar()
        .encode(
            x=alt.X("seconds:Q", title="seconds of a run"),
            y=alt.Y(
                "line:N",
                title=None,
                sort=[line.name for line in lines],
                axis=alt.Axis(labelLimit=0),
            ),
            color=alt.Color(
                "part:N", title=None, scale=colours, legend=alt.Legend(columns=4)
            ),
            order="place:Q",
            tooltip=["line:N", "part:N", alt.Tooltip("seconds:Q", format=",.1f")],
        )
        .properties(width=560, height=alt.Step(24))
    )
    return Panel(
        name="time",
        title="Time",
        words="Means of seeds. Evaluating is the time from the end of a round to that "
        "of its evaluation; saving is how long the next round waited for a checkpoint.",
        chart=chart,
        values=values,
    )


def lanes(lines: Sequence[Line]) -> Panel | None:
    """Use of the lanes and seconds of rounds; None if no step was counted."""
    import altair as alt

    measures = {"use": _use, "seconds": _seconds}
    values = [
        {"what": what, **point}
        for line in lines
        for what, measure in measures.items()
        for point in points(line, measure)
    ]
    if not values:
        return None
    axes = {
        "use": ("lane-steps with examples (%)", {"domain": [0, 100]}),
        "seconds": ("seconds a round", {"zero": True}),
    }
    parts = [
        band_chart(
            data_of("lanes", "low", "high"),
            lines,
            ("round", "round"),
            title,
            scale=scale,
        )
        .transform_filter(alt.datum.what == what)
        .properties(width=400, height=180)
        for what, (title, scale) in axes.items()
    ]
    return Panel(
        name="lanes",
        title="Use of the lanes, and seconds a round",
        words=f"{banded(lines)}Lanes that wait for the longest one run steps without "
        "examples. Seconds of a round contain its evaluation and no compiling.",
        chart=alt.hconcat(*parts),
        values=values,
    )


def _use(row: Mapping[str, Any]) -> float | None:
    executed = row.get("steps/executed")
    return 100 * row["steps/real"] / executed if executed else None


def _seconds(row: Mapping[str, Any]) -> float | None:
    return row["seconds"]
