"""What a model costs: multiply-accumulates, weights used, bytes of its arrays.

All counts come from shapes. MACs are the multiply-accumulates of convolutions and dense
layers for one image; FLOPs are twice as many.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, NamedTuple, Protocol, Self

import jax

from fedjax_prune.fields import ABOVE_ZERO, ImageShape, checked
from fedjax_prune.layers import Layer
from fedjax_prune.models.gates import GateSettings, active_gates, num_kept
from fedjax_prune.types import Tree

FORWARDS = 3
"""Forward passes that an image which is trained on counts for."""

GRID = 1000
"""`keep_ratio_for` searches keep ratios in steps of 1 / GRID."""

FlopsTarget = Annotated[
    float, ABOVE_ZERO, "Kept MACs over those of the plain network, gates not included."
]


class PrunableModel(Protocol):
    """A model as the functions of this file need it."""

    @property
    def gates(self) -> GateSettings | None: ...

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]: ...

    def clone(self, **updates) -> Self: ...


def conv_layer(
    name: str,
    in_channels: int,
    out_channels: int,
    kept_in: int,
    gates: GateSettings | None,
    size: tuple[int, int],
    *,
    kernel_size: int = 3,
    channels_before: int = 0,
) -> Layer:
    """Describes a GatedConv.

    Args:
      name: path of its parameters, joined by "/".
      in_channels: channels it reads.
      out_channels: channels it writes.
      kept_in: channels it reads for one sample.
      gates: its gate settings; None if it has no gate.
      size: (height, width) of its output.
      kernel_size: height and width of its kernel.
      channels_before: output channels before some were removed; 0 if none was.
    """
    channels_before = channels_before or out_channels
    active = active_gates(gates, channels_before)
    kept_out = out_channels
    if active is not None:
        kept_out = min(out_channels, num_kept(active.keep_ratio, channels_before))
    return Layer(
        name,
        in_channels,
        out_channels,
        kept_in,
        kept_out,
        taps=kernel_size**2,
        positions=math.prod(size),
        gated=active is not None,
    )


def dense_layer(
    name: str, in_channels: int, out_channels: int, kept_in: int, taps: int = 1
) -> Layer:
    """Describes a dense layer that reads `in_channels` channels of `taps` pixels."""
    return Layer(
        name,
        in_channels=in_channels,
        out_channels=out_channels,
        kept_in=kept_in,
        kept_out=out_channels,
        taps=taps,
        positions=1,
        gated=False,
    )


class LayerMacs(NamedTuple):
    """The multiply-accumulates of one layer for one image, with the fields of Macs."""

    dense: int
    kept: int
    gates: int


class Macs(NamedTuple):
    """The multiply-accumulates of a model for one image.

    Attributes:
      dense: those of the model without gates.
      kept: those of the kept channels, without the gates.
      gates: those of the gates.
      layers: name of a layer -> its LayerMacs.
    """

    dense: int
    kept: int
    gates: int
    layers: dict[str, LayerMacs]


@checked
def macs(model: PrunableModel, image_shape: ImageShape) -> Macs:
    """Counts the multiply-accumulates of a model for one image.

    Args:
      model: one of MODELS.
      image_shape: (height, width, channels).

    Returns:
      Macs, of Python integers.

    Raises:
      ValueError: if `image_shape` is not one, or the model cannot read such images.

    Examples:
      >>> macs(fedjax_prune.VGG11(10), (32, 32, 3)).dense
      153293824
    """
    return macs_of(model.layers(image_shape))


def macs_of(described: Sequence[Layer]) -> Macs:
    """Counts the multiply-accumulates of layers for one image, as `macs`."""
    layers = {
        layer.name: LayerMacs(
            dense=round(num_weights(layer) * layer.positions),
            kept=round(num_weights_kept(layer) * layer.positions),
            gates=layer.gated * layer.in_channels * layer.out_channels,
        )
        for layer in described
    }
    return Macs(
        dense=sum(layer.dense for layer in layers.values()),
        kept=sum(layer.kept for layer in layers.values()),
        gates=sum(layer.gates for layer in layers.values()),
        layers=layers,
    )


def training_flops(macs: float, images: float) -> float:
    """Counts the FLOPs of training: FORWARDS passes, two for a multiply-accumulate.

    Args:
      macs: of one image.
      images: that are trained on.
    """
    return 2 * FORWARDS * macs * images


def params_used(layers: Sequence[Layer]) -> float:
    """Gives the share of weights that one image uses, in (0, 1].

    Only the weights of convolutions and dense layers count, without biases, norms and
    gates.
    """
    return sum(map(num_weights_kept, layers)) / sum(map(num_weights, layers))


@checked
def keep_ratio_for(
    model: PrunableModel, image_shape: ImageShape, flops_target: FlopsTarget
) -> float:
    """Finds the keep ratio that leaves a given share of the MACs.

    Args:
      model: one of MODELS. Its gate settings are used, except its keep ratio; without
        gates, the default settings are used.
      image_shape: (height, width, channels).
      flops_target: kept MACs over those of the model without gates, in (0, 1].

    Returns:
      The keep ratio, a multiple of 0.001, whose share is nearest to the target; of
      equally near ones the smallest.

    Raises:
      ValueError: if `image_shape` is not one, `flops_target` is out of range, or the
        model cannot read such images.

    Examples:
      >>> keep_ratio_for(fedjax_prune.VGG11(10), (32, 32, 3), flops_target=0.5)
      0.705
    """

    def error(keep_ratio: float) -> float:
        settings = model.gates or GateSettings(keep_ratio)
        settings = settings._replace(keep_ratio=keep_ratio)
        layers = model.clone(gates=settings).layers(image_shape)
        dense = sum(num_weights(layer) * layer.positions for layer in layers)
        kept = sum(num_weights_kept(layer) * layer.positions for layer in layers)
        return abs(kept / dense - flops_target)

    return min((step / GRID for step in range(1, GRID + 1)), key=error)


def num_entries(tree: Tree) -> int:
    """Counts the entries of a tree's arrays or `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def tree_bytes(tree: Tree) -> int:
    """Counts the bytes of a tree's arrays or `jax.ShapeDtypeStruct`s."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def num_weights(layer: Layer) -> int:
    """Counts the weights of a layer's kernel."""
    return layer.in_channels * layer.out_channels * layer.taps


def layer_entries(
    layer: Layer, names: Collection[str], counts: Mapping[str, int]
) -> int | None:
    """Adds up entries of a layer's arrays.

    They are the array of the layer's name, or all kernels in the module of that name
    that are in no other layer inside of it.

    Args:
      layer: one of a model's.
      names: of all layers of the model.
      counts: path of each array -> a number of its entries.

    Returns:
      Their sum; None if none of the arrays is of the layer.
    """
    own = [
        count
        for path, count in counts.items()
        if (path == layer.name or path.endswith("kernel"))
        and layer_of(path, names) == layer.name
    ]
    return sum(own) if own else None


def layer_of(path: str, names: Collection[str]) -> str:
    """Names the layer of an array: its own name, or the innermost module around it.

    Args:
      path: of the array.
      names: of all layers of the model.

    Returns:
      One of the names; empty if the array is in no layer.

    Examples:
      >>> layer_of("block/conv/kernel", ["block", "block/conv"])
      'block/conv'
    """
    owners = [name for name in names if f"{path}/".startswith(f"{name}/")]
    return max(owners, key=len, default="")


def num_weights_kept(layer: Layer) -> int:
    """Counts the weights of a layer's kernel that one image uses."""
    return layer.kept_in * layer.kept_out * layer.taps
