"""Tables of several runs, in Markdown."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.runs.learning import macs_for
from fedjax_prune.runs.metrics import ACCURACY, HEADLINE, bytes_sent
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.savings import Totals, break_even, totals
from fedjax_prune.runs.targets import ROUNDING, rounds_to_target
from fedjax_prune.runs.workdir import read_usable_config

LAST = 10
"""The accuracy of a run with masks is the mean of this many last evaluations."""

Row = Mapping[str, Any]


class SeedRows(NamedTuple):
    """A setting: its name, and the rows of metrics of each seed."""

    name: str
    seeds: Mapping[int, Sequence[Row]]

    def values(self, field: str) -> dict[int, float]:
        """Seed -> mean of a field over the last fifth of the rounds.

        Evaluations in which the field is NaN, because no measured client has arrived,
        are left out, and so are seeds that have no other.
        """
        found = {}
        for seed, rows in self.seeds.items():
            known = [row[field] for row in in_fifth(rows, 5)]
            known = [value for value in known if not math.isnan(value)]
            if known:
                found[seed] = float(np.mean(known))
        return found


def comparison(
    runs: Mapping[str, Sequence[Path]],
    published: Mapping[str, str] | None = None,
    most_rounds: float = math.inf,
) -> str:
    """One row for each setting, as a Markdown table.

    The accuracies of a run are means of its evaluations in the last fifth of its
    rounds. Differences are those to the first setting, seed by seed. The target is the
    largest multiple of 5 % that all seeds of the first setting reach.

    Args:
      runs: name -> workdirs of its seeds, with at least one evaluation each.
      published: name -> what others have published; no column without any.
      most_rounds: of each run; later ones are left out.

    Returns:
      The table, means over seeds. Accuracies and differences have a 95 % interval where
      there are several seeds. Traffic is that of the whole run, and that until the
      target, of the seeds that reach it.
    """
    lines = read_lines(runs, most_rounds)
    first, target = lines[0], _common_target(lines[0])
    header = ["run", "rounds", "seeds"]
    header += ["accuracy", "difference", "own validation", "difference, own validation"]
    header += ["worst client", "before averaging", "without gates", "MACs an image"]
    header += [f"rounds to {target:.0%}", f"MB to {target:.0%}"] if target else []
    header += ["traffic, MB", *(["published"] if published else [])]
    table = []
    for line in lines:
        config = read_usable_config(runs[line.name][0])
        macs = macs_for(config)
        done = max(rows[-1]["round"] for rows in line.seeds.values())
        cells = [line.name, str(done), str(len(line.seeds))]
        for field in (HEADLINE, "eval/client_local/mean"):
            values = line.values(field)
            cells.append(with_interval(list(values.values())))
            cells.append(
                "" if line is first else difference(values, first.values(field))
            )
        for field in ("eval/client_local/min", "eval/after_local/mean", ACCURACY):
            shown = field != ACCURACY or config.model.gated
            values = list(line.values(field).values()) if shown else []
            cells.append(with_interval(values) if values else "")
        cells += [f"{macs.kept:,}", *(_to_target(line, target) if target else [])]
        cells.append(f"{np.mean([_megabytes(s) for s in line.seeds.values()]):,.0f}")
        table.append([*cells, *([published.get(line.name, "")] if published else [])])
    return markdown(header, table)


def pruning_table(
    runs: Mapping[str, Sequence[Path]],
    published: Mapping[str, str] | None = None,
    most_rounds: float = math.inf,
) -> str:
    """One row for each method, as a Markdown table.

    The accuracy of a run is the mean of its last 10 evaluations, with the gates of each
    client if there are any.
    Differences are those to the first method, seed by seed.

    Args:
      runs: method -> workdirs of its seeds.
      published: as in `comparison`.
      most_rounds: as in `comparison`.

    Returns:
      Means over seeds. Accuracies and differences have a 95 % interval where there are
      several. Savings in brackets count what came before the first round, too; three
      columns say from which round on they are above 0, if each round saves the mean of
      all.
    """
    header = ["method", "seeds", "accuracy", "difference", "best", "sparsity"]
    header += ["MACs saved, realisable", "MACs saved, theoretical", "traffic saved"]
    header += ["traffic, MB", "pays from round: MACs, realisable"]
    header += ["pays from round: MACs, theoretical", "pays from round: traffic"]
    header += ["published"] if published else []
    lines, table = read_lines(runs, most_rounds), []
    first = _lasts(lines[0])
    for line in lines:
        seeds = list(line.seeds.values())
        saved = Totals(*np.mean([totals(seed) for seed in seeds], axis=0))
        lasts = _lasts(line)
        table.append(
            [
                line.name,
                str(len(seeds)),
                with_interval(list(lasts.values())),
                "" if line is lines[0] else difference(lasts, first),
                f"{np.mean([max(_accuracies(seed)) for seed in seeds]):.1%}",
                f"{saved.sparsity:.1%}",
                f"{saved.realisable:.1%} ({saved.realisable_all:.1%})",
                f"{saved.theoretical:.1%} ({saved.theoretical_all:.1%})",
                f"{saved.sent:.1%} ({saved.sent_all:.1%})",
                f"{saved.megabytes:,.0f}",
                *(_first_paid(n, seeds[0][-1]["round"]) for n in break_even(seeds)),
                *([published.get(line.name, "")] if published else []),
            ]
        )
    return markdown(header, table)


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


def changes_at_the_end(
    workdirs: Sequence[Path], most_rounds: float = math.inf
) -> list[float]:
    """How much the last fifth of the rounds has changed the accuracy of each seed.

    It is the mean headline accuracy of the evaluations in the last fifth of the rounds
    less that of the fifth before it. Seeds without an evaluation in one of them are
    left out.

    Args:
      workdirs: of the seeds.
      most_rounds: as in `comparison`.
    """
    changes = []
    for rows in read_lines({"": workdirs}, most_rounds)[0].seeds.values():
        before, last = (
            [row[HEADLINE] for row in in_fifth(rows, fifth)] for fifth in (4, 5)
        )
        if before and last:
            changes.append(float(np.mean(last) - np.mean(before)))
    return changes


def in_fifth(rows: Sequence[Row], fifth: int) -> list[Row]:
    """The evaluated rows in a fifth of the rounds up to the last evaluated one.

    Args:
      rows: of metrics.jsonl.
      fifth: counted from 1.
    """
    found = [row for row in rows if ACCURACY in row]
    if not found:
        return []
    last = found[-1]["round"]
    return [row for row in found if fifth - 1 < 5 * row["round"] / last <= fifth]


def read_lines(
    runs: Mapping[str, Sequence[Path]], most_rounds: float = math.inf
) -> list[SeedRows]:
    """Reads the rows of settings, seed by seed.

    Args:
      runs: name -> workdirs of its seeds.
      most_rounds: of each run; later ones are left out.
    """
    return [
        SeedRows(
            name,
            {
                read_usable_config(folder).seed: [
                    row for row in read_metrics(folder) if row["round"] <= most_rounds
                ]
                for folder in workdirs
            },
        )
        for name, workdirs in runs.items()
    ]


def less(values: Mapping[int, float], first: Mapping[int, float]) -> str:
    """Mean and interval of the differences of the seeds that both have, or nothing.

    Args:
      values: seed -> accuracy.
      first: what is subtracted.
    """
    common = [value - first[seed] for seed, value in values.items() if seed in first]
    return with_interval(common, "+") if common else ""


def difference(values: Mapping[int, float], first: Mapping[int, float]) -> str:
    """What `less` gives, with the number of seeds if one of the two has others, too."""
    words, count = less(values, first), len(values.keys() & first.keys())
    if not words or count == max(len(values), len(first)):
        return words
    return f"{words} ({count} {'seed' if count == 1 else 'seeds'})"


def _common_target(line: SeedRows) -> float:
    """The largest multiple of 5 % that all seeds reach; 0 if there is none."""
    best = [
        max(row[HEADLINE] for row in rows if HEADLINE in row)
        for rows in line.seeds.values()
    ]
    return math.floor((min(best) + ROUNDING) * 20) / 20


def _to_target(line: SeedRows, target: float) -> list[str]:
    """Rounds and megabytes until the target, and how many seeds reach it."""
    reached, sent = [], []
    for rows in line.seeds.values():
        round_ = rounds_to_target(rows, target)
        if round_ is not None:
            reached.append(round_)
            sent.append(_megabytes(rows, round_))
    if not reached:
        return ["not reached", ""]
    share = f" ({len(reached)} of {len(line.seeds)})"
    share = "" if len(reached) == len(line.seeds) else share
    # Halves are rounded up, so that all lines are rounded in one direction.
    rounds = math.floor(np.mean(reached) + 0.5)
    return [f"{rounds}{share}", f"{np.mean(sent):,.1f}{share}"]


def _megabytes(rows: Sequence[Row], most_rounds: float = math.inf) -> float:
    return sum(bytes_sent(row) for row in rows if row["round"] <= most_rounds) / 1e6


def _lasts(line: SeedRows) -> dict[int, float]:
    return {
        seed: float(np.mean(_accuracies(rows)[-LAST:]))
        for seed, rows in line.seeds.items()
    }


def _accuracies(rows: Sequence[Row]) -> list[float]:
    return [row[HEADLINE] for row in rows if HEADLINE in row]


def _first_paid(rounds: float, last: int) -> str:
    if math.isnan(rounds):
        return ""
    if not math.isfinite(rounds):
        return "never"
    first = math.floor(rounds) + 1
    return f"{first}" if first <= last else f"{first}, after the end"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are ready to print."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
