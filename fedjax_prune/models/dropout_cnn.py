"""The small dropout CNN of federated benchmarks."""

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

CHANNELS = (32, 64)
HIDDEN = 128


class DropoutCNN(nn.Module):
    """Two gated convolutions without padding, one 2x2 max-pool, two dense layers.

    At width 1 it has 1,626,442 parameters on 32x32x3 images with ten classes and
    1,206,590 on 28x28x1 images with 62.

    Attributes:
      num_classes: logits per image.
      width: multiplier of all channels and hidden units.
      norm: `none`, `bn` or `gn` (one group per channel); biases stay.
      gates: gate settings of the convolutions; None for the dense model.
      dropout: rate before the last dense layer; half of it before the hidden one.
      dtype: of the activations; parameters, norm statistics, gates and the last layer
        are at least float32.

    References:
      Reddi et al., Adaptive Federated Optimization, ICLR 2021, table 4,
      https://arxiv.org/abs/2003.00295; on CIFAR-10 in Granqvist et al., pfl-research,
      https://arxiv.org/abs/2404.06430.
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
            GatedConv(
                channels, gates, self.norm, padding=0, dtype=self.dtype, name=name
            )
            for name, channels, gates in self._convs()
        ]
        self.drop_features = nn.Dropout(self.dropout / 2)
        self.drop_hidden = nn.Dropout(self.dropout)
        self.fc1 = TorchDense(scaled(self.width, HIDDEN))
        self.fc2 = TorchDense(self.num_classes)

    def __call__(
        self, images: jax.Array, *, train: bool, example_mask: jax.Array
    ) -> jax.Array:
        """Computes logits, every channel computed and the dropped ones masked.

        Args:
          images: [batch_size, height, width, channels] float32, height and width
            at least 6.
          train: drop units (random stream `dropout`) and use batch statistics.
          example_mask: [batch_size] bool, False = padding.

        Returns:
          [batch_size, num_classes] float32.

        Raises:
          ValueError: if the images are smaller than 6x6.
        """
        _check_size(images.shape[1:])
        x = images
        for conv in self.convs:
            x, _ = conv(x, train=train, example_mask=example_mask)
        x = max_pool(x).reshape(x.shape[0], -1)
        x = nn.relu(self.fc1(self.drop_features(x, deterministic=not train)))
        x = self.drop_hidden(x, deterministic=not train)
        return self.fc2(at_least_float32(x))

    def gathered(self, image: jax.Array) -> jax.Array:
        """Computes the logits [num_classes] of one image by its kept channels."""
        _check_size(image.shape)
        kept = keep_all(image)
        for conv in self.convs:
            kept = conv.gathered(kept)
        kept = kept._replace(values=max_pool(kept.values))
        return self.fc2(nn.relu(self.fc1.gathered(kept))[None])[0]

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
        """Lists what every layer costs on images (height, width, channels).

        Raises:
          ValueError: if the images are smaller than 6x6.
        """
        _check_size(image_shape)
        height, width, channels = image_shape
        layers: list[Layer] = []
        kept = channels
        for name, out, gates in self._convs():
            height, width = height - 2, width - 2
            layers.append(conv_layer(name, channels, out, kept, gates, (height, width)))
            channels, kept = out, layers[-1].kept_out
        hidden = scaled(self.width, HIDDEN)
        taps = (height // 2) * (width // 2)
        return (
            *layers,
            dense_layer("fc1", channels, hidden, kept, taps),
            dense_layer("fc2", hidden, self.num_classes, hidden),
        )

    def _convs(self) -> list[tuple[str, int, GateSettings | None]]:
        first, second = (scaled(self.width, channels) for channels in CHANNELS)
        gate_first = self.gates is not None and self.gates.first
        return [
            ("conv1", first, self.gates if gate_first else None),
            ("conv2", second, self.gates),
        ]


def _check_size(image_shape: tuple[int, ...]) -> None:
    height, width, _ = image_shape
    if min(height, width) < 6:
        raise ValueError(
            f"DropoutCNN needs images of at least 6x6, got {height}x{width}."
        )
