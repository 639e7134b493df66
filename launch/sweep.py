"""Trains one configuration with several strings and prints one table.

python -m fedjax_prune sweep --config=CONFIG --workdir=DIR --settings="STRING ..." \\
    [--seeds=0,1,2] [--jobs=2] [--config.FIELD=VALUE ...]

Every setting is a run of its own in WORKDIR/SETTING, with its output in
WORKDIR/SETTING.log; with seeds in WORKDIR/SETTING/seedN. Runs with masks get a table of
what they save, means over the seeds. If a sweep is started again, finished runs are
only reported and the others go on from their checkpoints. In a checkout
`python -m launch.sweep` is the same. For example:

    python -m fedjax_prune sweep --config=cifar10_cpu --workdir=runs/table \\
        --settings="fedavg,10 feddp,10"
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from absl import app, flags

from fedjax_prune.runs import console, savings, tables
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import local_folder

from . import runtime
from .errors import exit_code
from .flags import load_config, parse

_CONFIG = flags.DEFINE_string(
    "config", None, "file or bundled name that takes a string"
)
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
        missing = [] if _WORKDIR.value else ["--workdir must name a folder, got ''"]
        if not settings:
            missing += ["--settings must name at least one config string, got ''"]
        for setting in settings or [""]:
            path = f"{_CONFIG.value or ''}:{setting}" if setting else _CONFIG.value
            load_config(path, argv[1:], missing)
        if bad := [seed for seed in _SEEDS.value if not seed.isdecimal()]:
            raise SettingsError([f"--seeds must be whole numbers, got {bad[0]!r}"])
        workdir = local_folder(_WORKDIR.value or "")
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
    if any(savings.has_masks(workdir / run.folder) for run in runs):
        return tables.pruning_table(methods)
    return tables.comparison(methods)


def _shares_of_cores(jobs: int) -> "Queue[list[int]]":
    """Deals the cores to jobs: runs that share cores hinder each other."""
    cores = runtime.cores()
    free: Queue[list[int]] = Queue()
    for job in range(jobs):
        free.put(cores[job::jobs] or cores)
    return free


def _train(
    run: Run, workdir: Path, overrides: list[str], free: "Queue[list[int]]"
) -> int:
    """Trains in a process of its own and returns its exit code."""
    command = [
        sys.executable,
        "-m",
        "fedjax_prune",
        "train",
        f"--config={_CONFIG.value}:{run.setting}",
        f"--workdir={workdir / run.folder}",
        *overrides,
        *run.overrides,
    ]
    print(f"{run.folder}: python {' '.join(command[1:])}", flush=True)
    (workdir / run.folder).parent.mkdir(parents=True, exist_ok=True)
    own = free.get()
    environment = dict(os.environ)
    try:
        if hasattr(os, "sched_setaffinity"):
            # This sets the cores of this thread, which its child process inherits.
            os.sched_setaffinity(0, own)
        else:
            environment.setdefault("JAX_NUM_CPU_DEVICES", str(len(own)))
        with (workdir / f"{run.folder}.log").open("a") as log:
            return subprocess.run(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
    finally:
        free.put(own)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
