"""What rounds under masks cost: multiply-accumulates and bytes sent.

All costs are computed from shapes and from the numbers that `wire.mask_facts` counts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from fedjax_prune.layers import Layer
from fedjax_prune.models.costs import (
    PrunableModel,
    layer_entries,
    num_weights,
    num_weights_kept,
)
from fedjax_prune.pruning.wire import VALUE
from fedjax_prune.types import Tree


class MaskedMacs(NamedTuple):
    """The multiply-accumulates of a masked model for one image, without its gates.

    Attributes:
      dense: those of the model without a mask.
      theoretical: each layer's, times its density: the cost with sparse kernels.
      realisable: those of the model without its removed channels: the cost with dense
        kernels.
      hybrid: realisable ones, times the density inside each smaller layer: the cost
        with removed channels and sparse kernels both used.
      kept: realisable ones of the channels that gates keep; all without gates.
    """

    dense: float
    theoretical: float
    realisable: float
    hybrid: float
    kept: float


def masked_macs(
    model: PrunableModel,
    image_shape: tuple[int, int, int],
    facts: Mapping[str, int],
    *,
    layers: Sequence[Layer] | None = None,
) -> MaskedMacs:
    """Counts the multiply-accumulates of a masked model for one image.

    Args:
      model: the model without a mask.
      image_shape: (height, width, channels).
      facts: the numbers of `wire.mask_facts`; if it is empty, nothing is pruned.
      layers: of the model, if it does not list them itself; None if it does.
    """
    left = _named(facts, "mask/channels/")
    unpruned = _named(facts, "mask/kept/")
    layers = model.layers(image_shape) if layers is None else layers
    smaller = model.clone(left=left).layers(image_shape) if left else layers
    names = {layer.name for layer in layers}
    dense = theoretical = realisable = hybrid = kept = 0.0
    for before, after in zip(layers, smaller, strict=True):
        entries = layer_entries(before, names, unpruned)
        # What a mask does not know, such as personal weights, it does not prune.
        entries = num_weights(before) if entries is None else entries
        macs = num_weights(before) * before.positions
        macs_after = num_weights(after) * after.positions
        dense += macs
        theoretical += macs * entries / num_weights(before)
        realisable += macs_after
        # Of the entries kept some may read a removed channel.
        hybrid += macs_after * min(1, entries / num_weights(after))
        kept += num_weights_kept(after) * after.positions
    return MaskedMacs(dense, theoretical, realisable, hybrid, kept)


class Traffic(NamedTuple):
    """The bytes that a cohort receives and sends in one round.

    Attributes:
      down: bytes of the messages to the clients.
      up: bytes of the messages from the clients.
      spec_down: bytes to the clients by AutoFLIP's formula: 4 for each kept value, and
        one for eight prunable entries of each mask that is sent.
      spec_up: bytes from the clients by the same formula.
    """

    down: int
    up: int
    spec_down: int
    spec_up: int


def traffic(
    messages: tuple[Tree, Tree],
    cohort_size: int,
    facts: Mapping[str, int] | None,
    *,
    num_absent: int = 0,
) -> Traffic:
    """Counts the bytes of one round.

    Args:
      messages: the result of `FederatedAlgorithm.messages`. Each of their values is
        sent as `wire.VALUE`, whatever its dtype.
      cohort_size: number of clients that receive a message.
      facts: the numbers of `wire.mask_facts`; `mask/sent`, the masks that are sent; and
        `mask/extra`, further values that each client sends. It is None or empty if
        nothing is masked.
      num_absent: how many of the clients send nothing.
    """
    facts = facts or {}
    kept = _named(facts, "mask/kept/")
    down, up = (_masked_bytes(tree, kept) for tree in messages)
    down *= cohort_size
    up += VALUE.itemsize * facts.get("mask/extra", 0)
    up *= cohort_size - num_absent
    sent = facts.get("mask/sent", 0)
    mask_bytes = -(-facts.get("mask/prunable", 0) // 8)
    return Traffic(
        down=down + sent * facts.get("mask/bytes", 0),
        up=up,
        spec_down=down + sent * mask_bytes,
        spec_up=up,
    )


def _masked_bytes(tree: Tree, kept: Mapping[str, int]) -> int:
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [str(entry.key) for entry in path if hasattr(entry, "key")]
        tails = ("/".join(names[i:]) for i in range(len(names)))
        found = [kept[tail] for tail in tails if tail in kept]
        size = found[0] if found else math.prod(leaf.shape)
        total += VALUE.itemsize * size
    return total


def _named(facts: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): int(value)
        for name, value in facts.items()
        if name.startswith(prefix)
    }
