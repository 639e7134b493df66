"""Tables of several runs, in Markdown."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.models import costs
from fedjax_prune.runs.learning import make_model, task_of
from fedjax_prune.runs.metrics import ACCURACY, HEADLINE
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.savings import Totals, break_even, totals
from fedjax_prune.runs.targets import rounds_to_target
from fedjax_prune.runs.workdir import read_usable_config

LAST = 10
"""The accuracy of a run with masks is the mean of this many last evaluations."""

Row = Mapping[str, Any]


class _Line(NamedTuple):
    """A setting: its name, and for each seed's folder the rows of its metrics."""

    name: str
    seeds: Mapping[str, Sequence[Row]]

    def values(self, field: str) -> dict[str, float]:
        """Folder -> mean of a field over the last fifth of the rounds."""
        return {
            folder: float(np.mean([row[field] for row in _evaluated(rows, 5)]))
            for folder, rows in self.seeds.items()
        }


def comparison(
    runs: Mapping[str, Sequence[Path]], published: Mapping[str, str] | None = None
) -> str:
    """One row for each setting, as a Markdown table.

    The accuracies of a run are means of its evaluations in the last fifth of its
    rounds. They are compared with the first setting's, seed by seed. The target is the
    largest multiple of 5 % that all seeds of the first setting reach.

    Args:
      runs: name -> workdirs of its seeds, named alike for the same seed, with at least
        one evaluation each.
      published: name -> what others have published; no column without any.

    Returns:
      The table, means over seeds. Accuracies and differences have a 95 % interval where
      there are several seeds. Traffic is that of the whole run, and that until the
      target, of the seeds that reach it.
    """
    lines = _read(runs)
    first, target = lines[0], _common_target(lines[0])
    header = [
        "run",
        "rounds",
        "seeds",
        "accuracy",
        "less the first",
        "own validation",
        "less the first",
        "worst client",
        "before averaging",
        "without gates",
        "MACs kept",
        *([f"rounds to {target:.0%}", f"MB to {target:.0%}"] if target else []),
        "MB sent",
        *(["published"] if published else []),
    ]
    rows = []
    for line in lines:
        config = read_usable_config(runs[line.name][0])
        headline = line.values(HEADLINE)
        local = line.values("eval/client_local/mean")
        macs = costs.macs_of(task_of(config, make_model(config)).layers)
        rows.append(
            [
                line.name,
                str(max(rows[-1]["round"] for rows in line.seeds.values())),
                str(len(line.seeds)),
                with_interval(list(headline.values())),
                _less(headline, first.values(HEADLINE), line is first),
                with_interval(list(local.values())),
                _less(local, first.values("eval/client_local/mean"), line is first),
                with_interval(list(line.values("eval/client_local/min").values())),
                with_interval(list(line.values("eval/after_local/mean").values())),
                with_interval(list(line.values(ACCURACY).values()))
                if config.model.gated
                else "",
                f"{macs.kept / 1e6:.3g} M",
                *(_to_target(line, target) if target else []),
                f"{np.mean([_megabytes(seed) for seed in line.seeds.values()]):,.0f}",
                *([published.get(line.name, "")] if published else []),
            ]
        )
    return markdown(header, rows)


def pruning_table(
    runs: Mapping[str, Sequence[Path]], published: Mapping[str, str] | None = None
) -> str:
    """One row for each method, as a Markdown table.

    The accuracy of a run is the mean of its last 10 evaluations. It is compared with
    the first method's, seed by seed.

    Args:
      runs: method -> workdirs of its seeds, named alike for the same seed.
      published: as in `comparison`.

    Returns:
      Means over seeds. Accuracies and differences have a 95 % interval where there are
      several. Savings in brackets count what came before the first round, too; the last
      columns say from which round on they are above 0.
    """
    header = [
        "method",
        "seeds",
        "accuracy",
        "less the first",
        "best",
        "sparsity",
        "MACs saved, realisable",
        "MACs saved, theoretical",
        "traffic saved",
        "MB sent",
        "compute pays from round",
        "traffic pays from round",
        *(["published"] if published else []),
    ]
    lines, rows = _read(runs), []
    first = _lasts(lines[0])
    for line in lines:
        saved = Totals(*np.mean([totals(seed) for seed in line.seeds.values()], axis=0))
        lasts = _lasts(line)
        best = [max(_accuracies(seed)) for seed in line.seeds.values()]
        pays = [break_even(seed) for seed in line.seeds.values()]
        rows.append(
            [
                line.name,
                str(len(line.seeds)),
                with_interval(list(lasts.values())),
                _less(lasts, first, line is lines[0]),
                f"{np.mean(best):.1%}",
                f"{saved.sparsity:.1%}",
                f"{saved.realisable:.1%} ({saved.realisable_all:.1%})",
                f"{saved.theoretical:.1%} ({saved.theoretical_all:.1%})",
                f"{saved.sent:.1%} ({saved.sent_all:.1%})",
                f"{saved.megabytes:,.0f}",
                *map(_first_paid, np.mean(pays, axis=0)),
                *([published.get(line.name, "")] if published else []),
            ]
        )
    return markdown(header, rows)


def with_interval(values: Sequence[float], sign: str = "") -> str:
    """Mean of seeds and, if there are several, half of its 95 % interval.

    The interval is Student's, mean ± t * s / sqrt(n): s is the standard deviation of
    the n values (divisor n - 1), and t the 97.5 % quantile with n - 1 degrees of
    freedom. It holds if the values are normal.

    Args:
      values: of the seeds, at least one.
      sign: "+" writes it before positive means, too.

    Examples:
      >>> with_interval([0.5, 0.6])  # t = 12.71, s = 0.0707
      '55.0% ± 63.5%'
    """
    mean, count = f"{np.mean(values):{sign}.1%}", len(values)
    if count < 2:
        return mean
    # A quarter as slow to import as JAX, and needed for seeds alone.
    from scipy.special import stdtrit

    half = stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count)
    return f"{mean} ± {half:.1%}"


def change_at_the_end(workdirs: Sequence[Path]) -> float:
    """How much the last fifth of the rounds has changed the accuracy, mean over seeds.

    It is the mean headline accuracy of the evaluations in the last fifth of the rounds
    less that of the fifth before it; NaN if there is no evaluation in one of them.
    """
    changes = []
    for workdir in workdirs:
        rows = read_metrics(workdir)
        before, last = (
            [row[HEADLINE] for row in _evaluated(rows, fifth)] for fifth in (4, 5)
        )
        changes.append(np.mean(last) - np.mean(before) if before and last else math.nan)
    return float(np.mean(changes))


def _read(runs: Mapping[str, Sequence[Path]]) -> list[_Line]:
    return [
        _Line(name, {folder.name: read_metrics(folder) for folder in workdirs})
        for name, workdirs in runs.items()
    ]


def _evaluated(rows: Sequence[Row], fifth: int) -> list[Row]:
    """The evaluated rows in a fifth of the rounds up to the last, counted from 1."""
    found = [row for row in rows if ACCURACY in row]
    last = found[-1]["round"]
    return [row for row in found if fifth - 1 < 5 * row["round"] / last <= fifth]


def _less(values: Mapping[str, float], first: Mapping[str, float], same: bool) -> str:
    """The differences of the seeds that both have; nothing for the first itself."""
    common = (
        [] if same else [values[seed] - first[seed] for seed in values if seed in first]
    )
    return with_interval(common, "+") if common else ""


def _common_target(line: _Line) -> float:
    """The largest multiple of 5 % that all seeds reach; 0 if there is none."""
    best = [
        max(row[HEADLINE] for row in rows if HEADLINE in row)
        for rows in line.seeds.values()
    ]
    # 0.85 / 0.05 is below 17 in floating point.
    return math.floor(round(min(best) * 20, 6)) / 20


def _to_target(line: _Line, target: float) -> list[str]:
    """Rounds and megabytes until the target, and how many seeds reach it."""
    reached, sent = [], []
    for rows in line.seeds.values():
        evaluated = [row for row in rows if HEADLINE in row]
        round_ = rounds_to_target(
            [row["round"] for row in evaluated],
            [row[HEADLINE] for row in evaluated],
            target,
        )
        if round_ is not None:
            reached.append(round_)
            sent.append(_megabytes(rows, round_))
    if not reached:
        return ["not reached", ""]
    share = f" ({len(reached)} of {len(line.seeds)})"
    share = "" if len(reached) == len(line.seeds) else share
    return [f"{np.mean(reached):.0f}{share}", f"{np.mean(sent):,.1f}"]


def _megabytes(rows: Sequence[Row], most_rounds: float = math.inf) -> float:
    return (
        sum(
            row["bytes/down"] + row["bytes/up"]
            for row in rows
            if row["round"] <= most_rounds
        )
        / 1e6
    )


def _lasts(line: _Line) -> dict[str, float]:
    return {
        folder: float(np.mean(_accuracies(rows)[-LAST:]))
        for folder, rows in line.seeds.items()
    }


def _accuracies(rows: Sequence[Row]) -> list[float]:
    return [row[ACCURACY] for row in rows if ACCURACY in row]


def _first_paid(rounds: float) -> str:
    return f"{math.floor(rounds) + 1}" if math.isfinite(rounds) else "never"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are ready to print."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
