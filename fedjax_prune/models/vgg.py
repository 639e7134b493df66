"""VGG-11 for small images."""

from typing import ClassVar

from fedjax_prune.models.plain import HALVE, PlainNetwork, Plan, Stage


class VGG11(PlainNetwork):
    """Eight convolutions, which can be gated, and three dense layers.

    It reads images [batch_size, height, width, channels] float whose sides are
    multiples of 32. At width 1 on 32x32x3 images it has 9,750,922 parameters without
    norm. Dropout is before each hidden dense layer. The attributes are those of
    PlainNetwork.

    Raises:
      ValueError: if an attribute is out of range.

    References:
      Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image
      Recognition, ICLR 2015, table 1 A, https://arxiv.org/abs/1409.1556; dense
      layers as in Li et al., Federated Learning on Non-IID Data Silos,
      https://arxiv.org/abs/2102.02079.

    Examples:
      >>> layer = VGG11(10, width=0.25).layers((32, 32, 3))[0]
      >>> layer.name, layer.out_channels
      ('conv1', 16)
    """

    dropout: float = 0.5

    plan: ClassVar[Plan] = Plan(
        stages=(
            Stage(64, HALVE),
            Stage(128, HALVE),
            Stage(256),
            Stage(256, HALVE),
            Stage(512),
            Stage(512, HALVE),
            Stage(512),
            Stage(512, HALVE),
        ),
        hidden=(512, 512),
        drops=(1.0, 1.0, 0.0),
        least=32,
        multiple=32,
    )
