"""The log of rows on disk: immutable files of rows, and snapshots of their index.

A file holds rows one after another: of each row the bytes of its leaves, in the order
of the tree. It is written wholly or not at all, and never changed. A later
row of a client is in a later file, and only the index says which one counts. So an
index that was saved stays valid whatever is written after it, and a crash leaves
nothing that an index names.
"""

import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.engine.durable import sync_folder
from fedjax_prune.engine.row_files import PIECE_BYTES
from fedjax_prune.engine.row_folder import Folder, Ranges, open_folder
from fedjax_prune.engine.row_index import Index, LogFile
from fedjax_prune.types import Tree

_INDEX = "index.npz"
_NAME = re.compile(r"(\d+)-\d+(?:-\d+)?\.rows|\.(\d+)-\d+(?:-\d+)?\.rows\.new")


class Saved(NamedTuple):
    """What a snapshot of a log holds.

    Attributes:
      index: of the rows.
      first: [row_bytes] uint8, the row of a client never written.
      num_clients: in the population.
      folder: of the files.
    """

    index: Index
    first: np.ndarray
    num_clients: int
    folder: Folder


def to_bytes(rows: Tree) -> np.ndarray:
    """Joins the leaves of rows.

    Args:
      rows: leaves [count, ...], numpy.

    Returns:
      [count, row_bytes] uint8; [1, 0] if there are no leaves.
    """
    leaves = [np.ascontiguousarray(x) for x in jax.tree.leaves(rows)]
    count = len(leaves[0]) if leaves else 1
    parts = [x.reshape(count, int(np.prod(x.shape[1:]))).view(np.uint8) for x in leaves]
    return np.concatenate([np.zeros((count, 0), np.uint8), *parts], axis=1)


def from_bytes(joined: np.ndarray, like: Tree) -> Tree:
    """Takes rows apart that `to_bytes` has joined.

    Args:
      joined: [count, row_bytes] uint8; what follows the last leaf is not read.
      like: leaves `jax.ShapeDtypeStruct` [any, ...].

    Returns:
      Leaves [count, ...], numpy.
    """
    leaves, tree = jax.tree.flatten(like)
    count, start, parts = len(joined), 0, []
    for leaf in leaves:
        shape = leaf.shape[1:]
        end = start + int(np.prod(shape)) * leaf.dtype.itemsize
        part = np.ascontiguousarray(joined[:, start:end]).view(leaf.dtype)
        parts.append(part.reshape(count, *shape))
        start = end
    return jax.tree.unflatten(tree, parts)


def pick(rows: Tree, places: np.ndarray) -> Tree:
    """Takes some rows, numpy."""
    return jax.tree.map(lambda x: np.asarray(x[places]), rows)


def next_attempt(folder: Folder) -> int:
    """A number above that of every file in a folder, also of unfinished ones.

    Raises:
      OSError: if the folder cannot be read.
    """
    numbers = [int(name[1] or name[2]) for name in _named(folder).values()]
    return 1 + max(numbers, default=0)


def write(folder: Folder, name: str, pieces: Iterable[np.ndarray]) -> LogFile:
    """Writes a file of rows; it is on the disk when this returns.

    Args:
      folder: of the log, made if missing.
      name: of a file that does not exist.
      pieces: [any, row_bytes] uint8.

    Raises:
      OSError: if it cannot be written; nothing is left of it.
    """
    num_rows, checksum = 0, 0

    def counted() -> Iterator[memoryview]:
        nonlocal num_rows, checksum
        for piece in pieces:
            yield piece.reshape(-1).data
            num_rows += len(piece)
            checksum = zlib.crc32(piece.data, checksum)

    folder.write(name, counted())
    return LogFile(name, num_rows, checksum)


def read(
    folder: Folder, index: Index, found: np.ndarray, row_bytes: int, into: np.ndarray
) -> None:
    """Reads rows, or the beginning of each.

    Args:
      folder: of the log.
      index: of the rows.
      found: [count], places in `index.clients`; negative ones are left out.
      row_bytes: of a whole row.
      into: [count, up to row_bytes] uint8, filled where a row was found.

    Raises:
      OSError: if a file is missing or cannot be read, or is too short.
    """
    rows = np.flatnonzero(found >= 0)
    if not len(rows):
        return
    files = index.files[found[rows]]
    order = np.argsort(files, kind="stable")
    rows, files = rows[order], files[order]
    starts = index.places[found[rows]].astype(np.int64) * row_bytes
    borders = np.flatnonzero(np.diff(files)) + 1
    groups = (np.split(x, borders) for x in (files, starts, rows))
    folder.read(
        [
            Ranges(index.logs[of[0]].name, some, where)
            for of, some, where in zip(*groups, strict=True)
        ],
        into,
    )


def save(snapshot: Path, saved: Saved) -> None:
    """Writes a snapshot: the index and the first row, but none of the files.

    If the folder of the files is moved with the snapshot, it is saved as a path
    relative to it, otherwise as an absolute path or an address.

    Args:
      snapshot: folder, made here.
      saved: what it holds.

    Raises:
      OSError: if the folder exists or cannot be written.
    """
    snapshot.mkdir(parents=True)
    index = saved.index
    names, num_rows, checksums = (
        zip(*index.logs, strict=True) if index.logs else [()] * 3
    )
    arrays: dict[str, Any] = {
        "clients": index.clients,
        "files": index.files,
        "places": index.places,
        "names": np.array(names, "U"),
        "num_rows": np.array(num_rows, np.int32),
        "checksums": np.array(checksums, np.uint32),
        "first": saved.first,
        "num_clients": np.int64(saved.num_clients),
        "folder": saved.folder.saved_as(snapshot),
    }
    with (snapshot / _INDEX).open("xb") as stream:
        np.savez(stream, **arrays)
        stream.flush()
        # Files that an older snapshot alone needs may be removed after this.
        os.fsync(stream.fileno())
    sync_folder(snapshot)


def is_log(snapshot: str | Path) -> bool:
    """Whether a snapshot is of rows on disk; otherwise each leaf is a file."""
    return (Path(snapshot) / _INDEX).exists()


def load(snapshot: Path) -> Saved:
    """Reads a snapshot.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is damaged.
    """
    file = snapshot / _INDEX
    try:
        # NumPy does not close a damaged file that it has opened.
        with file.open("rb") as stream, np.load(stream) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        columns = (found["names"], found["num_rows"], found["checksums"])
        logs = tuple(
            LogFile(str(name), int(num_rows), int(checksum))
            for name, num_rows, checksum in zip(*columns, strict=True)
        )
        index = Index(found["clients"], found["files"], found["places"], logs)
        folder = open_folder(str(found["folder"]), snapshot)
        return Saved(index, found["first"], int(found["num_clients"]), folder)
    except (KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def require_sizes(saved: Saved) -> None:
    """Looks for all files that a snapshot names, and at their sizes.

    Raises:
      OSError: if a file is missing or cut.
    """
    sizes = saved.folder.sizes() if saved.index.logs else {}
    for log in saved.index.logs:
        if log.name not in sizes:
            raise FileNotFoundError(f"{saved.folder}/{log.name} is missing")
        if sizes[log.name] != log.num_rows * len(saved.first):
            raise OSError(f"{saved.folder}/{log.name} is cut")


def check(snapshot: Path) -> None:
    """Reads all files that a snapshot names and compares them with their checksums.

    In object storage, which has checksums of its own, their sizes are compared alone.
    A snapshot of another kind of store names no files.

    Raises:
      OSError: if a file is missing, cut or, on a disk, cannot be read.
      StorageError: if object storage does not answer or refuses.
      ValueError: if a file is not what was written.
    """
    if not is_log(snapshot):
        return
    saved = load(snapshot)
    if saved.folder.keeps_checksums:
        require_sizes(saved)
        return
    for log in saved.index.logs:
        checksum, size = 0, 0
        for piece in saved.folder.read_file(log.name, PIECE_BYTES):
            checksum, size = zlib.crc32(piece, checksum), size + len(piece)
        if (size, checksum) != (log.num_rows * len(saved.first), log.checksum):
            raise ValueError(f"{saved.folder}/{log.name} is not what was written")


def remove_others(folder: Folder, kept: set[str]) -> None:
    """Removes the files of a log, also unfinished ones, except for those named.

    Raises:
      OSError: if a file cannot be removed.
    """
    folder.remove(_named(folder).keys() - kept)


def _named(folder: Folder) -> dict[str, re.Match[str]]:
    """The files of a log; other names are ignored."""
    matches = {name: _NAME.fullmatch(name) for name in folder.sizes()}
    return {name: match for name, match in matches.items() if match}
