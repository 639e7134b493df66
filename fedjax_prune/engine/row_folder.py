"""Where the files of rows are: in a folder of the disk, or in object storage.

A file is written once, wholly or not at all, then read in ranges, and removed. A disk
renames a file when it is complete. An object appears when it is complete.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fsspec
import numpy as np

from fedjax_prune.engine.durable import sync_folder
from fedjax_prune.engine.row_errors import StorageError

PLACES = "a path, or an address gs://BUCKET/... or s3://BUCKET/..."
"""Where files of rows can be, in words: storage that shows complete files alone."""
_ADDRESS = re.compile(r"(gs|s3)://[^/]+(/.*)?")
_ANY_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|.*://")
_BLOCK = 2**25
"""Bytes that are sent to object storage at once."""
_AT_ONCE = 16
"""How many files of object storage are removed at once."""


class Ranges(NamedTuple):
    """Parts of one file.

    Attributes:
      name: of the file.
      starts: [count], the byte at which each begins.
      rows: [count], the rows of an array that they fill.
    """

    name: str
    starts: np.ndarray
    rows: np.ndarray


class Folder(Protocol):
    """A place of files. Folders are equal if their files are the same ones.

    All methods raise an OSError that names the file or the folder, a FileNotFoundError
    if there is no such file. Object storage that does not answer or refuses raises a
    StorageError.
    """

    @property
    def keeps_checksums(self) -> bool:
        """Whether what is read is compared with what was written."""
        ...

    def write(self, name: str, pieces: Iterable[memoryview]) -> None:
        """Writes a file, which is complete and safe when this returns."""
        ...

    def read(self, ranges: Iterable[Ranges], into: np.ndarray) -> None:
        """Fills rows of an array, [count, num_bytes] uint8."""
        ...

    def read_file(self, name: str, size: int) -> Iterator[bytes]:
        """Reads a whole file in pieces of at most a size."""
        ...

    def sizes(self) -> dict[str, int]:
        """The files with their sizes; none if there is no such folder."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, if there are such."""
        ...

    def saved_as(self, beside: Path) -> str:
        """How a file in the folder `beside` names this one."""
        ...


def is_place(where: str) -> bool:
    """Whether files of rows can be there, see PLACES; nothing is looked at."""
    return bool(_ADDRESS.fullmatch(where)) or not _ANY_ADDRESS.match(where)


def open_folder(
    where: str | Path,
    beside: Path | None = None,
    moves_with: str | Path | None = None,
) -> Folder:
    """Finds a folder; it need not exist.

    Args:
      where: a path, or an address such as `gs://bucket/folder`.
      beside: the folder to which a relative path belongs; None is the current one.
      moves_with: a folder that is moved and copied as a whole; if it holds this one,
        its other files name this one by a relative path. None is no folder.

    Raises:
      ValueError: if it is none of PLACES.
      StorageError: if this Python cannot reach the kind of storage that an address
        names.
    """
    text = str(where)
    if not is_place(text):
        raise ValueError(f"A folder of rows must be {PLACES}, got {text!r}.")
    if _ADDRESS.fullmatch(text):
        return ObjectFolder(text.rstrip("/"))
    path = Path(text).expanduser()
    path = (path if beside is None else beside.resolve() / path).resolve()
    return DiskFolder(path, None if moves_with is None else Path(moves_with).resolve())


class DiskFolder:
    """A folder of a disk."""

    keeps_checksums = False

    def __init__(self, path: Path, moves_with: Path | None):
        """Takes absolute paths without links; the folder is made when it is used."""
        self._path, self._moves_with = path, moves_with

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiskFolder) and other._path == self._path

    def __hash__(self) -> int:
        return hash(self._path)

    def __str__(self) -> str:
        return str(self._path)

    def write(self, name: str, pieces: Iterable[memoryview]) -> None:
        """See `Folder.write`."""
        is_new = not self._path.exists()
        self._path.mkdir(parents=True, exist_ok=True)
        unfinished = self._path / f".{name}.new"
        try:
            with unfinished.open("xb", buffering=0) as stream:
                for piece in pieces:
                    _write_whole(stream, piece)
                os.fsync(stream.fileno())
            unfinished.rename(self._path / name)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        # A checkpoint that names the file must not outlive its name.
        sync_folder(self._path)
        if is_new:
            sync_folder(self._path.parent)

    def read(self, ranges: Iterable[Ranges], into: np.ndarray) -> None:
        """See `Folder.read`."""
        for name, starts, rows in ranges:
            with (self._path / name).open("rb", buffering=0) as stream:
                for start, row in zip(starts, rows, strict=True):
                    stream.seek(int(start))
                    left = into[row].data
                    # A call may read a part; Linux reads at most 2 GiB.
                    while left:
                        if not (count := stream.readinto(left)):
                            raise OSError(f"{self._path / name} is cut")
                        left = left[count:]

    def read_file(self, name: str, size: int) -> Iterator[bytes]:
        """See `Folder.read_file`."""
        with (self._path / name).open("rb") as stream:
            while piece := stream.read(size):
                yield piece

    def sizes(self) -> dict[str, int]:
        """See `Folder.sizes`."""
        if not self._path.is_dir():
            return {}
        sizes = {}
        with os.scandir(self._path) as found:
            for entry in found:
                # Another process may remove a file meanwhile.
                with suppress(FileNotFoundError):
                    sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
        return sizes

    def remove(self, names: Iterable[str]) -> None:
        """See `Folder.remove`."""
        for name in names:
            (self._path / name).unlink(missing_ok=True)

    def saved_as(self, beside: Path) -> str:
        """A relative path if both are moved together, otherwise an absolute one."""
        beside, both = beside.resolve(), self._moves_with
        if both and self._path.is_relative_to(both) and beside.is_relative_to(both):
            return os.path.relpath(self._path, beside)
        return str(self._path)


class ObjectFolder:
    """A folder of object storage, as fsspec reaches it."""

    keeps_checksums = True

    def __init__(self, url: str):
        """Connects to nothing.

        Raises:
          StorageError: if this Python cannot reach this kind of storage.
        """
        self._url = url
        try:
            # What it needs is imported here.
            fsspec.get_filesystem_class(url.partition("://")[0])
        except ImportError as error:
            more = "pip install 'fedjax_prune[cloud]' brings what is missing"
            raise StorageError(url, f"{error}: {more}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectFolder) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __str__(self) -> str:
        return self._url

    @cached_property
    def _storage(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        return fsspec.url_to_fs(self._url, use_listings_cache=False)

    def write(self, name: str, pieces: Iterable[memoryview]) -> None:
        """See `Folder.write`."""
        with self._clear_errors(name):
            storage, path = self._storage
            stream = storage.open(f"{path}/{name}", "wb", block_size=_BLOCK)
        try:
            # An error of the pieces themselves is not one of the storage.
            for piece in pieces:
                with self._clear_errors(name):
                    stream.write(piece)
            with self._clear_errors(name):
                stream.close()
        except BaseException:
            # What is not closed may be sent later. A part of it may be there then; no
            # index names it.
            with suppress(Exception):
                stream.close()
            with suppress(Exception):
                storage.rm_file(f"{path}/{name}")
            raise

    def read(self, ranges: Iterable[Ranges], into: np.ndarray) -> None:
        """Reads neighbours together, and all ranges at once where fsspec does so."""
        num_bytes = into.shape[1]
        if not num_bytes:
            return
        runs: list[tuple[str, int, np.ndarray]] = []
        for name, starts, rows in ranges:
            order = np.argsort(starts)
            starts, rows = starts[order], rows[order]
            borders = np.flatnonzero(np.diff(starts) != num_bytes) + 1
            firsts = starts[np.concatenate([[0], borders])]
            groups = np.split(rows, borders)
            runs += [
                (name, int(first), group)
                for first, group in zip(firsts, groups, strict=True)
            ]
        with self._clear_errors():
            storage, path = self._storage
            found = storage.cat_ranges(
                [f"{path}/{name}" for name, _, _ in runs],
                [first for _, first, _ in runs],
                [first + len(rows) * num_bytes for _, first, rows in runs],
                on_error="raise",
            )
            # Versions of fsspec return them all the same.
            if failed := [x for x in found if isinstance(x, BaseException)]:
                raise failed[0]
        for (name, _, rows), data in zip(runs, found, strict=True):
            if len(data) != len(rows) * num_bytes:
                raise OSError(f"{self._url}/{name} is cut")
            into[rows] = np.frombuffer(data, np.uint8).reshape(len(rows), num_bytes)

    def read_file(self, name: str, size: int) -> Iterator[bytes]:
        """See `Folder.read_file`."""
        with self._clear_errors(name):
            storage, path = self._storage
            with storage.open(f"{path}/{name}", "rb", block_size=size) as stream:
                while piece := stream.read(size):
                    yield piece

    def sizes(self) -> dict[str, int]:
        """See `Folder.sizes`."""
        with self._clear_errors():
            storage, path = self._storage
            try:
                found = storage.ls(path, detail=True)
            except FileNotFoundError:
                return {}
            files = [entry for entry in found if entry["type"] == "file"]
            return {entry["name"].rpartition("/")[2]: entry["size"] for entry in files}

    def remove(self, names: Iterable[str]) -> None:
        """Removes many files at once."""
        with self._clear_errors():
            storage, path = self._storage

        def remove_one(name: str) -> None:
            with self._clear_errors(name), suppress(FileNotFoundError):
                storage.rm_file(f"{path}/{name}")

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for _ in threads.map(remove_one, names):
                pass

    def saved_as(self, beside: Path) -> str:
        """The address."""
        return self._url

    @contextmanager
    def _clear_errors(self, name: str = "") -> Iterator[None]:
        """Makes what libraries of storage raise an error with a reason in one line.

        They have errors of many kinds, such as for credentials that are missing.

        Raises:
          FileNotFoundError: if a file is missing.
          StorageError: in place of all other errors.
        """
        try:
            yield
        except Exception as error:
            told = error.strerror if isinstance(error, OSError) else ""
            reason = " ".join((told or str(error) or type(error).__name__).split())
            where = f"{self._url}/{name}" if name else self._url
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, reason, where) from error
            raise StorageError(where, reason) from error


def _write_whole(stream: Any, data: memoryview) -> None:
    """Writes all bytes: the system may write a part of them, as before it is full."""
    while data:
        data = data[stream.write(data) :]
