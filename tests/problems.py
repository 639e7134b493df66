"""One small problem for every algorithm: five unequal clients, a linear model."""

import functools

import jax

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine import store
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.types import ClientState, Dataset, RoundInputs, ServerState
from tests import toys

SHAPE = (3, 3, 1)
NUM_CLASSES = 3
SIZES = (5, 12, 2, 8, 3)
EXPLORE = {"explore_epochs": 3, "threshold": 0.2}
FIELDS = {
    "autoflip": EXPLORE,
    "random_pruning": EXPLORE,
    "prunefl": {"max_adjustments": 2, "adjust_every": 2, "byte_time": 1e-3},
    "fedsnip": {"threshold": 0.2},
    "magnitude": {"threshold": 0.2},
    "random_steps": {"ratio": 0.1},
}


@functools.cache
def build(name: str, **fields) -> FederatedAlgorithm:
    """An algorithm on the linear model; fields replace those of FIELDS."""
    return ALGORITHMS[name](
        task(),
        make_solver(epochs=2, batch_size=4, lr=0.5, momentum=0.5),
        make_server_tx("momentum", lr=0.7),
        **FIELDS.get(name, {}) | fields,
    )


@functools.cache
def task():
    return toys.linear_task(SHAPE, NUM_CLASSES)


@functools.cache
def dataset_of_clients() -> Dataset:
    return jax.device_put(toys.image_dataset(sum(SIZES), SHAPE, NUM_CLASSES))


def begin(algorithm: FederatedAlgorithm) -> tuple[ServerState, ClientState]:
    """The state before the first round, after the preparation if there is one."""
    key = jax.random.key(0)
    state, rows = algorithm.init(key), store.create(algorithm.row(key), len(SIZES))
    if algorithm.prepare is None:
        return state, rows
    ids = list(range(algorithm.prepare.num_clients(len(SIZES))))
    cohort = toys.contiguous_cohort(SIZES, ids, num_lanes=2)
    taken = store.take(rows, cohort.client_ids)
    inputs = RoundInputs(state, taken, dataset_of_clients(), cohort, key)
    state, taken, _ = _compiled_preparation(algorithm)(inputs)
    return state, store.put(rows, cohort.client_ids, taken)


@functools.cache
def _compiled_preparation(algorithm: FederatedAlgorithm):
    assert algorithm.prepare is not None
    return jax.jit(algorithm.prepare.run)
