"""Logistic regression on vectors."""

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from fedjax_prune.layers import ChannelGroup, Layer
from fedjax_prune.models.blocks import XavierDense
from fedjax_prune.models.costs import dense_layer
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.needs import Needs, check_model, check_needs
from fedjax_prune.models.precision import at_least_float32


class LogisticRegression(nn.Module):
    """A dense layer from a vector to the logits.

    On 60 numbers and 10 classes it has 610 parameters. Gates and norms are refused,
    because they are for convolutions. No channel can be removed; single weights can be
    pruned.

    Attributes:
      num_classes: logits per vector.
      width: changes nothing, because there are no hidden units.
      norm: must be `none`.
      gates: must be None.
      dropout: rate at which the numbers of a vector are dropped.
      dtype: dtype of parameters and logits, but at least float32. `float` is JAX's
        default.

    References:
      Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, section
      5.1, https://arxiv.org/abs/1812.06127.
    """

    num_classes: int
    width: float = 1.0
    norm: str = "none"
    gates: GateSettings | None = None
    dropout: float = 0.0
    dtype: DTypeLike = float

    @classmethod
    def needs(cls) -> Needs:
        """Asks for vectors, without gates and norms, which are for convolutions."""
        return Needs(kind="vector", norms=("none",), gates=False)

    def __post_init__(self) -> None:
        check_model(self.num_classes, self.width, self.norm, self.gates, self.dropout)
        check_needs(type(self).__name__, self.needs(), self.norm, self.gates)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_mask: jax.Array
    ) -> jax.Array:
        """Computes logits.

        Args:
          images: vectors [batch_size, length, 1, 1] float.
          train: whether to drop numbers (random stream `dropout`).
          example_mask: is not used, because nothing is averaged over the batch.

        Returns:
          [batch_size, num_classes], at least float32.
        """
        del example_mask
        x = at_least_float32(images.astype(self.dtype).reshape(images.shape[0], -1))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return XavierDense(self.num_classes, name="fc")(x)

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
        """Lists what the layer costs on vectors (length, 1, 1)."""
        length, *_ = image_shape
        return (dense_layer("fc", length, self.num_classes, length),)

    def channel_groups(
        self, image_shape: tuple[int, int, int]
    ) -> tuple[ChannelGroup, ...]:
        """Lists no channels, because none can be removed."""
        del image_shape
        return ()
