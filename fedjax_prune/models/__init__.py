"""The models, by name."""

from fedjax_prune.models.cnn import CNN
from fedjax_prune.models.dropout_cnn import DropoutCNN
from fedjax_prune.models.resnet import ResNet32
from fedjax_prune.models.vgg import VGG11

MODELS = {
    "vgg11": VGG11,
    "resnet32": ResNet32,
    "cnn": CNN,
    "dropout_cnn": DropoutCNN,
}
