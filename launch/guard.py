"""Watches over a process of several: if another one is lost, it says so in one line.

When a process is lost, JAX ends the others from native code, with a stack trace and
SIGABRT. No Python code can come before it. So the work is done in a child process, and
its parent reads how it ended.
"""

import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import IO, Any

from fedjax_prune.runs import console
from fedjax_prune.runs.interrupt import INTERRUPTED, SIGNALS

from .cluster import SILENCE, Seat
from .errors import LOST

_TOLD_BY_JAX = re.compile(rb"[EF]\d{4} .*(coordination_service|client\.h)")
_NOTICE = re.compile(rb"W\d{4} .*preemption_notifier")
_OF_XLA = re.compile(r"[A-Z]+(_[A-Z]+)*: ")
"""The status that an error of XLA begins with, such as `UNKNOWN: ` or `INTERNAL: `."""
_OWN_ERRORS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
"""What errors of JAX begin with that have nothing to do with other processes."""
_SILENT = re.compile(r"stopped sending heartbeats\):\n([\d\n]+)")
_LEFT = re.compile(r"The first task at the barrier: (\d+)")
_STATUS = re.compile(r"absl::Status: (.*)")
_GOES_ON = "The same command, given to all processes, goes on from the last checkpoint."


def guarded(work: Callable[[], int], seat: Seat) -> int:
    """Does the work in a child process, whose errors and signals it passes on.

    It is called before JAX has started any device.

    Args:
      work: returns an exit code; it prints its own errors.
      seat: of this process.

    Returns:
      The code of the work; LOST if another process was lost; 128 and the signal's
      number if a signal has killed the child. The child returns from here, too, with
      the code of the work.
    """
    code_from_child, code_to_parent = os.pipe()
    errors_from_child, errors_to_parent = os.pipe()
    parent_lives, held_by_parent = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # JAX fears for its threads, but none of them has been started.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        for end in (code_to_parent, errors_to_parent, parent_lives):
            os.close(end)
        began = time.monotonic()
        with os.fdopen(errors_from_child, "rb") as errors:
            return _watch(child, code_from_child, errors, seat, began)
    for end in (code_from_child, errors_from_child, held_by_parent):
        os.close(end)
    # A terminal then sends its signals to the parent alone.
    os.setpgid(0, 0)
    os.dup2(errors_to_parent, 2)
    os.close(errors_to_parent)
    threading.Thread(target=_end_with, args=(parent_lives,), daemon=True).start()
    code = _patiently(work)
    os.write(code_to_parent, bytes([code]))
    return code


def _patiently(work: Callable[[], int]) -> int:
    """Does the work; after an error of XLA it waits whether a process is lost.

    Where a process is lost, a collective may fail at once, and which process it was is
    known later. XLA's errors are of several types, but all begin with a status.
    """
    try:
        return work()
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            text = str(cause)
            if _OF_XLA.match(text) and not text.startswith(_OWN_ERRORS):
                time.sleep(SILENCE + 15)
                break
            cause = cause.__cause__ or cause.__context__
        raise


def _end_with(parent_lives: int) -> None:
    os.read(parent_lives, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _watch(child: int, code: int, errors: IO[bytes], seat: Seat, began: float) -> int:
    """Passes on what the child is sent and what it says, and says how it ended."""
    killed = _pass_on_signals(child)
    fatal = []
    for line in errors:
        if fatal or _TOLD_BY_JAX.match(line):
            fatal.append(line)
        elif not _NOTICE.match(line):
            _say(line.decode(errors="replace"))
    _, status = os.waitpid(child, 0)
    told = os.read(code, 1)
    text = b"".join(fatal).decode(errors="replace")
    if told:
        if told[0] not in (0, INTERRUPTED):
            # The child's own error may come after what JAX says.
            _say(text)
        return told[0]
    end = os.waitstatus_to_exitcode(status)
    if end != -signal.SIGABRT or not text:
        _say(text)
    if end >= 0:
        return end
    if end == -signal.SIGABRT and text:
        console.print_error(_reason(text, seat, time.monotonic() - began))
        return LOST
    if -end in SIGNALS or killed.is_set():
        return INTERRUPTED
    console.print_error(
        f"process {seat.number} of {seat.num_processes} was killed by "
        f"{signal.Signals(-end).name}. {_GOES_ON}"
    )
    return 128 - end


def _say(text: str) -> None:
    """Writes an error of the child, who works on if nobody reads it."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError as error:
        if error.errno in console.READER_GONE:
            console.discard(sys.stderr)


def _reason(text: str, seat: Seat, seconds: float) -> str:
    """Which process was lost, in words.

    Args:
      text: what JAX has written before it ended the child.
      seat: of this process.
      seconds: since the child was started.
    """
    of = f"of {seat.num_processes}"
    if silent := _SILENT.search(text):
        numbers = silent[1].split()
        plural = len(numbers) > 1
        lost = (
            f"process{'es' * plural} {', '.join(numbers)} {of} "
            f"{'were' if plural else 'was'} lost: no sign of life for {SILENCE} s"
        )
    elif left := _LEFT.search(text):
        lost = f"process {left[1]} {of} has ended before the others"
    elif "Failed to send RPC to coordination service" in text:
        lost = f"process 0 {of} was lost: its connection has ended"
    elif "RegisterTask" in text:
        lost = f"process {seat.number} {of} has not reached all others"
    else:
        status = _STATUS.search(text)
        lost = f"the processes {of} have lost each other" + (
            f" ({status[1]})" if status else ""
        )
    return f"{lost}, {seconds:.0f} s after the start. {_GOES_ON}"


def _pass_on_signals(child: int) -> threading.Event:
    """The first signal asks the child to stop, and SIGINT after it kills it.

    Returns:
      Whether it was killed.
    """
    asked, killed = threading.Event(), threading.Event()

    def pass_on(number: int, frame: Any) -> None:
        del frame
        if not asked.is_set():
            # Not SIGINT: a cluster may send that to parent and child, and a second one
            # would not wait for the checkpoint.
            os.kill(child, signal.SIGTERM)
        elif number == signal.SIGINT:
            killed.set()
            os.kill(child, signal.SIGKILL)
        asked.set()

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    return killed
