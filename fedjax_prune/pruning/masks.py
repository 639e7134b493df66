"""Which weights to prune: from deviations by way of guidance to masks.

AutoFLIP's phases 2 and 3, without anything federated. A mask is a tree like the
parameters, True where a weight is kept, and True wherever nothing may be pruned.

Tags say where a rule is from: [P] the paper, [C] its authors' code, [R] a
reconstruction, where both are silent, contradict each other or fail.

References:
  Internò et al., Federated Hybrid Model Pruning through Loss Landscape Exploration,
  2025, https://arxiv.org/abs/2405.10271.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_prune.layers import ChannelGroup
from fedjax_prune.models.channels import drop_channels, find_leaf
from fedjax_prune.models.precision import wide
from fedjax_prune.models.selection import kth_largest
from fedjax_prune.types import Tree

KERNELS = ("kernel", "recurrent_kernel", "embedding")
"""Names of prunable arrays; all others only with `biases`."""

SCOPES = ("global", "per_tensor")

Alive = Mapping[str, jax.Array]
"""Name of a group -> [size] bool, False where a channel was removed."""


def prunable(params: Tree, *, biases: bool = False, exempt: Sequence[str] = ()) -> Tree:
    """Says which arrays may be pruned.

    Args:
      params: nested dictionaries of arrays, or of their shapes.
      biases: also biases and norms [C]; without, kernels and embeddings alone [R].
      exempt: patterns, as of a shell, of paths joined by "/" that may not.

    Returns:
      A bool for each array.

    Raises:
      ValueError: if a pattern fits no array.
    """
    names = [
        "/".join(str(entry.key) for entry in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    for pattern in exempt:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"exempt_layers must fit one of {', '.join(names)}, got {pattern!r}."
            )

    def flag(path: tuple[Any, ...], leaf: Any) -> bool:
        del leaf
        name = "/".join(str(entry.key) for entry in path)
        is_exempt = any(fnmatch.fnmatchcase(name, pattern) for pattern in exempt)
        return (biases or path[-1].key in KERNELS) and not is_exempt

    return jax.tree_util.tree_map_with_path(flag, params)


def guidance_matrix(deviations: Tree, *, normalization: str = "minmax") -> Tree:
    """Normalises squared deviations, each array on its own [C].

    A weight that moved little lies in a flat direction and is a candidate for pruning.

    Args:
      deviations: D, the mean over explorers of (w_explored - w_0)^2, at least 0.
      normalization: one of NORMALIZATIONS. `minmax` [C]: (D - min) / (max - min), and 0
        for an array whose entries are all equal [R]. `robust` [C]: (D - median) /
        (75th - 25th percentile), not confined to [0, 1]; `minmax` where these are equal
        [R]. `rank` [R]: rank / (size - 1), equal entries share their mean rank. `none`
        [R]: D, so that arrays compete.

    Returns:
      G, like `deviations`, dtypes included.
    """
    return jax.tree.map(NORMALIZATIONS[normalization], deviations)


def quantile(values: jax.Array, share: float) -> jax.Array:
    """The value below which a share of the entries lies, linearly interpolated.

    Exact for any number of entries: the position is computed in Python, because float32
    cannot count beyond 2^24.

    Args:
      values: any shape, at least one entry.
      share: in [0, 1].
    """
    flat = values.reshape(-1)
    position = share * (flat.size - 1)
    below = math.floor(position)
    low = kth_largest(flat, flat.size - below)[0]
    high = kth_largest(flat, max(1, flat.size - below - 1))[0]
    return low + (position - below) * (high - low)


def unstructured_masks(
    guidance: Tree, prunable: Tree, threshold: float, *, scope: str = "global"
) -> Tree:
    """Prunes the weights whose guidance is not above its quantile.

    Ties at the quantile are pruned [C], so more than `threshold` can go.

    Args:
      guidance: G.
      prunable: a bool for each array.
      threshold: T_p, the share to prune, in [0, 1); 0 prunes nothing.
      scope: `global`, one quantile for the whole network [C], or `per_tensor` [R].

    Returns:
      The masks.
    """
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), guidance)
    leaves, flags = jax.tree.leaves(guidance), jax.tree.leaves(prunable)
    chosen = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
    if threshold == 0 or not chosen:
        return ones
    if scope == "per_tensor":
        cuts = jax.tree.map(lambda leaf: quantile(leaf, threshold), guidance)
    else:
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in chosen])
        cut = quantile(flat, threshold)
        cuts = jax.tree.map(lambda leaf: cut, guidance)
    return jax.tree.map(
        lambda flag, one, leaf, cut: leaf > cut if flag else one,
        prunable,
        ones,
        guidance,
        cuts,
    )


def guard(masks: Tree, scores: Tree, prunable: Tree, min_keep: float) -> Tree:
    """Keeps a few entries of each array that may be pruned [R].

    Args:
      masks: bool.
      scores: the largest are kept; of equal ones the first.
      prunable: a bool for each array.
      min_keep: share kept at least, and one entry, in [0, 1]; with 0 an array may be
        emptied.

    Returns:
      The masks; where one keeps less than that, with the entries of largest score.
    """
    if min_keep == 0:
        return masks

    def keep(flag: bool, mask: jax.Array, score: jax.Array) -> jax.Array:
        if not flag:
            return mask
        count = max(1, math.ceil(min_keep * score.size))
        return jax.lax.cond(
            mask.sum(dtype=jnp.int32) >= count,
            lambda: mask,
            lambda: mask | _first(score.reshape(-1), count).reshape(score.shape),
        )

    return jax.tree.map(keep, prunable, masks, scores)


def structured_masks(
    masks: Tree,
    groups: Sequence[ChannelGroup],
    *,
    max_density: float = 0.1,
    min_units: float = 0.05,
    residual: bool = False,
) -> Tree:
    """Removes the channels of which masks leave almost nothing [R].

    A channel goes if at most `max_density` of the weights that it is computed from are
    kept; of each group the densest `min_units`, at least one, stay. With a channel go
    its kernel slice, bias and norm, and the slices of every kernel that reads it. That
    can thin out channels of the next layer, so it is repeated until nothing changes.
    That pruning is structured as well is from the paper [P], the rule is not.

    Args:
      masks: of single weights.
      groups: of the model.
      max_density: theta_s, at most 1; below 0 nothing is removed.
      min_units: share of each group, in [0, 1].
      residual: whether channels of branches that are added go, too, once they are to go
        in all of them.

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
        # Channels that are gone come last, however dense the others are.
        ranked = jnp.where(alive, density, -1.0)
        return (density > max_density) | _first(ranked, _fewest(group, min_units))

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
    min_units: float = 0.05,
    residual: bool = False,
) -> Tree:
    """Removes the channels of lowest mean score, the same share of every group [R].

    Args:
      masks: of single weights.
      scores: like the parameters; a channel's is the mean over the weights that it is
        computed from: of guidance for AutoFLIP's rule `guidance_l1`, of magnitudes for
        EFLPrune's.
      groups: of the model.
      share: T_s, in [0, 1); rounded down to whole channels.
      min_units: share of each group that stays at least, in [0, 1].
      residual: as in `structured_masks`.

    Returns:
      The masks with all slices of removed channels False.
    """
    groups = removable(groups, residual=residual)
    alive = {}
    for group in groups:
        left = max(group.size - int(share * group.size), _fewest(group, min_units))
        alive[group.name] = _first(channel_means(scores, group), left)
    return drop_channels(masks, groups, alive)


def removable(
    groups: Sequence[ChannelGroup], *, residual: bool = False
) -> list[ChannelGroup]:
    """The groups whose channels may go: without `residual` none that are added."""
    return [group for group in groups if residual or len(group.producers) == 1]


def channel_means(tree: Tree, group: ChannelGroup) -> jax.Array:
    """The mean over the weights that each channel is computed from.

    Args:
      tree: like the parameters; of masks it is the kept share.
      group: of channels.

    Returns:
      [size], at least float32; of several branches the largest.
    """
    means = []
    for slot in group.producers:
        leaf = find_leaf(tree, slot.path)
        assert leaf is not None, f"{group.name} is written by no {slot.path}"
        by_channel = jnp.moveaxis(leaf.astype(wide(leaf.dtype)), slot.axis, 0)
        part = by_channel.reshape(by_channel.shape[0], -1).mean(1)
        means.append(part[slot.start : slot.start + group.size])
    return jnp.stack(means).max(0)


def _fewest(group: ChannelGroup, min_units: float) -> int:
    return max(1, math.ceil(min_units * group.size))


def _minmax(deviation: jax.Array) -> jax.Array:
    low, high = deviation.min(), deviation.max()
    width = jnp.where(high > low, high - low, 1)
    return jnp.where(high > low, (deviation - low) / width, 0)


def _robust(deviation: jax.Array) -> jax.Array:
    low, middle, high = (quantile(deviation, share) for share in (0.25, 0.5, 0.75))
    width = jnp.where(high > low, high - low, 1)
    return jnp.where(high > low, (deviation - middle) / width, _minmax(deviation))


def _rank(deviation: jax.Array) -> jax.Array:
    flat, places = deviation.reshape(-1), jnp.arange(deviation.size, dtype=jnp.int32)
    ordered, order = jax.lax.sort_key_val(flat, places)
    # Equal entries stand in a row, from `first` to `last`.
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    ends = jnp.concatenate([starts[1:], jnp.ones(1, bool)])
    first = jax.lax.cummax(jnp.where(starts, places, 0))
    last = jax.lax.cummin(jnp.where(ends, places, flat.size), reverse=True)
    middle = first.astype(flat.dtype) / 2 + last.astype(flat.dtype) / 2
    ranks = jnp.zeros_like(flat).at[order].set(middle)
    return (ranks / max(1, flat.size - 1)).reshape(deviation.shape)


NORMALIZATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "minmax": _minmax,
    "robust": _robust,
    "rank": _rank,
    "none": lambda deviation: deviation,
}
"""name -> what turns an array of deviations into guidance."""


def _first(values: jax.Array, count: int) -> jax.Array:
    """Marks the `count` largest of [size] values; of equal ones the first."""
    order = jnp.argsort(values, descending=True, stable=True)
    return jnp.zeros(values.shape, bool).at[order[:count]].set(True)
