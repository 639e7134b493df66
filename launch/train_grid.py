"""Trains the runs of a grid that are not finished."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedjax_prune.data import load
from fedjax_prune.data.datasets import DATASETS, DataError
from fedjax_prune.runs import console, estimates
from fedjax_prune.runs.completed import completed
from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.settings import SettingsError, flatten
from fedjax_prune.runs.workdir import (
    WorkdirError,
    agree_config,
    has_config,
    read_config,
)
from fedjax_prune.types import Config

from .grid import Run, told
from .side_by_side import Ended, Job, last_words, run_all


def check_begun(runs: Sequence[Run], workdir: Path) -> None:
    """Refuses a workdir whose runs do not fit those of a grid.

    They were begun with other fields or files, went further, or were finished and
    evaluated with other data. Of runs that are not finished `train` compares the data.

    Raises:
      SettingsError: with every difference, each once, and what cannot be read.
    """
    found = []
    for run in runs:
        folder = workdir / run.folder
        if not has_config(folder):
            continue
        try:
            agree_config(folder, _with_files(run, workdir))
            # A mean with runs that end now would be one of different lengths.
            estimates.require_rounds(run.config, folder)
            if is_finished(run, workdir):
                found += _with_other_data(run, folder)
        except SettingsError as error:
            found += error.problems
        except (DataError, WorkdirError) as error:
            found.append(str(error))
    if found:
        raise SettingsError(list(dict.fromkeys(found)))


def _with_files(run: Run, workdir: Path) -> Config:
    """The configuration of a run with what the user's files hold now.

    Raises:
      DataError, SettingsError: as `completed`; if the run is finished, its data may be
        gone.
    """
    try:
        return completed(run.config)
    except DataError:
        if not is_finished(run, workdir):
            raise
        return run.config


def _with_other_data(run: Run, folder: Path) -> list[str]:
    """One line for each field that says with which data a finished run was evaluated.

    Nothing else would look at them, because it is not trained again.
    """
    old, new = flatten(read_config(folder)), flatten(run.config)
    names = ["eval.num_clients", "eval.num_examples"]
    if DATASETS[new["data.name"]].reads_folder:
        names.append("data.dir")
    differ = [name for name in names if old.get(name, new[name]) != new[name]]
    found = [
        f"{name} is {new[name]!r}, but the run in {folder} was evaluated with "
        f"{old[name]!r}"
        for name in differ
    ]
    if "data.dir" in differ:
        found.append(
            "if data were moved, start these runs once more by `python -m "
            f"{' '.join(run.launcher)}`, which compares them"
        )
    return found


def check_data(runs: Sequence[Run], workdir: Path) -> None:
    """Prepares the TFDS sets of runs that are not finished, once for all runs.

    Raises:
      DataError: if one is missing or has too few examples, before every run says so.
    """
    asked = {
        (data.name, data.dir, data.num_train, run.config.eval.num_examples)
        for run in runs
        if DATASETS[(data := run.config.data).name].tfds_name
        and not is_finished(run, workdir)
    }
    for name, folder, num_train, num_test in sorted(asked):
        load.count_examples(name, folder, num_train=num_train, num_test=num_test)


def is_finished(run: Run, workdir: Path) -> bool:
    """Whether a run is finished, as `estimates.is_finished` says."""
    return estimates.is_finished(run.config, workdir / run.folder)


def check_networks(
    runs: Sequence[tuple[str, Run]], workdir: Path
) -> list[tuple[str, estimates.Estimate]]:
    """Refuses runs whose network, data and algorithm do not fit together.

    Args:
      runs: name for messages, and run.
      workdir: of the grid.

    Returns:
      Name and what is left of each run.

    Raises:
      SettingsError: with every mistake.
      DataError: if a data set is damaged or has too few examples.
    """
    found, mistakes = [], {}
    for name, run in runs:
        try:
            found.append((name, estimates.estimate(run.config, workdir / run.folder)))
        except SettingsError as error:
            for mistake in error.problems:
                mistakes.setdefault(mistake, []).append(name)
    if mistakes:
        raise SettingsError(told(mistakes, [name for name, _ in runs]))
    return found


def cost_table(runs: Sequence[tuple[str, Run]], workdir: Path) -> str:
    """What is left of the runs and of all of them, as a Markdown table.

    Args:
      runs: name of a row and run; runs of the same name are added up.
      workdir: of the grid.

    Raises:
      SettingsError, DataError: as `check_networks`.
    """
    left = check_networks(runs, workdir)
    lines = [
        "| run | rounds left | MB before masks | dense MACs to train |",
        "|---|---|---|---|",
    ]
    named: dict[str, list[estimates.Estimate]] = {}
    for name, estimate in left:
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
      share_time: as in `run_all`; jobs must be 1.

    Returns:
      The exit code: INTERRUPTED after a signal, or if the time was over before all runs
      had ended; else 1 if one failed, 0 if all runs are finished.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    waiting = [run for run in runs if not is_finished(run, workdir)]
    if len(waiting) < len(runs):
        print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished")
    ended = run_all(
        [_job(run, workdir, overrides) for run in waiting],
        jobs,
        lambda text: print(text, flush=True),
        seconds,
        share_time=share_time,
    )
    return ending(ended)


def ending(ended: Ended) -> int:
    """Lists what is not finished; returns the exit code."""
    failed = [o for o in ended.outcomes if o.code and not o.stopped]
    console.print_error(
        f"{o.job.name} ended with code {o.code}: {o.last_words}\nsee {o.job.log}"
        for o in failed
    )
    stopped = [o for o in ended.outcomes if o.stopped]
    # What was to follow these jobs must not follow, also if all of them are finished.
    if stopped or ended.asked:
        left = f"{len(stopped)} runs are not finished" if stopped else "no run is left"
        console.print_error(f"stopped: {left}; the same command goes on")
        return INTERRUPTED
    return int(bool(failed))


def unfinished(
    left: Mapping[str, Sequence[Run]], seeds: Mapping[str, int], workdir: Path
) -> list[str]:
    """A sentence on the settings that have not ended, and one on each with an error.

    A run that diverges ends, and a mean without it would be too good.

    Args:
      left: name of a setting -> its runs that are not finished.
      seeds: name of a setting -> all of its runs.
      workdir: of the grid.
    """
    others, failed = [], []
    for name, runs in left.items():
        errors = dict.fromkeys(filter(None, (error_of(run, workdir) for run in runs)))
        said = f"{name} ({len(runs)} of {seeds[name]} seeds)"
        if errors:
            failed.append(f"Not finished: {said}. {' '.join(errors)}\n")
        elif runs:
            others.append(said)
    return [*([f"Not finished: {', '.join(others)}.\n"] if others else []), *failed]


def error_of(run: Run, workdir: Path) -> str:
    """The error with which a run's last start has ended; empty without one."""
    log = workdir / f"{run.folder}.log"
    words = last_words(log) if log.exists() else ""
    is_error = words.startswith("error:")
    # A run that is stopped twice ends with an error, too, but goes on.
    is_stopped = words.rpartition("error: ")[2].startswith("stopped")
    return words if is_error and not is_stopped else ""


def _line(name: str, each: Sequence[estimates.Estimate]) -> str:
    macs = math.fsum(e.macs for e in each)
    words = "unknown" if math.isnan(macs) else f"{macs:.2e}"
    rounds, sent = (sum(e.rounds for e in each), sum(e.sent for e in each))
    return f"| {name} | {rounds:,} | {sent / 1e6:,.1f} | {words} |"


def _job(run: Run, workdir: Path, overrides: Sequence[str]) -> Job:
    command = (
        sys.executable,
        "-m",
        *run.launcher,
        f"--config={run.path}",
        f"--workdir={workdir / run.folder}",
        *overrides,
        *run.overrides,
    )
    return Job(run.folder, command, workdir / f"{run.folder}.log")
