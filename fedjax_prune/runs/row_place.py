"""Where the rows of a run are on disk: in its workdir, or in a folder of its own."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from fedjax_prune.engine import processes
from fedjax_prune.engine.row_errors import RowsError, StorageError, reason_of
from fedjax_prune.engine.row_folder import Ranges, open_folder
from fedjax_prune.runs.files import replace, unwritable
from fedjax_prune.types import Config

ROWS = "rows"
"""Folder of the rows of clients in a workdir, if they are on disk."""
ROWS_NAME = "rows_name"
"""File in a workdir: the name of the run's folder in `rows_dir`, and what it is of."""


def rows_folder(config: Config, workdir: Path) -> str:
    """Where the rows of a run are, if they are on disk.

    A run has a folder of its own in `rows_dir`, which other runs may use, too. It does
    not depend on the path of the workdir, which may change. A copy of the workdir has
    another folder. The first process says where it is, in the words of its own current
    and home directory.

    Raises:
      RowsError: if this Python cannot reach the storage that `rows_dir` names.
      WorkdirError: if the name of that folder cannot be written into the workdir.
    """
    if not config.rows_dir:
        return str(workdir / ROWS)
    return processes.on_first(
        lambda: f"{open_folder(config.rows_dir)}/{_name_of_run(workdir)}"
    )


def require_usable(rows_dir: str) -> None:
    """Writes a file into `rows_dir`, reads it in all processes and removes it.

    Raises:
      RowsError: if one of these is not possible.
      ProcessError: if it is not possible in another process.
    """

    def write() -> tuple[str, str]:
        with _refused(rows_dir):
            folder, name = open_folder(rows_dir), f"usable-{uuid.uuid4().hex}"
            folder.write(name, [memoryview(b"1")])
            return str(folder), name

    def read() -> None:
        with _refused(rows_dir):
            folder, only = open_folder(where), np.zeros(1, np.int64)
            try:
                folder.read([Ranges(name, only, only)], np.zeros((1, 1), np.uint8))
            except FileNotFoundError as error:
                raise RowsError(
                    f"rows_dir must be a folder that all processes share: what the "
                    f"first process has written into {where} is not seen here."
                ) from error
            folder.sizes()

    def remove() -> None:
        with _refused(rows_dir):
            open_folder(where).remove([name])

    where, name = processes.on_first(write)
    try:
        processes.together(read)
    except BaseException:
        if processes.is_first():
            with suppress(OSError, RowsError):
                remove()
        raise
    processes.on_first(remove)


@contextmanager
def _refused(rows_dir: str) -> Iterator[None]:
    """Says in one line why rows cannot be in a place."""
    try:
        yield
    except (OSError, StorageError) as error:
        said = f"Rows cannot be kept in {rows_dir}: {reason_of(error)}."
        raise RowsError(said) from error


def _name_of_run(workdir: Path) -> str:
    """The name of the run's folder, drawn unless the workdir has one of its own.

    Of a workdir and its copy only one may have the name: each removes the files that
    its own checkpoints do not need.
    """
    file = workdir / ROWS_NAME
    with suppress(OSError, ValueError):
        name, owner = file.read_text().split()
        if owner == _identity(file):
            return name
    readable = re.sub(r"[^\w.-]", "_", workdir.name)
    name = f"{readable}-{uuid.uuid4().hex[:12]}"
    replace(file, b"")
    text = f"{name}\n{_identity(file)}\n"
    try:
        # In place, because another file would not be the one that is named here.
        file.write_text(text)
    except OSError as error:
        raise unwritable(file, error, len(text)) from error
    return name


def _identity(file: Path) -> str:
    """What a file keeps when it is moved, and its copies do not have.

    The number of a file system is the same on other machines and after a restart,
    other than that of its device. A file with several names says nothing: it is also
    that of a copy made of links.
    """
    found = file.stat()
    links = "" if found.st_nlink <= 1 else "linked:"
    return f"{links}{os.statvfs(file).f_fsid}:{found.st_ino}"
