"""FedDP on handwritten digits: embedded data, about a minute on two CPU cores.

    python -m fedjax_prune train --config=quickstart --workdir=runs/quickstart

Ten clients have very different shares of the ten digits (Dirichlet 0.1). All of them
take part in every round, and gates prune half of the multiplications. The result is
drawn in configs/quickstart.png.
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
