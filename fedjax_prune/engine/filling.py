"""How a store is filled in pieces: with first rows of clients' own, or from a log."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from fedjax_prune.engine import processes, row_files, row_log
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.placing import put_split
from fedjax_prune.engine.row_arrays import create
from fedjax_prune.engine.row_log import Saved
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.types import ClientState, Tree


class Fillable(Protocol):
    """What is asked of a store that is filled."""

    shapes: ClientState

    def put(self, client_ids: np.ndarray, rows: ClientState) -> None:
        """See `Store.put`."""
        ...


def put_own(
    store: Fillable,
    row: ClientState,
    num_clients: int,
    placement: Placement,
    own_personal: Callable[[jax.Array], Tree],
) -> None:
    """Puts the first rows of all clients, with personal parameters of their own.

    Args:
      store: on the devices or the host.
      row: of a client never seen, except for its personal parameters.
      num_clients: clients in the population, at least 1.
      placement: of the rounds.
      own_personal: client id [] int32 -> its personal parameters.
    """
    count = min(num_clients, row_files.rows_at_once(tree_bytes(row)))
    count += -count % placement.num_blocks

    @jax.jit
    def first_rows(client_ids: jax.Array, row: ClientState) -> ClientState:
        personal = jax.lax.map(own_personal, client_ids)
        return create(row, count)._replace(personal=personal)

    # A store on the host is filled when its rows are used first, as in a round.
    with jax.transfer_guard("allow"):
        for start in range(0, num_clients, count):
            client_ids = np.arange(start, start + count, dtype=np.int32)
            store.put(client_ids, put_split(placement, first_rows(client_ids, row)))


def drawing(
    own_personal: Callable[[jax.Array], Tree],
) -> Callable[[int], jax.stages.Compiled]:
    """Makes programs that draw the personal parameters of some clients.

    Args:
      own_personal: client id [] int32 -> its personal parameters.

    Returns:
      num_clients -> a compiled program, kept for the next call:
      client ids [num_clients] int32 -> leaves [num_clients, ...].
    """

    @cache
    def compiled(num_clients: int) -> jax.stages.Compiled:
        client_ids = jax.ShapeDtypeStruct((num_clients,), np.int32)
        return jax.jit(partial(jax.lax.map, own_personal)).lower(client_ids).compile()

    return compiled


def open_log(folder: str | Path, shapes: ClientState) -> Saved:
    """Reads the snapshot of a log.

    Args:
      folder: of the snapshot.
      shapes: leaves `jax.ShapeDtypeStruct` [num_clients, ...], that it should have.

    Raises:
      OSError: if it cannot be read, or a file that it names is missing or cut.
      ValueError: if it is damaged, or the number of clients or the size of a row
        differs.
    """
    saved = row_log.load(Path(folder))
    like = jax.tree.map(lambda x: np.empty((0, *x.shape[1:]), x.dtype), shapes)
    leaves = jax.tree.leaves(shapes)
    num_clients = leaves[0].shape[0] if leaves else saved.num_clients
    wanted = num_clients, row_log.to_bytes(like).shape[1]
    found = saved.num_clients, len(saved.first)
    if found != wanted:
        raise ValueError(
            f"{folder} must hold {wanted[0]} rows of {wanted[1]} bytes, got "
            f"{found[0]} of {found[1]}."
        )
    row_log.require_sizes(saved)
    return saved


def first_row(saved: Saved, shapes: ClientState) -> ClientState:
    """The row of a client never written; its leaves are numpy arrays."""
    rows = row_log.from_bytes(saved.first[None], shapes)
    return jax.tree.map(lambda x: x[0], rows)


def _read_pieces(
    saved: Saved, shapes: ClientState
) -> Iterator[tuple[np.ndarray, ClientState]]:
    """Reads all rows that were ever written, in pieces, file by file.

    Args:
      saved: a snapshot.
      shapes: leaves `jax.ShapeDtypeStruct` [num_clients, ...].

    Yields:
      [count] client ids, and their rows, numpy.
    """
    index, row_bytes = saved.index, len(saved.first)
    order = np.lexsort((index.places, index.files))
    count = row_files.rows_at_once(row_bytes)
    for start in range(0, len(order), count):
        found = order[start : start + count]
        rows = np.empty((len(found), row_bytes), np.uint8)
        row_log.read(saved.folder, index, found, row_bytes, rows)
        yield index.clients[found], row_log.from_bytes(rows, shapes)


def read_together(
    saved: Saved, shapes: ClientState
) -> Iterator[tuple[np.ndarray, ClientState]]:
    """Reads as `_read_pieces` in every process; if it fails in one, it fails in all.

    Between two pieces the processes may exchange what they have read.

    Raises:
      OSError, ProcessError: see above.
    """
    pieces = _read_pieces(saved, shapes)
    while (piece := processes.together(lambda: next(pieces, None))) is not None:
        yield piece


def put_saved(store: Fillable, saved: Saved, placement: Placement) -> None:
    """Puts all rows of a log into a store in which all clients have their first row.

    Raises:
      OSError, ProcessError: if they cannot be read.
    """
    for client_ids, rows in read_together(saved, store.shapes):
        # Every device gets an equal part; what it is filled up with is nobody's.
        missing = -len(client_ids) % placement.num_blocks
        places = np.minimum(np.arange(len(client_ids) + missing), len(client_ids) - 1)
        ids = np.append(client_ids, np.full(missing, -1, np.int32))
        store.put(ids, put_split(placement, row_log.pick(rows, places)))
