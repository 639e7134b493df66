"""Where the rows of all clients live: stacked, on the device.

The rounds see only the cohort's rows, so an algorithm does not know how many
clients there are, and neither do its compiled shapes.
"""

import jax
import jax.numpy as jnp

from fedjax_prune.types import ClientState


def create(row: ClientState, num_clients: int) -> ClientState:
    """Gives every client the same first row.

    Args:
      row: of a client never seen.
      num_clients: clients in the population, at least 1.

    Returns:
      Rows, every leaf with a leading axis `num_clients`.
    """
    return jax.tree.map(lambda x: jnp.tile(x, (num_clients,) + (1,) * x.ndim), row)


def take(rows: ClientState, client_ids: jax.Array) -> ClientState:
    """The rows of some clients: leaves [cohort_size, ...]."""
    return jax.tree.map(lambda x: x[client_ids], rows)


def put(
    rows: ClientState, client_ids: jax.Array, cohort_rows: ClientState
) -> ClientState:
    """Rows with those of some clients replaced; all others keep their bits."""
    return jax.tree.map(lambda x, new: x.at[client_ids].set(new), rows, cohort_rows)
