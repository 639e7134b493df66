"""Time and memory of a round with 1 to 64 clients side by side on one device."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_prune.runs.files import replace
from fedjax_prune.runs.page.panel import Panel, colour, data_of, in_order, is_installed
from fedjax_prune.runs.page.write import write_pictures
from fedjax_prune.runs.tables import markdown

from .. import runtime
from ..benchmark.process import WorkerError
from ..benchmark.suites import SUITES, Suite, Worker
from ..benchmark.turns import Options, run_suite
from .table import Measured

_REPEATS = 3
"""Rounds of the benchmark that count."""


def lanes(
    folder: Path, seconds: float, suite: Suite = SUITES["lanes"]
) -> Measured | None:
    """Measures each number of lanes once, makes the table and draws the curves.

    Args:
      folder: is made; keeps what is measured, `LANES, PRECISION.json`, and gets
        `lanes.png` and `lanes.svg`, if they can be drawn here. What has failed is tried
        again in the next call.
      seconds: after which no other number of lanes is begun.
      suite: whose groups are one worker each, named `LANES, PRECISION`.

    Returns:
      The table, which names what has failed; None if the time was too short, after
      which the same call goes on.

    Raises:
      WorkerError: if the machine's limits cannot be measured, or no number of lanes.
    """
    end = time.monotonic() + seconds
    threads = len(runtime.cores())
    platform, _ = runtime.platform_of_children()
    groups = suite.groups(threads, platform)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    failed: list[str] = []
    for (worker,) in groups:
        file = folder / f"{worker.name}.json"
        if not file.exists():
            if time.monotonic() >= end:
                return None
            measured = _measured(suite, worker, threads)
            if not measured["rows"]:
                failed.append(worker.name)
                continue
            replace(file, json.dumps(measured).encode())
        found.append(json.loads(file.read_text()))
    rows = [row | {"device": each["device"]} for each in found for row in each["rows"]]
    if not rows:
        raise WorkerError("no number of lanes could be timed")
    if is_installed():
        write_pictures(_curves(rows), folder)
    return Measured(_table(rows, failed), tuple(failed))


def _measured(suite: Suite, worker: Worker, threads: int) -> dict[str, Any]:
    """What the benchmark finds for one worker, alone on the machine."""
    options = Options(
        rounds=_REPEATS,
        threads=threads,
        peers=[],
        peers_dir=runtime.cache_folder() / "peers",
        compile=False,
    )
    return run_suite(suite._replace(groups=lambda *_: [[worker]]), options)


def _table(rows: Sequence[Mapping[str, Any]], failed: Sequence[str]) -> str:
    rates = {(row["name"], row["device"]): row["median"] for row in rows}
    header = ["lanes", "images a second", "times as fast as 1 lane"]
    header += ["share of the product rate", "memory on the device, MB", "device"]
    cells = [
        [
            row["name"],
            f"{row['median']:,.0f}",
            _times(row, rates),
            "" if row["share"] is None else f"{row['share']:.1%}",
            f"{row['num_bytes'] / 1e6:,.0f}",
            row["device"],
        ]
        for row in rows
    ]
    # Such as one whose lanes do not fit into the memory.
    cells += [[name, "failed", *[""] * 4] for name in failed]
    return markdown(header, cells)


def _times(row: Mapping[str, Any], rates: Mapping[tuple[str, str], float]) -> str:
    """How many times as fast as its reference a row is; empty without one.

    Args:
      row: of the table.
      rates: (name, device) -> images a second.
    """
    reference = rates.get((row["reference"], row["device"]))
    return "" if reference is None else f"{row['median'] / reference:.2f}"


def _curves(rows: Sequence[Mapping[str, Any]]) -> Panel:
    """Images a second and memory against the number of lanes."""
    import altair as alt

    values = []
    for row in rows:
        number, precision = row["name"].split(", ")
        point = {"lanes": int(number), "precision": precision}
        values += [
            {"what": "images a second", **point, "value": float(row["median"])},
            {"what": "memory, MB", **point, "value": row["num_bytes"] / 1e6},
        ]
    chart = (
        alt.Chart(data_of("lanes"))
        .mark_line(point=True)
        .encode(
            x=alt.X("lanes:Q", title="lanes", scale=alt.Scale(type="log", base=2)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=True)),
            color=colour("precision", in_order(values, "precision")),
        )
    )
    parts = [
        chart.transform_filter(alt.datum["what"] == what).properties(title=what)
        for what in in_order(values, "what")
    ]
    return Panel(
        name="lanes",
        title="Lanes",
        words="Images a second and memory of one device against clients side by side.",
        chart=alt.concat(*parts, columns=2),
        values=values,
    )
