"""A signal asks a run to stop at the end of its round."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
"""Exit code of a process that a signal stopped, as in shells."""

# Windows has no SIGHUP.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
SIGNALS = [signal.Signals[n] for n in _NAMES if n in signal.Signals.__members__]
"""The signals that ask a run to stop."""


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Turns the first signal to stop into a request to stop at the round's end.

    The signals are SIGINT, SIGTERM and, when a terminal is closed, SIGHUP; one that the
    process ignores, as under `nohup`, stays ignored. A second SIGINT or SIGTERM acts as
    it would without this handler, so a user need not wait.
    """
    event = threading.Event()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {n: h for n, h in handlers.items() if h != signal.SIG_IGN}

    def ask(number: int, frame: Any) -> None:
        del frame
        event.set()
        # A terminal that is closed may send SIGHUP several times.
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    for number in before:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
