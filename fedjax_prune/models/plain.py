"""Networks without branches: a sequence of convolutions, then dense layers."""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from fedjax_prune.fields import Rule
from fedjax_prune.layers import ChannelGroup, Layer
from fedjax_prune.models.blocks import (
    GatedConv,
    TorchDense,
    keep_all,
    scaled,
)
from fedjax_prune.models.channels import between
from fedjax_prune.models.costs import conv_layer, dense_layer
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.initializers import Initializer, he_fan_out
from fedjax_prune.models.needs import Needs, check_model, check_size
from fedjax_prune.models.pooling import max_pool
from fedjax_prune.models.precision import at_least_float32


class Pool(NamedTuple):
    """A function that makes maps smaller.

    Attributes:
      apply: maps [..., height, width, channels] -> maps with fewer pixels.
      size: height or width before -> height or width after.
    """

    apply: Callable[[jax.Array], jax.Array]
    size: Callable[[int], int]


NO_POOL = Pool(lambda x: x, lambda n: n)
HALVE = Pool(max_pool, lambda n: n // 2)


class Stage(NamedTuple):
    """A convolution and the pool that follows it.

    Attributes:
      channels: output channels at width 1.
      pool: pool after the convolution.
    """

    channels: int
    pool: Pool = NO_POOL


class Plan(NamedTuple):
    """The differences between these networks.

    Attributes:
      stages: convolutions in their order.
      hidden: units of each dense layer except the last.
      drops: factor of the dropout rate before each dense layer.
      least: height and width of the smallest image.
      multiple: number that must divide height and width.
      kernel_size: height and width of all kernels.
      padding: pixels of zeros on each side of a convolution's input.
      conv_init: random start of the kernels of convolutions.
      dense: class of the dense layers.
      widens_hidden: whether the width also multiplies hidden units.
    """

    stages: tuple[Stage, ...]
    hidden: tuple[int, ...]
    drops: tuple[float, ...]
    least: int
    multiple: int = 1
    kernel_size: int = 3
    padding: int = 1
    conv_init: Initializer = he_fan_out
    dense: type[TorchDense] = TorchDense
    widens_hidden: bool = True


class PlainNetwork(nn.Module):
    """Gated convolutions with max-pools, followed by dense layers.

    Attributes:
      num_classes: logits per image.
      width: multiplier of all channels and, in most networks, of hidden units.
      norm: `none`, `bn` or `gn` (one group per channel); biases stay.
      gates: gate settings of the convolutions; None for the dense model.
      dropout: rate before dense layers.
      dtype: dtype of the activations. Parameters, norm statistics, gates and the last
        layer also have it, but at least float32. `float` is JAX's default.
      left: name of a group -> number of its channels that were not removed; {} if none
        was removed.
    """

    num_classes: int
    width: float = 1.0
    norm: str = "none"
    gates: GateSettings | None = None
    dropout: float = 0.0
    dtype: DTypeLike = float
    left: Mapping[str, int] = nn.FrozenDict()

    plan: ClassVar[Plan]

    @classmethod
    def needs(cls) -> Needs:
        """Asks for images whose sides fit the plan."""
        least, multiple = cls.plan.least, cls.plan.multiple
        text = f"of at least {least}x{least}"
        if multiple > 1:
            text = f"whose height and width are multiples of {multiple}"
        return Needs(sides=Rule(lambda n: n >= least and n % multiple == 0, text))

    def __post_init__(self) -> None:
        check_model(self.num_classes, self.width, self.norm, self.gates, self.dropout)
        super().__post_init__()

    def setup(self) -> None:
        plan = self.plan
        self.convs = [
            GatedConv(
                channels,
                gates,
                self.norm,
                padding=plan.padding,
                dtype=self.dtype,
                kernel_size=plan.kernel_size,
                kernel_init=plan.conv_init,
                channels_before=before,
                pool=stage.pool.apply,
                name=name,
            )
            for (name, channels, before, gates), stage in zip(
                self._convs(), plan.stages, strict=True
            )
        ]
        self.drops = [nn.Dropout(share * self.dropout) for share in plan.drops]
        self.denses = [
            plan.dense(features, name=name) for name, features in self._denses()
        ]

    def __call__(
        self, images: jax.Array, *, train: bool, example_mask: jax.Array
    ) -> jax.Array:
        """Computes logits; all channels are computed and the dropped ones masked.

        Args:
          images: [batch_size, height, width, channels] float.
          train: whether to drop units (random stream `dropout`) and to use the
            statistics of the batch.
          example_mask: [batch_size] bool, False = padding.

        Returns:
          [batch_size, num_classes], at least float32.

        Raises:
          ValueError: if the network cannot read images of this size.
        """
        self._check_size(images.shape[1:])
        x = images
        for conv in self.convs:
            x, _ = conv(x, train=train, example_mask=example_mask)
        x = x.reshape(x.shape[0], -1)
        for drop, dense in zip(self.drops[:-1], self.denses[:-1], strict=True):
            x = nn.relu(dense(drop(x, deterministic=not train)))
        x = self.drops[-1](x, deterministic=not train)
        return self.denses[-1](at_least_float32(x))

    def gathered(self, image: jax.Array) -> jax.Array:
        """Computes the logits [num_classes] of one image from its kept channels."""
        self._check_size(image.shape)
        kept = keep_all(image)
        for conv in self.convs:
            kept = conv.gathered(kept)
        x = self.denses[0].gathered(kept)[None]
        for dense in self.denses[1:]:
            x = dense(nn.relu(x))
        return x[0]

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
        """Lists what every layer costs on images (height, width, channels).

        Raises:
          ValueError: if the network cannot read images of this size.
        """
        sizes = self._map_sizes(image_shape)
        layers: list[Layer] = []
        channels = kept = image_shape[-1]
        for (name, out, before, gates), size in zip(self._convs(), sizes, strict=False):
            layers.append(
                conv_layer(
                    name,
                    channels,
                    out,
                    kept_in=kept,
                    gates=gates,
                    size=size,
                    kernel_size=self.plan.kernel_size,
                    channels_before=before,
                )
            )
            channels, kept = out, layers[-1].kept_out
        taps = math.prod(sizes[-1])
        for name, features in self._denses():
            layers.append(dense_layer(name, channels, features, kept, taps))
            channels, kept, taps = features, features, 1
        return tuple(layers)

    def channel_groups(
        self, image_shape: tuple[int, int, int]
    ) -> tuple[ChannelGroup, ...]:
        """Lists the channels and hidden units that can be removed."""
        pixels = math.prod(self._map_sizes(image_shape)[-1])
        sizes = [(name, channels) for name, channels, _, _ in self._convs()]
        sizes += self._denses()
        last_conv = len(self.plan.stages) - 1
        return tuple(
            between(
                name, size, sizes[i + 1][0], repeats=pixels if i == last_conv else 1
            )
            for i, (name, size) in enumerate(sizes[:-1])
        )

    def _map_sizes(self, image_shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Lists (height, width) after each convolution, and before the dense layers."""
        self._check_size(image_shape)
        plan, (height, width, _) = self.plan, image_shape
        sizes = []
        for stage in plan.stages:
            grown = 2 * plan.padding - (plan.kernel_size - 1)
            height, width = height + grown, width + grown
            sizes.append((height, width))
            height, width = stage.pool.size(height), stage.pool.size(width)
        if self.norm == "gn" and (1, 1) in sizes:
            rows, columns, _ = image_shape
            raise ValueError(
                f"norm must be none or bn for {type(self).__name__} on images of "
                f"{rows}x{columns} pixels, got 'gn': a map of conv"
                f"{1 + sizes.index((1, 1))} is one pixel, which it makes a constant."
            )
        return [*sizes, (height, width)]

    def _convs(self) -> list[tuple[str, int, int, GateSettings | None]]:
        """Lists each convolution's name, channels, channels before removal, gates."""
        gate_first = self.gates is not None and self.gates.first
        convs = []
        for i, stage in enumerate(self.plan.stages, start=1):
            before = scaled(self.width, stage.channels)
            left = self.left.get(f"conv{i}", before)
            gates = self.gates if i > 1 or gate_first else None
            convs.append((f"conv{i}", left, before, gates))
        return convs

    def _denses(self) -> list[tuple[str, int]]:
        """Lists each dense layer's name and units."""
        width = self.width if self.plan.widens_hidden else 1
        units = [scaled(width, hidden) for hidden in self.plan.hidden]
        units = [self.left.get(f"fc{i}", n) for i, n in enumerate(units, start=1)]
        return [(f"fc{i}", n) for i, n in enumerate([*units, self.num_classes], 1)]

    def _check_size(self, image_shape: tuple[int, ...]) -> None:
        check_size(type(self).__name__, self.needs(), image_shape)
