"""What pictures of the accuracy against a property of the runs have in common."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fedjax_prune.runs.metrics import HEADLINE
from fedjax_prune.runs.page.panel import colour, dash, data_of
from fedjax_prune.runs.page.read import Line, differences, names
from fedjax_prune.runs.tables import in_fifth

WORDS = (
    "Evaluations in the last fifth of the rounds that all seeds of a line have: means "
    "of seeds, and their range."
)


def others(lines: Sequence[Line], fields: Collection[str]) -> list[str]:
    """What tells each line from the others beside some fields.

    Args:
      lines: of the page.
      fields: dotted names.

    Returns:
      One for each line: the fields that differ, empty if none does; or, if the lines'
      names are given, what the names of lines that are alike in other fields share.
    """
    configs = [
        {name: x for name, x in line.runs[0].config.items() if name not in fields}
        for line in lines
    ]
    found = differences(configs)
    # As text, because some fields are lists.
    keys = [str([values[n] for values in found.values()]) for n in range(len(lines))]
    if all(line.is_given for line in lines):
        alike: dict[str, list[str]] = {}
        for key, line in zip(keys, lines, strict=True):
            alike.setdefault(key, []).append(line.name)
        shared = {key: _shared(names) for key, names in alike.items()}
        if len(set(shared.values())) == len(shared):
            return [shared[key] for key in keys]
    first = dict(zip(reversed(keys), reversed(configs), strict=True))
    if len(first) == 1:
        return [""] * len(lines)
    named = dict(zip(first, names(list(first.values())), strict=True))
    return [named[key] for key in keys]


def _shared(names: Sequence[str]) -> str:
    """The parts of names, between commas, that all of them have."""
    first, *rest = (name.split(", ") for name in names)
    return ", ".join(part for part in first if all(part in other for other in rest))


def spread(line: Line) -> dict[str, float] | None:
    """The accuracies of a line's seeds in percent; None without an evaluation.

    Seeds without one are left out, and the others count up to the last evaluation of
    the shortest.
    """
    evaluated = [[row for row in run.rows if HEADLINE in row] for run in line.runs]
    evaluated = [rows for rows in evaluated if rows]
    if not evaluated:
        return None
    end = min(rows[-1]["round"] for rows in evaluated)
    means = []
    for rows in evaluated:
        last = in_fifth([row for row in rows if row["round"] <= end], 5)
        if last:
            means.append(100 * float(np.mean([row[HEADLINE] for row in last])))
    if not means:
        return None
    return {"mean": float(np.mean(means)), "low": min(means), "high": max(means)}


def chart(name: str, x: Any, tooltip: Any, kinds: Sequence[str]) -> Any:
    """A curve for each kind, with the range of the seeds.

    Args:
      name: of the panel, whose values have `spread`, `line` and `kind`.
      x: the horizontal axis.
      tooltip: of its value.
      kinds: in the order of their colours.
    """
    import altair as alt

    base = alt.Chart(data_of(name, "low", "high")).encode(
        x=x, color=colour("kind", kinds)
    )
    y = alt.Y("mean:Q", title="accuracy (%)", scale=alt.Scale(zero=False))
    curves = base.mark_line(point=alt.OverlayMarkDef(size=40)).encode(
        y=y,
        strokeDash=dash("kind", kinds),
        tooltip=[
            alt.Tooltip("line:N", title="run"),
            tooltip,
            alt.Tooltip("mean:Q", title="accuracy (%)", format=".4~g"),
            alt.Tooltip("low:Q", title="lowest seed", format=".4~g"),
            alt.Tooltip("high:Q", title="highest seed", format=".4~g"),
        ],
    )
    ranges = base.mark_rule(opacity=0.4).encode(y=alt.Y("low:Q"), y2="high:Q")
    return alt.layer(ranges, curves).properties(width=560, height=260)
