"""ResNet-9: eight convolutions, two pairs of which are added to their input."""

from collections.abc import Mapping

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from fedjax_prune.fields import Rule
from fedjax_prune.layers import ChannelGroup, Layer
from fedjax_prune.models.blocks import (
    GatedConv,
    XavierDense,
    fill_dropped,
    keep_all,
    scaled,
)
from fedjax_prune.models.channels import between, read_by, written_by
from fedjax_prune.models.costs import conv_layer, dense_layer
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.initializers import xavier
from fedjax_prune.models.needs import Needs, check_model, check_size
from fedjax_prune.models.pooling import max_pool
from fedjax_prune.models.precision import at_least_float32

CHANNELS = (64, 128, 128, 128, 256, 512, 512, 512)
POOLED = (False, True, False, False, True, True, False, False)
OPENS, CLOSES = ("conv3", "conv7"), ("conv4", "conv8")
"""The first and the second convolutions of the pairs."""
SUMS = {"conv4": "conv2", "conv8": "conv6"}
"""The second convolution of a pair -> the one whose output is added to its own."""


class ResNet9(nn.Module):
    """3x3 convolutions with batch norm and max-pools for images of 32x32.

    At width 1 on 32x32x3 images it has 6,575,370 parameters with 10 classes and
    6,621,540 with 100.

    Attributes:
      num_classes: logits per image.
      width: multiplier of all channels.
      norm: `none`, `bn` or `gn` (one group per channel); biases stay.
      gates: gate settings of the convolutions; None for the dense model.
      dropout: rate before the dense layer.
      dtype: dtype of the activations. Parameters, norm statistics, gates and the last
        layer also have it, but at least float32. `float` is JAX's default.
      left: name of a group -> number of its channels that were not removed; {} if none
        was removed.

    References:
      https://github.com/ChristianInterno/AutoFLIP.
    """

    num_classes: int
    width: float = 1.0
    norm: str = "bn"
    gates: GateSettings | None = None
    dropout: float = 0.0
    dtype: DTypeLike = float
    left: Mapping[str, int] = nn.FrozenDict()

    @classmethod
    def needs(cls) -> Needs:
        """Asks for images of 32x32."""
        return Needs(sides=Rule(lambda n: n == 32, "of 32x32"))

    def __post_init__(self) -> None:
        check_model(self.num_classes, self.width, self.norm, self.gates, self.dropout)
        super().__post_init__()

    def setup(self) -> None:
        self.convs = [
            GatedConv(
                channels,
                gates,
                self.norm,
                kernel_init=xavier,
                dtype=self.dtype,
                channels_before=before,
                pool=max_pool if pooled else lambda x: x,
                name=name,
            )
            for (name, channels, before, gates), pooled in zip(
                self._convs(), POOLED, strict=True
            )
        ]
        self.drop = nn.Dropout(self.dropout)
        self.fc = XavierDense(self.num_classes)

    def __call__(
        self, images: jax.Array, *, train: bool, example_mask: jax.Array
    ) -> jax.Array:
        """Computes logits; all channels are computed and the dropped ones masked.

        Args:
          images: [batch_size, 32, 32, channels] float.
          train: whether to drop units (random stream `dropout`) and to use the
            statistics of the batch.
          example_mask: [batch_size] bool, False = padding.

        Returns:
          [batch_size, num_classes], at least float32.

        Raises:
          ValueError: if the images are not of 32x32.
        """
        _check_size(images.shape[1:])
        x = shortcut = images
        for conv in self.convs:
            shortcut = x if conv.name in OPENS else shortcut
            x, _ = conv(x, train=train, example_mask=example_mask)
            x = x + shortcut if conv.name in CLOSES else x
        # Two max-pools over 2x2 windows are one over 4x4 windows.
        x = max_pool(max_pool(x)).reshape(x.shape[0], -1)
        x = self.drop(at_least_float32(x), deterministic=not train)
        return self.fc(x)

    def gathered(self, image: jax.Array) -> jax.Array:
        """Computes the logits [num_classes] of one image from its kept channels."""
        _check_size(image.shape)
        kept = shortcut = keep_all(image)
        for conv in self.convs:
            shortcut = kept if conv.name in OPENS else shortcut
            kept = conv.gathered(kept)
            if conv.name in CLOSES:
                size = conv.channels
                kept = keep_all(fill_dropped(kept, size) + fill_dropped(shortcut, size))
        return self.fc(max_pool(max_pool(kept.values)).reshape(1, -1))[0]

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
        """Lists what every layer costs on images (height, width, channels).

        Raises:
          ValueError: if the images are not of 32x32.
        """
        _check_size(image_shape)
        height, width, channels = image_shape
        layers: list[Layer] = []
        kept = channels
        for (name, out, before, gates), pooled in zip(
            self._convs(), POOLED, strict=True
        ):
            size = (height, width)
            layers.append(
                conv_layer(
                    name,
                    channels,
                    out,
                    kept_in=kept,
                    gates=gates,
                    size=size,
                    channels_before=before,
                )
            )
            channels, kept = out, layers[-1].kept_out
            if name in CLOSES:
                # The terms of the sum may keep different channels.
                kept = channels
            if pooled:
                height, width = height // 2, width // 2
        return (*layers, dense_layer("fc", channels, self.num_classes, kept))

    def channel_groups(
        self, image_shape: tuple[int, int, int]
    ) -> tuple[ChannelGroup, ...]:
        """Lists the channels that can be removed; a sum's terms lose them together."""
        _check_size(image_shape)
        names = [name for name, *_ in self._convs()]
        readers = dict(zip(names, [*names[1:], "fc"], strict=True))
        groups = []
        for name, channels, _, _ in self._convs():
            if name in SUMS:
                continue
            group = between(name, channels, readers[name])
            for other in (last for last, first in SUMS.items() if first == name):
                producer, entries = written_by(other)
                group = group._replace(
                    producers=(*group.producers, producer),
                    entries=(*group.entries, *entries),
                    consumers=(*group.consumers, *read_by(readers[other])),
                )
            groups.append(group)
        return tuple(groups)

    def _convs(self) -> list[tuple[str, int, int, GateSettings | None]]:
        """Lists each convolution's name, channels, channels before removal, gates."""
        gate_first = self.gates is not None and self.gates.first
        convs = []
        for i, channels in enumerate(CHANNELS, start=1):
            name, before = f"conv{i}", scaled(self.width, channels)
            left = self.left.get(SUMS.get(name, name), before)
            gates = self.gates if i > 1 or gate_first else None
            convs.append((name, left, before, gates))
        return convs


def _check_size(image_shape: tuple[int, ...]) -> None:
    check_size(ResNet9.__name__, ResNet9.needs(), image_shape)
