"""Functions of one lane, mapped over all lanes of a device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_prune.types import Tree


def over_lanes(step: Callable[[Any], Any], lanes: Any) -> Any:
    """Maps a function over the lanes; a single lane runs as it is.

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
      flags: [num_lanes] bool.
      chosen: leaves [num_lanes, ...], taken where the flag is set.
      other: taken elsewhere.
    """

    def select(c: jax.Array, o: jax.Array) -> jax.Array:
        return jnp.where(flags.reshape(flags.shape + (1,) * (c.ndim - 1)), c, o)

    return jax.tree.map(select, chosen, other)
