"""The room of everything about one network, and the models by name.

Examples:
  >>> MODELS["cnn"](num_classes=10, width=0.5).norm
  'none'
"""

from fedjax_prune.models.cnn import CNN, FEMNISTCNN, DropoutCNN, TwoCNN
from fedjax_prune.models.linear import LogisticRegression
from fedjax_prune.models.lstm import NextCharLSTM
from fedjax_prune.models.resnet import ResNet32
from fedjax_prune.models.resnet9 import ResNet9
from fedjax_prune.models.vgg import VGG11

MODELS = {
    "vgg11": VGG11,
    "resnet32": ResNet32,
    "cnn": CNN,
    "dropout_cnn": DropoutCNN,
    "two_cnn": TwoCNN,
    "femnist_cnn": FEMNISTCNN,
    "resnet9": ResNet9,
    "next_char_lstm": NextCharLSTM,
    "logistic_regression": LogisticRegression,
}
"""Name -> model class, called as `MODELS[name](num_classes, ...)`."""
