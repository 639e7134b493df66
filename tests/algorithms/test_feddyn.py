"""The algorithm of the guide to algorithms, against numpy, on clients that disagree."""

import numpy as np
import pytest

from fedjax_prune.engine.devices import ONE_DEVICE
from fedjax_prune.engine.policy import make_policy
from tests import toys
from tests.feddyn import feddyn
from tests.quadratic import EPOCHS, KEY, LR, NUM_DIMS, build, run_rounds

SIZES = (4, 7, 2, 6)
ALPHA = 0.4


DATASET, BOWLS = toys.quadratic_dataset(SIZES, NUM_DIMS)


def build_feddyn(epochs=EPOCHS):
    return build(feddyn, epochs=epochs, decay=0.0, lr_schedule="constant", alpha=ALPHA)


def play(algorithm, cohorts, placement=ONE_DEVICE):
    cohorts = [toys.contiguous_cohort(SIZES, ids) for ids in cohorts]
    return run_rounds(algorithm, DATASET, cohorts, placement)


def test_feddyn_equals_numpy():
    algorithm, cohorts = build_feddyn(), [[0, 2], [1, 2], [0, 3]]
    w = np.asarray(algorithm.init(KEY).params["w"], np.float64)
    h, h_k = np.zeros(3), np.zeros((4, 3))
    for ids in cohorts:
        ends = []
        for k in ids:
            curvature, centre = BOWLS[k]
            w_k = w.copy()
            for _ in range(EPOCHS):
                gradient = curvature * (w_k - centre)
                w_k = w_k - LR * (gradient - h_k[k] + ALPHA * (w_k - w))
            h_k[k] = h_k[k] - ALPHA * (w_k - w)
            ends.append(w_k)
        h = h - ALPHA / 4 * sum(end - w for end in ends)
        w = np.mean(ends, axis=0) - h / ALPHA
    state, rows = play(algorithm, cohorts)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.server["w"], h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows.client["w"], h_k, rtol=1e-5, atol=1e-6)


def optimum():
    curvatures, centres = (np.stack(x) for x in zip(*BOWLS, strict=True))
    return (curvatures * centres).sum(0) / curvatures.sum(0)


def test_feddyn_reaches_the_optimum_of_the_mean_loss():
    """Where FedAvg with several local steps stops short of it."""
    state, _ = play(build_feddyn(epochs=20), [[0, 1, 2, 3]] * 60)
    np.testing.assert_allclose(state.params["w"], optimum(), atol=1e-3)


@pytest.mark.parametrize(
    "fields", [{"aggregator": "norm_clipping"}, {"on_bad_client": "clip"}]
)
def test_feddyn_reaches_it_although_its_first_messages_are_scaled(fields):
    placement = ONE_DEVICE._replace(policy=make_policy(clip_norm=0.5, **fields))
    cohorts = [[0, 1, 2, 3]] * 150
    state, rows = play(build_feddyn(epochs=20), cohorts, placement)
    np.testing.assert_allclose(state.params["w"], optimum(), atol=1e-3)
    mean = np.asarray(rows.client["w"]).mean(axis=0)
    np.testing.assert_allclose(state.server["w"], mean, atol=1e-4)
