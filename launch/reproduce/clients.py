"""Accuracies of several methods against the number of clients (FedDP, figure 5)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedjax_prune.runs.metrics import HEADLINE
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.tables import in_fifth, markdown, with_interval

_FIELDS = {"accuracy": HEADLINE, "own validation": "eval/client_local/mean"}
"""Heading -> field of a row."""


def of(method: str, clients: str) -> str:
    """The name of a line, from which `by_clients` finds its row and its column."""
    return f"{method}, {clients} clients"


def by_clients(
    runs: Mapping[str, Sequence[Path]],
    published: Mapping[str, str] | None = None,
    most_rounds: float = math.inf,
) -> str:
    """A row for each method and a column for each number of clients, in Markdown.

    Args:
      runs: name, made by `of` -> workdirs of its seeds.
      published: is not shown.
      most_rounds: of each run; later ones are left out.

    Returns:
      Two tables, on the shared test set and on own validation: means over seeds, with
      a 95 % interval, of a run's mean in the last fifth of its rounds.
    """
    del published
    names = [name.rpartition(", ") for name in runs]
    methods = list(dict.fromkeys(method for method, _, _ in names))
    columns = list(dict.fromkeys(clients for _, _, clients in names))
    rows_of = {
        name: [_last_fifth(workdir, most_rounds) for workdir in workdirs]
        for name, workdirs in runs.items()
    }

    def cell(name: str, field: str) -> str:
        seeds = [np.mean([row[field] for row in r]) for r in rows_of.get(name, ())]
        return with_interval([float(mean) for mean in seeds]) if seeds else ""

    return "\n".join(
        markdown(
            [heading, *columns],
            [
                [method, *(cell(f"{method}, {clients}", field) for clients in columns)]
                for method in methods
            ],
        )
        for heading, field in _FIELDS.items()
    )


def _last_fifth(workdir: Path, most_rounds: float) -> list[Mapping[str, float]]:
    rows = [row for row in read_metrics(workdir) if row["round"] <= most_rounds]
    return list(in_fifth(rows, 5))
