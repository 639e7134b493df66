"""Quadratic clients: algorithms on them, their rounds, and a client's path in numpy."""

import functools

import jax
import numpy as np

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine import store
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.types import RoundInputs
from tests import toys

NUM_DIMS = 3
SIZES = (4, 7, 2)
LR, EPOCHS, DECAY = 0.1, 3, 0.01
# One batch an epoch for every client, so that numpy need not know the order.
BATCH_SIZE = 8


@functools.cache
def build(
    name, *, momentum=0.0, batch_size=BATCH_SIZE, epochs=EPOCHS, decay=DECAY, **fields
):
    task = toys.quadratic_task(NUM_DIMS)
    solver = make_solver(
        epochs=epochs,
        batch_size=batch_size,
        lr=LR,
        momentum=momentum,
        weight_decay=decay,
        lr_schedule=fields.pop("lr_schedule", "cosine_epoch"),
    )
    return task, ALGORITHMS[name](task, solver, make_server_tx(), **fields)


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


def start_of(algorithm, num_clients):
    key = jax.random.key(3)
    state = algorithm.init(key)
    return state, store.create(algorithm.row(key), num_clients)


@functools.cache
def compiled_round(algorithm):
    """One for all tests of an algorithm with the same settings."""

    @jax.jit
    def step(state, rows, dataset, cohort, number):
        taken = store.take(rows, cohort.client_ids)
        key = jax.random.fold_in(jax.random.key(0), number)
        state, taken, _ = algorithm.round(
            RoundInputs(state, taken, dataset, cohort, key)
        )
        return state, store.put(rows, cohort.client_ids, taken)

    return step


def run_rounds(algorithm, dataset, cohorts, num_clients):
    step = compiled_round(algorithm)
    state, rows = start_of(algorithm, num_clients)
    for number, cohort in enumerate(cohorts):
        state, rows = step(state, rows, dataset, cohort, number)
    return state, rows


def same_params(first, second, **tolerance):
    """Asserts that two states have the same parameters."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
        first.params,
        second.params,
    )
