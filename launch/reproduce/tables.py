"""The tables of results: which runs answer which question."""

from collections.abc import Mapping

from .feddp import ABLATIONS, CIFAR10, DIGITS_GATES, FAULTS, MNIST, PAPER
from .others import SYNTHETIC, W1
from .table import Table

TABLES: Mapping[str, Mapping[str, Table]] = {
    "gates": {"cpu": DIGITS_GATES},
    "feddp_mnist": {"cpu": MNIST},
    "feddp_cifar10": {"cpu": CIFAR10, "gpu": PAPER},
    "scaffold": {"cpu": FAULTS},
    "ablations": {"cpu": ABLATIONS},
    "w1": {"cpu": W1, "gpu": W1},
    "synthetic": {"cpu": SYNTHETIC},
}
"""Name -> scale -> table."""
