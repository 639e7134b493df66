"""The algorithm that README adds, against numpy, and on clients that disagree."""

import jax
import numpy as np

from fedjax_prune.engine import store
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.types import RoundInputs
from tests import toys
from tests.feddyn import feddyn

SIZES = (4, 7, 2, 6)
LR, EPOCHS, ALPHA = 0.1, 3, 0.4


def build(epochs=EPOCHS):
    solver = make_solver(epochs=epochs, batch_size=8, lr=LR, lr_schedule="constant")
    return feddyn(toys.quadratic_task(3), solver, make_server_tx(), alpha=ALPHA)


def play(algorithm, dataset, cohorts):
    key = jax.random.key(3)
    state = algorithm.init(key)
    rows = store.create(algorithm.row(key), len(SIZES))
    run = jax.jit(algorithm.round)
    for ids in cohorts:
        cohort = toys.contiguous_cohort(SIZES, ids, width=7)
        taken = store.take(rows, cohort.client_ids)
        state, taken, _ = run(RoundInputs(state, taken, dataset, cohort, key))
        rows = store.put(rows, cohort.client_ids, taken)
    return state, rows


def test_feddyn_equals_numpy():
    dataset, bowls = toys.quadratic_dataset(SIZES, 3)
    algorithm, cohorts = build(), [[0, 2], [1, 2], [0, 3]]
    w = np.asarray(algorithm.init(jax.random.key(3)).params["w"], np.float64)
    h, h_k = np.zeros(3), np.zeros((4, 3))
    for ids in cohorts:
        ends = []
        for k in ids:
            curvature, centre = bowls[k]
            w_k = w.copy()
            for _ in range(EPOCHS):
                gradient = curvature * (w_k - centre)
                w_k = w_k - LR * (gradient - h_k[k] + ALPHA * (w_k - w))
            h_k[k] = h_k[k] - ALPHA * (w_k - w)
            ends.append(w_k)
        h = h - ALPHA / 4 * sum(end - w for end in ends)
        w = np.mean(ends, axis=0) - h / ALPHA
    state, rows = play(algorithm, dataset, cohorts)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.server["w"], h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows.client["w"], h_k, rtol=1e-5, atol=1e-6)


def test_feddyn_reaches_the_optimum_of_the_mean_loss():
    """Where FedAvg with several local steps stops short of it."""
    dataset, bowls = toys.quadratic_dataset(SIZES, 3)
    curvatures, centres = (np.stack(x) for x in zip(*bowls, strict=True))
    optimum = (curvatures * centres).sum(0) / curvatures.sum(0)
    state, _ = play(build(epochs=20), dataset, [[0, 1, 2, 3]] * 60)
    np.testing.assert_allclose(state.params["w"], optimum, atol=1e-3)
