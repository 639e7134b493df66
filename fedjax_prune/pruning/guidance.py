"""Guidance: deviations of the parameters, normalised. This is phase 2 of AutoFLIP.

Tags name the source of a rule: [P] the paper, [C] its authors' code, [R] a
reconstruction, where both say nothing, contradict each other or fail.

References:
  Internò et al., Federated Hybrid Model Pruning through Loss Landscape Exploration,
  2025, https://arxiv.org/abs/2405.10271.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp

from fedjax_prune.models.precision import wide
from fedjax_prune.models.selection import kth_largest
from fedjax_prune.types import Tree


def guidance_matrix(deviations: Tree, *, normalization: str = "minmax") -> Tree:
    """Normalises squared deviations, each array on its own [C].

    A weight that has moved little lies in a flat direction of the loss and is a
    candidate for pruning.

    Args:
      deviations: D, the mean over explorers of (w_explored - w_0)^2, at least 0.
      normalization: one of NORMALIZATIONS. `minmax` [C]: (D - min) / (max - min), and 0
        for an array whose entries are all equal [R]. `robust` [C]: (D - median) /
        (75th - 25th percentile), not confined to [0, 1]; `minmax` where these are equal
        [R]. `rank` [R]: rank / (size - 1), equal entries share their mean rank. `none`
        [R]: D, so that arrays compete.

    Returns:
      G, like `deviations`, dtypes included.

    Examples:
      >>> guidance_matrix({"w": jnp.array([1.0, 2.0, 5.0])})["w"].tolist()
      [0.0, 0.25, 1.0]
    """
    return jax.tree.map(NORMALIZATIONS[normalization], deviations)


def quantile(values: jax.Array, share: float) -> jax.Array:
    """Computes a quantile, interpolated linearly.

    It is exact for any number of entries: the position is computed in Python from the
    decimal, because float32 cannot count beyond 2^24, and 0.29 * 100 is below 29.

    Args:
      values: of any shape, with at least one entry.
      share: in [0, 1].

    Returns:
      [], dtype of `values`; that share of the entries lies below it.

    Examples:
      >>> quantile(jnp.array([4.0, 1.0, 2.0]), 0.75).item()
      3.0
    """
    flat = values.reshape(-1)
    position = _position(flat.size, share)
    low = lower_quantile(flat, share)
    above = math.floor(position) + 1
    high = kth_largest(flat, max(1, flat.size - above))[0]
    return low + float(position % 1) * (high - low)


def lower_quantile(values: jax.Array, share: float) -> jax.Array:
    """Computes the largest entry that is not above a quantile.

    No entry lies between the two. So, but for rounding, entries above the one are those
    above the other; an interpolated value can round up to the next entry, this cannot.

    Args:
      values: of any shape, with at least one entry.
      share: in [0, 1].

    Returns:
      [], dtype of `values`.

    Examples:
      >>> lower_quantile(jnp.array([4.0, 1.0, 2.0]), 0.75).item()
      2.0
    """
    below = math.floor(_position(values.size, share))
    return kth_largest(values.reshape(-1), values.size - below)[0]


def _position(size: int, share: float) -> Fraction:
    return Fraction(str(share)) * (size - 1)


def _minmax(deviation: jax.Array) -> jax.Array:
    low = deviation.min()
    width = deviation.max() - low
    return jnp.where(width > 0, (deviation - low) / jnp.where(width > 0, width, 1), 0)


def _robust(deviation: jax.Array) -> jax.Array:
    low, middle, high = (quantile(deviation, share) for share in (0.25, 0.5, 0.75))
    # Of tiny numbers the difference may be flushed to 0.
    width = high - low
    spread = (deviation - middle) / jnp.where(width > 0, width, 1)
    return jnp.where(width > 0, spread, _minmax(deviation))


def _rank(deviation: jax.Array) -> jax.Array:
    flat, places = deviation.reshape(-1), jnp.arange(deviation.size, dtype=jnp.int32)
    ordered, order = jax.lax.sort_key_val(flat, places)
    # Equal entries are neighbours, from `first` to `last`.
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    ends = jnp.concatenate([starts[1:], jnp.ones(1, bool)])
    first = jax.lax.cummax(jnp.where(starts, places, 0))
    last = jax.lax.cummin(jnp.where(ends, places, flat.size), reverse=True)
    # Ranks of a large array would be infinite in float16.
    exact = wide(flat.dtype)
    middle = first.astype(exact) / 2 + last.astype(exact) / 2
    ranks = jnp.zeros(flat.shape, exact).at[order].set(middle)
    shares = ranks / max(1, flat.size - 1)
    return shares.astype(flat.dtype).reshape(deviation.shape)


NORMALIZATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "minmax": _minmax,
    "robust": _robust,
    "rank": _rank,
    "none": lambda deviation: deviation,
}
"""For each name, a function from an array of deviations to guidance."""
