"""What a run prints: a table before, a line of progress during, a table after.

On a terminal the progress is one live bar; elsewhere (a file, a pipe, a CI log) it is
one plain line per round. The output fits 80 columns. If its reader goes away
(`| head`), the run stops as after Ctrl-C and saves its checkpoint.
"""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

EVERY = 10.0
"""Seconds without a finished round after which the progress shows the waiting time."""
READER_GONE = (errno.EPIPE, errno.EIO)
"""Errors of writing to a closed pipe and to a closed terminal."""
GLANCE = 0.2
"""Seconds between two looks at whether something is to be shown."""
WORTH_SAYING = 2.0
"""A step that takes at least this many seconds prints its duration."""


def print_error(messages: str | Iterable[str]) -> None:
    """Prints one `error: ...` per message to the standard error stream."""
    for message in [messages] if isinstance(messages, str) else messages:
        text = message.replace("\n", "\n       ")
        _print(f"error: {text}", sys.stderr)


def discard(stream: TextIO) -> None:
    """Redirects a stream to the null device from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class _Output:
    """A standard stream that asks the run to stop when nobody reads it any more."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._noticing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noticing():
            self._stream.flush()

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in READER_GONE:
                raise
            discard(self._stream)
            signal.raise_signal(_asking())


def _asking() -> signal.Signals:
    """A signal that asks the run to stop, and does not end it if it was asked already.

    A second SIGINT, as after Ctrl-C on `train | tee`, would not wait for the end of the
    round, and under `nohup` SIGHUP is ignored. Of several processes SIGTERM is JAX's,
    so there SIGINT is left.
    """
    # Windows has no SIGHUP.
    known = signal.Signals.__members__
    for number in (known[n] for n in ("SIGHUP", "SIGINT", "SIGTERM") if n in known):
        handler = signal.getsignal(number)
        if callable(handler) and handler is not signal.default_int_handler:
            return number
    return signal.SIGINT


class RoundProgress:
    """Shows how far a run is, and that it still runs during a long round."""

    def __init__(self, rounds: int, first_round: int, bar: Progress | None):
        self._rounds = rounds
        self._first_round = first_round
        self._finished = first_round
        self._since = time.monotonic()
        self._first_finish: tuple[int, float] | None = None
        self._bar = bar
        self._test = ""
        if bar is not None:
            self._task = bar.add_task(
                "", total=rounds, completed=first_round, facts="compiling"
            )

    def advance(
        self,
        round: int,
        loss: float,
        accuracy: float,
        images_per_second: float,
        test: float | None = None,
    ) -> None:
        """Shows a finished round.

        Args:
          round: finished rounds, in [1, rounds].
          loss: mean training loss of the round.
          accuracy: on the training examples of the round, in [0, 1].
          images_per_second: training images of all clients over the round's time.
          test: accuracy on the test set, in [0, 1], if it was measured. A bar shows it
            until the next one.
        """
        self._finished, self._since = round, time.monotonic()
        facts = f"loss {loss:.3f} train {accuracy:6.1%} {images_per_second:6.0f} img/s"
        measured = "" if test is None else f"  test {test:.1%}"
        if self._bar is not None:
            self._test = measured or self._test
            self._bar.update(self._task, completed=round, facts=facts + self._test)
            return
        width = len(str(self._rounds))
        left = self._left(round)
        _print(f"round {round:{width}}/{self._rounds}  {facts}{left}{measured}")

    def wait(self) -> None:
        """Shows how long the current round has been running, if it is long."""
        waited = time.monotonic() - self._since
        if waited < EVERY or self._finished >= self._rounds:
            return
        seconds = _duration(waited)
        what = f"round {self._finished + 1} has been running for {seconds}"
        if self._finished == self._first_round:
            what = f"compiling and running round {self._finished + 1} for {seconds}"
        if self._bar is not None:
            self._bar.update(self._task, facts=what)
        else:
            _print(what)

    def _left(self, round: int) -> str:
        """The time left, from the second round on: the first one is compiled, too."""
        if self._first_finish is None:
            self._first_finish = round, self._since
            return ""
        first, began = self._first_finish
        seconds = (self._since - began) / (round - first) * (self._rounds - round)
        return f"  {_duration(seconds)} left"


@contextmanager
def _watched(look: Callable[[], Any], pause: float) -> Iterator[None]:
    """Calls `look` in a thread while the block runs, until it returns something true.

    Args:
      look: prints what there is to say.
      pause: seconds between two calls.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(pause) and not look():
            pass

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


class _Bar(Progress):
    """Leaves two columns free.

    A terminal echoes Ctrl-C as ^C. On a full line, ^C would start a new line, and the
    bar would be drawn twice.
    """

    def get_renderables(self) -> Iterator[RenderableType]:
        yield _Narrower(self.make_tasks_table(self.tasks))


class _Narrower(NamedTuple):
    table: Table

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        return console.render(self.table, options.update_width(options.max_width - 2))


def _console() -> Console:
    return Console(file=cast(TextIO, _Output(sys.stdout)))


@contextmanager
def progress(rounds: int, first_round: int) -> Iterator[RoundProgress]:
    """Shows the progress of a run while the block lasts.

    Args:
      rounds: after which training ends.
      first_round: rounds that were finished before, 0 in a new run.

    Yields:
      The progress; call its `advance` after every round.
    """
    console = _console()
    if not console.is_terminal:
        shown = RoundProgress(rounds, first_round, None)
        with _watched(shown.wait, EVERY):
            yield shown
        return
    columns = (
        TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[facts]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with _Bar(*columns, console=console, expand=True) as bar:
        shown = RoundProgress(rounds, first_round, bar)
        with _watched(shown.wait, EVERY):
            yield shown


@contextmanager
def telling(asked: threading.Event, text: str) -> Iterator[None]:
    """Prints a line once something is asked for while the block runs.

    A handler of signals must not print: it may interrupt another print.

    Args:
      asked: set when it is.
      text: the line.
    """

    def tell() -> bool:
        is_asked = asked.is_set()
        if is_asked:
            _print(text)
        return is_asked

    with _watched(tell, GLANCE):
        yield


@contextmanager
def working(text: str) -> Iterator[None]:
    """Shows what is done while the block runs; a slow block prints its duration.

    Args:
      text: what is done, such as "loading cifar10".
    """
    console, began = _console(), time.monotonic()
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        _print(f"{text} ...")
        yield
    seconds = time.monotonic() - began
    if seconds >= WORTH_SAYING:
        _print(f"{text}: {_duration(seconds)}")


def _print(text: str, stream: TextIO | None = None) -> None:
    # In one piece, because several threads print.
    print(f"{text}\n", end="", file=_Output(stream or sys.stdout), flush=True)


def print_table(title: str, facts: Mapping[str, str]) -> None:
    """Prints facts, one name and value a line, under a title."""
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    # Without Text, rich would read a path in square brackets as markup.
    for name, value in facts.items():
        table.add_row(Text(name), Text(value))
    console = Console(highlight=False)
    # Rich itself would end the process if the reader has gone away.
    with console.capture() as captured:
        console.print(table)
    _print(captured.get().removesuffix("\n"))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
