"""One small problem for every algorithm: five unequal clients, a linear model."""

import functools

import jax

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.types import ClientState, Dataset, ServerState
from tests import toys

SHAPE = (3, 3, 1)
NUM_CLASSES = 3
SIZES = (5, 12, 1, 8, 3)
EXPLORE = {"explore_epochs": 3, "threshold": 0.2}
FIELDS = {
    "autoflip": EXPLORE,
    "random_pruning": EXPLORE,
    "prunefl": {"max_adjustments": 2, "adjust_every": 2, "byte_time": 1e-3},
    "fedsnip": {"threshold": 0.2},
    "magnitude": {"threshold": 0.2},
    "random_steps": {"ratio": 0.1},
    # The linear model has no channels that could be removed.
    "eflprune": {"channel_share": 0.0},
}


SOLVER = make_solver(epochs=2, batch_size=4, lr=0.5, momentum=0.5)
SERVER_TX = make_server_tx("momentum", lr=0.7)


@functools.cache
def build(
    name: str, *, model_task=None, solver=SOLVER, server_tx=SERVER_TX, **fields
) -> FederatedAlgorithm:
    """An algorithm, by default on the linear model; fields replace those of FIELDS."""
    fields = FIELDS.get(name, {}) | fields
    return ALGORITHMS[name](model_task or task(), solver, server_tx, **fields)


@functools.cache
def task():
    return toys.linear_task(SHAPE, NUM_CLASSES)


@functools.cache
def dataset_of_clients() -> Dataset:
    return jax.device_put(toys.image_dataset(sum(SIZES), SHAPE, NUM_CLASSES))


@functools.cache
def begin(algorithm: FederatedAlgorithm) -> tuple[ServerState, ClientState]:
    """The state before the first round, after the preparation if there is one."""
    key = jax.random.key(0)
    if algorithm.prepare is None:
        return toys.first(algorithm, len(SIZES), key)
    ids = list(range(algorithm.prepare.num_clients(len(SIZES))))
    cohort = toys.contiguous_cohort(SIZES, ids, num_lanes=2)
    return toys.prepare(algorithm, dataset_of_clients(), cohort, key)[:2]
