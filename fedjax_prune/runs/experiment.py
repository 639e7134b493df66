"""From a configuration to the parts of a run: data, clients, tasks, algorithm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.models import costs
from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.data.augment import AUGMENTATIONS, TO_INPUT, make_augment
from fedjax_prune.data.by_client import load_by_client
from fedjax_prune.data.datasets import DATASETS, resolve_count
from fedjax_prune.data.load import load, resize
from fedjax_prune.data.partition import partition
from fedjax_prune.data.validation import holdout, matched_test
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models import MODELS
from fedjax_prune.models.precision import PRECISIONS
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.engine.solver import LocalSolver, make_solver
from fedjax_prune.models.task import make_task
from fedjax_prune.types import (
    ClientState,
    Config,
    Dataset,
    Population,
    ServerState,
    Task,
    Tree,
)


class Experiment(NamedTuple):
    """The parts of a run, fixed by its configuration.

    Attributes:
      train: training examples, numpy.
      test: test examples, numpy, cut to `eval.num_examples`.
      population: who holds which training examples.
      validation: each client's validation set; indices into `test`, or into `train`
        if `data.local_val` is holdout.
      model: the network as trained, gated or plain, one of MODELS.
      task: of that network.
      dense_task: of the same network without gates, on the same params.
      held_out: whether validation sets are training images, as `data.local_val` says.
      solver: local training.
      algorithm: the federated algorithm.
    """

    train: Dataset
    test: Dataset
    population: Population
    validation: Population
    held_out: bool
    model: Any
    task: Task
    dense_task: Task
    solver: LocalSolver
    algorithm: FederatedAlgorithm


def build(config: Config) -> Experiment:
    """Loads the data and builds everything that does not change during a run.

    Args:
      config: already checked.

    Returns:
      The experiment.

    Raises:
      DataError: if the data set cannot be read.
      SettingsError: if the examples cannot be split as asked, or the network cannot
        read images of that size or lacks the layers that the algorithm names.
    """
    info = DATASETS[config.data.name]
    try:
        learning = _learning(config, make_model(config))
    except ValueError as error:
        raise SettingsError([f"model, data and algorithm: {error}"]) from error
    if info.by_client:
        train, population, validation = _by_client(config)
        # In random order, so that the first so many are not of the first clients.
        rng = np.random.default_rng((config.data.seed, len(train.labels)))
        held_out = rng.permutation(_held_out(validation))
        count = config.eval.num_examples
        count = resolve_count(config.data.name, "test", count, len(held_out))
        held_out = held_out[:count]
        test = Dataset(train.images[held_out], train.labels[held_out])
    else:
        train, test = load(
            config.data.name,
            config.data.dir,
            num_train=config.data.num_train,
            num_test=config.eval.num_examples,
        )
    if config.data.size:
        train, test = (resize(part, config.data.size) for part in (train, test))
    if not info.by_client:
        try:
            population, validation = split(config, train, test, info.num_classes)
        except ValueError as error:
            raise SettingsError([f"data cannot be split: {error}"]) from error
    return Experiment(
        train=train,
        test=test,
        population=population,
        validation=validation,
        held_out=config.data.local_val == "holdout",
        **learning,
    )


def _learning(config: Config, model: Any) -> dict[str, Any]:
    """The fields of an experiment that depend on its network."""
    task, solver = task_of(config, model), make_solver(**config.client)
    fields = dict(config.algorithm)
    algorithm = ALGORITHMS[fields.pop("name")](
        task, solver, make_server_tx(**config.server), **fields
    )
    return {
        "model": model,
        "task": task,
        "dense_task": task_of(config, model.clone(gates=None)),
        "solver": solver,
        "algorithm": algorithm,
    }


def task_of(config: Config, model: Any) -> Task:
    """The task of a network, with the augmentation that `config.data` asks for."""
    info, image_shape = DATASETS[config.data.name], image_shape_of(config)
    augment = None
    if config.data.augment != "none":
        fields = AUGMENTATIONS[config.data.augment]
        augment = make_augment(image_shape, **{"flip": info.flip} | fields)
    return make_task(
        model,
        image_shape,
        to_input=TO_INPUT[info.kind],
        augment=augment,
        normalize=config.data.normalize,
        lasso_weight=config.model.lasso_weight,
    )


def with_model(config: Config, experiment: Experiment, model: Any) -> Experiment:
    """The same experiment with another network."""
    return experiment._replace(**_learning(config, model))


def _by_client(config: Config) -> tuple[Dataset, Population, Population]:
    """Training examples, whose they are, and each client's held-out ones."""
    data = config.data
    return load_by_client(
        data.name,
        data.dir,
        data.num_clients,
        num_train=data.num_train,
        seed=data.seed,
    )


def _held_out(validation: Population) -> np.ndarray:
    """All clients' held-out examples, one after another."""
    real = np.arange(validation.indices.shape[1]) < validation.sizes[:, None]
    return validation.indices[real]


def split(
    config: Config, train: Dataset, test: Dataset, num_classes: int
) -> tuple[Population, Population]:
    """Deals the training examples to clients and makes their validation sets."""
    data = config.data
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
        return holdout(population, 0.2, data.seed)
    validation = matched_test(
        train.labels, population, test.labels, num_classes, data.seed
    )
    return population, validation


def make_model(config: Config) -> Any:
    """The network that `config.model` describes, for the images of `config.data`."""
    info, fields = DATASETS[config.data.name], config.model
    image_shape = image_shape_of(config)
    model = MODELS[fields.name](
        num_classes=info.num_classes,
        width=fields.width,
        norm=fields.norm,
        dropout=fields.dropout,
        dtype=PRECISIONS[config.precision].dtype,
    )
    if not fields.gated:
        return model
    gates = GateSettings(
        keep_ratio=1.0,
        mode=fields.gate_mode,
        rescale=fields.gate_rescale,
        bias=fields.gate_bias,
        first=fields.gate_first,
        resnet=fields.resnet_gating,
    )
    keep_ratio = fields.keep_ratio or costs.keep_ratio_for(
        model.clone(gates=gates), image_shape, fields.flops_target
    )
    return model.clone(gates=gates._replace(keep_ratio=keep_ratio))


def image_shape_of(config: Config) -> tuple[int, int, int]:
    """(height, width, channels) of the images that the network reads."""
    height, width, channels = DATASETS[config.data.name].image_shape
    return config.data.size or height, config.data.size or width, channels


def start(config: Config, experiment: Experiment) -> tuple[ServerState, ClientState]:
    """The state before the first round, and the row of a client never seen."""
    key = init_key(config)
    return experiment.algorithm.init(key), experiment.algorithm.row(key)


def own_personal(
    config: Config, experiment: Experiment
) -> Callable[[jax.Array], Tree] | None:
    """What each client's personal parameters are before the first round.

    Returns:
      client id [] int32 -> personal parameters, if `model.gate_init` is per_client;
      else None: all clients start with those of the row that `start` gives.
    """
    if config.model.gate_init != "per_client":
        return None

    def draw(client_id: jax.Array) -> Tree:
        key = jax.random.fold_in(init_key(config), client_id)
        return experiment.task.init(key).personal

    return draw


def init_key(config: Config) -> jax.Array:
    """The key of everything drawn before round 1; rounds use other ones."""
    return jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
