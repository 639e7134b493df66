"""Runs commands in processes of their own, some at a time, and stops them cleanly."""

import math
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_prune.runs.interrupt import INTERRUPTED, TWICE, stop_requested

from . import runtime

_PAUSE = 0.1
"""Seconds between two looks at the processes."""
_MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""Either says which share of a GPU's memory JAX takes; it takes 75% at once if not."""
_USABLE = 0.9
"""Share of a GPU's memory that jobs have together."""
_TAIL = 2**16
"""Bytes of a log in which its last line is looked for."""


class Job(NamedTuple):
    """A command.

    Attributes:
      name: for messages.
      command: program and arguments.
      log: file that its output is appended to.
    """

    name: str
    command: tuple[str, ...]
    log: Path


class Outcome(NamedTuple):
    """How a job has ended.

    Attributes:
      job: that has ended, or was not started.
      code: exit code, below 0 for a signal; None if it was not started.
      last_words: of its log, or the reason why it could not be started.
    """

    job: Job
    code: int | None
    last_words: str = ""

    @property
    def stopped(self) -> bool:
        """Whether a signal has kept it from ending."""
        return self.code in (None, INTERRUPTED, -signal.SIGTERM)


class Ended(NamedTuple):
    """How all jobs have ended.

    Attributes:
      outcomes: in the order of the jobs.
      asked: whether a signal has asked to stop, also if every job ended by itself.
    """

    outcomes: list[Outcome]
    asked: bool


class _Started(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes]"
    cores: list[int]
    began: float
    end: float


def run_all(
    jobs: Sequence[Job],
    at_a_time: int,
    say: Callable[[str], None],
    seconds: float = math.inf,
    *,
    share_time: bool = False,
) -> Ended:
    """Runs all jobs; one that fails does not keep the others from running.

    Jobs that run side by side share a GPU's memory equally, unless the user's own
    variables say which share JAX takes. A TPU is for one process.

    The first signal to stop is passed on as SIGTERM to the jobs that run, which may
    take their time to save; no other job is started. After a second SIGINT, or a late
    second SIGTERM, they get another one, after which they do not save their round.
    Unless a third one comes, this function ends after its jobs.

    Args:
      jobs: in the order in which they are started.
      at_a_time: at least 1; each job has its share of the cores.
      say: is told of each job's start and end.
      seconds: after which the jobs are stopped as by a first signal.
      share_time: whether a job is stopped after its part of the time that is left when
        it starts, one part for each job that has not started. One job runs at a time.

    Raises:
      KeyboardInterrupt: after a second SIGINT, or a SIGTERM more than TWICE seconds
        after the first one.
    """
    waiting, running = deque(jobs), []
    outcomes: dict[Job, Outcome] = {}
    # Cores are shared as if there were jobs for all, so that the number of those that
    # are left does not change how a run rounds.
    free, together = deque(_shares_of_cores(at_a_time)), min(at_a_time, len(jobs))
    end = time.monotonic() + seconds
    told: list[_Started] = []
    with stop_requested() as stop:

        def may_start() -> bool:
            return not stop.is_set() and time.monotonic() < end

        try:
            while running or (waiting and may_start()):
                while waiting and free and may_start():
                    job = waiting.popleft()
                    cores = free.popleft()
                    left = end - time.monotonic()
                    part = left / (len(waiting) + 1) if share_time else left
                    try:
                        running.append(_start(job, cores, part, together))
                        number = len(jobs) - len(waiting)
                        say(f"{job.name}: starts, {number} of {len(jobs)}")
                    except OSError as error:
                        free.append(cores)
                        reason = f"{error.filename}: {error.strerror}"
                        outcomes[job] = Outcome(job, 1, reason)
                        say(f"{job.name}: not started")
                time.sleep(_PAUSE)
                now = math.inf if stop.is_set() else time.monotonic()
                if due := [s for s in running if now >= s.end and s not in told]:
                    told += due
                    _pass_on(due, signal.SIGTERM)
                    say(f"runs to stop: {len(due)}")
                for started in [s for s in running if s.process.poll() is not None]:
                    running.remove(started)
                    free.append(started.cores)
                    outcomes[started.job] = outcome = _ended(started)
                    say(f"{started.job.name}: {_words(outcome, started)}")
        except BaseException as error:
            # What runs on would hold its workdir and its devices.
            _pass_on([s for s in running if s not in told], signal.SIGTERM)
            if isinstance(error, KeyboardInterrupt):
                # Sooner, it would be the first signal once more.
                time.sleep(TWICE + 0.5)
                _pass_on(running, signal.SIGTERM)
            for started in running:
                started.process.wait()
            raise
    found = [outcomes.get(job, Outcome(job, None)) for job in jobs]
    return Ended(found, stop.is_set())


def _start(job: Job, cores: list[int], seconds: float, together: int) -> _Started:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if together > 1 and not any(name in environment for name in _MEMORY):
        environment[_MEMORY[0]] = f"{_USABLE / together:.3f}"
    before = None
    if hasattr(os, "sched_setaffinity"):
        # A child process inherits the cores of the thread that starts it.
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
    else:
        environment.setdefault("JAX_NUM_CPU_DEVICES", str(len(cores)))
    try:
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                job.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches this process alone, which passes it on.
                process_group=0,
            )
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)
    began = time.monotonic()
    return _Started(job, process, cores, began, began + seconds)


def _pass_on(running: Sequence[_Started], number: signal.Signals) -> None:
    for started in running:
        if started.process.poll() is None:
            started.process.send_signal(number)


def _ended(started: _Started) -> Outcome:
    job, code = started.job, started.process.returncode
    outcome = Outcome(job, code, last_words(job.log))
    if code and not outcome.stopped and not outcome.last_words.startswith("error:"):
        # Later commands read in the log how it has ended.
        with job.log.open("a") as log:
            log.write(f"error: ended with code {code}: {outcome.last_words}\n")
    return outcome


def _words(outcome: Outcome, started: _Started) -> str:
    word = "failed" if outcome.code else "finished"
    word = "stopped" if outcome.stopped else word
    return f"{word} after {time.monotonic() - started.began:,.0f} s"


def last_words(file: Path) -> str:
    """What a log ends with: its errors in one line, or else its last line."""
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - _TAIL))
        lines = log.read().decode(errors="replace").splitlines()
    errors: list[str] = []
    last = ""
    for line in filter(str.strip, lines):
        last = line.strip()
        goes_on = bool(errors) and line.startswith(" " * len("error: "))
        if line.startswith("error:") or goes_on:
            errors.append(last)
        else:
            errors.clear()
    return " ".join(errors) or last


def _shares_of_cores(jobs: int) -> list[list[int]]:
    """Deals the cores to jobs: runs that share cores hinder each other.

    All have equally many, because on another number of devices a run rounds otherwise.
    """
    cores = runtime.cores()
    if jobs > len(cores):
        return [[cores[job % len(cores)]] for job in range(jobs)]
    each = len(cores) // jobs
    return [cores[job * each : (job + 1) * each] for job in range(jobs)]
