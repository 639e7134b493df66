"""The index of rows on disk: which file holds the row of which client, and where.

It knows the clients who were ever written, and no others. It is never changed, so that
one thread may read it while another one makes the next.
"""

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

    def without(self, client_ids: np.ndarray) -> "Index":
        """Leaves clients out, but no file."""
        kept = np.ones(len(self.clients), bool)
        found = self.find(client_ids)
        kept[found[found >= 0]] = False
        return Index(self.clients[kept], self.files[kept], self.places[kept], self.logs)

    def extended(self, client_ids: np.ndarray, log: LogFile) -> "Index":
        """Adds a file, and leaves out the files without a row that counts.

        Args:
          client_ids: [log.num_rows] whose rows it holds, each client once.
          log: the file.
        """
        rest = self.without(client_ids)
        new = len(client_ids)
        clients = np.concatenate([rest.clients, client_ids.astype(np.int32)])
        files = np.concatenate([rest.files, np.full(new, len(self.logs), np.int32)])
        places = np.concatenate([rest.places, np.arange(new, dtype=np.int32)])
        # Two ascending runs, which a stable sort merges.
        order = np.argsort(clients, kind="stable")
        logs = (*self.logs, log)
        used = np.bincount(files, minlength=len(logs)) > 0
        numbers = (np.cumsum(used) - 1).astype(np.int32)
        return Index(
            clients[order],
            numbers[files[order]],
            places[order],
            tuple(log for log, is_used in zip(logs, used, strict=True) if is_used),
        )

    def sparse(self, most: int) -> np.ndarray:
        """The clients in sparse files, at most so many, and of no file only a part."""
        left = np.bincount(self.files, minlength=len(self.logs))
        num_rows = np.array([log.num_rows for log in self.logs], np.int64)
        is_sparse = left < _SPARSE * num_rows
        chosen = is_sparse & (np.cumsum(left * is_sparse) <= most)
        return self.clients[chosen[self.files]]


_NONE = np.zeros(0, np.int32)
NOBODY = Index(_NONE, _NONE, _NONE, ())
"""An index before the first row."""
