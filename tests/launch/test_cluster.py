"""Which process this is, and how it is told that another one was lost."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from fedjax_prune.runs.settings import SettingsError
from launch import guard
from launch.cluster import Seat, find_seat
from launch.errors import UnreachedError

ROOT = Path(__file__).parents[2]
GOES_ON = (
    ", 7 s after the start. The same command, given to all processes, goes on from the "
    "last checkpoint."
)


def test_a_process_alone_needs_no_flags():
    assert find_seat(None, None, None) is None
    assert find_seat("localhost:1234", 1, 0) is None


def test_the_flags_say_which_process_this_is():
    assert find_seat("10.0.0.1:1234", 3, 2) == Seat("10.0.0.1:1234", 3, 2)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ((None, 2, 0), "--coordinator_address is missing"),
        (("a:1", None, 0), "--num_processes is missing"),
        (("a:1", 2, None), "--process_id is missing"),
        (("a", 2, 0), r"--coordinator_address must be HOST:PORT with .*, got 'a'"),
        (("a:99999", 2, 0), r"a port in \[1, 65535\], got 'a:99999'"),
        (("a:1", 0, 0), "--num_processes must be at least 1, got 0"),
        (("a:1", 2, 2), r"--process_id must be in \[0, 1\], got 2"),
        (("a:1", 2, -1), r"--process_id must be in \[0, 1\], got -1"),
    ],
)
def test_flags_that_say_too_little_are_refused(flags, problem):
    with pytest.raises(SettingsError, match=problem):
        find_seat(*flags)


SLURM = {
    "SLURM_JOB_ID": "1000",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
}


@pytest.mark.parametrize(
    ("changes", "count", "local"),
    [
        ({}, 2, None),
        # Four processes on two machines have a device each, unless they are told.
        ({"SLURM_NTASKS": "4"}, 4, [0]),
        ({"SLURM_NTASKS": "4", "JAX_LOCAL_DEVICE_IDS": "0,1"}, 4, None),
        ({"SLURM_NTASKS": "1"}, 1, None),
    ],
)
def test_slurm_is_found_by_jax(monkeypatch, changes, count, local):
    for name, value in (SLURM | changes).items():
        monkeypatch.setenv(name, value)
    wanted = Seat("node003:62440", count, 1, local) if count > 1 else None
    assert find_seat(None, None, None) == wanted


@pytest.mark.parametrize(("size", "local"), [("1", None), ("2", [1])])
def test_open_mpi_says_how_many_processes_share_a_machine(monkeypatch, size, local):
    for name, value in {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": size,
    }.items():
        monkeypatch.setenv(name, value)
    seat = find_seat(None, None, None)
    assert seat is not None
    assert (seat.num_processes, seat.number, seat.local_devices) == (2, 1, local)


@pytest.mark.parametrize("index", [None, "1"])
def test_a_pod_of_no_indexed_job_trains_alone(monkeypatch, index):
    """A package without the names that JAX asks for stands for any of its errors."""
    monkeypatch.setitem(sys.modules, "kubernetes", types.ModuleType("kubernetes"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    if index is None:
        assert find_seat(None, None, None) is None
        return
    monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    with pytest.raises(UnreachedError, match="cluster cannot be found: module 'kuber"):
        find_seat(None, None, None)


POLLED = (
    "E1126 10:44:39 6682 coordination_service_agent.cc:289] Polled an error from "
    "coordination service (this can be an error from this or another task).\n"
    "F1126 10:44:39 6802 client.h:80] Terminating process because the JAX distributed "
    "service detected fatal errors. absl::Status: "
)
TEXTS = {
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n"
    "The tasks have crashed.": "process 1 of 4 was lost: no sign of life for 40 s",
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n3"
    "\nThe tasks have crashed.": "processes 1, 3 of 4 were lost: no sign of life for "
    "40 s",
    "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task "
    "was preempted": "process 0 of 4 was lost: its connection has ended",
    "INTERNAL: Shutdown barrier has failed.\n# of tasks that reached the barrier: 1/2."
    "\nThe first task at the barrier: 3. Some": "process 3 of 4 has ended before the "
    "others",
    "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination."
    "CoordinationService/RegisterTask": "process 2 of 4 has not reached all others",
    "ABORTED: another reason\n": "the processes of 4 have lost each other (ABORTED: "
    "another reason)",
}
WORKER = """
import os, signal, sys
from launch import guard
from launch.cluster import Seat

def work():
    exec(sys.argv[1], globals())
    return 3

code = guard.guarded(work, Seat("a:1", 4, 2))
print("code", code, flush=True)
sys.exit(code)
"""


def run_guarded(code):
    done = subprocess.run(
        [sys.executable, "-c", WORKER, code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("text", TEXTS)
def test_what_jax_says_becomes_one_line(text):
    said = guard._reason(POLLED + text, Seat("a:1", 4, 2), 7.4)
    assert said == TEXTS[text] + GOES_ON


def test_the_guard_passes_on_what_the_work_says_and_returns():
    said = run_guarded("print('out'); print('err', file=sys.stderr)")
    assert said == (3, "out\ncode 3\ncode 3\n", "err\n")


def test_an_end_by_jax_is_told_in_one_line():
    dump = POLLED + next(iter(TEXTS)) + "\n*** Check failure stack trace: ***\n"
    code, out, err = run_guarded(f"os.write(2, {dump.encode()!r}); os.abort()")
    assert (code, out) == (guard.LOST, "code 75\n")
    assert err.startswith("error: process 1 of 4 was lost: no sign of life for 40 s, ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error", ["KeyError('x')", "ValueError('lr')", "ValueError('RESOURCE_EXHAUSTED: ')"]
)
def test_an_error_that_no_other_process_can_cause_is_told_at_once(error):
    began = time.monotonic()
    code, _, err = run_guarded(f"raise {error}")
    assert (code, err.splitlines()[-1].split(":")[0]) == (1, error.split("(")[0])
    assert time.monotonic() - began < 20


COLLECTIVE = "UNKNOWN: Gloo AllGather failed: Connection closed by peer"


@pytest.mark.parametrize(
    "error",
    [
        f"raise ValueError({COLLECTIVE!r})",
        f"raise KeyError('x') from RuntimeError({COLLECTIVE!r})",
    ],
)
def test_an_error_of_a_collective_waits_for_what_jax_says(error):
    """A thread stands for JAX, which ends the process later."""
    dump = POLLED + next(iter(TEXTS)) + "\n"
    end = f"time.sleep(2), os.write(2, {dump.encode()!r}), os.abort()"
    begin = f"import threading, time; threading.Thread(target=lambda: ({end})).start()"
    code, _, err = run_guarded(f"{begin}\n{error}")
    assert code == guard.LOST
    assert err.startswith("error: process 1 of 4 was lost: no sign of life for 40 s, ")


def test_a_child_that_is_killed_is_told():
    code, _, err = run_guarded("os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 128 + signal.SIGKILL
    assert err.startswith("error: process 2 of 4 was killed by SIGKILL. The same ")


def test_a_second_ctrl_c_is_no_kill_from_outside():
    """The work does not stop at the first signal, which it has for SIGTERM."""
    send = "os.kill(os.getppid(), signal.SIGINT)"
    wait = "signal.signal(signal.SIGTERM, lambda *_: None)"
    code, _, err = run_guarded(
        f"import time; {wait}; {send}; time.sleep(1); {send}; time.sleep(60)"
    )
    assert (code, err) == (guard.INTERRUPTED, "")


def test_the_child_ends_with_its_guard():
    code = "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
    done = run_guarded(f"import time; {code}")
    # The output ends only with the last process that has it.
    assert done == (-signal.SIGKILL, "", "")
