"""The tables of the page: results, worst clients, differences, versions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_prune.runs.metrics import ACCURACY, HEADLINE
from fedjax_prune.runs.page import clients, troubled
from fedjax_prune.runs.page.bands import Spent, is_of_one, of_more, spent
from fedjax_prune.runs.page.html import Facts
from fedjax_prune.runs.page.read import Line, PageRun, differences, uncompared
from fedjax_prune.runs.sections import written
from fedjax_prune.runs.tables import with_interval

_LASTS = {
    "test accuracy": HEADLINE,
    "without gates": ACCURACY,
    "own validation": "eval/client_local/mean",
    "worst client": "eval/client_local/min",
    "before averaging": "eval/after_local/mean",
}
"""Column -> field of the last row that has it."""


def results(lines: Sequence[Line]) -> Facts:
    """A row for each line: its last accuracies, and what it has spent."""
    rows = []
    for line in lines:
        cells: list[Any] = [line.name, len(line.runs), _rounds(line)]
        cells += [_last(line, field) for field in _LASTS.values()]
        done = min(run.rows[-1]["round"] for run in line.runs)
        costs = np.mean([_spent_by(run, done) for run in line.runs], axis=0)
        seconds = [
            sum(row["seconds"] for row in run.rows if row["round"] <= done)
            for run in line.runs
        ]
        cells += [f"{costs[0]:,.1f}", f"{costs[1]:,.3g}", f"{np.mean(seconds):,.0f}"]
        cells.append(", ".join(str(run.folder) for run in line.runs))
        rows.append(cells)
    columns = ["run", "seeds", "rounds", *_LASTS, "MB sent", "TFLOP", "seconds"]
    return Facts(
        title="Results",
        words="Accuracies at the last evaluation that all seeds have; of several seeds "
        f"the mean with its 95 % interval (Student's t). {of_more(lines)}MB of both "
        "directions, TFLOP of local training without the channels that masks remove or "
        "gates drop, seconds without compiling: means of seeds, up to the last round "
        "that all of them have finished.",
        columns=[*columns, "workdirs"],
        rows=rows,
    )


def _spent_by(run: PageRun, done: int) -> Spent:
    """What a run has spent up to a round, or the last one before it with a row.

    NaN if its rows of all these rounds are lost.
    """
    found = spent(run)
    before = max((number for number in found if number <= done), default=None)
    return Spent(math.nan, math.nan) if before is None else found[before]


def worst_clients(lines: Sequence[Line]) -> Facts | None:
    """The worst clients of each line with their data; None if not recorded."""
    rows = [
        (
            found.line,
            found.client,
            f"{found.own:.1%}",
            f"{found.test:.1%}",
            "" if found.examples is None else f"{found.examples:,}",
            found.classes,
        )
        for found in clients.worst(lines)
    ]
    if not rows:
        return None
    return Facts(
        title="The worst clients",
        words="Of each run's first seed, by accuracy on their own validation sets, "
        "with their training examples and most frequent classes (class: examples).",
        columns=[
            "run",
            "client",
            "own validation",
            "test set",
            "examples",
            "classes",
        ],
        rows=rows,
    )


def troubled_clients(lines: Sequence[Line]) -> Facts | None:
    """Clients that diverged, were dropped or attacked; None without any."""
    rows = [
        (
            found.line,
            found.client,
            found.words,
            "" if found.last is None else f"{found.last:.4g}",
        )
        for found in troubled.troubled(lines)
    ]
    if not rows:
        return None
    return Facts(
        title="Clients that diverged, were dropped or attacked",
        words="Of each run's first seed, those with the most such rounds.",
        columns=["run", "client", "what", "last finite loss"],
        rows=rows,
    )


def configurations(lines: Sequence[Line]) -> Facts | None:
    """The fields in which lines differ; None for a single line."""
    configs = [line.runs[0].config for line in lines]
    found = differences(configs)
    if not found:
        return None
    left_out = dict.fromkeys(
        field for config in configs for field in uncompared(config)
    )
    not_compared = ", ".join(field for field in left_out if field not in found)
    return Facts(
        title="In which fields the runs differ",
        words=f"All others are equal, except {not_compared}, which are not compared. "
        "A dash: the run has no such field.",
        columns=["field", *(line.name for line in lines)],
        rows=[(field, *map(written, values)) for field, values in found.items()],
    )


def all_fields(lines: Sequence[Line]) -> Facts:
    """Every field of the first run."""
    return Facts(
        title="Configuration",
        words=f"Of {lines[0].runs[0].folder}.",
        columns=["field", "value"],
        rows=[(k, written(v)) for k, v in sorted(lines[0].runs[0].config.items())],
    )


def versions(lines: Sequence[Line]) -> Facts | None:
    """With what each run was computed; None if no run has said it."""
    found: dict[tuple[Any, ...], list[str]] = {}
    names: list[str] = []
    for line in lines:
        for run in line.runs:
            facts = _environment(run)
            names += [name for name in facts if name not in names]
            found.setdefault(tuple(facts.items()), []).append(str(run.folder))
    if not names:
        return None
    columns = [dict(facts) for facts in found]
    heads = [_count(folders) for folders in found.values()]
    return Facts(
        title="Versions",
        words="Of the last start of each run.",
        columns=["", *heads],
        rows=[(name, *(c.get(name, "") for c in columns)) for name in names],
    )


def _environment(run: PageRun) -> dict[str, str]:
    if not run.starts:
        return {}
    start = run.starts[-1]
    facts: dict[str, Any] = dict(start.get("versions") or {})
    facts["commit"] = start.get("commit") or ""
    machine: Mapping[str, Any] = start.get("machine") or {}
    facts |= machine
    devices: Mapping[str, Any] = start.get("devices") or {}
    facts["devices"] = ", ".join(f"{n} x {kind}" for kind, n in devices.items())
    flags: Mapping[str, Any] = start.get("flags") or {}
    facts |= flags
    return {name: str(value) for name, value in facts.items()}


def _count(folders: Sequence[str]) -> str:
    return folders[0] if len(folders) == 1 else f"{len(folders)} runs"


def _rounds(line: Line) -> int | str:
    """How many rounds the seeds have finished: `20`, or `5-20` if they differ."""
    done = [run.rows[-1]["round"] for run in line.runs]
    return done[0] if min(done) == max(done) else f"{min(done)}-{max(done)}"


def _last(line: Line, field: str) -> str:
    """A field in the last round in which all seeds have it; empty without one."""
    found = [
        {
            row["round"]: row[field]
            for row in run.rounds
            if not is_of_one(row, field) and not math.isnan(row.get(field, math.nan))
        }
        for run in line.runs
    ]
    common = set(found[0]).intersection(*found[1:])
    return with_interval([values[max(common)] for values in found]) if common else ""
