"""Masks of single weights and of channels, from guidance: phase 3 of AutoFLIP.

A mask is a tree like the parameters, True where a weight is kept and wherever nothing
may be pruned.

Tags name the source of a rule: [P] the paper, [C] its authors' code, [R] a
reconstruction, where both say nothing, contradict each other or fail.

References:
  Internò et al., Federated Hybrid Model Pruning through Loss Landscape Exploration,
  2025, https://arxiv.org/abs/2405.10271.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_prune.layers import ChannelGroup, Slot
from fedjax_prune.models.channels import array_name, drop_channels, find_leaf
from fedjax_prune.models.precision import wide
from fedjax_prune.models.selection import mark_largest
from fedjax_prune.pruning.guidance import lower_quantile
from fedjax_prune.shares import least_in, num_in
from fedjax_prune.types import Tree

KERNELS = ("kernel", "recurrent_kernel", "embedding")
"""Names of arrays that may be pruned; all others may only with `biases`."""

SCOPES = ("global", "per_tensor")

MIN_UNITS = 0.05
"""Share of the channels of each group that stays, whatever a rule says [R]."""

Alive = Mapping[str, jax.Array]
"""Name of a group -> [size] bool, False where a channel was removed."""


def prunable(params: Tree, *, biases: bool = False, exempt: Sequence[str] = ()) -> Tree:
    """Says which arrays may be pruned.

    Args:
      params: nested dictionaries of arrays, or of their shapes.
      biases: whether biases and norms may be pruned, too [C]; if not, only kernels and
        embeddings may [R].
      exempt: shell patterns of paths, joined by "/", that may not be pruned.

    Returns:
      A bool for each array.

    Raises:
      ValueError: if a pattern fits no array, no array is a kernel or an embedding, or
        all of them are exempt.

    Examples:
      >>> params = {"fc1": {"bias": 0, "kernel": 0}, "fc2": {"kernel": 0}}
      >>> prunable(params, exempt=["fc2/*"])
      {'fc1': {'bias': False, 'kernel': True}, 'fc2': {'kernel': False}}
    """
    arrays = jax.tree_util.tree_leaves_with_path(params)
    names = [array_name(path) for path, _ in arrays]
    ends = {name.rpartition("/")[2] for name in names}
    if not biases and ends.isdisjoint(KERNELS):
        raise ValueError(
            f"a model must have an array with the name {', '.join(KERNELS)} to be "
            f"pruned, got {', '.join(names)}."
        )
    for pattern in exempt:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"exempt_layers must fit one of {', '.join(names)}, got {pattern!r}."
            )

    def flag(path: tuple[Any, ...], leaf: Any) -> bool:
        del leaf
        name = array_name(path)
        is_exempt = any(fnmatch.fnmatchcase(name, pattern) for pattern in exempt)
        return (biases or name.rpartition("/")[2] in KERNELS) and not is_exempt

    flags = jax.tree_util.tree_map_with_path(flag, params)
    if not any(jax.tree.leaves(flags)):
        raise ValueError(
            f"exempt_layers must leave an array that may be pruned, got "
            f"{', '.join(exempt)} of {', '.join(names)}."
        )
    return flags


def unstructured_masks(
    guidance: Tree, prunable: Tree, threshold: float, *, scope: str = "global"
) -> Tree:
    """Prunes the weights whose guidance is not above its quantile.

    Entries that equal the quantile are pruned [C], so that more than the share
    `threshold` can be.

    Args:
      guidance: G.
      prunable: a bool for each array.
      threshold: T_p, the share to prune, in [0, 1); 0 prunes nothing.
      scope: `global`, one quantile for the whole network [C], or `per_tensor`, one for
        each array [R].

    Returns:
      The masks.

    Examples:
      >>> guidance = {"w": jnp.array([0.1, 0.4, 0.2, 0.3])}
      >>> unstructured_masks(guidance, {"w": True}, 0.5)["w"].tolist()
      [False, True, False, True]
    """
    leaves, flags = jax.tree.leaves(guidance), jax.tree.leaves(prunable)
    chosen = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
    if threshold == 0 or not chosen:
        return optax.tree.ones_like(guidance, bool)
    cut = None
    if scope == "global":
        every = jnp.concatenate([leaf.reshape(-1) for leaf in chosen])
        cut = lower_quantile(every, threshold)

    def keep(flag: bool, leaf: jax.Array) -> jax.Array:
        if not flag:
            return jnp.ones(leaf.shape, bool)
        return leaf > (lower_quantile(leaf, threshold) if cut is None else cut)

    return jax.tree.map(keep, prunable, guidance)


def guard(masks: Tree, scores: Tree, prunable: Tree, min_keep: float) -> Tree:
    """Makes sure that masks keep a few entries of each array [R].

    Args:
      masks: bool.
      scores: like `masks`; entries of the largest scores are kept, of equal ones the
        first.
      prunable: a bool for each array; other arrays stay.
      min_keep: the share that is kept at least, in [0, 1], rounded up to whole entries;
        with 0 an array may be emptied.

    Returns:
      The masks. One that keeps fewer entries than that also keeps those of largest
      score.
    """
    if min_keep == 0:
        return masks

    def keep(flag: bool, mask: jax.Array, score: jax.Array) -> jax.Array:
        if not flag:
            return mask
        count = max(1, least_in(min_keep, score.size))
        return jax.lax.cond(
            mask.sum(dtype=jnp.int32) >= count,
            lambda: mask,
            lambda: mask | mark_largest(score.reshape(-1), count).reshape(score.shape),
        )

    return jax.tree.map(keep, prunable, masks, scores)


def structured_masks(
    masks: Tree,
    groups: Sequence[ChannelGroup],
    *,
    max_density: float,
    residual: bool = False,
) -> Tree:
    """Removes the channels of which masks leave almost nothing [R].

    A channel is removed if at most `max_density` of the weights that it is computed
    from are kept. Of each group the densest MIN_UNITS, at least one channel, stay.
    With a channel its kernel slice, bias and norm are removed, and the slices of every
    kernel that reads it. That can thin out channels of the next layer, so it is
    repeated until nothing changes. Structured pruning is from the paper [P], this rule
    is not.

    Args:
      masks: of single weights.
      groups: of the model.
      max_density: theta_s, at most 1; below 0 nothing is removed.
      residual: whether channels of branches that are added may be removed, too; they
        are if the rule removes them in all branches.

    Returns:
      The masks with all slices of removed channels False.
    """
    groups = removable(groups, residual=residual)
    if max_density < 0 or not groups:
        return masks

    def remove(alive: Alive) -> Alive:
        thinned = drop_channels(masks, groups, alive)
        return {
            group.name: alive[group.name] & stay(group, thinned, alive[group.name])
            for group in groups
        }

    def stay(group: ChannelGroup, thinned: Tree, alive: jax.Array) -> jax.Array:
        density = channel_means(thinned, group)
        # Removed channels are ranked last.
        ranked = jnp.where(alive, density.max(0), -1.0)
        is_dense = (density > limits(group)).any(0)
        return is_dense | mark_largest(ranked, _fewest(group))

    def limits(group: ChannelGroup) -> np.ndarray:
        # A mean is rounded, so the limit lies halfway between two counts of weights.
        sizes = [_fan_in(masks, slot) for slot in group.producers]
        return np.array([[(num_in(max_density, n) + 0.5) / n] for n in sizes])

    def changed(pair: tuple[Alive, Alive]) -> jax.Array:
        before, after = pair
        return jnp.stack([(before[name] != after[name]).any() for name in after]).any()

    start = {group.name: jnp.ones(group.size, bool) for group in groups}
    _, alive = jax.lax.while_loop(
        changed, lambda pair: (pair[1], remove(pair[1])), (start, remove(start))
    )
    return drop_channels(masks, groups, alive)


def lowest_channels(
    masks: Tree,
    scores: Tree,
    groups: Sequence[ChannelGroup],
    *,
    share: float,
    residual: bool = False,
) -> Tree:
    """Removes the channels of lowest mean score [R].

    Of every group the same share goes, but MIN_UNITS, at least one channel, stay. Of
    branches that are added a channel goes only if it is among the lowest of each, so
    fewer can go.

    Args:
      masks: of single weights.
      scores: like the parameters; the score of a channel is the mean over the weights
        that it is computed from: of what ranks the weights in AutoFLIP's rule
        `guidance_l1`, of magnitudes in EFLPrune.
      groups: of the model.
      share: T_s, in [0, 1); rounded down to whole channels.
      residual: as in `structured_masks`.

    Returns:
      The masks with all slices of removed channels False.
    """
    groups = removable(groups, residual=residual)
    alive = {}
    for group in groups:
        left = num_left(group, share)
        best = [mark_largest(means, left) for means in channel_means(scores, group)]
        alive[group.name] = jnp.stack(best).any(0)
    return drop_channels(masks, groups, alive)


def removable(
    groups: Sequence[ChannelGroup], *, residual: bool = False
) -> list[ChannelGroup]:
    """Returns the groups whose channels may be removed.

    Args:
      groups: of the model.
      residual: whether channels that several layers write, and that are added, may be.
    """
    return [group for group in groups if residual or len(group.producers) == 1]


def channel_means(tree: Tree, group: ChannelGroup) -> jax.Array:
    """Computes the mean over the weights that each channel is computed from.

    Args:
      tree: like the parameters; for masks the mean is the kept share.
      group: of channels.

    Returns:
      [branches, size], at least float32; one branch if no others are added to it.
    """
    means = []
    for slot in group.producers:
        leaf = find_leaf(tree, slot.path)
        assert leaf is not None, f"{group.name} is written by no {slot.path}"
        by_channel = jnp.moveaxis(leaf.astype(wide(leaf.dtype)), slot.axis, 0)
        part = by_channel.reshape(by_channel.shape[0], -1).mean(1)
        means.append(part[slot.start : slot.start + group.size])
    return jnp.stack(means)


def _fan_in(tree: Tree, slot: Slot) -> int:
    leaf: Any = find_leaf(tree, slot.path)
    return leaf.size // leaf.shape[slot.axis]


def num_left(group: ChannelGroup, share: float) -> int:
    """Counts the channels of a group that `lowest_channels` leaves."""
    return max(group.size - num_in(share, group.size), _fewest(group))


def _fewest(group: ChannelGroup) -> int:
    return max(1, least_in(MIN_UNITS, group.size))
