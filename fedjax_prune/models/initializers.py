"""The random starts of weights.

Weights are drawn flat and then reshaped. The numbers are the same, but XLA compiles a
flat draw for the CPU in a fraction of a second, and a draw of four axes in seconds.
"""

import math
from collections.abc import Callable

import jax
from jax.typing import DTypeLike

Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]
"""(key, shape of a kernel, dtype) -> the weights that it starts with."""


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


def he_fan_out(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
) -> jax.Array:
    """Draws a kernel from N(0, 2 / fan-out), as the code of FedDP's authors does."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return normal(key, shape, math.sqrt(2 / fan_out), dtype)


def xavier(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
) -> jax.Array:
    """Draws a kernel from N(0, 2 / (fan-in + fan-out)), as AutoFLIP's code does."""
    fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
    return normal(key, shape, math.sqrt(2 / fans), dtype)
