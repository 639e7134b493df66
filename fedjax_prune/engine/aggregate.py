"""Aggregation of the messages that arrive into means and totals.

Messages are added up as clients finish, each mean times its client's weight. When all
are in, a mean is divided by the weight that has arrived. So a client that is dropped
changes nothing except that it is missing, and no algorithm knows of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_prune.engine.contract import Received
from fedjax_prune.engine.devices import AXIS
from fedjax_prune.engine.floats import float_dtype, is_float
from fedjax_prune.engine.lanes import put_lanes
from fedjax_prune.types import Cohort, Mean, Message, Total, Tree


class Gathered(NamedTuple):
    """The messages that have arrived so far, added up.

    Attributes:
      parts: like a message: the sums of values times weights and of the weights.
      num_clients: [] int32, the clients whose messages have arrived.
    """

    parts: Message
    num_clients: jax.Array


Kept = tuple[Message, jax.Array]
"""The weighted messages of a block, [block_size, ...], and which have arrived, bool."""


class Reduction(NamedTuple):
    """A way to gather messages on a device and to add up those of all devices.

    Attributes:
      weigh: message of one client -> weighted message.
      empty: (shapes of one weighted message, block_size) -> kept, before the first.
      add: (kept, weighted messages [num_lanes, ...], arrived [num_lanes] bool, position
        [num_lanes] in the block, block_size where nothing has finished) -> kept.
      total: (kept, this device's block of the cohort, whether there are several
        devices) -> Gathered, the same on all of them.
    """

    weigh: Callable[[Message], Message]
    empty: Callable[[Message, int], Tree]
    add: Callable[[Tree, Message, jax.Array, jax.Array], Tree]
    total: Callable[[Tree, Cohort, bool], Gathered]


def weigh(message: Message) -> Message:
    """Multiplies the means of a message by their weight, except for integers."""

    def weigh_part(part: Mean | Total) -> Mean | Total:
        if isinstance(part, Total):
            return part
        weight = jnp.asarray(part.weight).astype(float_dtype(part.values))
        values = jax.tree.map(
            lambda x: weight.astype(x.dtype) * x if is_float(x) else x, part.values
        )
        return Mean(values, weight)

    return {name: weigh_part(part) for name, part in message.items()}


def nothing(message: Message) -> Gathered:
    """Makes what is gathered before the first client.

    Args:
      message: weighted, arrays or their shapes.
    """

    def zeros(x: Any) -> jax.Array:
        return jnp.zeros(x.shape, x.dtype)

    parts = _by_part(zeros, lambda x: jnp.full(x.shape, _least(x), x.dtype), message)
    return Gathered(parts, jnp.int32(0))


def join(first: Gathered, second: Gathered) -> Gathered:
    """Adds up what two groups of clients have sent."""
    parts = _by_part(jnp.add, jnp.maximum, first.parts, second.parts)
    return Gathered(parts, first.num_clients + second.num_clients)


def receive(gathered: Gathered) -> Received:
    """Divides each mean by the weight that has arrived; totals stay.

    If no weight has arrived, means of floats are 0 and means of integers have the
    lowest value of their dtype.
    """

    def of_part(part: Mean | Total) -> Tree:
        if isinstance(part, Total):
            return part.values
        weight = jnp.where(part.weight > 0, part.weight, 1)
        return jax.tree.map(
            lambda x: x / weight.astype(x.dtype) if is_float(x) else x, part.values
        )

    return {name: of_part(part) for name, part in gathered.parts.items()}


def _running_sum() -> Reduction:
    def add(
        kept: Gathered, messages: Message, arrived: jax.Array, position: jax.Array
    ) -> Gathered:
        del position
        messages = _arrived_only(messages, arrived)
        parts = _by_part(
            lambda total, x: total + x.sum(0),
            lambda most, x: jnp.maximum(most, x.max(0)),
            kept.parts,
            messages,
        )
        return Gathered(parts, kept.num_clients + arrived.sum(dtype=jnp.int32))

    def total(kept: Gathered, cohort: Cohort, many: bool) -> Gathered:
        del cohort
        if not many:
            return kept
        parts = _by_part(
            lambda x: jax.lax.psum(x, AXIS),
            lambda x: jax.lax.pmax(x, AXIS),
            kept.parts,
        )
        return Gathered(parts, jax.lax.psum(kept.num_clients, AXIS))

    return Reduction(weigh, lambda message, block_size: nothing(message), add, total)


def keep_nothing(message: Message, block_size: int) -> Kept:
    """Makes what is kept before the first client: a `Reduction.empty`."""
    kept = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (block_size, *x.shape)),
        nothing(message).parts,
    )
    return kept, jnp.zeros(block_size, bool)


def keep(
    kept: Kept, messages: Message, arrived: jax.Array, position: jax.Array
) -> Kept:
    """Keeps messages at the places of their clients: a `Reduction.add`."""
    return put_lanes(kept, position, (_arrived_only(messages, arrived), arrived))


def of_all_devices(x: jax.Array, many: bool) -> jax.Array:
    """Joins the blocks of all devices, if there are several, on each of them."""
    return jax.lax.all_gather(x, AXIS, tiled=True) if many else x


def _fixed_order() -> Reduction:
    """Keeps every message and adds them by client id.

    Each device has places for all clients of the cohort.
    """

    def total(kept: Kept, cohort: Cohort, many: bool) -> Gathered:
        # Empty places have the largest id, so the clients come first.
        ids = of_all_devices(cohort.client_ids, many)
        order, count = jnp.argsort(ids), (ids < cohort.num_clients).sum(dtype=jnp.int32)
        messages, arrived = kept
        first = nothing(jax.tree.map(lambda x: x[0], messages))
        size = arrived.size
        own = order[:size] - (size * jax.lax.axis_index(AXIS) if many else 0)

        def in_order(x: jax.Array) -> jax.Array:
            rows = x.at[own].get(mode="clip")
            if not many:
                return rows
            # The blocks of all devices would take as many times this memory. Each
            # client is on one device, and a sum with zeros is exact.
            is_own = (own >= 0) & (own < size)
            is_own = is_own.reshape(is_own.shape + (1,) * (x.ndim - 1))
            own_rows = jnp.where(is_own, rows, jnp.zeros_like(rows))
            return jax.lax.psum(own_rows, AXIS).astype(x.dtype)

        def fold(join_two: Callable) -> Callable:
            def fold_leaf(start: jax.Array, x: jax.Array) -> jax.Array:
                x = in_order(x)
                return jax.lax.fori_loop(
                    0, count, lambda i, total: join_two(total, x[i]), start
                )

            return fold_leaf

        parts = _by_part(fold(jnp.add), fold(jnp.maximum), first.parts, messages)
        arrived = of_all_devices(arrived, many)
        return Gathered(parts, arrived.sum(dtype=jnp.int32))

    return Reduction(weigh, keep_nothing, keep, total)


REDUCTION_BY_NAME = {"all_reduce": _running_sum(), "fixed_order": _fixed_order()}
"""A Reduction for each name in `devices.REDUCTIONS`."""


def _by_part(
    add: Callable[..., jax.Array], most: Callable[..., jax.Array], *messages: Message
) -> Message:
    """Maps `most` over the integers of means and `add` over all other arrays."""

    def of_means(*leaves: Any) -> jax.Array:
        return (add if is_float(leaves[0]) else most)(*leaves)

    def map_part(*parts: Any) -> Any:
        if isinstance(parts[0], Total):
            return jax.tree.map(add, *parts)
        values = jax.tree.map(of_means, *(part.values for part in parts))
        return Mean(values, add(*(part.weight for part in parts)))

    return {name: map_part(*(m[name] for m in messages)) for name in messages[0]}


def _arrived_only(messages: Message, arrived: jax.Array) -> Message:
    """Replaces messages that have not arrived, [num_lanes, ...], by neutral ones."""
    neutral = nothing(jax.tree.map(lambda x: x[0], messages)).parts

    def select(x: jax.Array, other: jax.Array) -> jax.Array:
        flags = arrived.reshape(arrived.shape + (1,) * (x.ndim - 1))
        return jnp.where(flags, x, other[None])

    return jax.tree.map(select, messages, neutral)


def _least(x: Any) -> int | bool:
    return False if x.dtype == jnp.bool else int(jnp.iinfo(x.dtype).min)
