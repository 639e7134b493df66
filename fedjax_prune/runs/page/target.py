"""What runs spend until they reach an accuracy (FedDP, figure 4)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_prune.runs.metrics import HEADLINE
from fedjax_prune.runs.page.bands import spent
from fedjax_prune.runs.page.panel import Panel, colour_of, data_of
from fedjax_prune.runs.page.read import Line, PageRun
from fedjax_prune.runs.targets import ROUNDING, rounds_to_target

_NUMBER = ",.3~r"
"""How numbers are written: three digits, without an exponent."""
COSTS = ("rounds", "MB sent, both directions", "TFLOP of kept channels")


def target(lines: Sequence[Line], wanted: float = 0.0) -> Panel | None:
    """Rounds, MB and TFLOP to a target as bars; None if nothing was evaluated.

    Args:
      lines: of the page.
      wanted: accuracy in (0, 1]; 0 takes `eval.target_accuracy` of the first run or, if
        no run reaches that, the accuracy that every line reaches that was evaluated.
    """
    wanted, note = _chosen(lines, wanted)
    if not wanted:
        return None
    values: list[dict[str, Any]] = []
    for line in lines:
        costs = [cost for run in line.runs if (cost := _costs(run, wanted))]
        if len(costs) < len(line.runs):
            note += f"{line.name}: {len(costs)} of {len(line.runs)} runs reach it. "
        for name, each in zip(COSTS, np.array(costs).T, strict=False):
            values.append({"line": line.name, "cost": name, "value": each.mean()})
    return Panel(
        name="target",
        title=f"What an accuracy of {100 * wanted:.4g}% costs",
        words=f"{note}Spent until the test accuracy first reaches it, the preparation "
        "included; means of the seeds that reach it.",
        chart=_bars(lines, [x["line"] for x in values]),
        values=values,
    )


def _chosen(lines: Sequence[Line], wanted: float) -> tuple[float, str]:
    """A target that a run reaches and what is to be said of it; 0 without one."""
    best = [max(_best(run) for run in line.runs) for line in lines]
    wanted = wanted or lines[0].runs[0].config.get("eval.target_accuracy", 0.0)
    if wanted and wanted <= max(best) + ROUNDING:
        return wanted, ""
    note = f"No run reaches {100 * wanted:.4g}%. " if wanted else ""
    least = min((x for x in best if x), default=0.0)
    return math.floor(100 * (least + ROUNDING)) / 100, note


def _best(run: PageRun) -> float:
    values = [row.get(HEADLINE, math.nan) for row in run.rounds]
    return max((x for x in values if not math.isnan(x)), default=0.0)


def _costs(run: PageRun, wanted: float) -> tuple[float, float, float] | None:
    """COSTS of a run; None if it does not reach the target."""
    reached = rounds_to_target(run.rounds, wanted)
    if reached is None:
        return None
    costs = spent(run)[reached]
    return reached, costs.sent, costs.computed


def _bars(lines: Sequence[Line], shown: Sequence[str]) -> Any:
    import altair as alt

    order = [line.name for line in lines if line.name in shown]
    parts = []
    for number, cost in enumerate(COSTS):
        axis = alt.Axis(labelLimit=0) if number == 0 else None
        base = (
            alt.Chart(data_of("target"))
            .transform_filter(alt.datum.cost == cost)
            .encode(
                y=alt.Y("line:N", title=None, sort=order, axis=axis),
                x=alt.X(
                    "value:Q", title=cost, axis=alt.Axis(tickCount=3, format=_NUMBER)
                ),
            )
        )
        bars = base.mark_bar().encode(
            color=colour_of(lines).legend(None),
            tooltip=[
                alt.Tooltip("line:N", title="run"),
                alt.Tooltip("value:Q", title=cost, format=",.4~g"),
            ],
        )
        words = base.mark_text(align="left", dx=3, fontSize=11).encode(
            text=alt.Text("value:Q", format=_NUMBER)
        )
        layers = alt.layer(bars, words)
        parts.append(layers.properties(width=200, height=alt.Step(22)))
    return alt.hconcat(*parts, spacing=40)
