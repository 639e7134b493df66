"""Aggregation by the order of values: medians and trimmed means.

Every number is taken by itself, over the clients whose messages have arrived, and all
of these clients count the same. So clients that are a minority, or no more than are
left out at each end, move a number at most to where the values of the others end,
whatever they send. As with the fixed order, each device keeps one message per client of
the cohort, and the order of clients and devices does not matter.

References:
  Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
  ICML 2018, definitions 1 and 2, https://arxiv.org/abs/1803.01498.

Choices:
  A part whose weight is 0 does not count. With an even number of clients the median is
  the mean of the two in the middle. `trimmed_mean` leaves out floor(fraction * m)
  values of the m that have arrived at each end, which may be none. A total is the
  number of clients times the statistic of what they have sent: SCAFFOLD's server
  control is then no longer the mean of the clients' controls. A run refuses
  `control_weights = size`, which would multiply what is sent by the sizes of the
  clients before it is sorted. FedNova's server multiplies the statistic of the step
  masses by that of the normalised deltas. Integers, which a mean would replace by the
  largest, are replaced by the lower median with both statistics; so are flags.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_prune.engine.aggregate import (
    REDUCTION_BY_NAME,
    Gathered,
    Kept,
    Reduction,
    keep,
    keep_nothing,
    of_all_devices,
)
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.floats import float_dtype, is_float
from fedjax_prune.engine.policy import Policy
from fedjax_prune.shares import num_in
from fedjax_prune.types import Cohort, Mean, Message, Total, Tree

Statistic = Callable[[jax.Array, jax.Array], jax.Array]
"""(values [num_places, ...] ascending along the first axis, how many of the first are
real, [] int32, at least 1) -> the statistic, [...]."""


def reduction_for(placement: Placement) -> Reduction:
    """Returns the reduction of a placement and its policy."""
    make = _STATISTICS.get(placement.policy.aggregator)
    if make is None:
        return REDUCTION_BY_NAME[placement.reduction]
    return _ordered(make(placement.policy))


def median(ordered: jax.Array, count: jax.Array) -> jax.Array:
    """Computes the median along the first axis: a Statistic."""
    low = lower_median(ordered, count)
    high = ordered[count // 2]
    # Halved before they are added, large values do not overflow.
    return jnp.where(low == high, low, low / 2 + high / 2)


def lower_median(ordered: jax.Array, count: jax.Array) -> jax.Array:
    """Takes the lower of the two values in the middle: a Statistic."""
    return ordered[(count - 1) // 2]


def trimmed_mean(fraction: float) -> Statistic:
    """Makes the mean without a fraction of the values at each end.

    Args:
      fraction: in [0, 0.5), as `num_in` takes it.
    """

    def statistic(ordered: jax.Array, count: jax.Array) -> jax.Array:
        counts = range(len(ordered) + 1)
        trimmed = jnp.array([num_in(fraction, n) for n in counts], jnp.int32)
        trimmed = trimmed[count]
        # One after another, so that empty places do not change how sums are rounded.
        total = jax.lax.fori_loop(
            trimmed,
            count - trimmed,
            lambda i, total: total + ordered[i],
            jnp.zeros_like(ordered[0]),
        )
        return total / (count - 2 * trimmed).astype(ordered.dtype)

    return statistic


_STATISTICS: dict[str, Callable[[Policy], Statistic]] = {
    "median": lambda policy: median,
    "trimmed_mean": lambda policy: trimmed_mean(policy.trim_fraction),
}


def _count_equally(message: Message) -> Message:
    """Gives each mean the weight 1, or 0 if it has no weight."""

    def of_part(part: Mean | Total) -> Mean | Total:
        if isinstance(part, Total):
            return part
        counts = jnp.asarray(part.weight) > 0
        return Mean(part.values, counts.astype(float_dtype(part.values)))

    return {name: of_part(part) for name, part in message.items()}


def _ordered(statistic: Statistic) -> Reduction:
    """Keeps every message and takes a statistic of each number."""

    def total(kept: Kept, cohort: Cohort, many: bool) -> Gathered:
        del cohort
        messages, arrived = kept
        arrived = of_all_devices(arrived, many)

        def of_values(values: Tree, counts: jax.Array) -> tuple[Tree, jax.Array]:
            count = counts.sum(dtype=jnp.int32)

            def of_leaf(x: jax.Array) -> jax.Array:
                take = statistic if is_float(x) else lower_median
                ordered = _sort(of_all_devices(x, many), counts)
                result = take(ordered, jnp.maximum(count, 1))
                return jnp.where(count > 0, result, jnp.zeros_like(result))

            return jax.tree.map(of_leaf, values), count

        def of_part(part: Mean | Total) -> Mean | Total:
            if isinstance(part, Total):
                values, count = of_values(part.values, arrived)
                return Total(jax.tree.map(lambda x: x * count.astype(x.dtype), values))
            counts = arrived & (of_all_devices(part.weight, many) > 0)
            values, count = of_values(part.values, counts)
            return Mean(values, (count > 0).astype(part.weight.dtype))

        parts = {name: of_part(part) for name, part in messages.items()}
        return Gathered(parts, arrived.sum(dtype=jnp.int32))

    return Reduction(_count_equally, keep_nothing, keep, total)


def _sort(x: jax.Array, counts: jax.Array) -> jax.Array:
    """Sorts along the first axis, with the values that do not count at the end."""
    flags = counts.reshape(counts.shape + (1,) * (x.ndim - 1))
    return jnp.where(flags, x, jnp.full_like(x, _largest(x))).sort(axis=0)


def _largest(x: jax.Array) -> float | int | bool:
    if x.dtype == jnp.bool:
        return True
    return math.inf if is_float(x) else int(jnp.iinfo(x.dtype).max)
