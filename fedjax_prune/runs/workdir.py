"""The folder of one run: its lock, `config.json`, `metrics.jsonl`, event files."""

import errno
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np
from ml_collections import ConfigDict

from fedjax_prune.runs.settings import SettingsError, flatten, problems
from fedjax_prune.types import Config

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

CHANGEABLE = (
    "rounds",
    "eval.",
    "save_every",
    "keep",
    "devices",
    "lanes",
    "client_rows",
)
"""Fields, or sections ending in a dot, that may change when a run is resumed."""


_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of a file system that has no locks."""


class WorkdirError(RuntimeError):
    """A workdir that cannot be used; the message names it and the reason.

    Examples:
      >>> try:
      ...     read_config("/nowhere")
      ... except fedjax_prune.WorkdirError as error:
      ...     print(error)
      /nowhere/config.json does not exist: no run was started here.
    """


def local_folder(path: str | Path) -> Path:
    """A folder of this machine as an absolute path; it need not exist.

    Args:
      path: may begin with `~`, the user's home directory.

    Raises:
      WorkdirError: if the path is an address such as `gs://bucket/run`, or there is
        no home directory.
    """
    # `Path("gs://bucket")` keeps only one slash.
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise WorkdirError(
            f"{path} is not a folder of this machine. Object storage is not supported: "
            "name a local folder."
        )
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise WorkdirError(
            f"{path} cannot be found: this user has no home directory."
        ) from error


@contextmanager
def open_workdir(path: str | Path) -> Iterator[Path]:
    """Makes the folder if needed and holds it for this process alone.

    The lock ends with the process, however the process ends. A file system without
    locks causes a warning. A folder made here is removed again if the body leaves
    nothing in it.

    Args:
      path: of the folder; `~` stands for the home directory.

    Yields:
      The folder.

    Raises:
      WorkdirError: if the folder is not one of this machine, cannot be made or
        written, or another process holds it; on Windows always.
    """
    if fcntl is None:
        raise WorkdirError(
            "This system has no POSIX file locks: runs need Linux or macOS, or the "
            "Windows Subsystem for Linux (WSL)."
        )
    folder = local_folder(path)
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / "lock")
    except OSError as error:
        _remove_empty(made)
        reason = error.strerror or str(error)
        raise WorkdirError(f"The workdir {folder} cannot be written: {reason}.") from (
            error
        )
    try:
        yield folder
    finally:
        (folder / "lock").unlink(missing_ok=True)
        lock.close()
        _remove_empty(made)


def agree_config(path: str | Path, config: Any) -> None:
    """Writes `config.json` at the first start and compares with it later.

    Args:
      path: of the workdir.
      config: the configuration, nested dicts or a ConfigDict.

    Raises:
      SettingsError: naming each field that differs from the run in the workdir and
        is not in CHANGEABLE.
      WorkdirError: if `config.json` cannot be read.
    """
    file = Path(path) / "config.json"
    text = json.dumps(config, indent=2, sort_keys=True, default=_section) + "\n"
    if has_config(path):
        old, new = flatten(read_config(path)), flatten(json.loads(text))
        refused = [
            f"{field} is {new.get(field, 'not set')!r}, but the run in {path} was "
            f"started with {old.get(field, 'not set')!r}"
            for field in sorted(old.keys() | new.keys())
            if old.get(field) != new.get(field) and not _is_changeable(field)
        ]
        if refused:
            advice = "use the old values to continue, or another workdir to start anew"
            raise SettingsError([*refused, advice])
    _replace(file, text)


def has_config(path: str | Path) -> bool:
    """Whether a run was started in this workdir."""
    return (Path(path) / "config.json").exists()


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads the configuration of the run in a workdir, as nested dicts.

    It may be one of another version, with other fields.

    Raises:
      WorkdirError: if there is none or it cannot be read.
    """
    file = Path(path) / "config.json"
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise WorkdirError(f"{file} does not exist: no run was started here.") from (
            error
        )
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{file} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise WorkdirError(
            f"{file} must hold the fields of a configuration, got {values!r}."
        )
    return values


def read_usable_config(path: str | Path) -> Config:
    """Reads the configuration of the run in a workdir and checks it.

    Raises:
      WorkdirError: if there is none, it cannot be read, or this version cannot run it.
    """
    return usable(Path(path) / "config.json", read_config(path))


def usable(file: Path, values: dict[str, Any]) -> Config:
    """Checks a configuration that was read from a file.

    Raises:
      WorkdirError: naming the file and what is missing or wrong.
    """
    if found := problems(values):
        shown = found[:3] + ["..."] * (len(found) > 3)
        raise WorkdirError(
            f"{file} is damaged or of another version: {'; '.join(shown)}."
        )
    return ConfigDict(values)


class MetricsLog(NamedTuple):
    """Writes rows of metrics to `metrics.jsonl` and to TensorBoard event files."""

    file: TextIO
    events: "SummaryWriter"

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row and flushes it.

        Args:
          row: flat; `round` and any numbers or strings. JSON has no NaN and no
            infinity: they are written as null and left out of the event files.
        """
        plain = {name: _plain(value) for name, value in row.items()}
        self.file.write(json.dumps(plain, allow_nan=False) + "\n")
        self.file.flush()
        for name, value in plain.items():
            if isinstance(value, int | float) and name != "round":
                self.events.add_scalar(name, value, int(row["round"]))
        self.events.flush()


@contextmanager
def open_metrics(path: str | Path, finished_rounds: int) -> Iterator[MetricsLog]:
    """Opens the metrics of a run and cuts what comes after the restored round.

    Args:
      path: of the workdir.
      finished_rounds: rows of later rounds, and a torn last line, are removed.

    Yields:
      The log, closed at the end of the block.
    """
    # Slow to import, and only a run needs it.
    from tensorboardX import SummaryWriter

    file = Path(path) / "metrics.jsonl"
    kept = [line for line, row in _rows(file) if row["round"] <= finished_rounds]
    _replace(file, "".join(kept))
    events = SummaryWriter(
        str(Path(path) / "tensorboard"), purge_step=finished_rounds + 1
    )
    with file.open("a") as stream:
        try:
            yield MetricsLog(stream, events)
        finally:
            events.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads the rows of `metrics.jsonl`; a value that was not finite is NaN."""
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for _, row in _rows(Path(path) / "metrics.jsonl")
    ]


def _lock(file: Path) -> TextIO:
    assert fcntl is not None  # `open_workdir` refuses
    while True:
        stream = file.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            stream.close()
            raise WorkdirError(
                f"The workdir {file.parent} is in use by the process {holder}."
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                stream.close()
                raise
            warnings.warn(
                f"The file system of {file.parent} has no locks: nothing keeps a "
                "second process from this workdir.",
                stacklevel=2,
            )
        # The holder before us may have removed the file we opened.
        if file.exists() and os.path.samestat(file.stat(), os.fstat(stream.fileno())):
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            return stream
        stream.close()


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _replace(file: Path, text: str) -> None:
    """Replaces a file atomically: a reader sees the old text or the new text."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text)
    temporary.replace(file)


def _is_changeable(field: str) -> bool:
    return any(
        field == name or (name.endswith(".") and field.startswith(name))
        for name in CHANGEABLE
    )


def _section(config: Any) -> dict[str, Any]:
    return dict(config.items())


def _rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines up to the first torn or foreign one, each with its row."""
    rows = []
    text = file.read_text(errors="replace") if file.exists() else ""
    for line in text.splitlines(True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        is_row = isinstance(row, dict) and type(row.get("round")) is int
        if not is_row or not line.endswith("\n"):
            break
        rows.append((line, row))
    return rows


def _plain(value: Any) -> int | float | str | bool | None:
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "devices"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
