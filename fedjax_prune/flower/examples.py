"""The examples of a node: by the configuration, its client's share of the data set."""

from collections.abc import Callable
from typing import NamedTuple

from fedjax_prune.data.datasets import DataError
from fedjax_prune.runs.experiment import RunData, load_data
from fedjax_prune.runs.learning import data_info, image_shape_of
from fedjax_prune.types import Config, Dataset


class Examples(NamedTuple):
    """What a node holds.

    Attributes:
      train: its training examples, at least one, as numpy arrays.
      validation: its validation examples, at least one; None if it has none.
    """

    train: Dataset
    validation: Dataset | None = None

    def check(self, config: Config) -> None:
        """Refuses examples that the network of a configuration cannot read.

        Raises:
          DataError: if there is none, or a shape, a dtype or a label is wrong.
        """
        shape, num_classes = image_shape_of(config), data_info(config).num_classes
        parts = {"training": self.train, "validation": self.validation}
        for name, part in parts.items():
            if part is None:
                continue
            images, labels = part
            dtypes = [str(images.dtype), str(labels.dtype)]
            if (
                images.shape != (len(labels), *shape)
                or not len(labels)
                or dtypes not in (["uint8", "int32"], ["float32", "int32"])
            ):
                wanted = ", ".join(str(n) for n in shape)
                raise DataError(
                    f"{name} examples must be at least one, images [count, {wanted}] "
                    f"uint8 or float32 and labels [count] int32, got {dtypes[0]}"
                    f"{list(images.shape)} and {dtypes[1]}{list(labels.shape)}."
                )
            if labels.min() < 0 or labels.max() >= num_classes:
                raise DataError(
                    f"{name} labels must be in [0, {num_classes}), got "
                    f"{labels.min()} to {labels.max()}."
                )


def named_classes(config: Config) -> str:
    """The names of the user's own classes in their order, joined; else empty.

    Labels are places among them, so a node and its server must have the same.
    """
    return ", ".join(config.data.classes)


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
    data = _data_of(config)
    validation = data.validation_of(client_id)
    return Examples(
        data.training_of(client_id), validation if len(validation.labels) else None
    )


_LOADED: dict[str, RunData] = {}
"""The configuration whose data were read last, as JSON -> these data. A process of a
simulation is many nodes, one after another."""


def _data_of(config: Config) -> RunData:
    name = config.to_json_best_effort()
    if name not in _LOADED:
        data = load_data(config)
        _LOADED.clear()
        _LOADED[name] = data
    return _LOADED[name]
