"""What a model costs: multiply-accumulates, weights used, bytes sent.

All is computed from shapes. MACs are those of convolutions and dense layers, per
image; FLOPs are twice as many.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import jax

from fedjax_prune.gates import GateSettings
from fedjax_prune.models.blocks import Layer
from fedjax_prune.types import Tree

GRID = 1000
"""Keep ratios are searched in steps of 1 / GRID."""


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


def keep_ratio_for(
    model: PrunableModel, image_shape: tuple[int, int, int], flops_target: float
) -> float:
    """Finds the keep ratio that leaves a given share of the MACs.

    Args:
      model: its own keep ratio is ignored, its other gate settings count; a model
        without gates is given the default ones.
      image_shape: (height, width, channels).
      flops_target: kept MACs over dense MACs, gates not included, in (0, 1].

    Returns:
      The keep ratio, a multiple of 0.001, whose share is nearest; of equally near
      ones the smallest.

    Raises:
      ValueError: if `flops_target` is out of range.
    """
    if not 0 < flops_target <= 1:
        raise ValueError(f"flops_target must be in (0, 1], got {flops_target}.")

    def error(keep_ratio: float) -> float:
        settings = model.gates or GateSettings(keep_ratio)
        settings = settings._replace(keep_ratio=keep_ratio)
        layers = model.clone(gates=settings).layers(image_shape)
        dense = sum(_weights(layer) * layer.positions for layer in layers)
        kept = sum(_weights_kept(layer) * layer.positions for layer in layers)
        return abs(kept / dense - flops_target)

    return min((step / GRID for step in range(1, GRID + 1)), key=error)


def tree_bytes(tree: Tree) -> int:
    """Counts the bytes of a tree's arrays or `jax.ShapeDtypeStruct`s."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


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
