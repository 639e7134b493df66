"""A store of rows in the memory of the host."""

from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from fedjax_prune.engine import processes, row_files, row_log
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.filling import first_row, open_log, put_own, put_saved
from fedjax_prune.engine.placing import gather_whole, put_split, put_whole
from fedjax_prune.engine.row_arrays import join_split, join_whole, shapes_of, unshared
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.types import ClientState, Tree


class HostStore:
    """Rows of all clients in the memory of the host, as numpy arrays.

    The devices hold the rows of one cohort at a time. While a device still computes
    rows that were put, the next call waits for them. Memory is taken at the first
    `put`: until then all clients share one row, or the rows stay in the files of the
    snapshot and only those that are taken are read. Personal parameters of their own
    take memory when the first rows are used. Of several processes each keeps the rows
    of an equal part of the clients.
    """

    def __init__(
        self,
        row: ClientState,
        num_clients: int,
        placement: Placement = ONE_DEVICE,
        own_personal: Callable[[jax.Array], Tree] | None = None,
    ):
        """See `DeviceStore`."""
        self.shapes, self._placement = shapes_of(row, num_clients), placement
        self._num_clients, self._own_personal = num_clients, own_personal
        self._own = _own_clients(num_clients)
        self._begin(row)

    def _begin(self, row: ClientState) -> None:
        count = self._own.stop - self._own.start
        self._rows: ClientState = jax.tree.map(
            lambda x: np.broadcast_to(x, (count, *x.shape)), jax.device_get(row)
        )
        self._arriving: tuple[np.ndarray, ClientState] | None = None
        self._row_to_draw = None if self._own_personal is None else row

    def take(self, client_ids: np.ndarray) -> ClientState:
        """See `Store.take`."""
        if processes.count() == 1:
            rows = _take_on_host(self._settled(), client_ids)
            return put_split(self._placement, rows)
        rows = _take_some(self._settled(), client_ids - self._own.start)
        return join_split(rows, self._placement)

    def put(self, client_ids: np.ndarray, rows: ClientState) -> None:
        """See `Store.put`."""
        self._rows = jax.tree.map(
            lambda x: x if x.flags.writeable else x.copy(), self._settled()
        )
        client_ids, rows = unshared((client_ids, rows))
        self._arriving = client_ids, gather_whole(self._placement, rows)

    def personal(self, client_ids: np.ndarray) -> Tree:
        """See `Store.personal`."""
        if not jax.tree.leaves(self.shapes.personal):
            return self.shapes.personal  # Without waiting for the round.
        personal = self._settled().personal
        if processes.count() == 1:
            return put_whole(self._placement, _take_on_host(personal, client_ids))
        personal = _take_some(personal, client_ids - self._own.start)
        return join_whole(personal, self._placement)

    def snapshot(self, folder: str | Path) -> None:
        """See `Store.snapshot`."""
        leaves = jax.tree.leaves(self._settled())
        pieces = (row_files.pieces_of_host(x, self._own.start) for x in leaves)
        row_files.write(folder, self.shapes, pieces)

    def restore(self, folder: str | Path) -> None:
        """See `Store.restore`."""
        if processes.on_first(lambda: row_log.is_log(folder)):
            saved = processes.together(lambda: open_log(folder, self.shapes))
            self._begin(first_row(saved, self.shapes))
            put_saved(self, saved, self._placement)
            return
        leaves = processes.together(lambda: row_files.open_leaves(folder, self.shapes))
        self._rows = jax.tree.map(lambda x: x[self._own], leaves)
        self._arriving = self._row_to_draw = None

    @property
    def snapshot_bytes(self) -> int:
        """See `Store.snapshot_bytes`."""
        return tree_bytes(self.shapes)

    def keep(self, snapshots: Iterable[str | Path]) -> None:
        """See `Store.keep`."""

    def _settled(self) -> ClientState:
        """Returns all rows, after it has written those that were arriving."""
        if self._row_to_draw is not None and self._own_personal is not None:
            row, self._row_to_draw = self._row_to_draw, None
            put_own(self, row, self._num_clients, self._placement, self._own_personal)
        if self._arriving is not None:
            client_ids, rows = self._arriving
            self._arriving = None

            places = client_ids - self._own.start

            def write(leaf: np.ndarray, new: np.ndarray) -> None:
                real = (places >= 0) & (places < len(leaf))
                leaf[places[real]] = new[real]

            jax.tree.map(write, self._rows, jax.device_get(rows))
        return self._rows


def _take_on_host(rows: Tree, client_ids: np.ndarray) -> Tree:
    # `np.take` would copy all rows where they are not in memory.
    return jax.tree.map(lambda x: x[np.clip(client_ids, 0, len(x) - 1)], rows)


def _take_some(rows: Tree, places: np.ndarray) -> Tree:
    """Takes rows; those of other places are zeros."""

    def take(x: np.ndarray) -> np.ndarray:
        real = (places >= 0) & (places < len(x))
        taken = np.zeros((len(places), *x.shape[1:]), x.dtype)
        taken[real] = x[places[real]]
        return taken

    return jax.tree.map(take, rows)


def _own_clients(num_clients: int) -> slice:
    """The clients whose rows this process keeps on its host."""
    if processes.count() == 1:
        return slice(0, num_clients)
    each = -(-num_clients // processes.count())
    first = min(jax.process_index() * each, num_clients)
    return slice(first, min(first + each, num_clients))
