"""Random starts of weights.

Drawn flat and then reshaped: the numbers are the same, but XLA takes seconds to
compile a draw of four axes for the CPU and a fraction of one for a flat draw.
"""

import math

import jax


def normal(key: jax.Array, shape: tuple[int, ...], stddev: float) -> jax.Array:
    """Draws float32 weights of a given shape from N(0, stddev^2)."""
    return stddev * jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def uniform(key: jax.Array, shape: tuple[int, ...], bound: float) -> jax.Array:
    """Draws float32 weights of a given shape uniform in [-bound, bound)."""
    flat = (math.prod(shape),)
    return jax.random.uniform(key, flat, minval=-bound, maxval=bound).reshape(shape)
