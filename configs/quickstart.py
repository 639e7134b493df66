"""FedDP on handwritten digits: embedded data, about a minute on two CPU cores.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart

Ten clients with very different shares of the ten digits (Dirichlet 0.1), all in
every round, half of the multiplications pruned.
"""

from typing import Any

from . import base


def get_config() -> Any:
    """The quick start."""
    config = base.get_config("scaffold")
    config.rounds = 60
    config.lanes = 1
    config.eval.every = 10
    config.eval.target_accuracy = 0.8
    config.data.name = "digits"
    config.data.augment = "none"
    config.model.name = "cnn"
    config.model.norm = "bn"
    config.model.dropout = 0.0
    config.client.epochs = 2
    config.client.batch_size = 16
    return config
