"""How processes share out the writing of a cohort's rows.

Each writes the rows that its own devices hold. Who writes what follows from what all
processes know, so each works it out alone, and all agree on the next index.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_prune.engine import row_files, row_log
from fedjax_prune.engine.row_folder import Folder
from fedjax_prune.engine.row_index import Index, LogFile
from fedjax_prune.types import ClientState


class Part(NamedTuple):
    """What one process writes: a file of rows, if there are any.

    Attributes:
      name: of the file.
      places: of the cohort, ascending by client.
      clients: whose rows these are.
      carried: further clients, whose last rows are written once more after them.
    """

    name: str
    places: np.ndarray
    clients: np.ndarray
    carried: np.ndarray

    @property
    def num_rows(self) -> int:
        """In the file."""
        return len(self.clients) + len(self.carried)

    def pieces(
        self,
        leaves: ClientState,
        here: np.ndarray,
        folder: Folder,
        index: Index,
        row_bytes: int,
    ) -> Iterator[np.ndarray]:
        """Yields the rows as bytes, in pieces.

        Args:
          leaves: numpy, those of the cohort's rows that this process has.
          here: [len(places)], where they are in `leaves`.
          folder: of the log, for the rows of further clients.
          index: of their rows.
          row_bytes: of a row.

        Raises:
          OSError: if a row cannot be read.
        """
        count = row_files.rows_at_once(row_bytes)
        for start in range(0, len(here), count):
            yield row_log.to_bytes(row_log.pick(leaves, here[start : start + count]))
        for start in range(0, len(self.carried), count):
            found = index.find(self.carried[start : start + count])
            piece = np.empty((len(found), row_bytes), np.uint8)
            row_log.read(folder, index, found, row_bytes, piece)
            yield piece


def share_out(
    index: Index,
    name: str,
    client_ids: np.ndarray,
    real: np.ndarray,
    owners: np.ndarray,
    num_processes: int,
) -> list[Part]:
    """Shares out the rows of a cohort, and those of files with few rows left.

    Args:
      index: before.
      name: that the names of the files begin with.
      client_ids: [num_places]; of a client who is named twice, the last row counts.
      real: [num_places] bool, False where a place has nobody; not everywhere.
      owners: [num_places], the number of the process that has the row of each place.
      num_processes: also of those that have none.

    Returns:
      The parts of all processes.
    """
    order = np.argsort(client_ids, kind="stable")
    order = order[real[order]]
    ids = client_ids[order]
    last = np.append(ids[1:] != ids[:-1], True)
    order, ids = order[last], ids[last]
    writers = owners[order]
    carried = np.array_split(index.sparse(ids), num_processes)
    names = [f"{name}-{number}.rows" for number in range(num_processes)]
    if num_processes == 1:
        names = [f"{name}.rows"]
    return [
        Part(names[n], order[writers == n], ids[writers == n], carried[n])
        for n in range(num_processes)
    ]


def after_parts(index: Index, parts: Sequence[Part]) -> Index:
    """The next index, in which the new files have no checksums yet.

    Args:
      index: before.
      parts: of all processes.
    """
    return index.extended(
        [
            (
                np.concatenate([part.clients, part.carried]),
                LogFile(part.name, part.num_rows, checksum=0),
            )
            for part in parts
            if part.num_rows
        ]
    )
