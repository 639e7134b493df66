"""Rows of clients with leaves of every dtype."""

import jax.numpy as jnp
import numpy as np

from fedjax_prune.types import ClientState


def first_row():
    """Rows of every dtype."""
    return ClientState(
        {"gate": np.array([0.5, -2.0], np.float32)},
        {
            "count": np.int32(7),
            "flag": np.bool_(True),
            "half": np.full((2, 1), 1.5, jnp.bfloat16),
            "none": np.zeros((0,), np.float32),
        },
    )


def some_rows(rng, count):
    return ClientState(
        {"gate": rng.normal(size=(count, 2)).astype(np.float32)},
        {
            "count": rng.integers(0, 99, count, np.int32),
            "flag": rng.random(count) < 0.5,
            "half": rng.normal(size=(count, 2, 1)).astype(jnp.bfloat16),
            "none": np.zeros((count, 0), np.float32),
        },
    )
