"""Rows of all clients as one tree of arrays on the devices: create, take and put.

These are pure functions, for one device or for several of which each has an equal part.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from fedjax_prune.engine.devices import AXIS, ONE_DEVICE, SPLIT, WHOLE, Placement
from fedjax_prune.engine.placing import from_parts
from fedjax_prune.types import ClientState, Tree


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


def shapes_of(row: ClientState, num_clients: int) -> ClientState:
    """Gives the rows of all clients as `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num_clients, *x.shape), x.dtype), row
    )


def unshared(rows: Tree) -> Tree:
    """Copies numpy arrays, which their owner may change; those of JAX stay."""
    return jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, rows)


def take(
    rows: ClientState, client_ids: jax.Array, placement: Placement = ONE_DEVICE
) -> ClientState:
    """Takes the rows of some clients.

    Args:
      rows: of all clients; on several devices each has an equal part.
      client_ids: [num_places] int32, a block for each device; an id outside the
        population gives a row without a meaning.
      placement: of the rows.

    Returns:
      Leaves [num_places, ...], each device with those of its block.
    """

    def take_own(rows: ClientState, ids: jax.Array) -> ClientState:
        wanted = jax.lax.all_gather(ids, AXIS, tiled=True)

        def fetch(x: jax.Array) -> jax.Array:
            # Every device adds its rows to zeros and keeps its block of the sum.
            place, here = _own(x, wanted)
            found = jnp.where(_spread(here, x), x[place], jnp.zeros((), x.dtype))
            # Flags cannot be added up.
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
    """Replaces the rows of some clients; all others keep their bits.

    Args:
      rows: as in `take`.
      client_ids: [num_places] int32; ids outside the population are left out.
      cohort_rows: leaves [num_places, ...].
      placement: of all three.

    Returns:
      The new rows of all clients.
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


def take_whole(rows: Tree, client_ids: jax.Array, placement: Placement) -> Tree:
    """Takes the rows of some clients as `take`, each of them on every device."""
    picked = _pick(rows, client_ids)
    if placement.mesh is None:
        return picked
    return jax.lax.with_sharding_constraint(
        picked, NamedSharding(placement.mesh, WHOLE)
    )


def join_split(parts: Tree, placement: Placement) -> Tree:
    """Joins the rows that processes hold on their hosts; each device gets its block.

    Args:
      parts: leaves numpy [num_places, ...], the rows that this process has of a cohort
        and zeros in their places elsewhere.
      placement: of the cohort, over several processes.

    Returns:
      Leaves [num_places, ...].
    """
    return _join(_one_device_each(parts, placement), placement, True)


def join_whole(parts: Tree, placement: Placement) -> Tree:
    """Joins rows as `join_split`, all of them on every device."""
    return _join(_one_device_each(parts, placement), placement, False)


def _one_device_each(parts: Tree, placement: Placement) -> Tree:
    """Sends the parts to the first device of this process, zeros to its others."""
    assert placement.mesh is not None
    devices, sharding = placement.mesh.devices, NamedSharding(placement.mesh, SPLIT)
    first = placement.mesh.local_devices[0]

    def place(x: np.ndarray) -> jax.Array:
        def on(index: tuple[slice, ...]) -> np.ndarray:
            is_first = devices[index[0].start or 0] == first
            return x[None] if is_first else np.zeros((1, *x.shape), x.dtype)

        shape = (placement.num_blocks, *x.shape)
        return from_parts(shape, sharding, on)

    return jax.tree.map(place, parts)


@partial(jax.jit, static_argnums=(1, 2))
def _join(parts: Tree, placement: Placement, split: bool) -> Tree:
    assert placement.mesh is not None

    def add_up(parts: Tree) -> Tree:
        def join(x: jax.Array) -> jax.Array:
            # Flags cannot be added up.
            own = x[0].astype(jnp.int8) if x.dtype == jnp.bool else x[0]
            if split:
                joined = jax.lax.psum_scatter(own, AXIS, tiled=True)
            else:
                joined = jax.lax.psum(own, AXIS)
            return joined.astype(x.dtype)

        return jax.tree.map(join, parts)

    return jax.shard_map(
        add_up,
        mesh=placement.mesh,
        in_specs=SPLIT,
        out_specs=SPLIT if split else WHOLE,
        check_vma=False,
    )(parts)


def _pick(rows: Tree, client_ids: jax.Array) -> Tree:
    return jax.tree.map(
        lambda x: x.at[client_ids].get(mode="clip", wrap_negative_indices=False), rows
    )


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
    """Finds the places of clients in this device's part, and whether they are in it."""
    place = client_ids - jax.lax.axis_index(AXIS) * x.shape[0]
    here = (place >= 0) & (place < x.shape[0])
    return jnp.where(here, place, 0), here


def _spread(flags: jax.Array, x: jax.Array) -> jax.Array:
    return flags.reshape(-1, *(1,) * (x.ndim - 1))
