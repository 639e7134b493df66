"""Random starts of weights.

Drawn flat and then reshaped: the numbers are the same, but XLA takes seconds to
compile a draw of four axes for the CPU and a fraction of one for a flat draw.
"""

import math

import jax
from jax.typing import DTypeLike


def normal(
    key: jax.Array, shape: tuple[int, ...], stddev: float, dtype: DTypeLike = float
) -> jax.Array:
    """Draws weights of a given shape and dtype from N(0, stddev^2)."""
    flat = (math.prod(shape),)
    return stddev * jax.random.normal(key, flat, dtype).reshape(shape)


def uniform(
    key: jax.Array, shape: tuple[int, ...], bound: float, dtype: DTypeLike = float
) -> jax.Array:
    """Draws weights of a given shape and dtype uniform in [-bound, bound)."""
    flat = (math.prod(shape),)
    return jax.random.uniform(key, flat, dtype, -bound, bound).reshape(shape)
