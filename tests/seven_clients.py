"""SCAFFOLD on seven unequal clients, with a linear or a gated model, on any devices."""

import functools
from typing import ClassVar

import jax
import numpy as np

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.data.population import to_population
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.dealing import make_cohort
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.placing import put_cohort, put_whole
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.plain import HALVE, PlainNetwork, Plan, Stage
from fedjax_prune.models.task import make_task
from fedjax_prune.types import (
    ClientState,
    Cohort,
    Dataset,
    RoundInputs,
    ServerState,
    Sums,
    Task,
)
from tests import toys

# Clients of several batches, of one that is partly padded, and of one example.
SIZES = (5, 12, 1, 8, 3, 9, 2)
RUN = dict(epochs=2, batch_size=4)
SHAPE = (4, 4, 1)
SOLVER = make_solver(lr=0.2, momentum=0.9, weight_decay=0.01, **RUN)
SERVER_TX = make_server_tx("momentum")


class TwoConvolutions(PlainNetwork):
    """The second convolution reads 8 channels at width 1: `lax` convolves on a CPU."""

    plan: ClassVar[Plan] = Plan(
        stages=(Stage(8), Stage(8, HALVE)), hidden=(), drops=(1.0,), least=2
    )


def gated_task(shape=SHAPE, *, width=1.0, dropout=0.0) -> Task:
    """A gated network with batch norm."""
    gates = GateSettings(0.5)
    network = TwoConvolutions(3, width, norm="bn", gates=gates, dropout=dropout)
    return make_task(network, shape, lasso_weight=1e-3)


TASKS = {
    "linear": functools.partial(toys.linear_task, SHAPE, 3),
    "gated": gated_task,
    "dropout": functools.partial(gated_task, dropout=0.5),
}


def dataset(shape=SHAPE) -> Dataset:
    return toys.image_dataset(sum(SIZES), shape, 3)


def draw_cohort(placement: Placement, ids, num_lanes=2, width=None) -> Cohort:
    """Makes a cohort; `width` is that of its padded indices."""
    parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    population = to_population(parts, num_examples=sum(SIZES))
    ids = np.array(ids)
    cohort = make_cohort(population, ids, num_lanes, placement=placement, **RUN)
    missing = 0 if width is None else width - cohort.indices.shape[1]
    return cohort._replace(indices=np.pad(cohort.indices, ((0, 0), (0, missing))))


@functools.cache
def algorithm(model: str) -> FederatedAlgorithm:
    """SCAFFOLD on the model of one of TASKS."""
    return ALGORITHMS["scaffold"](TASKS[model](), SOLVER, SERVER_TX)


@functools.cache
def compiled(model: str, placement: Placement):
    """One program for all tests with this placement and these shapes."""
    chosen = algorithm(model)
    return jax.jit(lambda inputs: chosen.round(inputs, placement))


@functools.cache
def start(model: str) -> tuple[ServerState, ClientState]:
    """The state before the first round and the rows of all clients, on the host."""
    return jax.device_get(toys.first(algorithm(model), len(SIZES), jax.random.key(3)))


def rounds(
    model: str, placement: Placement, cohort: Cohort, *, begin=None, numbers=range(2)
) -> tuple[tuple[ServerState, ClientState], Sums]:
    """Rounds with these numbers.

    Returns:
      The state and the rows of all clients, on the host, and the last sums.
    """
    state, rows = begin or start(model)
    rows = toys.store_of(rows, placement)
    state, data = put_whole(placement, (state, dataset()))
    for number in numbers:
        key = put_whole(placement, jax.random.fold_in(jax.random.key(9), number))
        taken = rows.take(cohort.client_ids)
        inputs = RoundInputs(state, taken, data, put_cohort(placement, cohort), key)
        state, taken, sums = compiled(model, placement)(inputs)
        rows.put(cohort.client_ids, taken)
    return (jax.device_get(state), toys.all_rows(rows, placement)), sums
