"""A signal asks a run to stop at the end of its round."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
"""Exit code of a process that a signal stopped, as in shells."""


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into a request to stop at the round's end.

    A second signal acts as it would without this handler, so a user need not wait.
    """
    event = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def ask(number: int, frame: Any) -> None:
        del frame
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    for number in signals:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        for number in signals:
            signal.signal(number, before[number])
