"""Quadratic clients: algorithms on them, their rounds, and a client's path in numpy."""

import functools

import jax
import numpy as np

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.devices import ONE_DEVICE
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.types import Dataset
from tests import toys

NUM_DIMS = 3
SIZES = (4, 7, 2)
LR, EPOCHS, DECAY = 0.1, 3, 0.01
# One batch an epoch for every client, so that numpy need not know the order.
BATCH_SIZE = 8
SERVER_TX = make_server_tx()
KEY = jax.random.key(3)


@functools.cache
def problem() -> tuple[Dataset, list]:
    """The examples of all clients, and each client's bowl."""
    return toys.quadratic_dataset(SIZES, NUM_DIMS)


@functools.cache
def build(
    name,
    *,
    momentum=0.0,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    decay=DECAY,
    lr_schedule="cosine_epoch",
    server_tx=SERVER_TX,
    **fields,
) -> FederatedAlgorithm:
    """An algorithm, by its name or by its builder."""
    solver = make_solver(
        epochs=epochs,
        batch_size=batch_size,
        lr=LR,
        momentum=momentum,
        weight_decay=decay,
        lr_schedule=lr_schedule,
    )
    builder = ALGORITHMS.get(name, name)
    return builder(toys.quadratic_task(NUM_DIMS), solver, server_tx, **fields)


def local_path(bowl, start, correction, anchor_pull=0.0, momentum=0.0):
    """Numpy: the client's parameters, step mass and step-weighted mean gradient."""
    h, centre = bowl
    w, buffer, mass, mass_buffer = start.copy(), 0.0, 0.0, 0.0
    gradients, steps = [], []
    for epoch in range(EPOCHS):
        eta = LR * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2
        gradient = h * (w - centre) + DECAY * w + anchor_pull * (w - start)
        buffer = momentum * buffer + gradient + correction
        mass_buffer = momentum * mass_buffer + 1
        w = w - eta * buffer
        mass += eta * mass_buffer
        gradients.append(gradient)
        steps.append(eta)
    # a_j: every step size through which gradient j still acts.
    a = [
        sum(steps[s] * momentum ** (s - j) for s in range(j, EPOCHS))
        for j in range(EPOCHS)
    ]
    assert np.isclose(sum(a), mass)
    return w, mass, sum(x * g for x, g in zip(a, gradients, strict=True)) / mass


def run_rounds(algorithm, dataset, cohorts, placement=ONE_DEVICE):
    """The state and the rows after a round with each of these cohorts."""
    run = toys.compiled_round(algorithm, placement)
    state, rows = toys.first(algorithm, int(cohorts[0].num_clients), KEY)
    for number, cohort in enumerate(cohorts):
        key = jax.random.fold_in(jax.random.key(0), number)
        state, rows, _ = run(state, rows, dataset, cohort, key)
    return state, rows


def same_params(first, second, **tolerance):
    """Asserts that two states have the same parameters."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
        first.params,
        second.params,
    )
