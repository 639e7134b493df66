"""ResNet-32 for small images."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fedjax_prune.gates import GateSettings
from fedjax_prune.initializers import normal
from fedjax_prune.models.blocks import (
    GatedConv,
    Kept,
    Layer,
    check_model,
    conv_layer,
    dense_layer,
    fill_dropped,
    keep_all,
    scaled,
)
from fedjax_prune.precision import at_least_float32

CHANNELS = (16, 32, 64)


class Block(nn.Module):
    """Two convolutions whose result is added to a shortcut without parameters.

    The second mask comes before the addition and the shortcut is never masked, so
    what is dropped from the branch adds exactly nothing.

    Attributes:
      channels: output channels, at least as many as the input's.
      gates: gate settings; None for a dense block.
      norm: `none`, `bn` or `gn`; only without norm have convolutions a bias.
      strides: of the first convolution and the shortcut.
      dtype: of the features.
    """

    channels: int
    gates: GateSettings | None
    norm: str
    strides: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        use_bias = self.norm == "none"
        gates_a, gates_b = _branch_gates(self.gates)
        conv = partial(
            GatedConv,
            self.channels,
            use_bias=use_bias,
            norm=self.norm,
            dtype=self.dtype,
        )
        self.conv_a = conv(gates=gates_a, strides=self.strides)
        self.conv_b = conv(gates=gates_b, use_relu=False)

    def __call__(
        self,
        x: jax.Array,
        kept_before: jax.Array,
        *,
        train: bool,
        example_mask: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Runs a batch.

        Args:
          x: [batch_size, height, width, in_channels] float32.
          kept_before: [batch_size, in_channels] float32, 1 for the channels that
            the previous block's gate kept.
          train: normalise by the batch's statistics over the real samples.
          example_mask: [batch_size] bool, False = padding.

        Returns:
          The features and this block's own `kept_before` for the next one.
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
        """Runs one sample; `kept_before` are indices of channels, int32."""
        read = keep_all(x)
        if _is_literal(self.gates):
            read = Kept(x[..., kept_before], kept_before)
        branch = self.conv_b.gathered(self.conv_a.gathered(read))
        shortcut = _shortcut(x, self.channels, self.strides)
        out = nn.relu(fill_dropped(branch, self.channels) + shortcut)
        return out, branch.indices


class ResNet32(nn.Module):
    """A stem, three stages of five blocks, the mean over the map, a dense layer.

    At width 1 on 32x32x3 images it has 464,154 parameters with batch norm.

    Attributes:
      num_classes: logits per image.
      width: multiplier of all channels.
      norm: `none`, `bn` or `gn` (one group per channel).
      gates: gate settings of the blocks; None for the dense model.
      dropout: rate before the dense layer.
      blocks_per_stage: 5 for the 32 layers, 6 n + 2 of them for n.
      dtype: of the activations; parameters, norm statistics, gates and the last layer
        are at least float32.

    References:
      He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
      section 4.2, option A, https://arxiv.org/abs/1512.03385.
    """

    num_classes: int
    width: float = 1.0
    norm: str = "bn"
    gates: GateSettings | None = None
    dropout: float = 0.0
    blocks_per_stage: int = 5
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_model(self.num_classes, self.width, self.norm, self.gates, self.dropout)
        if self.blocks_per_stage < 1:
            raise ValueError(
                f"blocks_per_stage must be at least 1, got {self.blocks_per_stage}."
            )
        super().__post_init__()

    def setup(self) -> None:
        stem = scaled(self.width, CHANNELS[0])
        self.stem = GatedConv(
            stem, None, self.norm, use_bias=self.norm == "none", dtype=self.dtype
        )
        self.blocks = [
            Block(channels, self.gates, self.norm, strides, self.dtype, name=name)
            for name, channels, strides in self._blocks()
        ]
        self.drop = nn.Dropout(self.dropout)
        self.fc = nn.Dense(self.num_classes, kernel_init=_he_normal)

    def __call__(
        self, images: jax.Array, *, train: bool, example_mask: jax.Array
    ) -> jax.Array:
        """Computes logits, every channel computed and the dropped ones masked.

        Args:
          images: [batch_size, height, width, channels] float32.
          train: drop units (random stream `dropout`) and use batch statistics.
          example_mask: [batch_size] bool, False = padding.

        Returns:
          [batch_size, num_classes] float32.
        """
        x, mask = self.stem(images, train=train, example_mask=example_mask)
        for block in self.blocks:
            x, mask = block(x, mask, train=train, example_mask=example_mask)
        pooled = at_least_float32(x).mean((1, 2))
        return self.fc(self.drop(pooled, deterministic=not train))

    def gathered(self, image: jax.Array) -> jax.Array:
        """Computes the logits [num_classes] of one image by its kept channels."""
        x, indices = self.stem.gathered(keep_all(image))
        for block in self.blocks:
            x, indices = block.gathered(x, indices)
        return self.fc(x.mean((0, 1))[None])[0]

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
        """Lists what every layer costs on images (height, width, channels)."""
        height, width, image_channels = image_shape
        gates_a, gates_b = _branch_gates(self.gates)
        channels = kept = scaled(self.width, CHANNELS[0])
        stem = conv_layer(
            "stem", image_channels, channels, image_channels, None, (height, width)
        )
        layers = [stem]
        for name, out, strides in self._blocks():
            height, width = -(-height // strides), -(-width // strides)
            size = (height, width)
            read = kept if _is_literal(self.gates) else channels
            a = conv_layer(f"{name}/conv_a", channels, out, read, gates_a, size)
            b = conv_layer(f"{name}/conv_b", out, out, a.kept_out, gates_b, size)
            layers += [a, b]
            channels, kept = out, b.kept_out
        return (*layers, dense_layer("fc", channels, self.num_classes, channels))

    def _blocks(self) -> list[tuple[str, int, int]]:
        """Lists each block's name, channels and strides."""
        return [
            (
                f"stage{stage}_block{block}",
                scaled(self.width, channels),
                2 if stage > 1 and block == 1 else 1,
            )
            for stage, channels in enumerate(CHANNELS, start=1)
            for block in range(1, self.blocks_per_stage + 1)
        ]


def _he_normal(key: jax.Array, shape: tuple[int, ...], dtype: object) -> jax.Array:
    del dtype
    return normal(key, shape, math.sqrt(2 / shape[0]))


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
