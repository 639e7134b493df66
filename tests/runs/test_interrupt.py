"""Signals that ask a run to stop."""

import io
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedjax_prune.runs import checkpoint, console, interrupt, train
from fedjax_prune.runs.interrupt import SIGNALS, stop_requested
from tests.small_runs import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_only_asks(number):
    before = signal.getsignal(number)
    with stop_requested() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
    assert signal.getsignal(number) == before


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stop_requested() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_at_once_is_the_same_request(monkeypatch):
    """A cluster sends it to a sweep and to its runs, and the sweep passes it on."""
    ended = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    try:
        with stop_requested() as stop:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set() and not ended
            monkeypatch.setattr(interrupt, "TWICE", 0.0)
            signal.raise_signal(signal.SIGTERM)
            assert ended
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_sigterm_does_not_end_a_process_within_what_it_writes(monkeypatch):
    monkeypatch.setattr(interrupt, "TWICE", 0.0)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), stop_requested():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("hangup", [signal.SIG_DFL, signal.SIG_IGN])
def test_output_that_nobody_reads_after_ctrl_c_does_not_end_the_round(hangup):
    """As Ctrl-C on `train | tee` does, which ends both; with `nohup` before it, too."""
    read, write = os.pipe()
    os.close(read)
    before = signal.signal(signal.SIGHUP, hangup)
    try:
        with os.fdopen(write, "w") as stream, stop_requested() as stop:
            signal.raise_signal(signal.SIGINT)
            print("round 2", file=console._Output(stream), flush=True)
            assert stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_may_say_so_twice():
    with stop_requested() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop.is_set()


def test_an_ignored_signal_stays_ignored():
    """As `nohup` does it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requested() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Impatient(io.StringIO):
    """Presses Ctrl-C after round 3 and once more when the run says that it stops."""

    def __init__(self):
        super().__init__()
        self.told = threading.Event()

    def write(self, text):
        if text.startswith("round 3/"):
            signal.raise_signal(signal.SIGINT)
            assert self.told.wait(60)
            signal.raise_signal(signal.SIGINT)
        if text.startswith("stopping after this round"):
            self.told.set()
        return super().write(text)


def test_a_run_that_is_stopped_at_once_says_from_where_it_goes_on(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Impatient())
        with pytest.raises(KeyboardInterrupt, match=r"goes on from round 2$"):
            train.run(tiny_config(save_every=2, rounds=9), tmp_path)
    assert checkpoint.latest(tmp_path / "checkpoints") == 2


TERMINAL = """
import os
import sys

# Makes it the terminal of this session, which is told when it is closed.
os.close(os.open(os.ttyname(0), os.O_RDWR))

from fedjax_prune.runs import console
from fedjax_prune.runs.interrupt import stop_requested

with stop_requested() as stop, console.progress(9, 0) as bar:
    bar.advance(1, 1.0, 0.5, 10.0)
    stop.known.wait(60)
    # After the signal of the terminal comes the error of writing to it.
    bar.advance(2, 1.0, 0.5, 10.0)
with stop_requested():
    console.print_table("Result", {"rounds": "2"})
print("ended", file=sys.stderr)
"""


def test_a_run_whose_terminal_is_closed_ends_in_order():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        start_new_session=True,
    )
    os.close(theirs)
    shown = ""
    while "round 1/9" not in shown:
        shown += os.read(ours, 4096).decode()
    os.close(ours)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "ended\n")
