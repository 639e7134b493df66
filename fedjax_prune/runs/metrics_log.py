"""`metrics.jsonl`, one row a round, and the same numbers as TensorBoard event files."""

import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.engine import processes
from fedjax_prune.runs.files import create, free_name, replace, unwritable
from fedjax_prune.runs.lock import require_held

_MOST_NAMED = 5
"""How many ranges of lines or rounds a warning names."""


class MetricsLog(NamedTuple):
    """Writes rows of metrics to `metrics.jsonl` and to TensorBoard event files.

    Attributes:
      folder: the workdir, which this process holds.
      descriptor: of `metrics.jsonl`, for appending.
      events: written at once. A SummaryWriter's thread would end when the disk is full,
        and the run would then wait for it without end.
    """

    folder: Path
    descriptor: int
    events: Any

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row, at once.

        Args:
          row: flat; `round` and any numbers or strings. JSON has no NaN and no
            infinity: they are written as null and left out of the event files.

        Raises:
          WorkdirError: if the row cannot be written, or this process does not hold
            the workdir any more.
        """
        require_held(self.folder)
        plain = {name: _plain(value) for name, value in row.items()}
        line = json.dumps(plain, allow_nan=False).encode() + b"\n"
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self.descriptor, left) :]
        except OSError as error:
            raise unwritable(_file(self.folder), error, len(line)) from error
        try:
            self._write_events(plain)
        except OSError as error:
            raise unwritable(_events(self.folder), error, len(line)) from error

    def sync(self) -> None:
        """Waits until all rows are on the disk, where they outlive a loss of power.

        Raises:
          WorkdirError: if the disk does not take them.
        """
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise unwritable(_file(self.folder), error) from error

    def _write_events(self, row: Mapping[str, Any]) -> None:
        from tensorboardX.summary import scalar

        for name, value in row.items():
            if isinstance(value, int | float) and name != "round":
                _write_event(self.events, row["round"], summary=scalar(name, value))
        self.events.flush()


class NoLog(NamedTuple):
    """What processes other than the first write their rows to."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Drops the row, which the first process writes as well."""

    def sync(self) -> None:
        """There is nothing to wait for."""


@contextmanager
def open_metrics(
    path: str | Path, finished_rounds: int
) -> Iterator[MetricsLog | NoLog]:
    """Opens the metrics of a run, to add rows, in all processes.

    Args:
      path: of a workdir that this process holds.
      finished_rounds: TensorBoard hides what event files have of later rounds.

    Yields:
      The log, closed at the end of the block.

    Raises:
      WorkdirError: if a file cannot be written.
      ProcessError: if the first process cannot write it.
    """
    with ExitStack() as held:
        opened = _open(path, finished_rounds)
        yield processes.together(lambda: held.enter_context(opened))


@contextmanager
def _open(path: str | Path, finished_rounds: int) -> Iterator[MetricsLog | NoLog]:
    if not processes.is_first():
        yield NoLog()
        return
    # Slow to import, and only a run needs it.
    from tensorboardX.event_file_writer import EventsWriter

    folder = Path(path)
    events = None
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    try:
        descriptor = os.open(_file(folder), flags, 0o666)
    except OSError as error:
        raise unwritable(_file(folder), error) from error
    try:
        try:
            _events(folder).mkdir(exist_ok=True)
            # Two files of one second must have two names.
            suffix = f".{os.getpid()}.{finished_rounds}"
            events = EventsWriter(str(_events(folder) / "events"), suffix)
            step = finished_rounds + 1
            _write_event(events, step, session_log={"status": "START"})
            events.flush()
        except OSError as error:
            raise unwritable(_events(folder), error) from error
        yield MetricsLog(folder, descriptor, events)
    finally:
        os.close(descriptor)
        if events is not None:
            # Every row was flushed when it was written.
            with suppress(OSError):
                events.close()


def restore_metrics(
    path: str | Path, finished: int | None, *, first: int, save_every: int
) -> None:
    """Ends the metrics of a run at the restored round: a row a round, in their order.

    A killed run leaves rows of the rounds after it, up to the second of the next
    checkpoints, since one may still have been in writing, and a last line without an
    end. They are removed. Anything else that a reader would miss causes a warning:
    rounds without a row, several rows of a round, lines that are no rows, and rows of
    later rounds, whose checkpoints are gone. If it is more than missing rows, the file
    is also kept as it was, as `metrics.jsonl.damaged`.

    Args:
      path: of a workdir that this process holds.
      finished: rounds of the restored checkpoint; None if there is no checkpoint.
      first: round of the first row: 0 with a preparation, else 1.
      save_every: rounds between two checkpoints.

    Raises:
      WorkdirError: if a file cannot be written. The old one then stays.
    """
    file = _file(path)
    found = _read(file)
    last = -1 if finished is None else finished
    missing = sorted(set(range(first, last + 1)) - found.rows.keys())
    repeated = sorted({number for number in found.repeated if number <= last})
    later = sorted(n for n in found.rows if n > max(last, 0) + 2 * save_every)
    unreadable = found.unreadable + found.torn * bool(missing)
    faults = [
        *(f"cannot read {x}" for x in _named("line", unreadable)),
        *(f"no row of {x}" for x in _named("round", missing)),
        *(f"several rows of {x}; the last counts" for x in _named("round", repeated)),
        *(f"rows of {x}, but no checkpoint" for x in _named("round", later)),
    ]
    words = f"{file}: {'; '.join(faults)}."
    if unreadable or repeated or later:
        aside = free_name(file)
        try:
            create(aside, found.data)
        except OSError as error:
            raise unwritable(aside, error, len(found.data)) from error
        words += f" The file is kept as {aside.name}."
    kept = [found.rows[number][0] for number in sorted(found.rows) if number <= last]
    if kept or os.path.lexists(file):
        replace(file, b"".join(line + b"\n" for line in kept))
    if faults:
        warnings.warn(words, stacklevel=2)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads the rows of `metrics.jsonl`, one a round, in the order of rounds.

    A value that was not finite is NaN. Lines that are no rows cause a warning, except a
    last one without an end: the run may be writing it.
    """
    file = _file(path)
    found = _read(file)
    for lines in _named("line", found.unreadable):
        warnings.warn(f"{file}: cannot read {lines}.", stacklevel=2)
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for _, (_, row) in sorted(found.rows.items())
    ]


class _Found(NamedTuple):
    """What `metrics.jsonl` holds.

    Attributes:
      data: the whole file.
      rows: round -> its last line, without its end, and the row.
      repeated: rounds of earlier rows that a later one replaces.
      unreadable: numbers of lines that are no rows, from 1.
      torn: number of the last line, if it is no row and has no end; else [].
    """

    data: bytes
    rows: dict[int, tuple[bytes, dict[str, Any]]]
    repeated: list[int]
    unreadable: list[int]
    torn: list[int]


def _read(file: Path) -> _Found:
    data = file.read_bytes() if file.exists() else b""
    found = _Found(data, {}, [], [], [])
    *lines, last = data.split(b"\n")
    for number, line in enumerate([*lines, last], 1):
        row = _row(line)
        if row is None:
            if line.strip():
                is_torn = number > len(lines)
                (found.torn if is_torn else found.unreadable).append(number)
            continue
        if row["round"] in found.rows:
            found.repeated.append(row["round"])
        found.rows[row["round"]] = line, row
    return found


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and type(row.get("round")) is int
    return row if is_row and row["round"] >= 0 else None


def _named(what: str, numbers: list[int]) -> list[str]:
    """Numbers in words, such as ["rounds 3, 5 to 7"]; [] if there are none."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    named = [f"{a} to {b}" if b > a else f"{a}" for a, b in ranges[:_MOST_NAMED]]
    named += ["..."] * (len(ranges) > _MOST_NAMED)
    return [f"{what}{'s' * (len(numbers) > 1)} {', '.join(named)}"] * bool(named)


def _file(path: str | Path) -> Path:
    return Path(path) / "metrics.jsonl"


def _events(folder: Path) -> Path:
    return folder / "tensorboard"


def _write_event(events: Any, step: int, **content: Any) -> None:
    from tensorboardX.proto.event_pb2 import (
        Event,  # pyright: ignore[reportAttributeAccessIssue]
    )

    events.write_event(Event(wall_time=time.time(), step=step, **content))


def _plain(value: Any) -> int | float | str | bool | None:
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "devices"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
