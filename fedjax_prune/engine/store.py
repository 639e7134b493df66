"""Stores: the rows of all clients, shared out over the devices, on the host or on disk.

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

from fedjax_prune.engine import processes, row_files, row_log
from fedjax_prune.engine.devices import ONE_DEVICE, SPLIT, Placement
from fedjax_prune.engine.filling import first_row, open_log, put_own, put_saved
from fedjax_prune.engine.placing import put_split, put_whole
from fedjax_prune.engine.row_arrays import (
    create,
    put,
    shapes_of,
    take,
    take_whole,
)
from fedjax_prune.engine.rows_on_disk import DiskStore
from fedjax_prune.engine.rows_on_host import HostStore
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

        The files are the same for the devices and the host, and any number of devices
        and processes. Beside the store, the host holds no more than
        `row_files.PIECE_BYTES`, or one row of a leaf if that is larger. A store on disk
        writes its index alone.

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
          ProcessError: if another process cannot read it.
        """
        ...

    @property
    def snapshot_bytes(self) -> int:
        """About how many bytes a snapshot takes."""
        ...

    def keep(self, snapshots: Iterable[str | Path]) -> None:
        """Says which snapshots of this store count from now on.

        A store on disk removes the files that neither they nor its own rows need. Other
        stores share no files with their snapshots.

        Args:
          snapshots: folders.
        """
        ...


class DeviceStore:
    """Rows of all clients on the devices, each with an equal part of them."""

    def __init__(
        self,
        row: ClientState,
        num_clients: int,
        placement: Placement = ONE_DEVICE,
        own_personal: Callable[[jax.Array], Tree] | None = None,
    ):
        """Gives every client its first row.

        Args:
          row: of a client never seen.
          num_clients: clients in the population, at least 1.
          placement: of the rounds.
          own_personal: as in `make_store`.
        """
        self.shapes, self._placement = shapes_of(row, num_clients), placement
        self._num_clients, self._own_personal = num_clients, own_personal
        self._begin(row)

    def _begin(self, row: ClientState) -> None:
        sharding = None
        if self._placement.mesh is not None:
            sharding = NamedSharding(self._placement.mesh, SPLIT)
        # Padded at the end, so that the parts are equal.
        length = self._num_clients + -self._num_clients % self._placement.num_blocks
        fill = jax.jit(create, static_argnums=1, out_shardings=sharding)
        self._rows: ClientState = fill(put_whole(self._placement, row), length)
        if self._own_personal is not None:
            put_own(self, row, self._num_clients, self._placement, self._own_personal)

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
        row_files.write(folder, self.shapes, pieces)

    def restore(self, folder: str | Path) -> None:
        """See `Store.restore`."""
        if not processes.on_first(lambda: row_log.is_log(folder)):
            processes.together(lambda: self._restore(folder))
            return
        saved = processes.together(lambda: open_log(folder, self.shapes))
        for leaf in jax.tree.leaves(self._rows):
            leaf.delete()  # The first rows need its memory.
        self._begin(first_row(saved, self.shapes))
        put_saved(self, saved, self._placement)

    def _restore(self, folder: str | Path) -> None:
        leaves, tree = jax.tree.flatten(self._rows)
        saved = jax.tree.leaves(row_files.open_leaves(folder, self.shapes))
        for place, new in enumerate(saved):
            shape, sharding = leaves[place].shape, leaves[place].sharding
            # The leaf that replaces it needs its memory.
            leaves[place].delete()
            leaves[place] = row_files.place(new, shape, sharding)
        self._rows = jax.tree.unflatten(tree, leaves)

    @property
    def snapshot_bytes(self) -> int:
        """See `Store.snapshot_bytes`."""
        return tree_bytes(self.shapes)

    def keep(self, snapshots: Iterable[str | Path]) -> None:
        """See `Store.keep`."""


STORES = ("device", "host", "disk")
"""Where the rows of all clients can be."""


@checked
def make_store(
    kind: str,
    row: ClientState,
    num_clients: Count,
    placement: Placement = ONE_DEVICE,
    own_personal: Callable[[jax.Array], Tree] | None = None,
    folder: str | Path | None = None,
    moves_with: str | Path | None = None,
) -> Store:
    """Makes a store in which every client has its first row.

    Args:
      kind: one of STORES.
      row: of a client never seen.
      num_clients: clients in the population, at least 1.
      placement: of the rounds.
      own_personal: client id [] int32 -> the personal parameters that this client
        starts with; None if all start with those of `row`.
      folder: of the files of a store on disk, which no other store may write; it is
        made when rows are put first, and stays. Others have none.
      moves_with: a folder that is moved and copied as a whole. If it holds `folder`,
        snapshots in it name that by a relative path. None is no folder.

    Raises:
      ValueError: if the kind is unknown, `num_clients` is out of range, or the folder
        is missing; with rows on disk also if the folder is neither a path nor an
        address of gs:// or s3://, or the placement is of one of several processes.
      RowsError: if this Python cannot reach the kind of storage of an address.

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
    if kind == "disk":
        if folder is None:
            raise ValueError("folder must be given for rows on disk, got None.")
        mesh = placement.mesh
        if processes.count() > 1 and (mesh is None or not mesh.is_multi_process):
            raise ValueError(
                "placement must be over all processes for rows on disk: their number "
                f"is {processes.count()}, and the placement is of one."
            )
        return DiskStore(
            row,
            num_clients,
            placement,
            own_personal,
            folder=folder,
            moves_with=moves_with,
        )
    make = HostStore if kind == "host" else DeviceStore
    return make(row, num_clients, placement, own_personal)


_take = jax.jit(take, static_argnums=2)
_put = jax.jit(put, static_argnums=3, donate_argnums=0)
_take_whole = jax.jit(take_whole, static_argnums=2)
