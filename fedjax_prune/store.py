"""Where the rows of all clients live: shared out over the devices, or on the host.

The rounds see only the cohort's rows, so an algorithm does not know how many clients
there are or where their rows are, and neither do its compiled shapes.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from fedjax_prune.placement import (
    AXIS,
    ONE_DEVICE,
    SPLIT,
    WHOLE,
    Placement,
    put_split,
    put_whole,
)
from fedjax_prune.types import ClientState, Tree


class DeviceStore:
    """Rows of all clients on the devices, each with an equal part of them."""

    def __init__(self, rows: ClientState, placement: Placement):
        """Takes over the rows of all clients.

        Args:
          rows: leaves [num_clients, ...].
          placement: of the rounds.
        """
        leaves = jax.tree.leaves(rows)
        self._num_clients = len(leaves[0]) if leaves else 0
        self._rows, self._placement = _share_out(rows, placement), placement

    def take(self, client_ids: np.ndarray) -> ClientState:
        """The rows of a cohort's places, each device with those of its block."""
        ids = put_split(self._placement, client_ids)
        return _take(self._rows, ids, self._placement)

    def put(self, client_ids: np.ndarray, rows: ClientState) -> None:
        """Replaces the rows of a cohort's places; ids outside are left out."""
        ids = put_split(self._placement, client_ids)
        self._rows = _put(self._rows, ids, rows, self._placement)

    def personal(self, client_ids: np.ndarray) -> Tree:
        """The personal parameters of some clients, all of them on every device."""
        ids = put_whole(self._placement, client_ids)
        return _take_whole(self._rows.personal, ids, self._placement)

    def whole(self) -> ClientState:
        """The rows of all clients, the same on any number of devices."""
        return jax.tree.map(lambda x: x[: self._num_clients], self._rows)


class HostStore:
    """Rows of all clients in the memory of the host, as numpy arrays.

    The devices hold those of one cohort at a time. Its methods are those of
    `DeviceStore`; rows that a device still computes are waited for when some are asked
    for again.
    """

    def __init__(self, rows: ClientState, placement: Placement):
        """Takes over the rows of all clients.

        Args:
          rows: leaves [num_clients, ...], numpy.
          placement: of the rounds.
        """
        self._rows, self._placement = rows, placement
        self._arriving: tuple[np.ndarray, ClientState] | None = None

    def take(self, client_ids: np.ndarray) -> ClientState:
        """See `DeviceStore.take`."""
        return put_split(self._placement, _take_on_host(self.whole(), client_ids))

    def put(self, client_ids: np.ndarray, rows: ClientState) -> None:
        """See `DeviceStore.put`."""
        self.whole()
        self._arriving = client_ids, rows

    def personal(self, client_ids: np.ndarray) -> Tree:
        """See `DeviceStore.personal`."""
        personal = _take_on_host(self.whole().personal, client_ids)
        return put_whole(self._placement, personal)

    def whole(self) -> ClientState:
        """See `DeviceStore.whole`."""
        if self._arriving is not None:
            client_ids, rows = self._arriving
            self._arriving = None

            def write(leaf: np.ndarray, new: np.ndarray) -> None:
                real = client_ids < len(leaf)
                leaf[client_ids[real]] = new[real]

            jax.tree.map(write, self._rows, jax.device_get(rows))
        return self._rows


Store = DeviceStore | HostStore

STORES: dict[str, type[Store]] = {"device": DeviceStore, "host": HostStore}
"""name -> where rows live."""


@partial(jax.jit, static_argnums=1)
def create(row: ClientState, num_clients: int) -> ClientState:
    """Gives every client the same first row.

    Args:
      row: of a client never seen.
      num_clients: clients in the population, at least 1.

    Returns:
      Rows, every leaf with a leading axis `num_clients`.
    """
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_clients, *x.shape)), row)


def create_on_host(row: ClientState, num_clients: int) -> ClientState:
    """`create` in the memory of the host: numpy arrays that can be written."""
    return jax.tree.map(
        lambda x: np.broadcast_to(x, (num_clients, *x.shape)).copy(),
        jax.device_get(row),
    )


def take(
    rows: ClientState, client_ids: jax.Array, placement: Placement = ONE_DEVICE
) -> ClientState:
    """The rows of some clients.

    Args:
      rows: of all clients; on several devices each has an equal part.
      client_ids: [num_places] int32, each device's block; an id outside the
        population gives a row that means nothing.
      placement: of the rows.

    Returns:
      Leaves [num_places, ...], each device with those of its block.
    """

    def take_own(rows: ClientState, ids: jax.Array) -> ClientState:
        wanted = jax.lax.all_gather(ids, AXIS, tiled=True)

        def fetch(x: jax.Array) -> jax.Array:
            # Every device adds what it has to zeros, and keeps its block of the sum.
            place, here = _own(x, wanted)
            found = jnp.where(_spread(here, x), x[place], jnp.zeros((), x.dtype))
            # Flags do not add up.
            summed = found.astype(jnp.int8) if x.dtype == jnp.bool else found
            return jax.lax.psum_scatter(summed, AXIS, tiled=True).astype(x.dtype)

        return jax.tree.map(fetch, rows)

    if placement.mesh is None:
        return _pick(rows, client_ids)
    return _mapped(take_own, placement, 2)(rows, client_ids)


def put(
    rows: ClientState,
    client_ids: jax.Array,
    cohort_rows: ClientState,
    placement: Placement = ONE_DEVICE,
) -> ClientState:
    """Rows with those of some clients replaced; all others keep their bits.

    Args:
      rows: as in `take`.
      client_ids: [num_places] int32; ids outside the population are left out.
      cohort_rows: leaves [num_places, ...].
      placement: of all three.

    Returns:
      The rows.
    """

    def put_own(
        rows: ClientState, ids: jax.Array, cohort_rows: ClientState
    ) -> ClientState:
        written = jax.lax.all_gather(ids, AXIS, tiled=True)

        def store(x: jax.Array, new: jax.Array) -> jax.Array:
            place, here = _own(x, written)
            place = jnp.where(here, place, x.shape[0])
            return x.at[place].set(
                jax.lax.all_gather(new, AXIS, tiled=True), mode="drop"
            )

        return jax.tree.map(store, rows, cohort_rows)

    if placement.mesh is None:
        return jax.tree.map(
            lambda x, new: x.at[client_ids].set(
                new, mode="drop", wrap_negative_indices=False
            ),
            rows,
            cohort_rows,
        )
    return _mapped(put_own, placement, 3)(rows, client_ids, cohort_rows)


_take = jax.jit(take, static_argnums=2)
_put = jax.jit(put, static_argnums=3, donate_argnums=0)


@partial(jax.jit, static_argnums=2)
def _take_whole(rows: Tree, client_ids: jax.Array, placement: Placement) -> Tree:
    """The rows of some clients, all of them on every device."""
    picked = _pick(rows, client_ids)
    if placement.mesh is None:
        return picked
    return jax.lax.with_sharding_constraint(
        picked, NamedSharding(placement.mesh, WHOLE)
    )


def _pick(rows: Tree, client_ids: jax.Array) -> Tree:
    return jax.tree.map(
        lambda x: x.at[client_ids].get(mode="clip", wrap_negative_indices=False), rows
    )


def _take_on_host(rows: Tree, client_ids: np.ndarray) -> Tree:
    return jax.tree.map(lambda x: np.take(x, client_ids, axis=0, mode="clip"), rows)


def _share_out(rows: ClientState, placement: Placement) -> ClientState:
    """Gives every device an equal part of the rows, padded at the end."""
    mesh = placement.mesh
    if mesh is None:
        return rows

    def pad(x: jax.Array) -> jax.Array:
        missing = -x.shape[0] % placement.num_blocks
        padded = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))
        return jax.device_put(padded, NamedSharding(mesh, SPLIT))

    return jax.tree.map(pad, rows)


def _mapped(
    function: Callable[..., ClientState], placement: Placement, num_arguments: int
) -> Callable[..., ClientState]:
    assert placement.mesh is not None
    return jax.shard_map(
        function,
        mesh=placement.mesh,
        in_specs=(SPLIT,) * num_arguments,
        out_specs=SPLIT,
        check_vma=False,
    )


def _own(x: jax.Array, client_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Places of clients in this device's part, and whether they are in it."""
    place = client_ids - jax.lax.axis_index(AXIS) * x.shape[0]
    here = (place >= 0) & (place < x.shape[0])
    return jnp.where(here, place, 0), here


def _spread(flags: jax.Array, x: jax.Array) -> jax.Array:
    return flags.reshape(-1, *(1,) * (x.ndim - 1))
