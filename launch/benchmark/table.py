"""The table of a suite's results."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .suites import Worker


class Row(NamedTuple):
    """The results of one worker.

    Attributes:
      name: of the worker.
      median: images a second, over the counted rounds.
      lowest: the slowest of them.
      highest: the fastest of them.
      reference: the worker that it is compared with.
      time: its time an image over the reference's; None if that did not run.
      share: of the limit of the machine; None if that is not known.
      waste: steps executed over steps with examples; None if they are not counted.
      num_bytes: on each device; None if they are not counted.
    """

    name: str
    median: float
    lowest: float
    highest: float
    reference: str
    time: float | None
    share: float | None
    waste: float | None
    num_bytes: int | None


def make_rows(
    workers: Sequence[Worker],
    ready: Mapping[str, Mapping[str, Any]],
    reports: Mapping[str, Sequence[Mapping[str, float]]],
    limits: Mapping[str, float],
) -> list[Row]:
    """Takes medians over rounds, without each worker's first one.

    Args:
      workers: those that ran, in the order of the table.
      ready: name -> what the worker said when it was ready.
      reports: name -> what it said of every round, at least two.
      limits: precision -> images a second that the machine could do at most.
    """
    rates = {
        worker.name: [
            report["images"] / report["seconds"] for report in reports[worker.name][1:]
        ]
        for worker in workers
    }
    medians = {name: float(np.median(rate)) for name, rate in rates.items()}
    rows = []
    for worker in workers:
        name, median = worker.name, medians[worker.name]
        other, limit = medians.get(worker.reference), limits.get(worker.precision)
        rows.append(
            Row(
                name=name,
                median=median,
                lowest=min(rates[name]),
                highest=max(rates[name]),
                reference=worker.reference,
                time=None if other is None else other / median,
                share=None if limit is None else median / limit,
                waste=_waste(reports[name][1:]),
                num_bytes=ready[name].get("bytes"),
            )
        )
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Prints a line for each worker; columns that none of them fills are left out."""
    columns = {
        "": [row.name for row in rows],
        "images/s": [f"{row.median:,.0f}" for row in rows],
        "min-max": [f"{row.lowest:,.0f}-{row.highest:,.0f}" for row in rows],
        "time": [_times(row) for row in rows],
        "of limit": ["" if r.share is None else f"{r.share:.0%}" for r in rows],
        "executed": ["" if r.waste is None else f"{r.waste:.2f}" for r in rows],
        "MB": [
            "" if r.num_bytes is None else f"{r.num_bytes / 1e6:,.0f}" for r in rows
        ],
    }
    table = Table(box=None, header_style="bold")
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    for name in filled:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for cells in zip(*filled.values(), strict=True):
        # Text, because a name in square brackets is not markup.
        table.add_row(*map(Text, cells))
    Console(highlight=False).print(table)


def _times(row: Row) -> str:
    return "" if row.time is None else f"{row.time:.2f} x {row.reference}"


def _waste(reports: Sequence[Mapping[str, float]]) -> float | None:
    if not all("steps" in report for report in reports):
        return None
    executed = sum(report["steps_executed"] for report in reports)
    return executed / sum(report["steps"] for report in reports)
