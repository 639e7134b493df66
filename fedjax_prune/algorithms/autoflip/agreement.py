"""Scores and masks of AutoFLIP's client agreement.

A weight's score is the rank of its guidance times a power of the smoothed share of
clients that vote for it. Each update of a mask may change only few entries. Scoring by
the agreement of clients is from the paper's fourth version [P]; the formulas are
reconstructions [R].

References:
  Internò et al., Pruning Federated Models through Loss Landscape Analysis and Client
  Agreement Scoring, 2026, https://arxiv.org/abs/2405.10271v5.

Choices:
  A client votes for the weights whose guidance lies above its own quantile. So all
  clients keep equally many, except for those with many weights that have not moved. The
  score takes the rank of the guidance, because its values have another scale in every
  array. Of equal scores the first entries are kept. An update first brings the number
  of kept entries to the wanted one, and then swaps the best for the worst. A rising
  threshold follows a cubic ramp.
"""

import jax
import jax.numpy as jnp

from fedjax_prune.models.precision import wide
from fedjax_prune.pruning.guidance import guidance_matrix
from fedjax_prune.pruning.masks import unstructured_masks
from fedjax_prune.shares import least_in, num_in
from fedjax_prune.types import Tree


def votes(
    deviations: Tree, prunable: Tree, threshold: float, normalization: str
) -> Tree:
    """Computes one client's votes: it keeps guidance above its own quantile.

    Args:
      deviations: squared, of this client alone.
      prunable: a bool for each array.
      threshold: T_p, in [0, 1).
      normalization: of the guidance.

    Returns:
      bool, like `deviations`, True = keep.

    Examples:
      >>> deviations = {"w": jnp.array([0.1, 0.4, 0.2, 0.3])}
      >>> votes(deviations, {"w": True}, 0.5, "minmax")["w"].tolist()
      [False, True, False, True]
    """
    guidance = guidance_matrix(deviations, normalization=normalization)
    return unstructured_masks(guidance, prunable, threshold)


def smooth(agreement: Tree, now: Tree, rate: float) -> Tree:
    """Smooths agreement over rounds: A^t = (1 - rate) A^{t-1} + rate a^t.

    Args:
      agreement: A^{t-1}, float, like the parameters.
      now: a^t, like `agreement`.
      rate: rho, in (0, 1].

    Examples:
      >>> smooth({"w": jnp.float32(0)}, {"w": jnp.float32(1)}, 0.25)["w"].item()
      0.25
    """
    return jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, agreement, now)


def ramped(
    threshold: float, first: float, ramp: int, round: jax.Array
) -> float | jax.Array:
    """Computes T_t on a cubic ramp from `first` to `threshold` over `ramp` rounds.

    Args:
      threshold: T_p.
      first: T_init.
      ramp: rounds until T_p is reached; with 0 it is T_p at once.
      round: t, [] int32, from 1.

    Returns:
      [] float; `threshold` itself without a ramp.

    Examples:
      >>> ramped(0.5, 0.0, ramp=10, round=jnp.int32(5)).item()  # 0.5 (1 - 0.5^3)
      0.4375
    """
    if ramp == 0:
        return threshold
    left = jnp.clip(1 - round.astype(float) / ramp, 0, 1)
    return threshold - (threshold - first) * left**3


def ranks(guidance: Tree, prunable: Tree) -> Tree:
    """Ranks each entry among all prunable ones: q_j, in [0, 1].

    Args:
      guidance: G, float, like the parameters.
      prunable: a bool for each array.

    Returns:
      Like `guidance`; 0 where nothing may be pruned. Of equal entries the first has the
      highest rank, so that it is kept first.

    Examples:
      >>> ranks({"w": jnp.array([0.5, 0.9, 0.1])}, {"w": True})["w"].tolist()
      [0.5, 1.0, 0.0]
    """
    flat = _flatten(guidance, prunable)
    order = jnp.argsort(flat, descending=True, stable=True)
    # In float16 the places of many entries would be infinite.
    places = jnp.arange(flat.size - 1, -1, -1, dtype=wide(flat.dtype))
    shares = (places / max(1, flat.size - 1)).astype(flat.dtype)
    ranked = jnp.zeros_like(flat).at[order].set(shares)
    return _unflatten(ranked, guidance, prunable, 0.0)


def rescore(
    kept: Tree,
    score: Tree,
    prunable: Tree,
    threshold: float | jax.Array,
    max_change: float,
) -> Tree:
    """Moves a mask towards the entries of highest score, by few changes.

    The share 1 - threshold of the entries with the highest scores is wanted; of equal
    entries the first are. At most the share `max_change` of the entries changes: first
    as many as bring the number of kept entries to the wanted one, then as many swaps of
    the best wanted entry for the worst unwanted one as are left.

    Args:
      kept: bool, the mask before.
      score: s_j, like `kept`.
      prunable: a bool for each array.
      threshold: T_t in [0, 1), a number or [] float; the share is rounded up to whole
        entries, in the dtype of an array.
      max_change: zeta, in [0, 1].

    Returns:
      The mask after, True where nothing may be pruned.
    """
    before, scores = _flatten(kept, prunable), _flatten(score, prunable)
    size = scores.size
    if isinstance(threshold, float):
        num_kept = jnp.int32(size - least_in(threshold, size))
    else:
        # A product like 0.3 * 200 may lie just above the whole number that is meant.
        num_pruned = jnp.ceil(threshold * size * (1 - 2**-22))
        num_kept = size - num_pruned.astype(jnp.int32)
    wanted = _place(-scores, jnp.ones(size, bool)) < num_kept
    enter, leave = wanted & ~before, before & ~wanted
    num_enter, num_leave = (x.sum(dtype=jnp.int32) for x in (enter, leave))
    budget = jnp.int32(num_in(max_change, size))
    net = jnp.minimum(jnp.abs(num_leave - num_enter), budget)
    swaps = jnp.minimum(jnp.minimum(num_enter, num_leave), (budget - net) // 2)
    enters = enter & (
        _place(-scores, enter) < swaps + jnp.where(num_enter > num_leave, net, 0)
    )
    # Backwards, so that of equal entries the last one leaves first.
    leaves = leave & (
        _place(scores[::-1], leave[::-1])[::-1]
        < swaps + jnp.where(num_leave > num_enter, net, 0)
    )
    return _unflatten((before | enters) & ~leaves, kept, prunable, True)


def _place(values: jax.Array, among: jax.Array) -> jax.Array:
    """Finds the place of each entry in ascending order, those not `among` last."""
    order = jnp.argsort(jnp.where(among, values, jnp.inf), stable=True)
    places = jnp.arange(values.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places)


def _flatten(tree: Tree, prunable: Tree) -> jax.Array:
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(prunable), strict=True)
    return jnp.concatenate([leaf.reshape(-1) for leaf, flag in leaves if flag])


def _unflatten(flat: jax.Array, like: Tree, prunable: Tree, other: float) -> Tree:
    leaves, treedef = jax.tree.flatten(like)
    result, start = [], 0
    for leaf, flag in zip(leaves, jax.tree.leaves(prunable), strict=True):
        if flag:
            result.append(flat[start : start + leaf.size].reshape(leaf.shape))
            start += leaf.size
        else:
            result.append(jnp.full(leaf.shape, other, flat.dtype))
    return treedef.unflatten(result)
