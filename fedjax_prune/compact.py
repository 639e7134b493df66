"""From a masked model to really smaller computations."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.channels import ChannelGroup, Slot, alive_channels, map_slots
from fedjax_prune.types import Tree

Kept = Mapping[str, np.ndarray]
"""Name of a group -> indices of the channels that stay, ascending."""


class Compacted(NamedTuple):
    """A smaller model and its arrays.

    Attributes:
      model: with as many channels as stay.
      variables: its collections.
      kept: which channels these are.
    """

    model: Any
    variables: Tree
    kept: Kept


def compact(
    model: Any,
    variables: Tree,
    masks: Tree,
    image_shape: tuple[int, int, int],
    *,
    multiple: int = 1,
) -> Compacted:
    """Removes silent channels physically: the logits stay those of the masked model.

    Args:
      model: one of MODELS; its `channel_groups` says what belongs to a channel.
      variables: its collections, with or without leading axes, params masked.
      masks: bool, like `params`: concrete, not traced.
      image_shape: (height, width, channels).
      multiple: sizes are rounded up to multiples of it, so that few of them occur;
        at least 1.

    Returns:
      The smaller model. A gated one ranks channels as before and keeps as many, or all
      that are left.

    Raises:
      ValueError: if `multiple` is below 1.
    """
    kept = kept_channels(model, masks, image_shape, multiple=multiple)
    groups = model.channel_groups(image_shape)
    smaller = smaller_model(model, kept)
    return Compacted(smaller, shrink(variables, groups, kept), kept)


def kept_channels(
    model: Any,
    masks: Tree,
    image_shape: tuple[int, int, int],
    *,
    multiple: int = 1,
) -> Kept:
    """Says which channels of a model stay: those alive, and at least one of a group.

    Arguments and errors are those of `compact`.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}.")
    kept = {}
    for group in model.channel_groups(image_shape):
        alive = np.asarray(alive_channels(masks, group))
        count = min(group.size, -(-max(1, alive.sum()) // multiple) * multiple)
        # Those alive first, then the first of the others.
        kept[group.name] = np.sort(np.argsort(~alive, kind="stable")[:count])
    return kept


def smaller_model(model: Any, kept: Kept) -> Any:
    """The model with only some of its channels."""
    return model.clone(left={name: len(indices) for name, indices in kept.items()})


def shrink(tree: Tree, groups: Sequence[ChannelGroup], kept: Kept) -> Tree:
    """Takes the entries of the channels that stay out of every array.

    Args:
      tree: containers of arrays or of `jax.ShapeDtypeStruct`s with the model's paths;
        other arrays stay.
      groups: of the model before.
      kept: which channels stay.
    """

    def take(leaf: Any, slots: list[tuple[ChannelGroup, Slot]]) -> Any:
        for axis, indices in _indices(np.shape(leaf), slots, kept):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                shape = (*leaf.shape[:axis], len(indices), *leaf.shape[axis + 1 :])
                leaf = jax.ShapeDtypeStruct(shape, leaf.dtype)
            else:
                leaf = jnp.take(leaf, indices, axis=axis)
        return leaf

    return map_slots(tree, groups, take)


def expand(tree: Tree, groups: Sequence[ChannelGroup], kept: Kept, full: Tree) -> Tree:
    """Puts the entries of the channels that stayed back into the arrays they are from.

    Args:
      tree: as `shrink` has left it.
      groups: of the model before.
      kept: which channels stayed.
      full: the tree before; what was removed is taken from it.
    """

    def put(old: Any, slots: list[tuple[ChannelGroup, Slot]], small: Any) -> Any:
        places = [np.arange(n) for n in np.shape(old)]
        for axis, indices in _indices(np.shape(old), slots, kept):
            places[axis] = indices
        return jnp.asarray(old).at[np.ix_(*places)].set(small) if slots else small

    return map_slots(full, groups, put, tree)


def _indices(
    shape: tuple[int, ...], slots: list[tuple[ChannelGroup, Slot]], kept: Kept
) -> list[tuple[int, np.ndarray]]:
    """Which indices stay along each axis of an array that loses some."""
    stays: dict[int, np.ndarray] = {}
    for group, slot in slots:
        axis = slot.axis + len(shape)
        flags = stays.setdefault(axis, np.ones(shape[axis], bool))
        period = flags.reshape(slot.repeats, -1)
        gone = np.ones(group.size, bool)
        gone[kept[group.name]] = False
        period[:, slot.start : slot.start + group.size][:, gone] = False
    return [(axis, np.flatnonzero(flags)) for axis, flags in stays.items()]


def gathered_predict(
    model: nn.Module, variables: Mapping[str, Any], image: jax.Array
) -> jax.Array:
    """Runs one image through only the channels its gates keep.

    Kernels are gathered by index on both axes (FedDP, equation 3), so the
    products really are small; in evaluation mode the result equals the masked
    model's to rounding. Shapes are static: it can be jitted and mapped.

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
    """
    logits = model.apply(variables, image, method="gathered")
    assert isinstance(logits, jax.Array)
    return logits
