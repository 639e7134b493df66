"""A signal asks a run to stop at the end of its round.

Of several processes any one may be asked, by a signal or by the cluster's notice that
it will take a machine away. JAX tells the others, and all stop after the same round.
"""

import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jax.experimental import multihost_utils

from fedjax_prune.engine import processes

INTERRUPTED = 130
"""Exit code of a process that a signal stopped, as in shells."""

# Windows has no SIGHUP.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
SIGNALS = [signal.Signals[n] for n in _NAMES if n in signal.Signals.__members__]
"""The signals that ask a run to stop."""
TWICE = 2.0
"""Seconds in which a second SIGTERM repeats the first one."""


_BORDERS = itertools.count(1)
"""Numbers the calls of `is_set`; JAX wants them to grow as long as the process runs."""


class Stop:
    """Whether a run is asked to stop.

    Attributes:
      known: set once this process knows of the request; other threads may wait for it.
    """

    def __init__(self):
        self.known = threading.Event()

    def is_set(self) -> bool:
        """Says so; it is called at the same places in all processes of a run."""
        return self.known.is_set()

    def set(self) -> None:
        """Asks all processes of the run to stop, as a signal to this one would."""
        self.known.set()


class _Agreed(Stop):
    """A request that all processes see at the same call of `is_set`."""

    def is_set(self) -> bool:
        if not self.known.is_set():
            border = next(_BORDERS)
            if multihost_utils.reached_preemption_sync_point(border):
                self.known.set()
        return self.known.is_set()

    def set(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def stop_requested() -> Iterator[Stop]:
    """Turns the first signal to stop into a request to stop at the round's end.

    The signals are SIGINT, SIGTERM and, when a terminal is closed, SIGHUP; one that the
    process ignores, as under `nohup`, stays ignored. A second SIGINT or SIGTERM ends it
    without saving what was done since the last checkpoint, as soon as the devices have
    finished what was sent to them; a checkpoint that is being written is finished. A
    second SIGTERM within TWICE seconds is the same request: a cluster sends it to every
    process, and a sweep to its runs. Of several processes JAX handles SIGTERM.
    """
    together = processes.count() > 1
    stop = _Agreed() if together else Stop()
    # JAX has a handler of its own for SIGTERM where it tells other processes of it.
    own = [n for n in SIGNALS if not (together and n == signal.SIGTERM)]
    handlers = {number: signal.getsignal(number) for number in own}
    before = {n: h for n, h in handlers.items() if h != signal.SIG_IGN}

    def ask(number: int, frame: Any) -> None:
        del frame
        stop.set()
        # A terminal that is closed may send SIGHUP several times.
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])
        elif number == signal.SIGTERM:
            asked = time.monotonic()
            signal.signal(number, lambda n, _: again(n, asked))

    def again(number: int, asked: float) -> None:
        if time.monotonic() - asked > TWICE:
            handler = before[signal.Signals(number)]
            signal.signal(number, handler)
            if handler == signal.SIG_DFL:
                # By default a process would end within what it is writing.
                raise KeyboardInterrupt
            signal.raise_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
