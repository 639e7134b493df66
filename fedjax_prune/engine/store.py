"""Stores: the rows of all clients, shared out over the devices or on the host.

A round sees only the cohort's rows, so neither an algorithm nor its compiled shapes
depend on the number of clients or on where their rows are. Only a store holds the rows
of all clients: it is made from one row, and it writes and reads a snapshot in pieces.

Without a store, `create`, `take` and `put` keep the rows of all clients as one tree.

Examples:
  >>> import fedjax_prune as fp
  >>> row = fp.ClientState(personal={}, client={"h": np.zeros(1, np.float32)})
  >>> rows, ids = fp.store.create(row, 3), np.array([2])
  >>> new = row._replace(client={"h": np.ones((1, 1), np.float32)})
  >>> fp.store.put(rows, ids, new).client["h"].tolist()
  [[0.0], [0.0], [1.0]]
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from fedjax_prune.engine import processes, row_files
from fedjax_prune.engine.devices import ONE_DEVICE, SPLIT, Placement
from fedjax_prune.engine.placing import gather_whole, put_split, put_whole
from fedjax_prune.engine.row_arrays import (
    create,
    join_split,
    join_whole,
    put,
    take,
    take_whole,
)
from fedjax_prune.engine.row_files import Pieces
from fedjax_prune.fields import Count, checked
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.types import ClientState, Tree


class Store(Protocol):
    """The rows of all clients."""

    @property
    def shapes(self) -> ClientState:
        """Leaves `jax.ShapeDtypeStruct` [num_clients, ...]."""
        ...

    def take(self, client_ids: np.ndarray) -> ClientState:
        """Takes the rows of a cohort's places; each device gets those of its block.

        Args:
          client_ids: [num_places] int32; an id outside the population gives a row
            without a meaning.

        Returns:
          Leaves [num_places, ...].
        """
        ...

    def put(self, client_ids: np.ndarray, rows: ClientState) -> None:
        """Replaces the rows of a cohort's places.

        Ids outside the population are left out.

        Args:
          client_ids: [num_places] int32.
          rows: leaves [num_places, ...], as `take` gives them.
        """
        ...

    def personal(self, client_ids: np.ndarray) -> Tree:
        """Takes personal parameters of some clients, all of them on every device."""
        ...

    def snapshot(self, folder: str | Path) -> None:
        """Writes all rows; each leaf becomes a file in NumPy's format.

        The files are the same for every kind of store and any number of devices and
        processes. Beside the store, the host holds no more than
        `row_files.PIECE_BYTES`, or one row of a leaf if that is larger.

        Args:
          folder: made here; leaf n of the tree becomes `n.npy`, [num_clients, ...].

        Raises:
          OSError: if the folder exists or cannot be written.
        """
        ...

    def restore(self, folder: str | Path) -> None:
        """Replaces all rows by those of a snapshot, in pieces as `snapshot`.

        Args:
          folder: written by `snapshot` of any kind of store.

        Raises:
          OSError: if a file is missing or cannot be read.
          ValueError: if a file does not hold the leaf that it should.
        """
        ...


class DeviceStore:
    """Rows of all clients on the devices, each with an equal part of them."""

    def __init__(
        self, row: ClientState, num_clients: int, placement: Placement = ONE_DEVICE
    ):
        """Gives every client the same first row.

        Args:
          row: of a client never seen.
          num_clients: clients in the population, at least 1.
          placement: of the rounds.
        """
        self.shapes, self._placement = _shapes(row, num_clients), placement
        sharding = None
        if placement.mesh is not None:
            sharding = NamedSharding(placement.mesh, SPLIT)
        # Padded at the end, so that the parts are equal.
        length = num_clients + -num_clients % placement.num_blocks
        fill = jax.jit(create, static_argnums=1, out_shardings=sharding)
        self._rows: ClientState = fill(put_whole(placement, row), length)

    def take(self, client_ids: np.ndarray) -> ClientState:
        """See `Store.take`."""
        ids = put_split(self._placement, client_ids)
        return _take(self._rows, ids, self._placement)

    def put(self, client_ids: np.ndarray, rows: ClientState) -> None:
        """See `Store.put`."""
        ids = put_split(self._placement, client_ids)
        self._rows = _put(self._rows, ids, rows, self._placement)

    def personal(self, client_ids: np.ndarray) -> Tree:
        """See `Store.personal`."""
        ids = put_whole(self._placement, client_ids)
        return _take_whole(self._rows.personal, ids, self._placement)

    def snapshot(self, folder: str | Path) -> None:
        """See `Store.snapshot`."""
        pieces = map(row_files.pieces_of_devices, jax.tree.leaves(self._rows))
        _write(folder, self.shapes, pieces)

    def restore(self, folder: str | Path) -> None:
        """See `Store.restore`."""
        leaves, tree = jax.tree.flatten(self._rows)
        saved = jax.tree.leaves(row_files.open_leaves(folder, self.shapes))
        for place, new in enumerate(saved):
            shape, sharding = leaves[place].shape, leaves[place].sharding
            # The leaf that replaces it needs its memory.
            leaves[place].delete()
            leaves[place] = row_files.place(new, shape, sharding)
        self._rows = jax.tree.unflatten(tree, leaves)


class HostStore:
    """Rows of all clients in the memory of the host, as numpy arrays.

    The devices hold the rows of one cohort at a time. While a device still computes
    rows that were put, the next call waits for them. Memory is taken at the first
    `put`: until then all clients share one row, or the rows stay in the files of the
    snapshot and only those that are taken are read. Of several processes each keeps the
    rows of an equal part of the clients.
    """

    def __init__(
        self, row: ClientState, num_clients: int, placement: Placement = ONE_DEVICE
    ):
        """See `DeviceStore`."""
        self.shapes, self._placement = _shapes(row, num_clients), placement
        self._own = _own_clients(num_clients)
        count = self._own.stop - self._own.start
        self._rows: ClientState = jax.tree.map(
            lambda x: np.broadcast_to(x, (count, *x.shape)), jax.device_get(row)
        )
        self._arriving: tuple[np.ndarray, ClientState] | None = None

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
        self._arriving = client_ids, gather_whole(self._placement, rows)

    def personal(self, client_ids: np.ndarray) -> Tree:
        """See `Store.personal`."""
        personal = self._settled().personal
        if processes.count() == 1:
            return put_whole(self._placement, _take_on_host(personal, client_ids))
        personal = _take_some(personal, client_ids - self._own.start)
        return join_whole(personal, self._placement)

    def snapshot(self, folder: str | Path) -> None:
        """See `Store.snapshot`."""
        leaves = jax.tree.leaves(self._settled())
        pieces = (row_files.pieces_of_host(x, self._own.start) for x in leaves)
        _write(folder, self.shapes, pieces)

    def restore(self, folder: str | Path) -> None:
        """See `Store.restore`."""
        saved = row_files.open_leaves(folder, self.shapes)
        self._rows = jax.tree.map(lambda x: x[self._own], saved)
        self._arriving = None

    def _settled(self) -> ClientState:
        """Returns all rows, after it has written those that were arriving."""
        if self._arriving is not None:
            client_ids, rows = self._arriving
            self._arriving = None

            places = client_ids - self._own.start

            def write(leaf: np.ndarray, new: np.ndarray) -> None:
                real = (places >= 0) & (places < len(leaf))
                leaf[places[real]] = new[real]

            jax.tree.map(write, self._rows, jax.device_get(rows))
        return self._rows


STORES: dict[str, type[DeviceStore] | type[HostStore]] = {
    "device": DeviceStore,
    "host": HostStore,
}
"""For each name, a class whose objects hold the rows of all clients."""


@checked
def make_store(
    kind: str,
    row: ClientState,
    num_clients: Count,
    placement: Placement = ONE_DEVICE,
    own_personal: Callable[[jax.Array], Tree] | None = None,
) -> Store:
    """Makes a store in which every client has its first row.

    Args:
      kind: one of STORES.
      row: of a client never seen.
      num_clients: clients in the population, at least 1.
      placement: of the rounds.
      own_personal: client id [] int32 -> the personal parameters that this client
        starts with; None if all start with those of `row`.

    Raises:
      ValueError: if the kind is unknown or `num_clients` is out of range.

    Examples:
      >>> import fedjax_prune as fp
      >>> row = fp.ClientState(personal={}, client={"h": np.zeros(2, np.float32)})
      >>> store = fp.make_store("host", row, num_clients=3)
      >>> ids = np.array([2, 0])
      >>> new = row._replace(client={"h": np.array([[1, 2], [3, 4]], np.float32)})
      >>> store.put(ids, new)
      >>> store.take(np.arange(3)).client["h"].tolist()
      [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]
    """
    if kind not in STORES:
        raise ValueError(f"kind must be one of {', '.join(STORES)}, got {kind!r}.")
    store = STORES[kind](row, num_clients, placement)
    if own_personal is None:
        return store
    count = min(num_clients, row_files.rows_at_once(tree_bytes(row)))
    count += -count % placement.num_blocks

    @jax.jit
    def first_rows(client_ids: jax.Array, row: ClientState) -> ClientState:
        personal = jax.lax.map(own_personal, client_ids)
        return create(row, count)._replace(personal=personal)

    for start in range(0, num_clients, count):
        client_ids = np.arange(start, start + count, dtype=np.int32)
        store.put(client_ids, put_split(placement, first_rows(client_ids, row)))
    return store


_take = jax.jit(take, static_argnums=2)
_put = jax.jit(put, static_argnums=3, donate_argnums=0)
_take_whole = jax.jit(take_whole, static_argnums=2)


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


def _write(folder: str | Path, shapes: ClientState, leaves: Iterable[Pieces]) -> None:
    """Writes the rows of all processes, each its own, into the same files."""
    processes.together(
        lambda: row_files.create(folder, shapes) if processes.is_first() else None
    )
    processes.together(lambda: row_files.fill(folder, shapes, leaves))


def _shapes(row: ClientState, num_clients: int) -> ClientState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num_clients, *x.shape), x.dtype), row
    )
