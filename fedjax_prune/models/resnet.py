"""ResNet-32 for small images."""

import math
from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fedjax_prune.layers import ChannelGroup, Layer
from fedjax_prune.models.blocks import (
    GatedConv,
    KeptChannels,
    fill_dropped,
    keep_all,
    scaled,
)
from fedjax_prune.models.channels import between, read_by, written_by
from fedjax_prune.models.costs import conv_layer, dense_layer
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.initializers import normal
from fedjax_prune.models.needs import Needs, check_model
from fedjax_prune.models.precision import at_least_float32, wide

CHANNELS = (16, 32, 64)


class Block(nn.Module):
    """Two convolutions whose result is added to a shortcut without parameters.

    The second mask comes before the addition and the shortcut is never masked, so a
    dropped channel of the branch adds exactly 0.

    Attributes:
      channels: output channels, at least as many as the input's.
      gates: gate settings; None for a block without gates.
      norm: `none`, `bn` or `gn`; convolutions have a bias only without norm.
      strides: step of the first convolution and of the shortcut.
      inner: output channels of the first convolution.
      channels_before: output channels of both convolutions before some were removed.
      dtype: dtype of the features.
    """

    channels: int
    gates: GateSettings | None
    norm: str
    strides: int
    inner: int
    channels_before: int
    dtype: DTypeLike = float

    def setup(self) -> None:
        use_bias = self.norm == "none"
        gates_a, gates_b = _branch_gates(self.gates)
        conv = partial(
            GatedConv,
            use_bias=use_bias,
            norm=self.norm,
            dtype=self.dtype,
            channels_before=self.channels_before,
        )
        self.conv_a = conv(self.inner, gates=gates_a, strides=self.strides)
        self.conv_b = conv(self.channels, gates=gates_b, use_relu=False)

    def __call__(
        self,
        x: jax.Array,
        kept_before: jax.Array,
        *,
        train: bool,
        example_mask: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes all channels of a batch and masks the dropped ones.

        Args:
          x: [batch_size, height, width, in_channels] float.
          kept_before: [batch_size, in_channels] float, 1 for the channels that
            the previous block's gate kept.
          train: whether to normalise by the statistics of the batch's real samples.
          example_mask: [batch_size] bool, False = padding.

        Returns:
          The features and `kept_before` for the next block.
        """
        read = x
        if _is_literal(self.gates):
            read = x * kept_before[:, None, None].astype(x.dtype)
        h, _ = self.conv_a(read, train=train, example_mask=example_mask)
        branch, mask = self.conv_b(h, train=train, example_mask=example_mask)
        return nn.relu(branch + _shortcut(x, self.channels, self.strides)), mask

    def gathered(
        self, x: jax.Array, kept_before: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the kept channels of one sample [height, width, in_channels].

        Here `kept_before` holds the indices of channels, [num_kept] int32.
        """
        read = keep_all(x)
        if _is_literal(self.gates):
            read = KeptChannels(x[..., kept_before], kept_before)
        branch = self.conv_b.gathered(self.conv_a.gathered(read))
        shortcut = _shortcut(x, self.channels, self.strides)
        out = nn.relu(fill_dropped(branch, self.channels) + shortcut)
        return out, branch.indices


class ResNet32(nn.Module):
    """A stem, three stages of five blocks, the mean over the map, a dense layer.

    It reads images [batch_size, height, width, channels] float. At width 1 on 32x32x3
    images it has 464,154 parameters with batch norm.

    Attributes:
      num_classes: logits per image.
      width: multiplier of all channels.
      norm: `none`, `bn` or `gn` (one group per channel).
      gates: gate settings of the blocks; None for the dense model.
      dropout: rate before the dense layer.
      blocks_per_stage: 5 for 32 layers; n for 6 n + 2 layers.
      dtype: dtype of the activations. Parameters, norm statistics, gates and the last
        layer also have it, but at least float32. `float` is JAX's default.
      left: name of a group -> number of its channels that were not removed; {} if none
        was removed.

    Raises:
      ValueError: if an attribute is out of range.

    References:
      He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
      section 4.2, option A, https://arxiv.org/abs/1512.03385.

    Examples:
      >>> len(ResNet32(10).layers((32, 32, 3)))
      32
    """

    num_classes: int
    width: float = 1.0
    norm: str = "bn"
    gates: GateSettings | None = None
    dropout: float = 0.0
    blocks_per_stage: int = 5
    dtype: DTypeLike = float
    left: Mapping[str, int] = nn.FrozenDict()

    @classmethod
    def needs(cls) -> Needs:
        """Asks for images; they may have any size."""
        return Needs()

    def __post_init__(self) -> None:
        check_model(self.num_classes, self.width, self.norm, self.gates, self.dropout)
        if self.blocks_per_stage < 1:
            raise ValueError(
                f"blocks_per_stage must be at least 1, got {self.blocks_per_stage}."
            )
        super().__post_init__()

    def setup(self) -> None:
        self.stem = GatedConv(
            self._channels(1),
            None,
            self.norm,
            use_bias=self.norm == "none",
            dtype=self.dtype,
        )
        self.blocks = [
            Block(
                channels=self._channels(stage),
                gates=self.gates,
                norm=self.norm,
                strides=strides,
                inner=self._inner(name, stage),
                channels_before=scaled(self.width, CHANNELS[stage - 1]),
                dtype=self.dtype,
                name=name,
            )
            for name, stage, strides in self._blocks()
        ]
        self.drop = nn.Dropout(self.dropout)
        self.fc = nn.Dense(
            self.num_classes, param_dtype=wide(self.dtype), kernel_init=_he_normal
        )

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
        """
        x, mask = self.stem(images, train=train, example_mask=example_mask)
        for block in self.blocks:
            x, mask = block(x, mask, train=train, example_mask=example_mask)
        pooled = at_least_float32(x).mean((1, 2))
        return self.fc(self.drop(pooled, deterministic=not train))

    def gathered(self, image: jax.Array) -> jax.Array:
        """Computes the logits [num_classes] of one image from its kept channels."""
        x, indices = self.stem.gathered(keep_all(image))
        for block in self.blocks:
            x, indices = block.gathered(x, indices)
        return self.fc(x.mean((0, 1))[None])[0]

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
        """Lists what every layer costs on images (height, width, channels)."""
        height, width, image_channels = image_shape
        gates_a, gates_b = _branch_gates(self.gates)
        channels = kept = self._channels(1)
        stem = conv_layer(
            "stem",
            in_channels=image_channels,
            out_channels=channels,
            kept_in=image_channels,
            gates=None,
            size=(height, width),
        )
        layers = [stem]
        for name, stage, strides in self._blocks():
            height, width = -(-height // strides), -(-width // strides)
            if self.norm == "gn" and (height, width) == (1, 1):
                raise ValueError(
                    f"norm must be none or bn for {type(self).__name__} on images of "
                    f"{image_shape[0]}x{image_shape[1]} pixels, got 'gn': a map of "
                    f"{name} is one pixel, which it makes a constant."
                )
            read = kept if _is_literal(self.gates) else channels
            out, inner = self._channels(stage), self._inner(name, stage)
            conv = partial(
                conv_layer,
                size=(height, width),
                channels_before=scaled(self.width, CHANNELS[stage - 1]),
            )
            a = conv(f"{name}/conv_a", channels, inner, read, gates_a)
            b = conv(f"{name}/conv_b", inner, out, a.kept_out, gates_b)
            layers += [a, b]
            channels, kept = out, b.kept_out
        return (*layers, dense_layer("fc", channels, self.num_classes, channels))

    def channel_groups(
        self, image_shape: tuple[int, int, int]
    ) -> tuple[ChannelGroup, ...]:
        """Lists the channels that can be removed.

        The channels of the sum that runs through the blocks are three groups: those of
        the stem, and those that the second and the third stage add.
        """
        del image_shape
        groups = []
        for stage in (1, 2, 3):
            start = self._channels(stage - 1)
            writers = ["stem"] if stage == 1 else []
            readers, before = [], 1
            for name, of_stage, _ in self._blocks():
                readers += [f"{name}/conv_a"] if before >= stage else []
                writers += [f"{name}/conv_b"] if of_stage >= stage else []
                before = of_stage
            written = [written_by(name, start) for name in writers]
            groups.append(
                ChannelGroup(
                    f"stage{stage}",
                    self._channels(stage) - start,
                    producers=tuple(producer for producer, _ in written),
                    entries=tuple(slot for _, slots in written for slot in slots),
                    consumers=tuple(
                        slot
                        for name in (*readers, "fc")
                        for slot in read_by(name, start)
                    ),
                )
            )
        for name, stage, _ in self._blocks():
            inner = self._inner(name, stage)
            groups.append(between(f"{name}/conv_a", inner, f"{name}/conv_b"))
        return tuple(groups)

    def _channels(self, stage: int) -> int:
        """Counts the channels of the sum in a stage; before the first it has none."""
        before = [0, *(scaled(self.width, channels) for channels in CHANNELS)]
        return sum(
            self.left.get(f"stage{s}", before[s] - before[s - 1])
            for s in range(1, stage + 1)
        )

    def _inner(self, name: str, stage: int) -> int:
        before = scaled(self.width, CHANNELS[stage - 1])
        return self.left.get(f"{name}/conv_a", before)

    def _blocks(self) -> list[tuple[str, int, int]]:
        """Lists each block's name, stage and strides."""
        return [
            (
                f"stage{stage}_block{block}",
                stage,
                2 if stage > 1 and block == 1 else 1,
            )
            for stage in (1, 2, 3)
            for block in range(1, self.blocks_per_stage + 1)
        ]


def _he_normal(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return normal(key, shape, math.sqrt(2 / shape[0]), dtype)


def _is_literal(gates: GateSettings | None) -> bool:
    return gates is not None and gates.resnet == "literal"


def _branch_gates(
    gates: GateSettings | None,
) -> tuple[GateSettings | None, GateSettings | None]:
    """Gives the gate settings of a block's two convolutions."""
    if gates is None or gates.resnet != "inner":
        return gates, gates
    return gates, None


def _shortcut(x: jax.Array, channels: int, strides: int) -> jax.Array:
    """Takes every `strides`-th pixel and appends channels of zeros."""
    x = x[..., ::strides, ::strides, :]
    missing = channels - x.shape[-1]
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),))
