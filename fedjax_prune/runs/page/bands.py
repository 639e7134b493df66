"""Means of seeds as lines, and their range as bands."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.runs.metrics import bytes_sent
from fedjax_prune.runs.page.panel import colour_of, dash_of, round_axis, thinned
from fedjax_prune.runs.page.read import Line, PageRun

Measure = Callable[[Mapping[str, Any]], float | None]
"""A row of metrics.jsonl -> a number, or None if the row does not have it."""


class Spent(NamedTuple):
    """What a run has spent up to the end of a round, the preparation included.

    Attributes:
      sent: MB (10^6 bytes), both directions.
      computed: TFLOP (10^12) of the clients' training, without the channels that masks
        remove or gates drop.
    """

    sent: float
    computed: float


def spent(run: PageRun) -> dict[int, Spent]:
    """Round -> what was spent up to its end."""
    found, sent, computed = {}, 0.0, 0.0
    for row in run.rows:
        sent += bytes_sent(row) / 1e6
        left = row.get("flops/realisable", row["flops/dense"])
        computed += row.get("flops/kept", left) / 1e12
        found[row["round"]] = Spent(sent, computed)
    return found


def is_of_one(row: Mapping[str, Any], name: str) -> bool:
    """Whether a field is a statistic of clients, of whom only one was evaluated.

    It says nothing about the others.
    """
    return name.endswith(("/mean", "/min")) and row.get("eval/clients") == 1


def of_more(lines: Sequence[Line]) -> str:
    """Words where the last evaluation of a finished run is of more clients."""
    for line in lines:
        for run in line.runs:
            *before, last = [row for row in run.rounds if "eval/clients" in row] or [{}]
            most = max((row["eval/clients"] for row in before), default=math.inf)
            config = run.config
            is_end = last.get("round") == config["rounds"]
            # Of a whole cohort some nodes of Flower may not have answered.
            is_part = config["cohort_size"] < config["data.num_clients"]
            if is_end and is_part and last["eval/clients"] > most:
                return (
                    "While a run goes on, clients of the round's cohort are evaluated; "
                    "the last evaluation is of more, of all unless eval.num_clients is "
                    "less. "
                )
    return ""


def points(line: Line, measure: Measure) -> list[dict[str, Any]]:
    """A number of each round, over the seeds that have it.

    Returns:
      `line`, `round`, and `mean`, `low` and `high` of the number; the last two are None
      in rounds that one seed has. Not more than about MOST_POINTS.
    """
    measured: dict[int, list[float]] = {}
    for run in line.runs:
        for row in run.rounds:
            value = measure(row)
            if value is not None:
                measured.setdefault(row["round"], []).append(value)
    found = []
    for number in thinned(sorted(measured)):
        values = measured[number]
        several = len(values) > 1
        found.append(
            {
                "line": line.name,
                "round": number,
                "mean": float(np.mean(values)),
                "low": min(values) if several else None,
                "high": max(values) if several else None,
            }
        )
    return found


def with_costs(line: Line, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points with `sent` and `computed`: `Spent`, means of the seeds so far."""
    costs = [spent(run) for run in line.runs]
    return [
        point
        | Spent(
            *np.mean([c[point["round"]] for c in costs if point["round"] in c], axis=0)
        )._asdict()
        for point in found
    ]


def field(name: str, scale: float = 1) -> Measure:
    """A field of rows, times `scale`; NaN is not a number that a row has."""

    def measure(row: Mapping[str, Any]) -> float | None:
        value = row.get(name, math.nan)
        return None if math.isnan(value) else scale * value

    return measure


def banded(lines: Sequence[Line]) -> str:
    """What bands mean; nothing if no line has several seeds."""
    if all(len(line.runs) == 1 for line in lines):
        return ""
    words = "Lines are means of seeds; bands reach from the lowest to the highest. "
    uneven = [
        line.name
        for line in lines
        if len({run.rows[-1]["round"] for run in line.runs}) > 1
    ]
    if uneven:
        words += f"Not all seeds go to the end of {' and '.join(uneven)}. "
    return words


def band_chart(
    data: Any,
    lines: Sequence[Line],
    x: tuple[str, str],
    y: str,
    *,
    scale: Mapping[str, Any] | None = None,
    marks: bool = False,
) -> Any:
    """A line for each configuration, with a band where it has several seeds.

    Args:
      data: with the fields of `points`, of which `low` and `high` are named as numbers.
      lines: of the page.
      x: field and title.
      y: title of `mean`.
      scale: options of the vertical axis; none begins where the numbers do.
      marks: whether each point has a mark.
    """
    import altair as alt

    across = round_axis()
    if x[0] != "round":
        axis, from_zero = alt.Axis(tickCount=5), alt.Scale(zero=True)
        across = alt.X(f"{x[0]}:Q", title=x[1], axis=axis, scale=from_zero)
    up = alt.Scale(**(scale or {"zero": False}))
    base = alt.Chart(data).encode(x=across, color=colour_of(lines))
    line = base.mark_line(point=alt.OverlayMarkDef(size=22) if marks else False).encode(
        y=alt.Y("mean:Q", title=y, scale=up),
        strokeDash=dash_of(lines),
        tooltip=[
            alt.Tooltip("line:N", title="run"),
            alt.Tooltip("round:Q"),
            alt.Tooltip("mean:Q", title=y, format=".4~g"),
            alt.Tooltip("low:Q", title="lowest seed", format=".4~g"),
            alt.Tooltip("high:Q", title="highest seed", format=".4~g"),
        ],
    )
    if all(len(line.runs) == 1 for line in lines):
        return alt.layer(line)
    # Without the filter, rounds of a single seed would be drawn at 0.
    several = base.transform_filter("isValid(datum.low)")
    band = several.mark_area(opacity=0.18).encode(
        y=alt.Y("low:Q", title=y, scale=up), y2="high:Q"
    )
    return alt.layer(band, line)


def few(values: Sequence[Mapping[str, Any]]) -> bool:
    """Whether lines have so few points that each is marked."""
    return len({value["round"] for value in values}) <= 20
