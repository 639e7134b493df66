"""Small convolutional networks: two convolutions, two dense layers."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.models.blocks import XavierDense
from fedjax_prune.models.initializers import xavier
from fedjax_prune.models.plain import HALVE, PlainNetwork, Plan, Pool, Stage
from fedjax_prune.models.pooling import max_pool


class CNN(PlainNetwork):
    """For tests and quick runs: 3x3 convolutions, each followed by a 2x2 max-pool.

    Dropout is before the last dense layer.
    """

    plan: ClassVar[Plan] = Plan(
        stages=(Stage(16, HALVE), Stage(32, HALVE)),
        hidden=(64,),
        drops=(0.0, 1.0),
        least=4,
    )


class DropoutCNN(PlainNetwork):
    """The common network of federated benchmarks: 3x3 convolutions without padding.

    At width 1 it has 1,626,442 parameters on 32x32x3 images with 10 classes and
    1,206,590 on 28x28x1 images with 62. Dropout is before the last dense layer and, at
    half the rate, before the hidden one.

    References:
      Reddi et al., Adaptive Federated Optimization, ICLR 2021, table 4,
      https://arxiv.org/abs/2003.00295; on CIFAR-10 in Granqvist et al., pfl-research,
      https://arxiv.org/abs/2404.06430.
    """

    dropout: float = 0.5

    plan: ClassVar[Plan] = Plan(
        stages=(Stage(32), Stage(64, HALVE)),
        hidden=(128,),
        drops=(0.5, 1.0),
        least=6,
        padding=0,
    )


def _padded_pool(x: jax.Array) -> jax.Array:
    """The maximum of 2x2 windows of maps with one more pixel on each side."""
    sides = ((0, 0),) * (x.ndim - 3) + ((1, 1), (1, 1), (0, 0))
    return max_pool(jnp.pad(x, sides, constant_values=-jnp.inf))


def _mean_to_seven(x: jax.Array) -> jax.Array:
    """Means of overlapping windows: maps of [..., height, width, channels] to 7x7.

    Pixel i is the mean of rows floor(i n / 7) to ceil((i + 1) n / 7) - 1 of n, as in
    PyTorch's adaptive pool.
    """
    *batch, height, width, channels = x.shape
    if height == width == 7:
        return x
    # One product: there are few pixels, and each pass over the maps costs more.
    weights = np.kron(_means(height), _means(width))
    x = x.reshape(*batch, height * width, channels)
    x = jnp.tensordot(jnp.asarray(weights, x.dtype), x, (1, x.ndim - 2))
    return jnp.moveaxis(x, 0, -2).reshape(*batch, 7, 7, channels)


def _means(length: int) -> np.ndarray:
    """[7, length], which pixels of a row the seven means are of."""
    weights = np.zeros((7, length))
    for i in range(7):
        first, end = i * length // 7, -(-(i + 1) * length // 7)
        weights[i, first:end] = 1 / (end - first)
    return weights


_PADDED = Pool(_padded_pool, lambda n: n // 2 + 1)
_TO_SEVEN = Pool(lambda x: _mean_to_seven(_padded_pool(x)), lambda n: 7)


class TwoCNN(PlainNetwork):
    """AutoFLIP's: 5x5 convolutions, max-pools with padding, means to 7x7 maps.

    On 24x24 images with 10 classes it has 1,663,370 parameters with one channel and
    1,664,970 with three; with 100 classes, width 4 and three channels 7,303,524. The
    width multiplies channels only. Dropout is before the last dense layer.

    References:
      https://github.com/ChristianInterno/AutoFLIP: kernels Xavier normal, biases 0.
    """

    plan: ClassVar[Plan] = Plan(
        stages=(Stage(32, _PADDED), Stage(64, _TO_SEVEN)),
        hidden=(512,),
        drops=(0.0, 1.0),
        least=6,
        kernel_size=5,
        conv_init=xavier,
        dense=XavierDense,
        widens_hidden=False,
    )


class FEMNISTCNN(PlainNetwork):
    """TwoCNN with twice the channels and 2,048 hidden units.

    On 28x28x1 images with 62 classes it has 13,180,734 parameters; there the maps are
    7x7 without taking means.
    """

    plan: ClassVar[Plan] = TwoCNN.plan._replace(
        stages=(Stage(64, _PADDED), Stage(128, _TO_SEVEN)), hidden=(2048,)
    )
