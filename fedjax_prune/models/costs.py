"""What a model costs: multiply-accumulates, weights used, bytes sent.

All is computed from shapes. MACs are those of convolutions and dense layers, per
image; FLOPs are twice as many.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple, Protocol, Self

import jax

from fedjax_prune.fields import SHARE, checked
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.types import Layer, Tree

GRID = 1000
"""Keep ratios are searched in steps of 1 / GRID."""

FlopsTarget = Annotated[
    float, SHARE, "Kept MACs over those of the plain network, gates not included."
]


class PrunableModel(Protocol):
    """What this module needs of a model."""

    @property
    def gates(self) -> GateSettings | None: ...

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]: ...

    def clone(self, **updates) -> Self: ...


class LayerMacs(NamedTuple):
    """Multiply-accumulates of one layer and image: see Macs."""

    dense: int
    kept: int
    gates: int


class Macs(NamedTuple):
    """Multiply-accumulates of one image.

    Attributes:
      dense: of the model without gates.
      kept: of the kept channels, gates not included.
      gates: what the gates cost on top.
      layers: the same by layer name.
    """

    dense: int
    kept: int
    gates: int
    layers: dict[str, LayerMacs]


def macs(model: PrunableModel, image_shape: tuple[int, int, int]) -> Macs:
    """Counts the multiply-accumulates of one image (height, width, channels)."""
    layers = {
        layer.name: LayerMacs(
            dense=_weights(layer) * layer.positions,
            kept=_weights_kept(layer) * layer.positions,
            gates=layer.gated * layer.in_channels * layer.out_channels,
        )
        for layer in model.layers(image_shape)
    }
    return Macs(
        dense=sum(layer.dense for layer in layers.values()),
        kept=sum(layer.kept for layer in layers.values()),
        gates=sum(layer.gates for layer in layers.values()),
        layers=layers,
    )


def params_used(model: PrunableModel, image_shape: tuple[int, int, int]) -> float:
    """Gives the share of weights one image uses, in (0, 1].

    Weights are those of kernels and dense layers; biases, norms and gates are not
    counted.
    """
    layers = model.layers(image_shape)
    return sum(map(_weights_kept, layers)) / sum(map(_weights, layers))


@checked
def keep_ratio_for(
    model: PrunableModel, image_shape: tuple[int, int, int], flops_target: FlopsTarget
) -> float:
    """Finds the keep ratio that leaves a given share of the MACs.

    Args:
      model: its own keep ratio is ignored, its other gate settings count; a model
        without gates is given the default ones.
      image_shape: (height, width, channels).

    Returns:
      The keep ratio, a multiple of 0.001, whose share is nearest; of equally near
      ones the smallest.

    Raises:
      ValueError: if `flops_target` is out of range.
    """

    def error(keep_ratio: float) -> float:
        settings = model.gates or GateSettings(keep_ratio)
        settings = settings._replace(keep_ratio=keep_ratio)
        layers = model.clone(gates=settings).layers(image_shape)
        dense = sum(_weights(layer) * layer.positions for layer in layers)
        kept = sum(_weights_kept(layer) * layer.positions for layer in layers)
        return abs(kept / dense - flops_target)

    return min((step / GRID for step in range(1, GRID + 1)), key=error)


class MaskedMacs(NamedTuple):
    """Multiply-accumulates of one image under a mask, gates considered.

    Attributes:
      dense: of the model without mask.
      theoretical: times the density of each layer: what sparse kernels could save.
      realisable: of the model without removed channels: what dense hardware saves.
      hybrid: realisable times the density inside the smaller layers.
    """

    dense: float
    theoretical: float
    realisable: float
    hybrid: float


def masked_macs(
    model: PrunableModel, image_shape: tuple[int, int, int], facts: Mapping[str, int]
) -> MaskedMacs:
    """Counts the multiply-accumulates of one image under a mask.

    Args:
      model: unmasked.
      image_shape: (height, width, channels).
      facts: of `transport.mask_facts`; without any nothing is pruned.
    """
    left = _named(facts, "mask/channels/")
    kept = _named(facts, "mask/kept/")
    layers = model.layers(image_shape)
    smaller = model.clone(left=left).layers(image_shape) if left else layers
    dense = theoretical = realisable = hybrid = 0.0
    for before, after in zip(layers, smaller, strict=True):
        entries = sum(
            count
            for path, count in kept.items()
            if path.rpartition("/")[0] == before.name and _is_kernel(path)
        )
        entries = entries if kept else _weights(before)
        macs = _weights_kept(before) * before.positions
        macs_after = _weights_kept(after) * after.positions
        dense += macs
        theoretical += macs * entries / _weights(before)
        realisable += macs_after
        hybrid += macs_after * entries / _weights(after)
    return MaskedMacs(dense, theoretical, realisable, hybrid)


def tree_bytes(tree: Tree) -> int:
    """Counts the bytes of a tree's arrays or `jax.ShapeDtypeStruct`s."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


class Traffic(NamedTuple):
    """Bytes of one round over the whole cohort.

    Attributes:
      down: to the clients, the length of real messages.
      up: from them.
      spec_down: by the formula of the AutoFLIP spec, 4 bytes for each value kept and
        one for each eight prunable entries where a mask is sent.
      spec_up: by the same formula.
    """

    down: int
    up: int
    spec_down: int
    spec_up: int


def traffic(
    messages: tuple[Tree, Tree], cohort_size: int, facts: Mapping[str, int] | None
) -> Traffic:
    """Counts the bytes of one round.

    Args:
      messages: of `FederatedAlgorithm.messages`.
      cohort_size: clients that receive and send one.
      facts: of `transport.mask_facts`, with `mask/sent`, and `mask/extra`, numbers that
        each client sends more; None or empty if nothing is masked.
    """
    facts = facts or {}
    kept = _named(facts, "mask/kept/")
    down, up = (cohort_size * _masked_bytes(tree, kept) for tree in messages)
    up += 4 * cohort_size * facts.get("mask/extra", 0)
    sent = facts.get("mask/sent", 0)
    bits = -(-facts.get("mask/prunable", 0) // 8)
    return Traffic(
        down=down + sent * facts.get("mask/bytes", 0),
        up=up,
        spec_down=down + sent * bits,
        spec_up=up,
    )


def _masked_bytes(tree: Tree, kept: Mapping[str, int]) -> int:
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [str(entry.key) for entry in path if hasattr(entry, "key")]
        tails = ("/".join(names[i:]) for i in range(len(names)))
        found = [kept[tail] for tail in tails if tail in kept]
        size = found[0] if found else math.prod(leaf.shape)
        total += size * leaf.dtype.itemsize
    return total


def _named(facts: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): int(value)
        for name, value in facts.items()
        if name.startswith(prefix)
    }


def _is_kernel(path: str) -> bool:
    return path.endswith("kernel")


def cost_paper(
    num_params: float, rounds: int, cohort_size: int, *, factor: float = 1
) -> float:
    """Computes the communication cost as the FedDP paper reports it.

    One direction, float32: 4 bytes times parameters, rounds and clients per round.

    Args:
      num_params: of the shared model.
      rounds: until the target accuracy.
      cohort_size: clients per round.
      factor: 2 for algorithms that send control variates too.

    Returns:
      GiB (2^30 bytes).
    """
    return 4 * num_params * rounds * cohort_size * factor / 2**30


def rounds_to_target(
    rounds: Sequence[int],
    values: Sequence[float],
    target: float,
    *,
    consecutive: int = 1,
) -> int | None:
    """Finds the first round from which a metric stays at its target for a while.

    Args:
      rounds: finished rounds at which the metric was measured, ascending.
      values: the metric at these rounds.
      target: what it must reach.
      consecutive: measurements in a row that must reach it, at least 1.

    Returns:
      The first round of the first such run; None if there is none.

    Raises:
      ValueError: if `consecutive` is below 1 or the lengths differ.
    """
    if consecutive < 1:
        raise ValueError(f"consecutive must be at least 1, got {consecutive}.")
    if len(rounds) != len(values):
        raise ValueError(
            f"values must have the length of rounds, {len(rounds)}, got {len(values)}."
        )
    reached = [value >= target for value in values]
    for start in range(len(rounds) - consecutive + 1):
        if all(reached[start : start + consecutive]):
            return rounds[start]
    return None


def _weights(layer: Layer) -> int:
    return layer.in_channels * layer.out_channels * layer.taps


def _weights_kept(layer: Layer) -> int:
    return layer.kept_in * layer.kept_out * layer.taps
