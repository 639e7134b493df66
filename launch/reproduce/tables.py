"""The tables of results: which runs answer which question."""

from collections.abc import Mapping

from .feddp import CIFAR10, DIGITS_GATES, MNIST
from .table import Table

TABLES: Mapping[str, Mapping[str, Table]] = {
    "gates": {"cpu": DIGITS_GATES},
    "feddp_mnist": {"cpu": MNIST},
    "feddp_cifar10": {"cpu": CIFAR10},
}
"""Name -> scale -> table."""
