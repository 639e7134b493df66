"""AutoFLIP on quadratic clients whose parameter stands where a kernel would."""

import functools

import jax
import numpy as np

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.types import Dataset, Task
from tests import toys

NUM_DIMS = 10
SIZES = (4, 7, 2, 5)
LR, BETA = 0.1, 0.6
KEY = jax.random.key(3)
FIELDS = {"explore_epochs": 3, "threshold": 0.4, "min_keep": 0.0}


@functools.cache
def layered_task() -> Task:
    """The quadratic task with its parameter where a kernel would be."""
    task = toys.quadratic_task(NUM_DIMS)

    def inner(variables):
        return variables._replace(params={"w": variables.params["fc"]["kernel"]})

    def init(key):
        first = task.init(key)
        return first._replace(params={"fc": {"kernel": first.params["w"]}})

    return Task(
        init,
        lambda variables, batch, key: task.loss(inner(variables), batch, key),
        task.predict,
        groups=(),
    )


@functools.cache
def build(name="autoflip", *, optimizer="sgd", server="damped", decay=0.0, **fields):
    solver = make_solver(
        epochs=2,
        batch_size=8,
        lr=LR,
        optimizer=optimizer,
        lr_schedule="constant",
        weight_decay=decay,
    )
    server_tx = make_server_tx(server, momentum=BETA)
    return ALGORITHMS[name](layered_task(), solver, server_tx, **fields)


@functools.cache
def problem() -> tuple[Dataset, list]:
    """The examples of all clients, and each client's bowl."""
    return toys.quadratic_dataset(SIZES, NUM_DIMS)


def prepare(algorithm, ids=(0, 1, 2, 3), num_lanes=2):
    """State and rows of all clients after the exploration, and its sums."""
    cohort = toys.contiguous_cohort(SIZES, list(ids), num_lanes=num_lanes)
    return toys.prepare(algorithm, problem()[0], cohort, KEY)


def rounds(algorithm, state, rows, cohorts, dataset=None):
    """State and rows after a round with each of these cohorts, and the last sums."""
    run = toys.compiled_round(algorithm)
    dataset = dataset or problem()[0]
    for number, ids in enumerate(cohorts):
        cohort = toys.contiguous_cohort(SIZES, ids)
        key = jax.random.fold_in(KEY, number)
        state, rows, sums = run(state, rows, dataset, cohort, key)
    return state, rows, sums


def kernel(tree):
    return np.asarray(tree["fc"]["kernel"])


def walk(w, bowl, epochs, mask=1.0):
    h, centre = bowl
    for _ in range(epochs):
        w = w - LR * h * (w - centre) * mask
    return w
