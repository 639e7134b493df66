"""Trains one config file with several config strings and prints one table.

python -m launch.sweep --config=configs/cifar10_cpu.py --workdir=runs/table \
    --settings="fedavg,10 feddp,10" [--jobs=2] [--config.field=value]

Every setting is a run of its own in WORKDIR/SETTING, with its output in
WORKDIR/SETTING.log. Stopped and started again, finished runs are only reported and
the others go on from their checkpoints.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from absl import app, flags

from fedjax_prune import console, report
from launch.errors import exit_code
from launch.flags import load_config, parse

_CONFIG = flags.DEFINE_string("config", None, "config file that takes a string")
_SETTINGS = flags.DEFINE_string("settings", "", "config strings, separated by spaces")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs")
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "runs at a time, each on its share of the cores", 1
)


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
        workdir.mkdir(parents=True, exist_ok=True)
        free = _shares_of_cores(_JOBS.value)
        with ThreadPoolExecutor(_JOBS.value) as pool:
            codes = list(
                pool.map(lambda s: _train(s, workdir, argv[1:], free), settings)
            )
        failed = [s for s, code in zip(settings, codes, strict=True) if code]
        if failed:
            logs = ", ".join(str(workdir / f"{setting}.log") for setting in failed)
            console.print_error(f"not finished: {', '.join(failed)}; see {logs}")
        done = [workdir / setting for setting in settings if setting not in failed]
        print(report.comparison(done), end="")
        return int(bool(failed))

    return exit_code(run)


def _shares_of_cores(jobs: int) -> "Queue[list[int]]":
    """Deals the cores to jobs: runs that share cores hinder each other."""
    cores = sorted(os.sched_getaffinity(0))
    free: Queue[list[int]] = Queue()
    for job in range(jobs):
        free.put(cores[job::jobs] or cores)
    return free


def _train(
    setting: str, workdir: Path, overrides: list[str], free: "Queue[list[int]]"
) -> int:
    """Runs one setting in a process of its own and returns its exit code."""
    command = [
        *(sys.executable, "-m", "launch.train"),
        f"--config={_CONFIG.value}:{setting}",
        f"--workdir={workdir / setting}",
        *overrides,
    ]
    print(f"{setting}: {' '.join(command[1:])}", flush=True)
    own = free.get()
    try:
        with (workdir / f"{setting}.log").open("a") as log:
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
