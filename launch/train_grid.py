"""Trains the runs of a grid that are not finished."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fedjax_prune.runs import console, estimates
from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import agree_config

from .grid import Run
from .side_by_side import Job, Outcome, run_all


def check_begun(runs: Sequence[Run], workdir: Path) -> None:
    """Refuses a workdir in which runs were begun with other fields.

    Raises:
      SettingsError: with every difference, each once.
    """
    found = []
    for run in runs:
        try:
            agree_config(workdir / run.folder, run.config)
        except SettingsError as error:
            found += error.problems
    if found:
        raise SettingsError(list(dict.fromkeys(found)))


def is_finished(run: Run, workdir: Path) -> bool:
    """Whether all rounds of a run are saved, and its result is in the metrics."""
    return estimates.is_finished(run.config, workdir / run.folder)


def cost_table(runs: Sequence[tuple[str, Run]], workdir: Path) -> str:
    """What is left of the runs and of all of them, as a Markdown table.

    Args:
      runs: name of a row and run; runs of the same name are added up.
      workdir: of the grid.
    """
    lines = [
        "| run | rounds left | MB sent, before masks | MACs to train |",
        "|---|---|---|---|",
    ]
    named: dict[str, list[estimates.Estimate]] = {}
    for name, run in runs:
        estimate = estimates.estimate(run.config, workdir / run.folder)
        named.setdefault(name, []).append(estimate)
    lines += [_line(name, each) for name, each in named.items()]
    total = [estimate for each in named.values() for estimate in each]
    lines.append(_line(f"{len(runs)} runs", total))
    return "\n".join(lines) + "\n"


def train_all(
    runs: Sequence[Run],
    workdir: Path,
    *,
    jobs: int,
    overrides: Sequence[str],
    seconds: float = math.inf,
    share_time: bool = False,
) -> int:
    """Trains the runs that are not finished, and lists those that still are not.

    Args:
      runs: in the order in which they start.
      workdir: of the grid; is made.
      jobs: runs at a time.
      overrides: arguments for all runs, `--config.field=value`.
      seconds: after which the runs save and stop.
      share_time: whether they run one after another for equal parts of this time;
        what a run leaves of its part is the others'.

    Returns:
      The exit code: 0 if all runs are finished, 1 if one failed, INTERRUPTED after a
      signal or when the time is over.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    waiting = [run for run in runs if not is_finished(run, workdir)]
    if len(waiting) < len(runs):
        print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished")
    waiting_jobs = [_job(run, workdir, overrides) for run in waiting]
    if share_time:
        return _ending(in_parts(waiting_jobs, seconds))
    return _ending(run_all(waiting_jobs, jobs, _say, seconds))


def in_parts(jobs: Sequence[Job], seconds: float) -> list[Outcome]:
    """Runs jobs one after another, each for its part of the time that is left.

    Args:
      jobs: in their order.
      seconds: of all of them.

    Returns:
      The outcomes, in the order of the jobs. After a signal the others do not start.
    """
    end, outcomes = time.monotonic() + seconds, []
    for number, job in enumerate(jobs):
        part_end = time.monotonic()
        part_end += (end - part_end) / (len(jobs) - number)
        outcomes += run_all([job], 1, _say, part_end - time.monotonic())
        # A run that stops before its time is over has had a signal.
        if outcomes[-1].stopped and time.monotonic() < part_end:
            break
    return [*outcomes, *(Outcome(job, None) for job in jobs[len(outcomes) :])]


def _say(text: str) -> None:
    print(text, flush=True)


def _line(name: str, each: Sequence[estimates.Estimate]) -> str:
    macs = math.fsum(e.macs for e in each)
    words = "unknown" if math.isnan(macs) else f"{macs:.2e}"
    rounds, sent = (sum(e.rounds for e in each), sum(e.sent for e in each))
    return f"| {name} | {rounds:,} | {sent / 1e6:,.1f} | {words} |"


def _job(run: Run, workdir: Path, overrides: Sequence[str]) -> Job:
    command = (
        sys.executable,
        "-m",
        "fedjax_prune",
        "train",
        f"--config={run.path}",
        f"--workdir={workdir / run.folder}",
        *overrides,
        *run.overrides,
    )
    return Job(run.folder, command, workdir / f"{run.folder}.log")


def _ending(outcomes: Sequence[Outcome]) -> int:
    """Lists what is not finished; returns the exit code."""
    failed = [o for o in outcomes if o.code and not o.stopped]
    console.print_error(
        f"{o.job.name} ended with code {o.code}: {o.last_line}\nsee {o.job.log}"
        for o in failed
    )
    stopped = [o for o in outcomes if o.stopped]
    if stopped:
        console.print_error(
            f"stopped: {len(stopped)} runs are not finished; the same command goes on"
        )
        return INTERRUPTED
    return int(bool(failed))
