"""The folder of one run, which one process holds, and its `config.json`."""

import copy
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fedjax_prune.engine import processes
from fedjax_prune.models import own
from fedjax_prune.runs import lock
from fedjax_prune.runs.files import WorkdirError, remove_empty, replace
from fedjax_prune.runs.settings import SettingsError, flatten, gained, problems
from fedjax_prune.types import Config

HOUSEKEEPING = (
    "save_every",
    "keep",
    "keep_every",
    "hash_every",
    "devices",
    "lanes",
    "client_rows",
    "rows_dir",
    "report.every",
    "logger",
)
"""Fields that say where a run works and what it keeps, not what it computes."""
CHANGEABLE = ("rounds", "eval.", "data.dir", *HOUSEKEEPING)
"""Fields, or sections ending in a dot, that may change when a run is resumed.

Data that were moved must have the hashes that checkpoints keep.
"""
FILLED_IN = ("data.classes", "data.image_shape", "model.file_hash")
"""Fields that are empty until the user's files were looked at."""
_NOTHING = object()
"""Stands for the value of a field that is not there; None is a value."""


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
            f"{path} is not a folder of this machine. Only rows of clients can be in "
            "object storage, see rows_dir: name a local folder."
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
    folder = local_folder(path)
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = lock.acquire(folder)
        except OSError as error:
            reason = error.strerror or str(error)
            raise WorkdirError(
                f"The workdir {folder} cannot be written: {reason}."
            ) from error
        try:
            yield folder
        finally:
            lock.release(folder, held)
    finally:
        remove_empty(made)


@contextmanager
def open_shared_workdir(path: str | Path) -> Iterator[Path]:
    """Opens a workdir as `open_workdir` in all processes; the first one holds it.

    Args:
      path: of a folder on a disk that all processes share.

    Yields:
      The folder.

    Raises:
      WorkdirError: as `open_workdir`, or if this process does not see that folder.
      ProcessError: if another process raises it.
    """
    with ExitStack() as held:

        def hold() -> str:
            return str(held.enter_context(open_workdir(path)))

        folder = Path(processes.on_first(hold))
        processes.together(lambda: _require_shared(folder))
        yield folder
        processes.barrier()


def _require_shared(folder: Path) -> None:
    if not (folder / "lock").exists():
        raise WorkdirError(
            f"The workdir {folder} must be on a disk that all processes share: the "
            "first process holds it, and its lock is not seen here."
        )


def agree_config(path: str | Path, config: Any) -> None:
    """Compares a configuration with that of the run in a workdir, if there is one.

    Fields that the library has gained since count as their defaults, and fields of
    FILLED_IN that are empty as those of the run.

    Args:
      path: of the workdir.
      config: the configuration, nested dicts or a ConfigDict.

    Raises:
      SettingsError: naming each field that differs and is not in CHANGEABLE.
      WorkdirError: if `config.json` cannot be read.
    """
    if not has_config(path):
        return
    old, new = flatten(read_config(path)), plain_fields(config)
    old |= gained(old)
    new |= {name: old[name] for name in FILLED_IN if name in old and not new.get(name)}
    others = {
        section
        for section in ("algorithm.", "model.")
        if _content(f"{section}name", old) != _content(f"{section}name", new)
    }
    refused = [
        f"{field} is {new.get(field, 'not set')!r}, but the run in {path} was "
        f"started with {old.get(field, 'not set')!r}"
        for field in changed_fields(old, new)
        # Another algorithm or model has other fields, which say nothing more.
        if (field in old and field in new) or not field.startswith(tuple(others))
    ]
    if refused:
        advice = "use the old values to continue, or another workdir to start anew"
        raise SettingsError([*refused, advice])


def write_config(path: str | Path, config: Any) -> None:
    """Writes `config.json`.

    Args:
      path: of the workdir.
      config: the configuration, nested dicts or a ConfigDict.

    Raises:
      WorkdirError: if it cannot be written.
    """
    replace(Path(path) / "config.json", _as_json(config).encode())


def plain_fields(config: Any) -> dict[str, Any]:
    """A configuration as dotted names with the values that JSON gives back."""
    return flatten(json.loads(_as_json(config)))


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields that differ, except those that may change when a run is resumed.

    A network's file may be in another folder: `model.file_hash` compares what it has.

    Args:
      old: dotted name -> value.
      new: the same.
    """
    return [
        field
        for field in sorted(old.keys() | new.keys())
        if _content(field, old) != _content(field, new) and not is_changeable(field)
    ]


def _content(field: str, fields: Mapping[str, Any]) -> Any:
    value = fields.get(field, _NOTHING)
    if field == "model.name" and own.is_own(value):
        return own.without_folder(value)
    return value


def has_config(path: str | Path) -> bool:
    """Whether a run was started in this workdir."""
    return (Path(path) / "config.json").exists()


def runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a workdir, else all workdirs below it, in order.

    Links to folders are followed.
    """
    found, seen = [], set[Path]()
    for path, names, files in os.walk(folder, followlinks=True):
        here = Path(path)
        place, is_run = here.resolve(), "config.json" in files
        if is_run and place not in seen:
            found.append(here)
        if is_run or place in seen:
            names.clear()  # Nothing below is searched.
        seen.add(place)
    return sorted(found)


def folders_named(parts: Sequence[str]) -> list[Path]:
    """The folders that a list names; commas may be in the name of one that exists.

    Args:
      parts: of the list, at the commas.
    """
    folders, left = [], list(parts)
    while left:
        for count in range(len(left), 0, -1):
            folder = local_folder(",".join(left[:count]))
            if count == 1 or folder.is_dir():
                folders.append(folder)
                left = left[count:]
                break
    return folders


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
    """Reads the configuration of the run in a workdir, as `usable` makes it.

    Raises:
      WorkdirError: if there is none, it cannot be read, or this version cannot run it.
    """
    return usable(Path(path) / "config.json", read_config(path))


def usable(file: Path, values: dict[str, Any]) -> Config:
    """Checks a configuration that was read from a file.

    Fields that the library has gained since count as their defaults.

    Args:
      file: for the message.
      values: nested dicts.

    Returns:
      The configuration with all fields.

    Raises:
      WorkdirError: naming the file and what is missing, unknown or wrong.
    """
    values = copy.deepcopy(values)
    for name, default in gained(flatten(values)).items():
        section, _, field = name.rpartition(".")
        fields = values.setdefault(section, {}) if section else values
        # If it is something else, it is an unknown field.
        if isinstance(fields, dict):
            fields[field] = default
    if found := problems(values):
        shown = found[:3] + ["..."] * (len(found) > 3)
        raise WorkdirError(
            f"{file} is damaged or of another version: {'; '.join(shown)}."
        )
    return ConfigDict(values)


def is_changeable(field: str) -> bool:
    """Whether a field, with its section, may change when a run is resumed."""
    return any(
        field == name or (name.endswith(".") and field.startswith(name))
        for name in CHANGEABLE
    )


def _as_json(config: Any) -> str:
    return json.dumps(config, indent=2, sort_keys=True, default=_section) + "\n"


def _section(config: Any) -> dict[str, Any]:
    return dict(config.items())
