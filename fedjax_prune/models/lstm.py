"""A recurrent network that predicts the next character of a text."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fedjax_prune.layers import ChannelGroup, Layer
from fedjax_prune.models.blocks import XavierDense, scaled
from fedjax_prune.models.costs import dense_layer
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.initializers import uniform
from fedjax_prune.models.needs import Needs, check_model, check_needs
from fedjax_prune.models.precision import add, at_least_float32, matmul, wide

EMBEDDING = 8
HIDDEN = 256


class LSTM(nn.Module):
    """A recurrent layer whose four gates share one kernel for each source.

    Flax's cell has eight kernels. Here the kernels of one source are one array, as in
    PyTorch, so that pruning ranks and guards them together.

    Attributes:
      hidden: number of units.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch_size, length, in_features] to [batch_size, length, hidden]."""
        size, bound = 4 * self.hidden, 1 / math.sqrt(self.hidden)

        def draw(name: str, *shape: int) -> jax.Array:
            return self.param(name, uniform, shape, bound, wide(x.dtype))

        kernel = draw("kernel", x.shape[-1], size)
        recurrent = draw("recurrent_kernel", self.hidden, size)
        bias = draw("bias", size)
        inputs = add(matmul(x, kernel), bias[None, None])

        def step(
            carry: tuple[jax.Array, jax.Array], read: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            hidden, cell = carry
            i, f, g, o = jnp.split(read + matmul(hidden, recurrent), 4, axis=-1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            hidden = nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros((x.shape[0], self.hidden), x.dtype)
        _, outputs = jax.lax.scan(step, (zeros, zeros), jnp.moveaxis(inputs, 1, 0))
        return jnp.moveaxis(outputs, 0, 1)


class NextCharLSTM(nn.Module):
    """An embedding, two LSTM layers, and a dense layer on the last step.

    At width 1 with 80 symbols it has 817,872 parameters. Gates and norms are refused,
    because they are for convolutions. No channel can be removed; single weights can be
    pruned.

    Attributes:
      num_classes: number of symbols, of the input and of the output.
      width: multiplier of hidden units.
      norm: must be `none`.
      gates: must be None.
      dropout: rate before the dense layer.
      dtype: dtype of the activations. Parameters and the last layer also have it, but
        at least float32. `float` is JAX's default.

    References:
      https://github.com/ChristianInterno/AutoFLIP, after LEAF,
      https://arxiv.org/abs/1812.01097.
    """

    num_classes: int
    width: float = 1.0
    norm: str = "none"
    gates: GateSettings | None = None
    dropout: float = 0.0
    dtype: DTypeLike = float

    @classmethod
    def needs(cls) -> Needs:
        """Asks for text, without gates and norms, which are for convolutions."""
        return Needs(kind="text", norms=("none",), gates=False)

    def __post_init__(self) -> None:
        check_model(self.num_classes, self.width, self.norm, self.gates, self.dropout)
        check_needs(type(self).__name__, self.needs(), self.norm, self.gates)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_mask: jax.Array
    ) -> jax.Array:
        """Computes the logits of the character after each text.

        Args:
          images: [batch_size, length, 1, 1] int32, symbols in [0, num_classes).
          train: whether to drop units (random stream `dropout`).
          example_mask: is not used, because nothing is averaged over the batch.

        Returns:
          [batch_size, num_classes], at least float32.
        """
        del example_mask
        hidden = scaled(self.width, HIDDEN)
        table = self.param(
            "embedding",
            nn.initializers.normal(1.0),
            (self.num_classes, EMBEDDING),
            wide(self.dtype),
        )
        x = table.at[images[:, :, 0, 0]].get(mode="clip").astype(self.dtype)
        x = LSTM(hidden, name="lstm1")(x)
        x = LSTM(hidden, name="lstm2")(x)[:, -1]
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return XavierDense(self.num_classes, name="fc")(at_least_float32(x))

    def layers(self, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
        """Lists what every layer costs on texts (length, 1, 1)."""
        hidden, length = scaled(self.width, HIDDEN), image_shape[0]

        def recurrent(name: str, inputs: int) -> Layer:
            read, written = inputs + hidden, 4 * hidden
            return Layer(
                name,
                in_channels=read,
                out_channels=written,
                kept_in=read,
                kept_out=written,
                taps=1,
                positions=length,
                gated=False,
            )

        return (
            recurrent("lstm1", EMBEDDING),
            recurrent("lstm2", hidden),
            dense_layer("fc", hidden, self.num_classes, hidden),
        )

    def channel_groups(
        self, image_shape: tuple[int, int, int]
    ) -> tuple[ChannelGroup, ...]:
        """Lists no channels, because none can be removed."""
        del image_shape
        return ()
