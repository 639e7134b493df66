"""The index of rows on disk: which file holds the row of which client, and where.

It knows the clients who were ever written, and no others. It is never changed, so that
one thread may read it while another one makes the next.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_SPARSE = 1 / 4
"""A file is sparse if it has fewer than this share of its rows left."""
ENTRY_BYTES = 12
"""What a client takes in the index."""


class LogFile(NamedTuple):
    """A file of rows.

    Attributes:
      name: in the folder of the log.
      num_rows: in the file.
      checksum: CRC-32 of its bytes.
    """

    name: str
    num_rows: int
    checksum: int


class Index(NamedTuple):
    """Where the rows of the clients are that were ever written.

    Attributes:
      clients: [count] int32, ascending.
      files: [count] int32, places in `logs`.
      places: [count] int32, numbers of the rows in these files.
      logs: the files that hold a row of some client.
    """

    clients: np.ndarray
    files: np.ndarray
    places: np.ndarray
    logs: tuple[LogFile, ...]

    @property
    def names(self) -> set[str]:
        """The names of the files."""
        return {log.name for log in self.logs}

    def find(self, client_ids: np.ndarray) -> np.ndarray:
        """Gives the places of clients in `clients`; -1 if one was never written."""
        if not len(self.clients):
            return np.full(len(client_ids), -1)
        found = np.searchsorted(self.clients, client_ids)
        found[found == len(self.clients)] = 0
        return np.where(self.clients[found] == client_ids, found, -1)

    def extended(self, parts: Sequence[tuple[np.ndarray, LogFile]]) -> "Index":
        """Adds files, and leaves out the files without a row that counts.

        Args:
          parts: [log.num_rows] whose rows a file holds, and the file. No client is in
            them twice.
        """
        client_ids = np.concatenate([ids for ids, _ in parts])
        of = np.repeat(np.arange(len(parts)), [len(ids) for ids, _ in parts])
        of += len(self.logs)
        at_place = np.concatenate([np.arange(len(ids)) for ids, _ in parts])
        found = self.find(client_ids)
        files, places = self.files.copy(), self.places.copy()
        old = np.flatnonzero(found >= 0)
        files[found[old]], places[found[old]] = of[old], at_place[old]
        new = np.flatnonzero(found < 0)
        new = new[np.argsort(client_ids[new])]
        at = np.searchsorted(self.clients, client_ids[new])
        clients = np.insert(self.clients, at, client_ids[new])
        files = np.insert(files, at, of[new])
        places = np.insert(places, at, at_place[new])
        logs = (*self.logs, *(log for _, log in parts))
        used = np.bincount(files, minlength=len(logs)) > 0
        if not used.all():
            files = (np.cumsum(used, dtype=np.int32) - 1)[files]
            logs = tuple(
                log for log, is_used in zip(logs, used, strict=True) if is_used
            )
        return Index(clients, files, places, logs)

    def with_checksums(self, of_processes: Iterable[Mapping[str, int]]) -> "Index":
        """Sets the checksums of some files.

        Args:
          of_processes: checksums by the names of files.
        """
        known = {name: x for told in of_processes for name, x in told.items()}
        logs = (
            log._replace(checksum=known[log.name]) if log.name in known else log
            for log in self.logs
        )
        return self._replace(logs=tuple(logs))

    def sparse(self, client_ids: np.ndarray) -> np.ndarray:
        """Says which clients to write once more, because few rows of their files count.

        Args:
          client_ids: whose rows are about to be written.

        Returns:
          Other clients, at most as many, and of each file all or none.
        """
        found = self.find(client_ids)
        found, num_files = found[found >= 0], len(self.logs)
        left = np.bincount(self.files, minlength=num_files)
        left -= np.bincount(self.files[found], minlength=num_files)
        num_rows = np.array([log.num_rows for log in self.logs], np.int64)
        # One with more rows than may be written would keep all later ones from it.
        is_sparse = (left < _SPARSE * num_rows) & (left <= len(client_ids))
        is_sparse &= np.cumsum(left * is_sparse) <= len(client_ids)
        chosen = is_sparse[self.files]
        chosen[found] = False
        return self.clients[chosen]


_NONE = np.zeros(0, np.int32)
NO_ROWS = Index(_NONE, _NONE, _NONE, ())
"""An index before the first row."""
