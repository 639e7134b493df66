"""The examples of a node: by the configuration, its client's share of the data set."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_prune.runs.experiment import load_data
from fedjax_prune.types import Config, Dataset


class Examples(NamedTuple):
    """What a node holds.

    Attributes:
      train: its training examples, at least one.
      validation: its validation examples, at least one; None if it has none.
    """

    train: Dataset
    validation: Dataset | None = None


Load = Callable[[Config, int], Examples]
"""(configuration, client id) -> the examples of that client."""


def load_share(config: Config, client_id: int) -> Examples:
    """Takes the examples that a simulation with this configuration deals to a client.

    Args:
      config: with what the user's own files hold.
      client_id: in [0, data.num_clients).

    Raises:
      DataError: if the data set cannot be read.
      SettingsError: if the examples cannot be split as asked.
    """
    data = load_data(config)
    own = data.population.of(client_id)
    table = data.validation(np.array([client_id], np.int32))
    checked = table.indices[0, : table.sizes[0]]
    held = data.train if data.held_out else data.test
    return Examples(
        Dataset(data.train.images[own], data.train.labels[own]),
        Dataset(held.images[checked], held.labels[checked]),
    )
