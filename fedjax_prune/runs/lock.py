"""The lock of a workdir: one process holds it, and its file says which."""

import errno
import os
import socket
import stat
import warnings
from datetime import UTC, datetime
from pathlib import Path

from fedjax_prune.runs.files import WorkdirError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

_SINCE = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
"""When this process began, to tell it from an earlier one of the same number."""

_HOST = socket.gethostname()
"""The name of this machine at the start; a laptop's may change with its network."""

_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of a file system that has no locks."""


def acquire(folder: Path) -> int:
    """Locks a folder for this process; the lock ends with the process.

    A file system without locks causes a warning.

    Returns:
      What `release` takes: the descriptor of the file `lock`.

    Raises:
      WorkdirError: if another process holds the folder, the file `lock` is a link, or
        the system has no locks.
      OSError: if the file cannot be written.
    """
    if fcntl is None:
        raise WorkdirError(
            "This system has no POSIX file locks: runs need Linux or macOS, or the "
            "Windows Subsystem for Linux (WSL)."
        )
    while True:
        descriptor = _open(folder / "lock")
        try:
            _lock(folder, descriptor)
        except (OSError, WorkdirError):
            os.close(descriptor)
            raise
        # The holder before us may have removed the file we opened.
        if _is_in_place(folder, descriptor):
            break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{_this_process()}\n".encode(), 0)
    except OSError:
        release(folder, descriptor)
        raise
    return descriptor


def release(folder: Path, descriptor: int) -> None:
    """Ends the lock and removes its file, unless that is another process's by now."""
    if _is_in_place(folder, descriptor):
        (folder / "lock").unlink(missing_ok=True)
    os.close(descriptor)


def require_held(folder: Path) -> None:
    """Checks that this process still holds a folder, which it has locked before.

    A user may have removed the file `lock`, and another process may have made a new
    one since then.

    Raises:
      WorkdirError: if the file is gone or names another process.
    """
    file = folder / "lock"
    try:
        holder = file.read_text(errors="replace").strip()
    except OSError:
        holder = ""
    if holder != _this_process():
        found = f"names {holder}" if holder else "is gone"
        raise WorkdirError(
            f"This run has lost its workdir {folder}: the file {file} {found}. It has "
            "ended without writing any more, because two processes in one workdir "
            "would destroy each other's files."
        )


def _this_process() -> str:
    return f"process {os.getpid()} on {_HOST} since {_SINCE}"


def _open(file: Path) -> int:
    """Opens the file of the lock, which may be that of a killed process."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        raise _linked(file) from error
    found = os.fstat(descriptor)
    # What is written here would also be in the file of the other name.
    if found.st_nlink > 1 or not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise _linked(file)
    return descriptor


def _linked(file: Path) -> WorkdirError:
    return WorkdirError(
        f"{file} must be a file of its own, but it is a link or no file: remove it."
    )


def _lock(folder: Path, descriptor: int) -> None:
    assert fcntl is not None  # `acquire` refuses
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip()
        raise WorkdirError(
            f"The workdir {folder} is in use by {holder or 'another process'}."
        ) from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        warnings.warn(
            f"The file system of {folder} has no locks: nothing keeps a second "
            "process from this workdir.",
            stacklevel=2,
        )


def _is_in_place(folder: Path, descriptor: int) -> bool:
    """Whether the file `lock` is the one that was opened."""
    try:
        found = os.stat(folder / "lock", follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))
