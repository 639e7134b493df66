"""How a file of a workdir is written: whole, and never through a link; and read."""

import os
import shutil
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_prune.engine.durable import sync_folder


class WorkdirError(RuntimeError):
    """A workdir that cannot be used; the message names it and the reason.

    Examples:
      >>> try:
      ...     fedjax_prune.runs.workdir.read_config("/nowhere")
      ... except fedjax_prune.WorkdirError as error:
      ...     print(error)
      /nowhere/config.json does not exist: no run was started here.
    """


def create(file: Path, data: bytes) -> None:
    """Writes a new file; after an error there is none.

    Raises:
      FileExistsError: if there is something of this name, also if it is a link.
      OSError: if the file cannot be written.
    """
    with file.open("xb") as stream:
        try:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        except OSError:
            file.unlink()
            raise


def replace(file: Path, data: bytes) -> None:
    """Replaces a file atomically: a reader sees the old bytes or the new ones.

    A link of this name is replaced, too; the file that it names stays as it is.

    Raises:
      WorkdirError: if the file cannot be written; the old one stays.
    """
    temporary = file.with_name(f".{file.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        create(temporary, data)
        temporary.replace(file)
    except OSError as error:
        raise unwritable(file, error, len(data)) from error


def replace_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Replaces a file in NumPy's format `npz`, as `replace` does."""
    stream = BytesIO()
    np.savez(stream, **arrays)
    replace(file, stream.getvalue())


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file in NumPy's format `npz`.

    Raises:
      WorkdirError: if it cannot be read.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # A damaged file raises what its bytes happen to.
        raise WorkdirError(f"{file} cannot be read: {error}.") from error


def sync(folder: Path, *, below: bool = True) -> None:
    """Waits until a folder is on the disk.

    Args:
      folder: its names are.
      below: whether all files and folders in it are, too.

    Raises:
      OSError: if the disk takes no more.
    """
    for path in [*(folder.rglob("*") if below else ()), folder]:
        if path.is_dir():
            sync_folder(path)
            continue
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders, up to the first that is not empty.

    Args:
      folders: each in the next one.
    """
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def shown(path: Path) -> str:
    """A path as it is printed: from the current folder on, if it is in there.

    Examples:
      >>> shown(Path.cwd() / "runs" / "digits"), shown(Path("/elsewhere/runs"))
      ('runs/digits', '/elsewhere/runs')
    """
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def unwritable(file: Path, error: OSError, num_bytes: int = 0) -> WorkdirError:
    """The error of a file that the system does not let us write.

    Args:
      file: that was to be written.
      error: of the system.
      num_bytes: that it takes; 0 if it was not to grow.
    """
    needed = f" It takes {num_bytes:,} bytes." if num_bytes else ""
    reason = error.strerror or str(error)
    return WorkdirError(
        f"{file} cannot be written: {reason}.{needed} The same command goes on when it "
        "can be written."
    )


def free_name(path: Path) -> Path:
    """The first of `NAME.damaged`, `NAME.damaged2`, ... that nothing has."""
    number, free = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.damaged{number}")
    return free


def remove(path: Path) -> None:
    """Removes a folder, a file or a link, but not what a link names; it may be missing.

    Raises:
      OSError: if it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
