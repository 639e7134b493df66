"""Functions that find the largest entries without sorting.

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
    order = _to_integers(values)
    integer, bits = order.dtype, jnp.finfo(values.dtype).bits

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


def mark_largest(values: jax.Array, k: int) -> jax.Array:
    """Marks the k largest entries along the last axis, of equal ones the first.

    Args:
      values: [..., size] float, without NaN.
      k: number of entries, in [1, size].

    Returns:
      [..., size] bool, with exactly k True.
    """
    order = _to_integers(values)
    last, low = jnp.finfo(values.dtype).bits - 1, jnp.iinfo(order.dtype).min
    digits = order ^ low  # without a sign, as their bits are compared

    # A comparison with the k-th largest after the loop would not mark exactly k: XLA
    # may compute the values anew for it and round them in another way. It stores what
    # a loop carries.
    def compare_bit(i: jax.Array, found: tuple) -> tuple:
        """Splits the entries that were equal so far by their next bit."""
        chosen, equal, missing = found
        shift = (last - i).astype(digits.dtype)
        larger = equal & (jax.lax.shift_right_logical(digits, shift) & 1 == 1)
        count = larger.sum(-1, keepdims=True, dtype=jnp.int32)
        too_many = count >= missing
        return (
            jnp.where(too_many, chosen, chosen | larger),
            jnp.where(too_many, larger, equal & ~larger),
            jnp.where(too_many, missing, missing - count),
        )

    nothing = jnp.zeros(digits.shape, bool)
    missing = jnp.full((*digits.shape[:-1], 1), k, jnp.int32)
    start = nothing, ~nothing, missing
    chosen, equal, missing = jax.lax.fori_loop(0, last + 1, compare_bit, start)
    return chosen | (equal & (jnp.cumsum(equal, -1, jnp.int32) <= missing))


def _to_integers(values: jax.Array) -> jax.Array:
    """Gives signed integers in the order of the floats, equal where these are equal."""
    values = jnp.where(values == 0, 0, values)  # because -0 and 0 are equal
    integer = jnp.dtype(f"int{jnp.finfo(values.dtype).bits}")
    return _in_order(jax.lax.bitcast_convert_type(values, integer))


def _in_order(raw: jax.Array) -> jax.Array:
    """Maps bits of floats to integers of the same order, and back."""
    return jnp.where(raw < 0, raw ^ jnp.iinfo(raw.dtype).max, raw)
