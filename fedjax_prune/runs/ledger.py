"""What pruned rounds send and compute, row by row and for whole runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.pruning import costs
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.types import Tree
from fedjax_prune.runs.workdir import read_metrics

LAST = 10
"""Evaluations at the end of a run whose mean is its accuracy."""
ACCURACY = "eval/global_dense/accuracy"


def cost_row(
    experiment: Experiment,
    messages: tuple[Tree, Tree],
    sums: dict[str, np.ndarray],
) -> dict[str, Any]:
    """What a round has sent and computed, and how much of the model is pruned.

    A training step counts as three forward passes, a multiply-accumulate as two FLOPs.

    Args:
      experiment: of the run.
      messages: of its algorithm.
      sums: of the round, on the host, leaves [cohort_size, ...].

    Returns:
      Flat fields; those of masks only if there are masks.
    """
    facts = {name: int(x) for name, x in sums.items() if name.startswith("mask/")}
    sent = costs.traffic(messages, len(sums["count"]), facts)
    images = float(sums["count"].sum())
    macs = costs.masked_macs(experiment.model, experiment.train.images.shape[1:], facts)
    row: dict[str, Any] = {"bytes/down": sent.down, "bytes/up": sent.up}
    unmasked = costs.traffic(messages, len(sums["count"]), {})
    row["bytes/dense"] = unmasked.down + unmasked.up
    row["flops/dense"] = 6 * macs.dense * images
    if not facts:
        return row
    row |= {
        "bytes_spec/down": sent.spec_down,
        "bytes_spec/up": sent.spec_up,
        "flops/theoretical": 6 * macs.theoretical * images,
        "flops/realisable": 6 * macs.realisable * images,
        "flops/hybrid": 6 * macs.hybrid * images,
        "macs/theoretical": macs.theoretical / macs.dense,
        "macs/realisable": macs.realisable / macs.dense,
        "mask/guarded": facts["mask/guarded"],
    }
    row |= _sparsities(experiment, facts)
    for name, value in facts.items():
        if name.startswith("mask/channels/"):
            row[f"channels/{name.removeprefix('mask/channels/')}"] = value
    return row


def preparation_costs(
    experiment: Experiment,
    messages: tuple[Tree, Tree],
    sums: dict[str, np.ndarray],
) -> dict[str, Any]:
    """The costs of what is done before the first round, on the whole model."""
    facts = {name: int(x) for name, x in sums.items() if name.startswith("mask/")}
    unmasked = {name: x for name, x in sums.items() if name not in facts}
    row = cost_row(experiment, messages, unmasked)
    for kind in ("theoretical", "realisable", "hybrid"):
        row[f"flops/{kind}"] = row["flops/dense"]
    row |= {"bytes_spec/down": row["bytes/down"], "bytes_spec/up": row["bytes/up"]}
    return row | _sparsities(experiment, facts)


def _sparsities(experiment: Experiment, facts: dict[str, int]) -> dict[str, float]:
    """Pruned shares by mask: of all parameters, of the prunable, of each array."""
    shapes = jax.eval_shape(lambda: experiment.task.init(jax.random.key(0))).params
    sizes = {
        "/".join(str(entry.key) for entry in path): math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    kept = {name: facts[f"mask/kept/{name}"] for name in sizes}
    total, left = sum(sizes.values()), sum(kept.values())
    prunable = max(1, facts["mask/prunable"])
    row = {
        "sparsity/all": 1 - left / total,
        "sparsity/prunable": 1 - facts["mask/prunable_kept"] / prunable,
        "compression": total / left,
    }
    return row | {f"sparsity/{name}": 1 - kept[name] / sizes[name] for name in sizes}


class Totals(NamedTuple):
    """What a run has saved.

    Attributes:
      sparsity: of all parameters, mean over rounds.
      theoretical: FLOPs saved if sparse kernels were free, share of the dense.
      realisable: FLOPs saved on dense hardware, share of the dense.
      sent: bytes saved, share of the dense.
      theoretical_all: the same three with what came before the first round.
      realisable_all: see above.
      sent_all: see above.
      megabytes: sent in all, exploration included.
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
        return 1 - done / sum(row["flops/dense"] for row in rounds)

    def sent(rows: Sequence[Mapping[str, Any]]) -> float:
        return sum(row["bytes/down"] + row["bytes/up"] for row in rows)

    dense = sum(row["bytes/dense"] for row in rounds)
    return Totals(
        sparsity=float(np.mean([row.get("sparsity/all", 0.0) for row in rounds])),
        theoretical=saved(rounds, "theoretical"),
        realisable=saved(rounds, "realisable"),
        sent=1 - sent(rounds) / dense,
        theoretical_all=saved(rows, "theoretical"),
        realisable_all=saved(rows, "realisable"),
        sent_all=1 - sent(rows) / dense,
        megabytes=sent(rows) / 1e6,
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
            f"{saved.realisable_all:.1%}, {saved.theoretical_all:.1%} and "
            f"{saved.sent_all:.1%}: exploration included"
        )
    return facts


def has_masks(workdir: Path) -> bool:
    """Whether a run has pruned parameters of its shared model."""
    return masks_in(read_metrics(workdir))


def masks_in(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a round of metrics.jsonl had masks."""
    return any(row["round"] > 0 and "sparsity/all" in row for row in rows)


def pruning_table(runs: Mapping[str, Sequence[Path]]) -> str:
    """One row for each method, as a Markdown table.

    Args:
      runs: method -> workdirs of its seeds, named alike for the same seed.

    Returns:
      Means over seeds, with standard deviations where there are several. Accuracy is
      that of the last evaluations; it is also compared with the first method's, seed
      by seed. In brackets what is left of the savings if what came before the first
      round counts.
    """
    header = (
        *("method", "accuracy", "less the first", "best", "sparsity"),
        *("MACs saved, realisable", "MACs saved, theoretical", "traffic saved"),
        "MB sent",
    )
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    first: dict[str, float] = {}
    for method, workdirs in runs.items():
        rows = {folder.name: read_metrics(folder) for folder in workdirs}
        mean = Totals(*np.mean([totals(seed) for seed in rows.values()], axis=0))
        accuracies = {
            name: [row[ACCURACY] for row in seed if ACCURACY in row]
            for name, seed in rows.items()
        }
        lasts = {n: float(np.mean(seed[-LAST:])) for n, seed in accuracies.items()}
        first = first or lasts
        differences = [last - first[n] for n, last in lasts.items() if n in first]
        cells = (
            method,
            _with_deviation(list(lasts.values()), ""),
            _with_deviation(differences, "+") if lasts is not first else "",
            f"{np.mean([max(seed) for seed in accuracies.values()]):.1%}",
            f"{mean.sparsity:.1%}",
            f"{mean.realisable:.1%} ({mean.realisable_all:.1%})",
            f"{mean.theoretical:.1%} ({mean.theoretical_all:.1%})",
            f"{mean.sent:.1%} ({mean.sent_all:.1%})",
            f"{mean.megabytes:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _with_deviation(values: Sequence[float], sign: str) -> str:
    """Mean and standard deviation of seeds; nothing if there are none."""
    if not values:
        return ""
    mean = f"{np.mean(values):{sign}.1%}"
    return mean + (f" ± {np.std(values, ddof=1):.1%}" if values[1:] else "")
