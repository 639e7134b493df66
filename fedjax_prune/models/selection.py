"""A function that finds the k-th largest entry without sorting.

XLA's sorts use only one core on CPUs.
"""

import jax
import jax.numpy as jnp


def kth_largest(values: jax.Array, k: jax.Array | int) -> jax.Array:
    """Finds the k-th largest entry along the last axis, bit by bit.

    Args:
      values: [..., size] float, without NaN.
      k: rank, in [1, size].

    Returns:
      [..., 1], dtype of the values.
    """
    values = jnp.where(values == 0, 0, values)  # because -0 and 0 are equal
    bits = jnp.finfo(values.dtype).bits
    integer = jnp.dtype(f"int{bits}")
    # These integers have the order of the floats.
    order = _in_order(jax.lax.bitcast_convert_type(values, integer))

    def reaches(threshold: jax.Array) -> jax.Array:
        """Tells whether at least k entries are as large, [..., 1] bool."""
        return (order >= threshold).sum(-1, keepdims=True, dtype=jnp.int32) >= k

    def set_bit(i: jax.Array, threshold: jax.Array) -> jax.Array:
        larger = threshold + (jnp.ones((), integer) << (bits - 2 - i).astype(integer))
        return jnp.where(reaches(larger), larger, threshold)

    zero = jnp.zeros((*order.shape[:-1], 1), integer)
    first = jnp.where(reaches(zero), zero, jnp.iinfo(integer).min)
    found = jax.lax.fori_loop(0, bits - 1, set_bit, first)
    return jax.lax.bitcast_convert_type(_in_order(found), values.dtype)


def _in_order(raw: jax.Array) -> jax.Array:
    """Maps bits of floats to integers of the same order, and back."""
    return jnp.where(raw < 0, raw ^ jnp.iinfo(raw.dtype).max, raw)
