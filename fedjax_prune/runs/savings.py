"""What a run with masks has saved: bytes and FLOPs, in numbers and in words."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.runs.metrics import bytes_sent
from fedjax_prune.runs.metrics_log import read_metrics


class Totals(NamedTuple):
    """What a run has saved.

    Attributes:
      sparsity: of all parameters, mean over rounds.
      theoretical: FLOPs saved if sparse kernels were free, share of the dense.
      realisable: FLOPs saved on dense hardware, share of the dense.
      sent: bytes saved, share of the dense.
      theoretical_all: the same with round 0, such as an exploration, included.
      realisable_all: see above.
      sent_all: see above.
      megabytes: sent in all, round 0 included.
    """

    sparsity: float
    theoretical: float
    realisable: float
    sent: float
    theoretical_all: float
    realisable_all: float
    sent_all: float
    megabytes: float


def totals(rows: Sequence[Mapping[str, Any]]) -> Totals:
    """Adds up the rows of metrics.jsonl of a run with at least one round."""
    rounds = [row for row in rows if row["round"] > 0]

    def saved(rows: Sequence[Mapping[str, Any]], kind: str) -> float:
        done = sum(row.get(f"flops/{kind}", row["flops/dense"]) for row in rows)
        dense = sum(row["flops/dense"] for row in rounds)
        # A network in which no weight is multiplied has no FLOPs to save.
        return 1 - done / dense if dense else math.nan

    dense = sum(row["bytes/dense"] for row in rounds)
    return Totals(
        sparsity=float(np.mean([row.get("sparsity/all", 0.0) for row in rounds])),
        theoretical=saved(rounds, "theoretical"),
        realisable=saved(rounds, "realisable"),
        sent=1 - sum(map(bytes_sent, rounds)) / dense,
        theoretical_all=saved(rows, "theoretical"),
        realisable_all=saved(rows, "realisable"),
        sent_all=1 - sum(map(bytes_sent, rows)) / dense,
        megabytes=sum(map(bytes_sent, rows)) / 1e6,
    )


class BreakEven(NamedTuple):
    """How many rounds save as much as what came before the first one.

    Attributes:
      realisable: until FLOPs are saved, on dense hardware.
      theoretical: until FLOPs are saved, if sparse kernels were free.
      sent: until bytes are saved.
    """

    realisable: float
    theoretical: float
    sent: float


def break_even(runs: Sequence[Sequence[Mapping[str, Any]]]) -> BreakEven:
    """How many rounds save as much as what came before the first one, on average.

    Args:
      runs: rows of metrics.jsonl of the seeds, each with at least one round.

    Returns:
      Rounds: what all runs spent before their first round over what a round of all
      runs saves, 0 if nothing came before.
      If rounds save nothing, infinity, or NaN if nothing came before.
    """
    before = [row for rows in runs for row in rows if row["round"] == 0]
    rounds = [row for rows in runs for row in rows if row["round"] > 0]

    def after(spent: Callable[[Mapping[str, Any]], float], dense: str) -> float:
        saved = np.mean([row[dense] - spent(row) for row in rounds])
        spent_before = sum(map(spent, before)) / len(runs)
        if saved > 0:
            return float(spent_before / saved)
        return math.inf if spent_before else math.nan

    return BreakEven(
        after(lambda r: r.get("flops/realisable", r["flops/dense"]), "flops/dense"),
        after(lambda r: r.get("flops/theoretical", r["flops/dense"]), "flops/dense"),
        after(bytes_sent, "bytes/dense"),
    )


def in_words(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a run with masks and at least one round has saved, ready to print."""
    saved, last = totals(rows), rows[-1]
    facts = {
        "pruned": f"{last['sparsity/all']:.1%} of the parameters in the last round, "
        f"{saved.sparsity:.1%} on average",
        "compute saved": f"{saved.realisable:.1%} of the FLOPs on dense hardware, "
        f"{saved.theoretical:.1%} with sparse kernels",
        "traffic saved": f"{saved.sent:.1%} of the bytes",
    }
    if rows[0]["round"] == 0:
        facts["with round 0"] = (
            f"{saved.realisable_all:.1%} of the FLOPs on dense hardware, "
            f"{saved.theoretical_all:.1%} with sparse kernels, {saved.sent_all:.1%} of "
            "the bytes: what came before round 1 included"
        )
    return facts


def has_masks(workdir: Path) -> bool:
    """Whether a run has pruned parameters of its shared model."""
    return masks_in(read_metrics(workdir))


def masks_in(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a round of metrics.jsonl had masks."""
    return any(row["round"] > 0 and "sparsity/all" in row for row in rows)
