"""VGG-11 for small images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fedjax_prune.gates import GateSettings
from fedjax_prune.models.blocks import (
    GatedConv,
    Layer,
    TorchDense,
    check_model,
    conv_layer,
    dense_layer,
    keep_all,
    max_pool,
    scaled,
)
from fedjax_prune.precision import at_least_float32

CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
POOLED = (True, True, False, True, False, True, False, True)
"""Which convolutions a 2x2 max-pool follows."""
HIDDEN = 512


class VGG11(nn.Module):
    """Eight gated convolutions and three dense layers.

    At width 1 on 32x32x3 images it has 9,750,922 parameters without norm.

    Attributes:
      num_classes: logits per image.
      width: multiplier of all channels and hidden units.
      norm: `none`, `bn` or `gn` (one group per channel); biases stay.
      gates: gate settings of the convolutions; None for the dense model.
      dropout: rate before each hidden dense layer.
      dtype: of the activations; parameters, norm statistics, gates and the last layer
        are at least float32.

    References:
      Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image
      Recognition, ICLR 2015, table 1 A, https://arxiv.org/abs/1409.1556; dense
      layers as in Li et al., Federated Learning on Non-IID Data Silos,
      https://arxiv.org/abs/2102.02079.
    """

    num_classes: int
    width: float = 1.0
    norm: str = "none"
    gates: GateSettings | None = None
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_model(self.num_classes, self.width, self.norm, self.gates, self.dropout)
        super().__post_init__()

    def setup(self) -> None:
        self.convs = [
            GatedConv(channels, gates, self.norm, dtype=self.dtype, name=name)
            for name, channels, gates in self._convs()
        ]
        hidden = scaled(self.width, HIDDEN)
        self.drop = nn.Dropout(self.dropout)
        self.fc1 = TorchDense(hidden)
        self.fc2 = TorchDense(hidden)
        self.fc3 = TorchDense(self.num_classes)

    def __call__(
        self, images: jax.Array, *, train: bool, example_mask: jax.Array
    ) -> jax.Array:
        """Computes logits, every channel computed and the dropped ones masked.

        Args:
          images: [batch_size, height, width, channels] float32, height and width
            multiples of 32.
          train: drop units (random stream `dropout`) and use batch statistics.
          example_mask: [batch_size] bool, False = padding.

        Returns:
          [batch_size, num_classes] float32.

        Raises:
          ValueError: if the images' size is no multiple of 32.
        """
        _check_size(images.shape[1:])
        x = images
        for conv, pooled in zip(self.convs, POOLED, strict=True):
            x, _ = conv(x, train=train, example_mask=example_mask)
            x = max_pool(x) if pooled else x
        x = x.reshape(x.shape[0], -1)
        for dense in (self.fc1, self.fc2):
            x = nn.relu(dense(self.drop(x, deterministic=not train)))
        return self.fc3(at_least_float32(x))

    def gathered(self, image: jax.Array) -> jax.Array:
        """Computes the logits [num_classes] of one image by its kept channels."""
        _check_size(image.shape)
        kept = keep_all(image)
        for conv, pooled in zip(self.convs, POOLED, strict=True):
            kept = conv.gathered(kept)
            if pooled:
                kept = kept._replace(values=max_pool(kept.values))
        x = nn.relu(self.fc1.gathered(kept))[None]
        return self.fc3(nn.relu(self.fc2(x)))[0]

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
        """Lists what every layer costs on images (height, width, channels).

        Raises:
          ValueError: if the size is no multiple of 32.
        """
        _check_size(image_shape)
        height, width, channels = image_shape
        layers: list[Layer] = []
        kept = channels
        for (name, out, gates), pooled in zip(self._convs(), POOLED, strict=True):
            layers.append(conv_layer(name, channels, out, kept, gates, (height, width)))
            channels, kept = out, layers[-1].kept_out
            if pooled:
                height, width = height // 2, width // 2
        hidden = scaled(self.width, HIDDEN)
        return (
            *layers,
            dense_layer("fc1", channels, hidden, kept, height * width),
            dense_layer("fc2", hidden, hidden, hidden),
            dense_layer("fc3", hidden, self.num_classes, hidden),
        )

    def _convs(self) -> list[tuple[str, int, GateSettings | None]]:
        gate_first = self.gates is not None and self.gates.first
        return [
            (
                f"conv{i}",
                scaled(self.width, channels),
                self.gates if i > 1 or gate_first else None,
            )
            for i, channels in enumerate(CHANNELS, start=1)
        ]


def _check_size(image_shape: tuple[int, ...]) -> None:
    height, width, _ = image_shape
    if height % 32 or width % 32 or not height * width:
        raise ValueError(
            "VGG11 needs images whose height and width are multiples of 32, "
            f"got {height}x{width}."
        )
