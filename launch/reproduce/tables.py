"""The tables of results: which runs answer which question."""

from collections.abc import Mapping

from . import autoflip
from .accelerator import ACCELERATOR
from .costs import COSTS
from .feddp import ABLATIONS, CIFAR10, DIGITS_GATES, FAULTS, MNIST
from .others import SYNTHETIC, W1
from .table import Table

TABLES: Mapping[str, Mapping[str, Table]] = {
    "gates": {"cpu": DIGITS_GATES},
    "feddp_mnist": {"cpu": MNIST},
    "feddp_cifar10": {"cpu": CIFAR10},
    "scaffold": {"cpu": FAULTS},
    "ablations": {"cpu": ABLATIONS},
    "costs": {"cpu": COSTS},
    "autoflip_mnist": {"cpu": autoflip.MNIST},
    "autoflip_cifar10": {"cpu": autoflip.CIFAR10},
    "autoflip_shakespeare": {"cpu": autoflip.SHAKESPEARE},
    "w1": {"cpu": W1},
    "accelerator": {"gpu": ACCELERATOR},
    "synthetic": {"cpu": SYNTHETIC},
}
"""Name -> scale -> table."""
