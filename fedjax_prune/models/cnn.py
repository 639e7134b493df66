"""Small networks of two convolutions and two dense layers."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.models.blocks import XavierDense
from fedjax_prune.models.initializers import xavier
from fedjax_prune.models.plain import HALVE, PlainNetwork, Plan, Pool, Stage
from fedjax_prune.models.pooling import max_pool


class CNN(PlainNetwork):
    """A network for tests and quick runs, with 3x3 convolutions and 2x2 max-pools.

    It reads images [batch_size, height, width, channels] float of at least 4x4. Dropout
    is before the last dense layer. The attributes are those of PlainNetwork.

    Raises:
      ValueError: if an attribute is out of range.

    Examples:
      >>> model = CNN(10, width=0.5, gates=fedjax_prune.GateSettings(keep_ratio=0.5))
      >>> [layer.kept_out for layer in model.layers((8, 8, 1))]
      [4, 8, 32, 10]
    """

    plan: ClassVar[Plan] = Plan(
        stages=(Stage(16, HALVE), Stage(32, HALVE)),
        hidden=(64,),
        drops=(0.0, 1.0),
        least=4,
    )


class DropoutCNN(PlainNetwork):
    """The common network of federated benchmarks, with unpadded 3x3 convolutions.

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
    """Takes the maximum of 2x2 windows of maps with one more pixel on each side."""
    sides = ((0, 0),) * (x.ndim - 3) + ((1, 1), (1, 1), (0, 0))
    return max_pool(jnp.pad(x, sides, constant_values=-jnp.inf))


def _mean_to_seven(x: jax.Array) -> jax.Array:
    """Makes maps [..., 7, 7, channels] of means of overlapping windows.

    Pixel i is the mean of rows floor(i n / 7) to ceil((i + 1) n / 7) - 1 of n, as in
    PyTorch's adaptive pool.
    """
    *batch, height, width, channels = x.shape
    if height == width == 7:
        return x
    # There are few pixels, so one product costs less than passes over the maps.
    weights = np.kron(_means(height), _means(width))
    x = x.reshape(*batch, height * width, channels)
    x = jnp.tensordot(jnp.asarray(weights, x.dtype), x, (1, x.ndim - 2))
    return jnp.moveaxis(x, 0, -2).reshape(*batch, 7, 7, channels)


def _means(length: int) -> np.ndarray:
    """Gives the weights [7, length] of a row's pixels in the seven means."""
    weights = np.zeros((7, length))
    for i in range(7):
        first, end = i * length // 7, -(-(i + 1) * length // 7)
        weights[i, first:end] = 1 / (end - first)
    return weights


_PADDED = Pool(_padded_pool, lambda n: n // 2 + 1)
_TO_SEVEN = Pool(lambda x: _mean_to_seven(_padded_pool(x)), lambda n: 7)


class TwoCNN(PlainNetwork):
    """AutoFLIP's network of 5x5 convolutions, padded max-pools and means to 7x7 maps.

    On 24x24 images with 10 classes it has 1,663,370 parameters with one channel and
    1,664,970 with three; with 100 classes, width 4 and three channels it has 7,303,524.
    The width multiplies channels only. Dropout is before the last dense layer. Kernels
    start Xavier normal and biases at 0.

    References:
      https://github.com/ChristianInterno/AutoFLIP.
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

    On 28x28x1 images with 62 classes it has 13,180,734 parameters. Maps of such images
    are 7x7 before the means.
    """

    plan: ClassVar[Plan] = TwoCNN.plan._replace(
        stages=(Stage(64, _PADDED), Stage(128, _TO_SEVEN)), hidden=(2048,)
    )
