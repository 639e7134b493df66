"""Accuracy against the multiplications of an image, for networks of different cost."""

from collections.abc import Sequence
from typing import Any

from fedjax_prune.runs.learning import macs_for
from fedjax_prune.runs.page import against
from fedjax_prune.runs.page.panel import Panel, in_order
from fedjax_prune.runs.page.read import Line
from fedjax_prune.runs.savings import masks_in
from fedjax_prune.runs.settings import SettingsError
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
      numbers of MACs, or with different numbers of clients, for which there is
      `population`.
    """
    lines = [line for line in lines if not masks_in(line.runs[0].rows)]
    if len({line.runs[0].config["data.num_clients"] for line in lines}) > 1:
        return None
    values = [
        value
        for line, other in zip(lines, against.others(lines, _OF_MACS), strict=True)
        if (value := _value(line, other))
    ]
    if len({value["macs"] for value in values}) < LEAST:
        return None
    return Panel(
        name="computing",
        title="Accuracy against multiplications",
        words=f"{against.WORDS} MACs are those of the channels that gates keep.",
        chart=_chart(in_order(values, "kind")),
        values=sorted(values, key=lambda value: value["macs"]),
    )


def _value(line: Line, other: str) -> dict[str, Any] | None:
    spread = against.spread(line)
    if spread is None:
        return None
    try:
        config = read_usable_config(line.runs[0].folder)
        macs = macs_for(config).kept
    except (SettingsError, WorkdirError):
        # The file of a model of the user's own may be gone.
        return None
    if not macs:
        return None
    gates = f"gates, {config.model.gate_mode}" if config.model.gated else "no gates"
    kind = f"{other}, {gates}" if other else gates
    return {"line": line.name, "kind": kind, "macs": macs} | spread


def _chart(kinds: Sequence[str]) -> Any:
    import altair as alt

    x = alt.X("macs:Q", title="MACs an image", axis=alt.Axis(format="~s"))
    tooltip = alt.Tooltip("macs:Q", title="MACs", format=",")
    return against.chart("computing", x, tooltip, kinds)
