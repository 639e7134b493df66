"""The blocks of all image models: a gated convolution and dense layers.

Each has two forms: it computes all channels of a batch and masks the dropped ones, or
it returns only the kept channels of one sample (`gathered`), and computes only these
where that is faster (`is_gathered`).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fedjax_prune.models.convolution import by_patches, convolve
from fedjax_prune.models.gates import Gate, GateSettings, active_gates, select
from fedjax_prune.models.initializers import (
    Initializer,
    he_fan_out,
    uniform,
    xavier,
)
from fedjax_prune.models.precision import add, matmul, multiply, wide

EPSILON = 1e-5


class KeptChannels(NamedTuple):
    """The kept channels of one sample's features.

    Attributes:
      values: [height, width, num_kept] float.
      indices: [num_kept] int32, the places of the kept channels among all.
    """

    values: jax.Array
    indices: jax.Array


def keep_all(features: jax.Array) -> KeptChannels:
    """Makes KeptChannels of all channels of one sample, [height, width, channels]."""
    return KeptChannels(features, jnp.arange(features.shape[-1], dtype=jnp.int32))


def fill_dropped(kept: KeptChannels, num_channels: int) -> jax.Array:
    """Puts zeros where channels were dropped: [height, width, num_channels]."""
    shape = (*kept.values.shape[:-1], num_channels)
    return jnp.zeros(shape, kept.values.dtype).at[..., kept.indices].set(kept.values)


def scaled(width: float, channels: int) -> int:
    """Multiplies a number of channels by a width; gives the nearest integer above 0."""
    return max(1, math.floor(width * channels + 0.5))


class TorchDense(nn.Module):
    """A dense layer whose weights and bias start uniform, as PyTorch draws them.

    Attributes:
      features: number of outputs.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch_size, in_features] float to [batch_size, features]."""
        kernel, bias = self.weights(x.shape[-1], wide(x.dtype))
        return add(matmul(x, kernel), bias[None])

    def weights(
        self, in_features: int, dtype: jnp.dtype
    ) -> tuple[jax.Array, jax.Array]:
        """Gives the kernel [in_features, features] and the bias [features]."""
        bound, shape = 1 / math.sqrt(in_features), (in_features, self.features)
        kernel = self.param("kernel", uniform, shape, bound, dtype)
        return kernel, self.param("bias", uniform, (self.features,), bound, dtype)

    def gathered(self, kept: KeptChannels) -> jax.Array:
        """Maps the kept channels of one map, flattened, to [features]."""
        weights = self.variables["params"]
        height, width, num_kept = kept.values.shape
        kernel = weights["kernel"].reshape(height * width, -1, self.features)
        kernel = kernel[:, kept.indices].reshape(-1, self.features)
        return kept.values.reshape(height * width * num_kept) @ kernel + weights["bias"]


class XavierDense(TorchDense):
    """A dense layer whose weights start as `xavier` draws them; biases start at 0."""

    def weights(
        self, in_features: int, dtype: jnp.dtype
    ) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", xavier, (in_features, self.features), dtype)
        return kernel, self.param(
            "bias", nn.initializers.zeros, (self.features,), dtype
        )


class GatedConv(nn.Module):
    """A square convolution, followed by bias, norm, ReLU, pool and gate.

    The mask comes after the norm, because a norm maps zero to a constant. It comes
    after the ReLU, because a ReLU of 0 stops the gradients of the gates of dropped
    channels. It also comes after a max-pool, where there are fewer pixels. Its place
    changes nothing as long as multipliers are not negative, with one exception: in the
    mode `hard_dense_ste` the gate of a dropped channel has a gradient. After the pool
    this is the gradient of the maximum, which the channel would have sent. Before the
    pool the four pixels of a window would all be 0 and share the gradient, so that it
    would be the gradient of their mean.

    Attributes:
      channels: output channels.
      gates: gate settings; None for a convolution without a gate.
      norm: one of NORMS; `gn` has one group per channel, so that no channel
        depends on another.
      strides: 1 or 2, of both axes.
      use_bias: whether a bias is added before the norm.
      use_relu: whether ReLU is applied before the pool.
      padding: pixels of zeros on each side.
      dtype: dtype of the features; parameters are at least float32.
      kernel_size: height and width of the kernel.
      kernel_init: the random start of the kernel.
      channels_before: output channels before some were removed, from which the
        number of kept channels is computed; 0 if none was removed.
      pool: the function that makes the map smaller before the mask.
    """

    channels: int
    gates: GateSettings | None
    norm: str
    strides: int = 1
    use_bias: bool = True
    use_relu: bool = True
    padding: int = 1
    dtype: DTypeLike = float
    kernel_size: int = 3
    kernel_init: Initializer = he_fan_out
    channels_before: int = 0
    pool: Callable[[jax.Array], jax.Array] = lambda x: x

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, example_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Computes all channels of a batch and masks the dropped ones.

        Args:
          x: [batch_size, height, width, in_channels] float.
          train: whether to normalise by the statistics of the batch's real samples.
          example_mask: [batch_size] bool, False = padding.

        Returns:
          The features [batch_size, new_height, new_width, channels] and the 0/1
          mask [batch_size, channels] of kept channels, at least float32.
        """
        weights_dtype = wide(self.dtype)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape, weights_dtype)
        y = convolve(
            x.astype(self.dtype), kernel, strides=self.strides, padding=self.padding
        )
        if self.use_bias:
            bias = self.param(
                "bias", nn.initializers.zeros, (self.channels,), weights_dtype
            )
            y = add(y, bias[None, None, None])
        if self.norm == "bn":
            y = nn.BatchNorm(
                not train,
                momentum=0.9,
                epsilon=EPSILON,
                dtype=y.dtype,
                param_dtype=weights_dtype,
                name="norm",
            )(y, mask=example_mask[:, None, None, None])
        elif self.norm == "gn":
            y = nn.GroupNorm(
                None,
                1,
                epsilon=EPSILON,
                use_fast_variance=False,
                dtype=y.dtype,
                param_dtype=weights_dtype,
                name="norm",
            )(y)
        if self.use_relu:
            y = nn.relu(y)
        y = self.pool(y)
        before = self.channels_before or self.channels
        settings = active_gates(self.gates, before)
        if settings is None:
            return y, jnp.ones((x.shape[0], self.channels), weights_dtype)
        gate = Gate(self.channels, settings, before, name="gate")
        multiplier, mask = gate(x.astype(weights_dtype), example_mask)
        return multiply(y, multiplier[:, None, None]), mask

    def gathered(self, kept: KeptChannels) -> KeptChannels:
        """Computes the kept channels of one sample, in evaluation mode.

        The kernel is gathered on both axes (FedDP, equation 3) where `is_gathered` says
        that this pays.
        """
        weights = self.variables["params"]
        kernel = weights["kernel"]
        indices, multiplier = self._select(kept, kernel.shape[2])
        x = kept.values.astype(kernel.dtype)
        if is_gathered(x.shape[:2], kernel.shape):
            kernel = kernel[:, :, kept.indices][..., indices]
            side = (self.padding, self.padding)
            y = by_patches(x[None], kernel, self.strides, (side, side))[0]
        else:
            x = fill_dropped(KeptChannels(x, kept.indices), kernel.shape[2])[None]
            y = convolve(x, kernel, strides=self.strides, padding=self.padding)
            y = y[0][..., indices]
        if self.use_bias:
            y = y + weights["bias"][indices][None, None]
        if self.norm != "none":
            y = self._normalise(y, indices)
        if self.use_relu:
            y = nn.relu(y)
        y = self.pool(y)
        return KeptChannels(y * multiplier[None, None], indices)

    def _select(
        self, kept: KeptChannels, in_channels: int
    ) -> tuple[jax.Array, jax.Array]:
        before = self.channels_before or self.channels
        settings = active_gates(self.gates, before)
        if settings is None:
            return (
                jnp.arange(self.channels, dtype=jnp.int32),
                jnp.ones((self.channels,), wide(self.dtype)),
            )
        pooled = kept.values.astype(wide(self.dtype)).mean((0, 1), keepdims=True)
        pooled = fill_dropped(KeptChannels(pooled, kept.indices), in_channels)[0, 0]
        alive = self.variables.get("alive", {}).get("gate", {}).get("alive")
        weights = self.variables["gates"]["gate"]
        return select(weights, pooled, settings, before, alive)

    def _normalise(self, y: jax.Array, indices: jax.Array) -> jax.Array:
        affine = self.variables["params"]["norm"]
        if self.norm == "bn":
            statistics = self.variables["batch_stats"]["norm"]
            mean, variance = statistics["mean"][indices], statistics["var"][indices]
        else:
            mean, variance = y.mean((0, 1)), y.var((0, 1))
        scale = affine["scale"][indices] * jax.lax.rsqrt(variance + EPSILON)
        return (y - mean[None, None]) * scale[None, None] + affine["bias"][indices][
            None, None
        ]


def is_gathered(size: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether a convolution of one sample gathers its kernel.

    Otherwise it computes all channels and throws the dropped ones away. Measured on one
    CPU core with VGG-11 at half of its MACs, a weight takes 0.4 to 0.7 ns to gather,
    because XLA copies entry by entry, and a multiplication 0.02 ns. So a kernel must be
    small, or each of its weights used for many pixels.

    Args:
      size: (height, width) of the input.
      kernel: shape of the whole kernel.
    """
    return math.prod(size) >= 64 and kernel[2] * kernel[3] <= 64 * 128
