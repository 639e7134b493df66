"""Accuracy against the number of clients, for sweeps over it."""

from collections.abc import Sequence
from typing import Any

from fedjax_prune.runs.page import against
from fedjax_prune.runs.page.panel import Panel, in_order
from fedjax_prune.runs.page.read import Line, names

_NUMBER = "data.num_clients"
_FOLLOWING = (_NUMBER, "cohort_size", "rounds", "eval.every", "eval.num_clients")
"""Fields that may be chosen for each number of clients."""


def population(lines: Sequence[Line]) -> Panel | None:
    """The accuracy in the last fifth of the rounds against the number of clients.

    Returns:
      A curve for runs that differ only in the number of clients and, if each number has
      one of them, in the cohort's size, the rounds and the evaluations; None if all
      have as many clients.
    """
    numbers = [line.runs[0].config[_NUMBER] for line in lines]
    if len(set(numbers)) < 2:
        return None
    kinds = against.others(lines, _FOLLOWING)
    if len(set(zip(kinds, numbers, strict=True))) < len(lines):
        kinds = against.others(lines, (_NUMBER,))
    values = [
        {"line": line.name, "kind": kind, "clients": number} | spread
        for line, kind, number in zip(lines, kinds, numbers, strict=True)
        if (spread := against.spread(line))
    ]
    if len({value["clients"] for value in values}) < 2:
        return None
    (method, *_) = names([lines[0].runs[0].config])
    values = [value | {"kind": value["kind"] or method} for value in values]
    return Panel(
        name="population",
        title="Accuracy against the number of clients",
        words=against.WORDS,
        chart=_chart(in_order(values, "kind")),
        values=sorted(values, key=lambda value: value["clients"]),
    )


def _chart(kinds: Sequence[str]) -> Any:
    import altair as alt

    axis = alt.Axis(tickCount=6, tickMinStep=1, format="d")
    x = alt.X("clients:Q", title="clients", axis=axis, scale=alt.Scale(zero=False))
    tooltip = alt.Tooltip("clients:Q", title="clients")
    return against.chart("population", x, tooltip, kinds)
