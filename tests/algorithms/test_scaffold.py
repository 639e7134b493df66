"""SCAFFOLD against numpy, its optimum, and the faults of older code."""

import numpy as np
import pytest

from tests import toys
from tests.quadratic import (
    DECAY,
    KEY,
    NUM_DIMS,
    SIZES,
    build,
    local_path,
    problem,
    run_rounds,
    same_params,
)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_equals_numpy_under_partial_participation(momentum):
    """Also: c_k+ is the step-weighted mean gradient, c the mean of all c_k."""
    dataset, bowls = problem()
    algorithm = build("scaffold", momentum=momentum)
    w = np.asarray(algorithm.init(KEY).params["w"], np.float64)
    ids = [(0, 1), (1, 2), (2, 0)]
    cohorts = [toys.contiguous_cohort(SIZES, chosen) for chosen in ids]
    c, c_k = np.zeros(NUM_DIMS), np.zeros((3, NUM_DIMS))
    for done, chosen in enumerate(ids, start=1):
        sizes = np.array([SIZES[k] for k in chosen])
        paths = {
            k: local_path(bowls[k], w, c - c_k[k], momentum=momentum) for k in chosen
        }
        step = sum(
            n / sizes.sum() * (paths[k][0] - w)
            for n, k in zip(sizes, chosen, strict=True)
        )
        change = np.zeros(NUM_DIMS)
        for k in chosen:
            option_two = c_k[k] - c + (w - paths[k][0]) / paths[k][1]
            np.testing.assert_allclose(option_two, paths[k][2], atol=1e-9)
            change += option_two - c_k[k]
            c_k[k] = option_two
        w, c = w + step, c + change / 3
        np.testing.assert_allclose(c, c_k.mean(axis=0), atol=1e-12)
        state, rows = run_rounds(algorithm, dataset, cohorts[:done])
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows.client["w"], c_k, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            state.server.control["w"], rows.client["w"].mean(axis=0), atol=1e-6
        )


def test_scaffold_from_zero_controls_is_fedavg_for_one_round():
    dataset, _ = problem()
    cohorts = [toys.contiguous_cohort(SIZES)]
    fedavg = run_rounds(build("fedavg"), dataset, cohorts)[0]
    scaffold = run_rounds(build("scaffold"), dataset, cohorts)[0]
    same_params(fedavg, scaffold, rtol=0, atol=0)


def optimum(bowls, weights):
    """Minimiser of sum_k weight_k f_k with weight decay: each f_k is quadratic."""
    h = np.stack([bowl[0] for bowl in bowls])
    x = np.stack([bowl[1] for bowl in bowls])
    weights = np.asarray(weights, np.float64)[:, None]
    return (weights * h * x).sum(0) / (weights * (h + DECAY)).sum(0)


def sampled_cohorts(sizes, cohort_size, rounds):
    rng = np.random.default_rng(5)
    return [
        toys.contiguous_cohort(sizes, rng.permutation(len(sizes))[:cohort_size])
        for _ in range(rounds)
    ]


def test_scaffold_reaches_its_own_optimum_where_fedavg_stalls():
    """Forty per cent sampled, unequal sizes and Hessians, several local steps."""
    sizes = (8, 2, 5, 1, 7, 3, 4, 6, 2, 8)
    dataset, bowls = toys.quadratic_dataset(sizes, NUM_DIMS)
    cohorts = sampled_cohorts(sizes, 4, 600)
    by_size = optimum(bowls, sizes)
    uniform = optimum(bowls, np.ones(len(sizes)))
    assert np.abs(by_size - uniform).max() > 0.3

    def distances(name, **fields):
        algorithm = build(name, lr_schedule="constant", **fields)
        state, _ = run_rounds(algorithm, dataset, cohorts)
        w = np.asarray(state.params["w"])
        return np.abs(w - by_size).max(), np.abs(w - uniform).max()

    assert min(distances("fedavg")) > 0.1
    assert distances("scaffold", control_weights="uniform")[1] < 1e-3
    assert distances("scaffold", control_weights="size")[0] < 1e-3


def test_legacy_faults_make_sampled_scaffold_blow_up():
    """Random start r and division by the cohort m: why published curves diverged.

    The server's control is then r + (N/m) (mean of c_k - r) instead of the mean of
    all c_k. The run converges only where the mean gradient is (1 - m/N) r. On bowls
    this point is a shifted optimum. Where the loss is flat, it does not exist, and the
    parameters drift by a step mass in every round. Full participation hides the fault.
    """
    sizes = (8, 2, 5, 1, 7, 3, 4, 6, 2, 8)
    dataset, bowls = toys.quadratic_dataset(sizes, NUM_DIMS)
    images = dataset.images.copy()
    images[:, 1, 2] = 0  # the last direction is flat for every client
    dataset = dataset._replace(images=images)
    legacy = {"control_init": "random_legacy", "control_divisor": "m_legacy"}

    def end(cohorts, **fields):
        algorithm = build("scaffold", lr_schedule="constant", decay=0.0, **fields)
        start = algorithm.init(KEY)
        state, _ = run_rounds(algorithm, dataset, cohorts)
        moved = np.asarray(state.params["w"] - start.params["w"])
        return np.asarray(state.params["w"]), moved, start.server.control["w"]

    short, long = sampled_cohorts(sizes, 4, 100), sampled_cohorts(sizes, 4, 400)
    full = [toys.contiguous_cohort(sizes)] * 100
    curved = slice(0, 2)
    h, x = (np.stack(values)[:, curved] for values in zip(*bowls, strict=True))
    centre = (h * x).sum(0) / h.sum(0)

    w, moved, _ = end(long)
    np.testing.assert_allclose(w[curved], centre, atol=1e-3)
    assert moved[2] == 0
    w, moved, r = end(long, **legacy)
    shifted = centre + (1 - 4 / 10) * r[curved] / h.mean(0)
    np.testing.assert_allclose(w[curved], shifted, atol=1e-2)
    # Four times the rounds, about four times as far.
    assert abs(moved[2]) > 3 * abs(end(short, **legacy)[1][2]) > 3
    np.testing.assert_allclose(end(full, **legacy)[0], end(full)[0], atol=1e-4)
