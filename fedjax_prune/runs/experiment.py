"""The parts of a run: what it learns with, and its data, which are loaded here."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from fedjax_prune.data.by_client import load_by_client
from fedjax_prune.data.datasets import DATASETS, DataError, resolve_count
from fedjax_prune.data.hashes import hash_arrays
from fedjax_prune.data.load import count_examples, load, resize
from fedjax_prune.data.own_splits import Facts, count_pictures, load_own
from fedjax_prune.data.padded import Padded, pad_clients, table_of
from fedjax_prune.data.partition import partition
from fedjax_prune.data.population import from_sizes, places, sizes_of
from fedjax_prune.data.synthetic import client_sizes, generate, num_test_examples
from fedjax_prune.data.validation import (
    OF_CLIENTS,
    OF_DEALT,
    SIZE,
    holdout,
    matched_test,
    require_matched,
)
from fedjax_prune.runs.data_memory import (
    check_generated,
    check_pictures,
    check_size,
)
from fedjax_prune.runs.learning import Learning, data_info
from fedjax_prune.runs.settings import told_of
from fedjax_prune.types import Config, Dataset, Population

_Parts = tuple[Dataset, Dataset, Population, Callable[[np.ndarray], Padded]]


class RunData(NamedTuple):
    """The examples of a run and who holds them, all numpy.

    Attributes:
      train: training examples.
      test: test examples, cut to `eval.num_examples`.
      population: who holds which training examples.
      validation: [count] client ids -> a table of their validation sets; indices into
        `test`, or into `train` if they are held out.
      held_out: whether validation sets are training images, as `data.local_val` says.
      hashes: of `train`, `test` and `population`, by these names.
    """

    train: Dataset
    test: Dataset
    population: Population
    validation: Callable[[np.ndarray], Padded]
    held_out: bool
    hashes: Mapping[str, str] = {}

    def training_of(self, client: int) -> Dataset:
        """The training examples of a client, numpy."""
        return self.train.at(self.population.of(client))

    def validation_of(self, client: int) -> Dataset:
        """The validation set of a client, numpy; it may be empty."""
        table = self.validation(np.array([client], np.int32))
        own = table.indices[0, : table.sizes[0]]
        return (self.train if self.held_out else self.test).at(own)


class Experiment(NamedTuple):
    """The parts of a run, fixed by its configuration.

    Attributes:
      learning: network, task and algorithm.
      data: examples and clients.
    """

    learning: Learning
    data: RunData

    @property
    def config(self) -> Config:
        """The configuration that both parts are made of."""
        return self.learning.config

    def with_config(self, config: Config) -> "Experiment":
        """The same parts with a configuration whose changes do not affect them."""
        return self._replace(learning=self.learning._replace(config=config))


def load_data(config: Config) -> RunData:
    """Loads the data of a run and deals it to clients.

    Whether resized images fit the memory is known before any image is read; for arrays
    of the user and a data set that comes with its clients, before they are resized.

    Args:
      config: with what the user's own files hold, as `completed` fills it in.

    Raises:
      DataError: if the data set cannot be read.
      SettingsError: if the examples cannot be split as asked or do not fit the memory.
    """
    info = DATASETS[config.data.name]
    if info.own:
        train, test, population, validation = _own(config)
    elif info.generated:
        train, test, population, validation = _generated(config)
        train, test = _resized(config, train, test)
    elif info.by_client:
        train, test, population, validation = _by_client(config)
        if config.data.size:
            check_size(config, len(train.labels) + len(test.labels))
        train, test = _resized(config, train, test)
    else:
        name, folder = config.data.name, config.data.dir
        counts = {
            "num_train": config.data.num_train,
            "num_test": config.eval.num_examples,
        }
        if config.data.size:
            check_size(config, sum(count_examples(name, folder, **counts)))
        train, test = _resized(config, *load(name, folder, **counts))
        population, validation = _split(config, train, test)
    held_out = config.data.local_val == "holdout"
    parts = {"train": train, "test": test, "population": population}
    hashes = {name: hash_arrays(part) for name, part in parts.items()}
    return RunData(
        train=train,
        test=test,
        population=population,
        validation=validation,
        held_out=held_out,
        hashes=hashes,
    )


def _generated(config: Config) -> _Parts:
    """Training examples, test examples, clients, and their validation sets.

    Raises:
      SettingsError: if the examples do not fit the memory; nothing is drawn then.
    """
    data = config.data
    sizes = {"seed": data.seed, "client_size": data.client_size}
    sizes["client_size_sigma"] = data.client_size_sigma
    count = int(client_sizes(data.num_clients, **sizes).sum())
    count += num_test_examples(data.num_clients)
    if data.size:
        check_size(config, count)
    check_generated(config, count)
    train, test, population, validation = generate(
        data.name,
        data.num_clients,
        synthetic_alpha=data.synthetic_alpha,
        synthetic_beta=data.synthetic_beta,
        **sizes,
    )
    kept = resolve_count(data.name, "test", config.eval.num_examples, len(test.labels))
    test = test.at(slice(kept))
    return train, test, population, partial(table_of, validation)


def _by_client(config: Config) -> _Parts:
    """Training examples, test examples, clients, and their validation sets."""
    data = config.data
    train, population, validation = load_by_client(
        data.name,
        data.dir,
        data.num_clients,
        num_train=data.num_train,
        seed=data.seed,
    )
    test = _held_out(config, train, validation)
    return train, test, population, partial(table_of, validation)


def _held_out(config: Config, train: Dataset, validation: Population) -> Dataset:
    """The examples that are held out from clients, as a test set."""
    # In random order, because the first ones would all be of the first clients.
    rng = np.random.default_rng((config.data.seed, len(train.labels)))
    held_out = rng.permutation(validation.indices)
    count = config.eval.num_examples
    count = resolve_count(config.data.name, "test", count, len(held_out))
    return train.at(held_out[:count])


def _own(config: Config) -> _Parts:
    """Training examples, test examples, clients, and their validation sets.

    Raises:
      DataError: if there are too few clients.
    """
    data, by_client = config.data, config.data.partitioner == "by_client"
    pictures = data.name == "image_folder"
    facts = Facts(tuple(data.classes), data.image_shape)
    if pictures:
        check_pictures(config, sum(count_pictures(data.dir, facts)))
    train, test, clients = load_own(
        data.name,
        data.dir,
        facts,
        by_client=by_client,
        size=data.size,
        num_train=data.num_train,
        num_test=config.eval.num_examples,
        seed=data.seed,
    )
    if data.size and not pictures:
        for dtype in (part.images.dtype for part in (train, test) if part):
            if dtype != np.uint8:
                raise DataError(
                    f"data.size must be 0 for arrays of {dtype}, because only images "
                    f"of uint8 can be scaled, got {data.size}."
                )
        check_size(config, len(train.labels) + (len(test.labels) if test else 0))
        train = resize(train, data.size)
        test = test and resize(test, data.size)
    if clients is None:
        assert test is not None, "without clients a test set was drawn"
        return train, test, *_split(config, train, test)
    large = np.flatnonzero(clients.sizes > 1)
    if len(large) < data.num_clients:
        raise DataError(
            f"{data.dir} has {len(large)} clients with at least 2 examples: "
            f"data.num_clients must be at most that, got {data.num_clients}."
        )
    drawn = large[np.random.RandomState(data.seed).permutation(len(large))]
    drawn = drawn[: data.num_clients]
    own = clients.indices[places(clients, drawn)]
    everyone = from_sizes(own, sizes_of(clients, drawn))
    population, validation = holdout(everyone, OF_CLIENTS, data.seed)
    test = _held_out(config, train, validation) if test is None else test
    return train, test, population, partial(table_of, validation)


def _resized(config: Config, train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    """Both data sets at `data.size` pixels a side."""
    size = config.data.size
    return (resize(train, size), resize(test, size)) if size else (train, test)


@told_of("data cannot be split")
def _split(
    config: Config, train: Dataset, test: Dataset
) -> tuple[Population, Callable[[np.ndarray], Padded]]:
    """Deals the training examples to clients, and says their validation sets.

    Raises:
      SettingsError: if they cannot be split as asked.
    """
    data, num_classes = config.data, data_info(config).num_classes
    population = partition(
        data.partitioner,
        train.labels,
        data.num_clients,
        seed=data.seed,
        alpha=data.alpha,
        min_size=data.min_size,
        classes_per_client=data.classes_per_client,
    )
    if data.local_val == "holdout":
        population, validation = holdout(population, OF_DEALT, data.seed)
        return population, partial(table_of, validation)
    labels = train.labels, population, test.labels, num_classes
    require_matched(*labels)
    width = min(SIZE, len(test.labels))

    def matched(client_ids: np.ndarray) -> Padded:
        """They are drawn when they are used: a client takes a quarter millisecond."""
        drawn = matched_test(*labels, data.seed, client_ids=client_ids)
        return pad_clients(drawn, np.arange(len(client_ids)), width)

    return population, matched
