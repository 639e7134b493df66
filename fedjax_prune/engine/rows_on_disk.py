"""A store of rows on disk: only clients who were ever trained take space.

Each `put` writes one file of a log, see `row_log`, in a thread of its own, while the
devices compute. `take` reads the rows of a cohort while the devices still compute the
round before, and waits for those rows only if a client is in both cohorts. A client
never seen has the first row, which is not written; if it draws one of its own, `take`
waits for the devices.

Of several processes, which share the folder, each writes and reads the rows that its
own devices hold. All have the same index, and work it out alone. They wait for each
other where rows are needed that others write, and at the next `put`.
"""

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fedjax_prune.engine import processes, row_files, row_log
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.filling import drawing, open_log, read_together
from fedjax_prune.engine.placing import (
    fetch_own,
    own_places,
    owners,
    put_whole,
    send_own,
)
from fedjax_prune.engine.row_arrays import shapes_of, unshared
from fedjax_prune.engine.row_errors import RowsError, StorageError, reason_of
from fedjax_prune.engine.row_folder import Folder, open_folder
from fedjax_prune.engine.row_index import NO_ROWS, Index
from fedjax_prune.engine.row_parts import after_parts, share_out
from fedjax_prune.types import ClientState, Tree


class _Written(NamedTuple):
    """What this process has written of a cohort's rows.

    Attributes:
      index: the next one, without checksums of the new files.
      unused: names of files that it does not name any more.
      checksums: of the new file of this process, if there is one, by its name.
    """

    index: Index
    unused: set[str]
    checksums: dict[str, int]


class DiskStore:
    """Rows of all clients in files of a folder, which one store at a time may write.

    The stores of several processes are one store, if all get the same calls.

    The host holds the rows of one or two cohorts, and the index of the clients who
    were ever written, 12 bytes each. A file that has few rows left is removed after a
    later `put` has written them once more. Nothing is removed that a snapshot of this
    store names; `keep` says which snapshots count.
    """

    def __init__(
        self,
        row: ClientState,
        num_clients: int,
        placement: Placement = ONE_DEVICE,
        own_personal: Callable[[jax.Array], Tree] | None = None,
        *,
        folder: str | Path,
        moves_with: str | Path | None = None,
    ):
        """Gives every client its first row; nothing is written or read.

        Args:
          row: of a client never seen.
          num_clients: clients in the population, at least 1.
          placement: of the rounds.
          own_personal: as in `make_store`; it is called for the clients of a cohort.
          folder: of the files, a path or the address of a folder in object storage;
            made with the first of them.
          moves_with: a folder that is moved and copied as a whole, with snapshots in
            it; None is none.

        Raises:
          ValueError: if the folder is neither a path nor an address.
          StorageError: if this Python cannot reach the kind of storage of an address.
        """
        self.shapes = shapes_of(row, num_clients)
        self._num_clients, self._placement = num_clients, placement
        self._folder = open_folder(folder, moves_with=moves_with)
        one = jax.tree.map(lambda x: np.asarray(x)[None], jax.device_get(row))
        self._first = row_log.to_bytes(one)[0]
        self._personal_bytes = row_log.to_bytes(one.personal).shape[1]
        self._drawing = None if own_personal is None else drawing(own_personal)
        self._index = NO_ROWS
        self._writing: tuple[np.ndarray, Future[_Written]] | None = None
        self._thread = ThreadPoolExecutor(1, "rows on disk")
        self._in_snapshots: set[str] = set()
        self._attempt, self._number = 0, 0

    @property
    def snapshot_bytes(self) -> int:
        """See `Store.snapshot_bytes`."""
        index = self._index
        columns = (index.clients, index.files, index.places, self._first)
        return sum(x.nbytes for x in columns) + 3000 + 100 * len(index.logs)

    def take(self, client_ids: np.ndarray) -> ClientState:
        """See `Store.take`."""
        ids = self._arrived(client_ids)
        own = ids[own_places(self._placement, len(ids))]
        rows = row_log.from_bytes(self._read(own, len(self._first)), self.shapes)
        return send_own(self._placement, rows, len(ids))

    def put(self, client_ids: np.ndarray, rows: ClientState) -> None:
        """See `Store.put`; the rows are written aside.

        Raises:
          RowsError: if rows that were put before could not be written.
          ProcessError: if another process could not write them.
        """
        self._finish_writing()
        if not self._attempt:
            self._attempt = self._next_attempt()
        client_ids, rows = unshared((np.asarray(client_ids), rows))
        real = (client_ids >= 0) & (client_ids < self._num_clients)
        if len(self._first) and real.any():
            self._number += 1
            name = f"{self._attempt}-{self._number}"
            written = self._thread.submit(self._write, name, client_ids, real, rows)
            self._writing = client_ids[real], written

    def personal(self, client_ids: np.ndarray) -> Tree:
        """See `Store.personal`."""
        if not self._personal_bytes:
            return self.shapes.personal  # Without waiting for the round.
        rows = self._read(self._arrived(client_ids), self._personal_bytes)
        personal = row_log.from_bytes(rows, self.shapes.personal)
        return put_whole(self._placement, personal)

    def snapshot(self, folder: str | Path) -> None:
        """Writes the index, and waits for the files that it names.

        Args:
          folder: made here.

        Raises:
          OSError: if the folder exists or cannot be written.
          RowsError: if rows could not be written.
        """
        self._finish_writing()
        saved = row_log.Saved(self._index, self._first, self._num_clients, self._folder)
        self._in_snapshots |= self._index.names
        processes.on_first(lambda: row_log.save(Path(folder), saved))

    def restore(self, folder: str | Path) -> None:
        """Replaces all rows by those of a snapshot.

        Of a snapshot of this folder, only the index is read; `row_log.check` reads the
        files, too. Rows of another store are written into this folder, except for those
        that are equal to the first row.

        Args:
          folder: written by `snapshot` of any kind of store.

        Raises:
          OSError: if a file is missing or cannot be read.
          ValueError: if a file does not hold what it should.
          RowsError: if rows could not be written, or object storage does not answer.
        """
        folder = Path(folder)
        if not processes.on_first(lambda: row_log.is_log(folder)):
            self._copy_leaves(
                processes.together(lambda: row_files.open_leaves(folder, self.shapes))
            )
            return
        saved = processes.together(lambda: open_log(folder, self.shapes))
        if saved.folder == self._folder:
            self._drop_writing()
            self._index, self._first = saved.index, saved.first
            # The files that this store writes next are of another attempt.
            self._attempt, self._in_snapshots = 0, saved.index.names
            return
        self._begin(saved.first)
        for client_ids, rows in read_together(saved, self.shapes):
            self.put(client_ids, rows)
        self._finish_writing()

    def keep(self, snapshots: Iterable[str | Path]) -> None:
        """See `Store.keep`.

        Raises:
          RowsError: if object storage does not answer or refuses. Of a disk it warns.
        """
        self._finish_writing()
        processes.on_first(lambda: self._keep(snapshots))

    def _keep(self, snapshots: Iterable[str | Path]) -> None:
        """Removes files, in one process."""
        names: set[str] = set()
        try:
            for folder in snapshots:
                # A damaged one cannot be restored, and needs nothing.
                with suppress(FileNotFoundError, ValueError):
                    saved = row_log.load(Path(folder))
                    if saved.folder == self._folder:
                        names |= saved.index.names
            self._in_snapshots = names
            row_log.remove_others(self._folder, names | self._index.names)
        except OSError as error:
            words = f"Rows that no checkpoint needs stay in {self._folder}"
            warnings.warn(f"{words}: {error}.", stacklevel=2)

    def _begin(self, first: np.ndarray) -> None:
        """Gives every client its first row again."""
        self._drop_writing()
        self._index, self._first = NO_ROWS, first

    def _drop_writing(self) -> None:
        """Forgets the rows that are arriving, once their files are written or not."""
        if self._writing is not None:
            self._writing[1].exception()
            self._writing = None
            processes.exchange(lambda: None)

    def _next_attempt(self) -> int:
        """Begins names of files that no index can hold yet."""
        first, *_ = processes.exchange(
            lambda: row_log.next_attempt(self._folder) if processes.is_first() else 0
        )
        return first

    def _finish_writing(self) -> None:
        """Waits until all processes have written, and removes files without rows.

        Raises:
          RowsError: if the rows could not be written.
          ProcessError: if another process could not write its own.
        """
        if self._writing is None:
            return
        written = self._writing[1]

        def own_checksums() -> dict[str, int]:
            try:
                return written.result().checksums
            except (OSError, StorageError) as error:
                raise _unwritten(self._folder, error) from error

        checksums = processes.exchange(own_checksums)
        index, unused, _ = written.result()
        self._writing, self._index = None, index.with_checksums(checksums)
        # All processes have the next index by now, so none reads these files.
        if processes.is_first():
            # What stays is removed by `keep`.
            with suppress(OSError, StorageError):
                self._folder.remove(unused - self._in_snapshots)

    def _write(
        self, name: str, client_ids: np.ndarray, real: np.ndarray, rows: ClientState
    ) -> _Written:
        """Writes a cohort's rows, and once more those of files with few rows left.

        This runs in the thread. Meanwhile, nobody replaces `_index`.
        """
        before, num_places = self._index, len(client_ids)
        by, count = owners(self._placement, num_places), processes.count()
        parts = share_out(before, name, client_ids, real, by, num_processes=count)
        own, checksums = parts[processes.number()], {}
        if own.num_rows:
            leaves = fetch_own(self._placement, rows)
            here = np.searchsorted(own_places(self._placement, num_places), own.places)
            pieces = own.pieces(leaves, here, self._folder, before, len(self._first))
            log = row_log.write(self._folder, own.name, pieces)
            checksums[own.name] = log.checksum
        after = after_parts(before, parts)
        return _Written(after, before.names - after.names, checksums)

    def _arrived(self, client_ids: np.ndarray) -> np.ndarray:
        """Waits for rows of these clients, if some are being written.

        Returns:
          Their ids, in place of nobody those of somebody.
        """
        ids = np.clip(client_ids, 0, self._num_clients - 1)
        if self._writing is not None:
            # Several processes would not agree on what has ended.
            arriving, written = self._writing
            is_done = processes.count() == 1 and written.done()
            if is_done or np.isin(ids, arriving).any():
                self._finish_writing()
        return ids

    def _read(self, ids: np.ndarray, num_bytes: int) -> np.ndarray:
        """The beginnings of rows that are written, [count, num_bytes] uint8.

        Raises:
          RowsError: if they cannot be read.
        """
        rows = np.empty((len(ids), num_bytes), np.uint8)
        found = self._index.find(ids)
        if num_bytes:
            rows[found < 0] = self._first[:num_bytes]
            self._draw_own(ids, found < 0, rows)
        try:
            row_log.read(self._folder, self._index, found, len(self._first), rows)
        except OSError as error:
            where = error.filename or self._folder
            raise RowsError(f"{where} cannot be read: {reason_of(error)}.") from error
        return rows

    def _draw_own(self, ids: np.ndarray, new: np.ndarray, rows: np.ndarray) -> None:
        """Gives new clients the personal parameters that they start with."""
        if self._drawing is None:
            return
        # Also if nobody is new: the first call is made before the rounds begin.
        draw = self._drawing(len(ids))
        if not new.any():
            return
        # All of them, so that one program is compiled for each number of ids.
        drawn = draw(jax.device_put(ids.astype(np.int32)))
        personal = row_log.to_bytes(jax.device_get(drawn))
        rows[new, : self._personal_bytes] = personal[new]

    def _copy_leaves(self, leaves: ClientState) -> None:
        """Writes the rows of all clients that are not the first row."""
        self._begin(self._first)
        if not len(self._first):
            return
        count = row_files.rows_at_once(len(self._first))
        for start in range(0, self._num_clients, count):
            ids = np.arange(start, min(start + count, self._num_clients))
            piece = row_log.pick(leaves, ids)
            is_new = row_log.to_bytes(piece) != self._read(ids, len(self._first))
            # An id outside of the population is left out.
            self.put(np.where(is_new.any(axis=1), ids, self._num_clients), piece)
        self._finish_writing()


def _unwritten(folder: Folder, error: OSError | StorageError) -> RowsError:
    return RowsError(
        f"The rows of a round cannot be written in {folder}: {reason_of(error)}. The "
        "last checkpoint stays, and the same command goes on when they can be written."
    )
