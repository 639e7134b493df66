"""Accuracy against the multiplications of an image, for networks of different cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_prune.models.costs import macs_of
from fedjax_prune.runs.learning import make_model, task_of
from fedjax_prune.runs.metrics import HEADLINE
from fedjax_prune.runs.page.panel import Panel, colour, data_of, in_order
from fedjax_prune.runs.page.read import Line, PageRun, differences, names
from fedjax_prune.runs.savings import masks_in
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.tables import in_fifth
from fedjax_prune.runs.workdir import WorkdirError, read_usable_config

_OF_MACS = (
    "model.width",
    "model.flops_target",
    "model.keep_ratio",
    "model.gated",
    "model.gate_mode",
)
"""Fields that say where a run is in the picture."""
LEAST = 3
"""Different numbers of multiplications from which on there is a picture."""


def computing(lines: Sequence[Line]) -> Panel | None:
    """The accuracy in the last fifth of the rounds against the MACs that gates keep.

    Args:
      lines: of the page. Those with masks are left out: these change over the rounds.

    Returns:
      A curve for networks without gates and for each mode of gates, and apart for runs
      that differ in more than that and their MACs; None with less than LEAST different
      numbers of MACs.
    """
    lines = [line for line in lines if not masks_in(line.runs[0].rows)]
    values = [
        value
        for line, rest in zip(lines, _rests(lines), strict=True)
        if (value := _value(line, rest))
    ]
    if len({value["macs"] for value in values}) < LEAST:
        return None
    return Panel(
        name="computing",
        title="Accuracy against multiplications",
        words="Evaluations in the last fifth of the rounds: means of seeds, and their "
        "range. MACs are those of the channels that gates keep.",
        chart=_chart(in_order(values, "kind")),
        values=sorted(values, key=lambda value: value["macs"]),
    )


def _rests(lines: Sequence[Line]) -> list[str]:
    """What tells each line from others beside gates and MACs; empty if nothing does."""
    configs = [
        {name: x for name, x in line.runs[0].config.items() if name not in _OF_MACS}
        for line in lines
    ]
    found = differences(configs)
    # As text, because some fields are lists.
    keys = [str([values[n] for values in found.values()]) for n in range(len(lines))]
    first = dict(zip(reversed(keys), reversed(configs), strict=True))
    if len(first) == 1:
        return [""] * len(lines)
    named = dict(zip(first, names(list(first.values())), strict=True))
    return [f"{named[key]}, " for key in keys]


def _value(line: Line, rest: str) -> dict[str, Any] | None:
    accuracies = [mean for run in line.runs if (mean := _last(run)) is not None]
    if not accuracies:
        return None
    try:
        config = read_usable_config(line.runs[0].folder)
        macs = macs_of(task_of(config, make_model(config)).layers).kept
    except (SettingsError, WorkdirError):
        # The file of a model of the user's own may be gone.
        return None
    if not macs:
        return None
    gates = f"gates, {config.model.gate_mode}" if config.model.gated else "no gates"
    return {
        "line": line.name,
        "kind": f"{rest}{gates}",
        "macs": macs,
        "mean": 100 * float(np.mean(accuracies)),
        "low": 100 * min(accuracies),
        "high": 100 * max(accuracies),
    }


def _last(run: PageRun) -> float | None:
    rows = in_fifth(run.rows, 5)
    return float(np.mean([row[HEADLINE] for row in rows])) if rows else None


def _chart(kinds: Sequence[str]) -> Any:
    import altair as alt

    base = alt.Chart(data_of("computing", "low", "high")).encode(
        x=alt.X("macs:Q", title="MACs an image", axis=alt.Axis(format="~s")),
        color=colour("kind", kinds),
    )
    y = alt.Y("mean:Q", title="accuracy (%)", scale=alt.Scale(zero=False))
    lines = base.mark_line(point=alt.OverlayMarkDef(size=40)).encode(
        y=y,
        tooltip=[
            alt.Tooltip("line:N", title="run"),
            alt.Tooltip("macs:Q", title="MACs", format=","),
            alt.Tooltip("mean:Q", title="accuracy (%)", format=".4~g"),
            alt.Tooltip("low:Q", title="lowest seed", format=".4~g"),
            alt.Tooltip("high:Q", title="highest seed", format=".4~g"),
        ],
    )
    ranges = base.mark_rule(opacity=0.4).encode(y=alt.Y("low:Q"), y2="high:Q")
    return alt.layer(ranges, lines).properties(width=560, height=260)
