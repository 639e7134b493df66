"""Functions over all lanes of a device: map, select, write, take the next clients.

A single lane is common on CPUs and takes a shorter way: it is not mapped. It is never
idle, because the loop over the steps ends when it has no client left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_prune.types import Tree


def over_lanes(step: Callable[[Any], Any], lanes: Any) -> Any:
    """Maps a function over the lanes; a single lane runs without a map.

    Mapped, its matrix products would be batches of one, whose transposed operands XLA
    copies on CPUs.

    Args:
      step: of one lane.
      lanes: leaves [num_lanes, ...].

    Returns:
      What `step` returns, leaves [num_lanes, ...].
    """
    if jax.tree.leaves(lanes)[0].shape[0] > 1:
        return jax.vmap(step)(lanes)
    result = step(jax.tree.map(lambda x: x[0], lanes))
    return jax.tree.map(lambda x: x[None], result)


def select_lanes(flags: jax.Array, chosen: Tree, other: Tree) -> Tree:
    """Takes whole lanes from one of two trees.

    Args:
      flags: [num_lanes] bool; that of a single lane must be True.
      chosen: leaves [num_lanes, ...], taken where the flag is True.
      other: leaves [num_lanes, ...], taken where it is False.
    """
    if flags.shape[0] == 1:
        return chosen

    def select(c: jax.Array, o: jax.Array) -> jax.Array:
        return jnp.where(flags.reshape(flags.shape + (1,) * (c.ndim - 1)), c, o)

    return jax.tree.map(select, chosen, other)


def put_lanes(block: Tree, position: jax.Array, lanes: Tree) -> Tree:
    """Writes the lanes' trees to their places in a block.

    Args:
      block: leaves [block_size, ...].
      position: [num_lanes] int32 in the block; lanes at `block_size` are left out.
        A single lane must have a place.
      lanes: leaves [num_lanes, ...].

    Returns:
      The new block.
    """
    if position.shape[0] == 1:
        # A scatter would be written number by number on CPUs.
        return jax.tree.map(
            lambda b, x: jax.lax.dynamic_update_slice_in_dim(b, x, position[0], 0),
            block,
            lanes,
        )
    return jax.tree.map(
        lambda b, x: b.at[position].set(x, mode="drop", wrap_negative_indices=False),
        block,
        lanes,
    )


def take_next(
    queues: jax.Array, nothing: int, taken: jax.Array, wants: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gives lanes their next clients.

    A lane takes from its own queue, and from the longest of the others when its own is
    empty: the queues are even only if clients train for as long as was planned.

    Args:
      queues: [num_lanes, length] int32, positions of clients, padded with `nothing`.
      nothing: stands for no client, above all positions.
      taken: [num_lanes] int32, clients taken from each queue.
      wants: [num_lanes] bool, which lanes have nothing to do.

    Returns:
      `taken` and the positions, [num_lanes] int32, `nothing` where nothing is taken.
    """
    lengths = (queues < nothing).sum(1, dtype=jnp.int32)

    def take(
        taken: jax.Array, lane: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        own, wants = lane
        left = lengths - taken
        queue = jnp.where(left[own] > 0, own, left.argmax().astype(own.dtype))
        takes = wants & (left[queue] > 0)
        position = jnp.where(takes, queues[queue, taken[queue]], nothing)
        return taken.at[queue].add(takes.astype(taken.dtype)), position

    numbers = jnp.arange(len(queues), dtype=jnp.int32)
    return jax.lax.scan(take, taken, (numbers, wants))
