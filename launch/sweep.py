"""Trains one config file with several config strings and prints one table.

python -m launch.sweep --config=configs/cifar10_cpu.py --workdir=runs/table \
    --settings="fedavg,10 feddp,10" [--seeds=0,1,2] [--jobs=2] [--config.field=value]

Every setting is a run of its own in WORKDIR/SETTING, with its output in
WORKDIR/SETTING.log; with seeds in WORKDIR/SETTING/seedN. Runs with masks get a table of
what they save, means over the seeds. Stopped and started again, finished runs are only
reported and the others go on from their checkpoints.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from absl import app, flags

from fedjax_prune import console, ledger, report
from fedjax_prune.settings import SettingsError
from launch.errors import exit_code
from launch.flags import load_config, parse

_CONFIG = flags.DEFINE_string("config", None, "config file that takes a string")
_SETTINGS = flags.DEFINE_string("settings", "", "config strings, separated by spaces")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs")
_SEEDS = flags.DEFINE_list("seeds", [], "one run of each setting for each config.seed")
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "runs at a time, each on its share of the cores", 1
)


class Run(NamedTuple):
    """A config string, its folder in the workdir, and what else it changes."""

    setting: str
    folder: str
    overrides: tuple[str, ...]


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if every run is finished."""

    def run() -> int:
        settings = _SETTINGS.value.split()
        workdir = Path(_WORKDIR.value or "")
        missing = [] if _WORKDIR.value else ["--workdir must name a folder, got ''"]
        if not settings:
            missing += ["--settings must name at least one config string, got ''"]
        for setting in settings or [""]:
            path = f"{_CONFIG.value}:{setting}" if setting else _CONFIG.value
            load_config(path, argv[1:], missing)
        if bad := [seed for seed in _SEEDS.value if not seed.isdecimal()]:
            raise SettingsError([f"--seeds must be whole numbers, got {bad[0]!r}"])
        workdir.mkdir(parents=True, exist_ok=True)
        runs = [
            Run(setting, f"{setting}/seed{seed}", (f"--config.seed={seed}",))
            for setting in settings
            for seed in _SEEDS.value
        ] or [Run(setting, setting, ()) for setting in settings]
        free = _shares_of_cores(_JOBS.value)
        with ThreadPoolExecutor(_JOBS.value) as pool:
            codes = list(
                pool.map(lambda run: _train(run, workdir, argv[1:], free), runs)
            )
        failed = [run.folder for run, code in zip(runs, codes, strict=True) if code]
        if failed:
            logs = ", ".join(str(workdir / f"{folder}.log") for folder in failed)
            console.print_error(f"not finished: {', '.join(failed)}; see {logs}")
        print(
            _table(workdir, [run for run in runs if run.folder not in failed]), end=""
        )
        return int(bool(failed))

    return exit_code(run)


def _table(workdir: Path, runs: list[Run]) -> str:
    methods: dict[str, list[Path]] = {}
    for run in runs:
        methods.setdefault(run.setting, []).append(workdir / run.folder)
    if any(ledger.has_masks(workdir / run.folder) for run in runs):
        return ledger.pruning_table(methods)
    return report.comparison(methods)


def _shares_of_cores(jobs: int) -> "Queue[list[int]]":
    """Deals the cores to jobs: runs that share cores hinder each other."""
    cores = sorted(os.sched_getaffinity(0))
    free: Queue[list[int]] = Queue()
    for job in range(jobs):
        free.put(cores[job::jobs] or cores)
    return free


def _train(
    run: Run, workdir: Path, overrides: list[str], free: "Queue[list[int]]"
) -> int:
    """Trains in a process of its own and returns its exit code."""
    command = [
        *(sys.executable, "-m", "launch.train"),
        f"--config={_CONFIG.value}:{run.setting}",
        f"--workdir={workdir / run.folder}",
        *overrides,
        *run.overrides,
    ]
    print(f"{run.folder}: {' '.join(command[1:])}", flush=True)
    (workdir / run.folder).parent.mkdir(parents=True, exist_ok=True)
    own = free.get()
    try:
        with (workdir / f"{run.folder}.log").open("a") as log:
            return subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, own),
            ).returncode
    finally:
        free.put(own)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
