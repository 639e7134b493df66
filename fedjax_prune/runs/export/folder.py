"""The folder that an export makes: all of its files, or nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedjax_prune.runs.files import WorkdirError, remove, remove_empty

_UNFINISHED = ".unfinished"


def folder_problems(folder: Path) -> list[str]:
    """Says why a folder cannot be made or filled; links are followed."""
    try:
        return _problems(folder)
    except OSError as error:
        return [f"{folder} cannot be used: {error.strerror or error}"]


def _problems(folder: Path) -> list[str]:
    # Path.resolve raises for a link to itself in some versions of Python.
    target = Path(os.path.realpath(folder))
    if target.is_symlink():
        return [f"{folder} must be a new or an empty folder, got a link to itself"]
    if target.exists():
        if not target.is_dir() or {f.name for f in target.iterdir()} - {_UNFINISHED}:
            return [f"{folder} must be a new or an empty folder"]
        return []
    parent = next(each for each in target.parents if each.exists())
    if not parent.is_dir():
        return [f"{folder} must be in a folder, but {parent} is a file"]
    return []


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Makes a hidden folder whose files are moved when all are there.

    A new folder gets them at once, with its name. An empty one that exists stays what
    it is, such as the current folder, and gets them one after another.

    Args:
      folder: without `folder_problems`.

    Raises:
      WorkdirError: if it cannot be written.
    """
    target = folder.resolve()
    made = [parent for parent in target.parents if not parent.exists()]
    if is_new := not target.exists():
        hidden = target.with_name(f".{target.name}{_UNFINISHED}")
    else:
        hidden = target / _UNFINISHED
    try:
        remove(hidden)
        hidden.mkdir(parents=True)
        yield hidden
        if is_new:
            os.replace(hidden, target)
        else:
            for file in sorted(hidden.iterdir()):
                os.replace(file, target / file.name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkdirError(f"{folder} cannot be written: {reason}.") from error
    finally:
        with suppress(OSError):
            remove(hidden)
        remove_empty(made)
