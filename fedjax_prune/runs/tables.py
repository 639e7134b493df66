"""Tables of several runs, in Markdown."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedjax_prune.models import costs
from fedjax_prune.runs.learning import make_model, task_of
from fedjax_prune.runs.metrics import ACCURACY, HEADLINE
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.savings import Totals, totals
from fedjax_prune.runs.workdir import read_usable_config

LAST = 10
"""A run's accuracy is the mean of this many last evaluations."""


def comparison(runs: Mapping[str, Sequence[Path]]) -> str:
    """One row for each setting, as a Markdown table.

    Args:
      runs: name -> workdirs of its seeds, with at least one evaluation each.

    Returns:
      The table, means over seeds: accuracies after the last round, kept MACs, bytes of
      the whole run. Accuracies have a 95 % interval where there are several seeds.
    """
    columns = {
        "run": "",
        "rounds": "round",
        "seeds": "",
        "headline": HEADLINE,
        "shared model": ACCURACY,
        "with own gates": "eval/client_gated/mean",
        "worst client": "eval/client_gated/min",
        "own validation": "eval/client_local/mean",
        "before averaging": "eval/after_local/mean",
    }
    lines = [
        f"| {' | '.join([*columns, 'MACs kept', 'MB sent'])} |",
        f"|{'---|' * (len(columns) + 2)}",
    ]
    for name, workdirs in runs.items():
        config = read_usable_config(workdirs[0])
        rows = [read_metrics(workdir) for workdir in workdirs]
        cells = [name, str(rows[0][-1]["round"]), str(len(rows))]
        fields = list(columns.values())[3:]
        cells += [with_interval([r[-1][field] for r in rows]) for field in fields]
        macs = costs.macs_of(task_of(config, make_model(config)).layers)
        sent = sum(row["bytes/down"] + row["bytes/up"] for seed in rows for row in seed)
        cells += [f"{macs.kept / 1e6:.2f} M", f"{sent / len(rows) / 1e6:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def pruning_table(runs: Mapping[str, Sequence[Path]]) -> str:
    """One row for each method, as a Markdown table.

    Args:
      runs: method -> workdirs of its seeds, named alike for the same seed.

    Returns:
      Means over seeds. The final accuracy, after the last round, has a 95 % interval
      where there are several. The accuracy of the last evaluations has a standard
      deviation; it is also compared with the first method's, seed by seed. Savings in
      brackets count what came before the first round, too.
    """
    header = (
        "method",
        "accuracy",
        "less the first",
        "best",
        "sparsity",
        "MACs saved, realisable",
        "MACs saved, theoretical",
        "traffic saved",
        "MB sent",
        "final accuracy",
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
            with_interval([seed[-1][HEADLINE] for seed in rows.values()]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_interval(values: Sequence[float]) -> str:
    """Mean of seeds and, if there are several, half of its 95 % interval.

    The interval is Student's, mean ± t * s / sqrt(n): s is the standard deviation of
    the n values (divisor n - 1), and t the 97.5 % quantile with n - 1 degrees of
    freedom. It holds if the values are normal.

    Examples:
      >>> with_interval([0.5, 0.6])  # t = 12.71, s = 0.0707
      '55.0% ± 63.5%'
    """
    mean, count = f"{np.mean(values):.1%}", len(values)
    if count < 2:
        return mean
    # A quarter as slow to import as JAX, and needed for seeds alone.
    from scipy.special import stdtrit

    half = stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count)
    return f"{mean} ± {half:.1%}"


def _with_deviation(values: Sequence[float], sign: str) -> str:
    """Mean and standard deviation of seeds; nothing if there are none."""
    if not values:
        return ""
    mean = f"{np.mean(values):{sign}.1%}"
    return mean + (f" ± {np.std(values, ddof=1):.1%}" if values[1:] else "")
