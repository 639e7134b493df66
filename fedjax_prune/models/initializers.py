"""Random starts of weights.

Drawn flat and then reshaped: the numbers are the same, but XLA takes seconds to
compile a draw of four axes for the CPU and a fraction of one for a flat draw.
"""

import math
from collections.abc import Callable

import jax
from jax.typing import DTypeLike

Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]
"""(key, shape of a kernel, dtype) -> its first weights."""


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
    """Normal with variance 2 / fan-out, as in the authors' code of FedDP."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return normal(key, shape, math.sqrt(2 / fan_out), dtype)


def xavier(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
) -> jax.Array:
    """Normal with variance 2 / (fan-in + fan-out), as in AutoFLIP's code."""
    fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
    return normal(key, shape, math.sqrt(2 / fans), dtype)
