"""How far runs got and how fast."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_prune.runs.metrics import ACCURACY, HEADLINE
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.tables import markdown


def seconds_of_a_round(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that a round takes to train, the median of a run's rounds.

    Compiling and the waiting for checkpoints are left out, and so are rounds that are
    evaluated: these also evaluate clients before they are averaged.

    Args:
      rows: of rounds, without the preparation.

    Returns:
      NaN if every round is evaluated.
    """
    seconds = [
        row["seconds"] - (row.get("seconds/save") or 0)
        for row in rows
        if ACCURACY not in row
    ]
    return float(np.median(seconds)) if seconds else math.nan


def pace(
    runs: Mapping[str, Sequence[Path]],
    published: Mapping[str, str],
    most_rounds: float,
) -> str:
    """How far each run got and how fast, and its accuracy where all have been.

    Args:
      runs: name -> workdirs, with at least one evaluation each.
      published: name -> what others have published.
      most_rounds: the round at which accuracies are compared.

    Returns:
      Seconds of a round are those of `seconds_of_a_round`, and FLOPs those of the
      network without gates: masked training saves none. Seconds of all rounds include
      evaluations and saving.
    """
    header = ["run", "rounds", "seconds of a round", "training, TFLOP/s"]
    header += ["seconds of all rounds", "compiling, seconds"]
    header += ["accuracy", "own validation", "in round", "published"]
    table = []
    for name, workdirs in runs.items():
        for workdir in workdirs:
            rows = read_metrics(workdir)
            rounds = [row for row in rows if row["round"] > 0]
            seconds = seconds_of_a_round(rounds)
            flops = np.median([row["flops/dense"] for row in rounds])
            is_timed = not math.isnan(seconds)
            common = [
                row for row in rows if ACCURACY in row and row["round"] <= most_rounds
            ]
            table.append(
                [
                    name,
                    f"{rows[-1]['round']:,}",
                    f"{seconds:.3f}" if is_timed else "",
                    f"{flops / seconds / 1e12:.2f}" if flops and is_timed else "",
                    f"{sum(row['seconds'] for row in rounds):,.0f}",
                    f"{sum(row.get('seconds/compile') or 0 for row in rows):.0f}",
                    f"{common[-1][HEADLINE]:.1%}",
                    f"{common[-1]['eval/client_local/mean']:.1%}",
                    f"{common[-1]['round']:,}",
                    published.get(name, ""),
                ]
            )
    return markdown(header, table)
