"""Smaller computations that give the same logits as a masked model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.layers import ChannelGroup, Slot
from fedjax_prune.models.channels import alive_channels, map_slots
from fedjax_prune.types import Tree

KeptIndices = Mapping[str, Any]
"""For each group's name, the indices of the channels that stay, ascending."""


class Compacted(NamedTuple):
    """A smaller model and its arrays.

    Attributes:
      model: the model with the channels that stay.
      variables: its collections.
      kept: which channels stay.
    """

    model: Any
    variables: Tree
    kept: KeptIndices


def compact(
    model: Any,
    variables: Tree,
    masks: Tree,
    image_shape: tuple[int, int, int],
    *,
    multiple: int = 1,
) -> Compacted:
    """Makes a model without the removed channels; its logits are the masked model's.

    Args:
      model: one of MODELS; its `channel_groups` says what belongs to a channel.
      variables: its collections, with or without leading axes, params masked.
      masks: bool, like `params`: concrete, not traced.
      image_shape: (height, width, channels).
      multiple: numbers of channels are rounded up to multiples of it, so that few of
        them occur; at least 1.

    Returns:
      The smaller model. If it is gated, it ranks channels as before and keeps as many,
      or all that are left.

    Raises:
      ValueError: if `multiple` is below 1.
    """
    kept = kept_channels(model, masks, image_shape, multiple=multiple)
    groups = model.channel_groups(image_shape)
    smaller = smaller_model(model, {name: len(i) for name, i in kept.items()})
    # This is one program; array by array, several would be compiled.
    taken = jax.jit(lambda tree: shrink(tree, groups, kept))(variables)
    return Compacted(smaller, taken, kept)


def kept_channels(
    model: Any,
    masks: Tree,
    image_shape: tuple[int, int, int],
    *,
    multiple: int = 1,
) -> KeptIndices:
    """Says which channels of a model stay: those alive, and at least one of a group.

    Args:
      model: as in `compact`.
      masks: as in `compact`.
      image_shape: as in `compact`.
      multiple: as in `compact`.

    Raises:
      ValueError: if `multiple` is below 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}.")
    groups = model.channel_groups(image_shape)
    alive = {group.name: np.asarray(alive_channels(masks, group)) for group in groups}
    widths = {
        name: round_up(int(flags.sum()), len(flags), multiple)
        for name, flags in alive.items()
    }
    return choose_channels(alive, widths)


def round_up(count: int, size: int, multiple: int) -> int:
    """Rounds a number of channels up to a multiple, at least one and at most all.

    Examples:
      >>> round_up(5, size=16, multiple=4), round_up(15, size=15, multiple=4)
      (8, 15)
    """
    return min(size, -(-max(1, count) // multiple) * multiple)


def choose_channels(
    alive: Mapping[str, np.ndarray], widths: Mapping[str, int]
) -> KeptIndices:
    """Chooses the channels that are alive, and then the first of the others.

    Args:
      alive: [size] bool for each group.
      widths: how many of each group are chosen, at least those alive.
    """
    return {
        name: np.sort(np.argsort(~flags, kind="stable")[: widths[name]])
        for name, flags in alive.items()
    }


def smaller_model(model: Any, widths: Mapping[str, int]) -> Any:
    """Makes the model with only so many channels of each group."""
    # A model without groups has no such attribute.
    return model.clone(left=dict(widths)) if widths else model


def shrink(tree: Tree, groups: Sequence[ChannelGroup], kept: KeptIndices) -> Tree:
    """Makes arrays with only the entries of the channels that stay.

    Args:
      tree: containers of arrays with the model's paths; other arrays stay.
      groups: of the model before.
      kept: which channels stay; it may be traced.
    """

    def take(leaf: Any, slots: list[tuple[ChannelGroup, Slot]]) -> Any:
        for axis, indices in _indices(np.shape(leaf), slots, kept):
            leaf = jnp.take(leaf, indices, axis=axis, mode="clip")
        return leaf

    return map_slots(tree, groups, take)


def expand(
    tree: Tree, groups: Sequence[ChannelGroup], kept: KeptIndices, full: Tree
) -> Tree:
    """Puts the entries of the channels that stayed back into the larger arrays.

    Args:
      tree: as `shrink` has left it.
      groups: of the model before.
      kept: which channels stayed.
      full: the tree before; what was removed is taken from it.
    """

    def put(old: Any, slots: list[tuple[ChannelGroup, Slot]], small: Any) -> Any:
        if not slots:
            return small
        # These are gathers, because XLA scatters entry by entry on CPUs.
        stays = jnp.ones((1,) * np.ndim(old), bool)
        for axis, indices in _indices(np.shape(old), slots, kept):
            size = np.shape(old)[axis]
            place = jnp.full(size, -1).at[indices].set(jnp.arange(len(indices)))
            small = jnp.take(small, place, axis=axis, mode="clip")
            stays = stays & (place >= 0).reshape(_along(np.ndim(old), axis))
        return jnp.where(stays, small, old)

    return map_slots(full, groups, put, tree)


def _along(ndim: int, axis: int) -> list[int]:
    """Returns the shape that lays a vector along an axis."""
    return [-1 if i == axis else 1 for i in range(ndim)]


def _indices(
    shape: tuple[int, ...], slots: list[tuple[ChannelGroup, Slot]], kept: KeptIndices
) -> list[tuple[int, jax.Array]]:
    """Says which indices stay along each axis of an array that loses some."""
    by_axis: dict[int, list[tuple[ChannelGroup, Slot]]] = {}
    for group, slot in slots:
        by_axis.setdefault(slot.axis + len(shape), []).append((group, slot))
    found = []
    for axis, along in by_axis.items():
        repeats = along[0][1].repeats
        period = shape[axis] // repeats
        stays, place = [], 0
        for group, slot in sorted(along, key=lambda pair: pair[1].start):
            # Channels between groups cannot be removed.
            stays.append(jnp.arange(place, slot.start))
            stays.append(slot.start + jnp.asarray(kept[group.name]))
            place = slot.start + group.size
        stays = jnp.concatenate([*stays, jnp.arange(place, period)])
        starts = period * jnp.arange(repeats)
        indices = (starts[:, None] + stays[None]).reshape(-1)
        # Fused into a gather, the indices would be computed anew for every entry.
        found.append((axis, jax.lax.optimization_barrier(indices)))
    return found


def gathered_predict(
    model: Any, variables: Mapping[str, Any], image: jax.Array
) -> jax.Array:
    """Runs one image through the channels that its gates keep.

    Kernels are gathered by index on both axes (FedDP, equation 3) where a copy takes
    less time than it saves; other layers are computed whole (`blocks.is_gathered`). The
    result equals the masked model's in evaluation mode, to rounding. Shapes are static,
    so the function can be jitted and mapped.

    Args:
      model: one of the convolutional MODELS.
      variables: its collections, `params` and those it has of `gates` and
        `batch_stats`.
      image: [height, width, channels] float32.

    Returns:
      logits [num_classes] float32.

    References:
      Yu et al., Heterogeneous Federated Learning using Dynamic Model Pruning and
      Adaptive Gradient, section 3, https://arxiv.org/abs/2106.06921.

    Examples:
      >>> import fedjax_prune as fp
      >>> gates = fp.GateSettings(keep_ratio=0.5)
      >>> model = fp.CNN(num_classes=3, width=0.1, gates=gates)
      >>> init = fp.make_task(model, (8, 8, 1)).init
      >>> def predict(image):
      ...     first = init(jax.random.key(0))
      ...     collections = {"params": first.params, "gates": first.personal}
      ...     return fp.gathered_predict(model, collections, image)
      >>> jax.eval_shape(predict, jnp.zeros((8, 8, 1))).shape
      (3,)
    """
    logits = model.apply(variables, image, method="gathered")
    assert isinstance(logits, jax.Array)
    return logits
