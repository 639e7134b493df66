"""A signal asks a run to stop at the end of its round."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
"""Exit code of what was stopped by a signal, as shells count it."""


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into a wish to stop at the round's end.

    The second one acts as without us, for those who cannot wait.
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
