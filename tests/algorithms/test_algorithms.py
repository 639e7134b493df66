"""Each algorithm against numpy written from its formula, on quadratic clients."""

import functools

import jax
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine import store
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.pruning.costs import traffic
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


@pytest.fixture(scope="module")
def problem():
    return toys.quadratic_dataset(SIZES, NUM_DIMS)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedavg_equals_numpy(problem, momentum):
    dataset, bowls = problem
    _, algorithm = build("fedavg", momentum=momentum)
    w = np.asarray(start_of(algorithm, 3)[0].params["w"], np.float64)
    state, _ = run_rounds(algorithm, dataset, [toys.contiguous_cohort(SIZES)] * 2, 3)
    p = np.array(SIZES) / sum(SIZES)
    for _ in range(2):
        w = sum(
            p_k * local_path(bowl, w, 0.0, momentum=momentum)[0]
            for p_k, bowl in zip(p, bowls, strict=True)
        )
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)


def test_fedprox_equals_numpy(problem):
    dataset, bowls = problem
    _, algorithm = build("fedprox", mu=0.7)
    w = np.asarray(start_of(algorithm, 3)[0].params["w"], np.float64)
    state, _ = run_rounds(algorithm, dataset, [toys.contiguous_cohort(SIZES)], 3)
    p = np.array(SIZES) / sum(SIZES)
    expected = sum(
        p_k * local_path(bowl, w, 0.0, anchor_pull=0.7)[0]
        for p_k, bowl in zip(p, bowls, strict=True)
    )
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5, atol=1e-6)


def test_fednova_equals_numpy_with_unequal_step_mass(problem):
    """Batches of 2: 2, 4 and 1 steps an epoch of identical bowls per client."""
    sizes = (4, 7, 2)
    dataset, _ = toys.quadratic_dataset(sizes, NUM_DIMS)
    # Every example of a client the same bowl, so that the order cannot matter.
    images = np.concatenate(
        [
            np.repeat(dataset.images[start : start + 1], size, axis=0)
            for start, size in zip((0, 4, 11), sizes, strict=True)
        ]
    )
    dataset = dataset._replace(images=images)
    _, algorithm = build("fednova", batch_size=2)
    w0 = np.asarray(start_of(algorithm, 3)[0].params["w"], np.float64)
    state, _ = run_rounds(algorithm, dataset, [toys.contiguous_cohort(sizes)], 3)
    p, deltas, masses = np.array(sizes) / sum(sizes), [], []
    for start, size in zip((0, 4, 11), sizes, strict=True):
        x, h = images[start, 0, :, 0], images[start, 1, :, 0]
        w, mass = w0.copy(), 0.0
        for epoch in range(EPOCHS):
            eta = LR * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2
            for _ in range(-(-size // 2)):
                w = w - eta * (h * (w - x) + DECAY * w)
                mass += eta
        deltas.append(w - w0)
        masses.append(mass)
    masses = np.array(masses)
    expected = w0 + (p @ masses) * (p / masses) @ np.stack(deltas)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_equals_numpy_under_partial_participation(problem, momentum):
    """Also: c_k+ is the step-weighted mean gradient, c the mean of all c_k."""
    dataset, bowls = problem
    _, algorithm = build("scaffold", momentum=momentum)
    w = np.asarray(start_of(algorithm, 3)[0].params["w"], np.float64)
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
        state, rows = run_rounds(algorithm, dataset, cohorts[:done], 3)
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows.client["w"], c_k, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            state.server.control["w"], rows.client["w"].mean(axis=0), atol=1e-6
        )


def test_rows_of_absent_clients_keep_their_bits(problem):
    dataset, _ = problem
    _, algorithm = build("scaffold")
    cohorts = [
        toys.contiguous_cohort(SIZES),
        toys.contiguous_cohort(SIZES, (0, 2)),
    ]
    _, before = run_rounds(algorithm, dataset, cohorts[:1], 3)
    _, after = run_rounds(algorithm, dataset, cohorts, 3)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[1], new[1])
        assert (np.asarray(old[0]) != np.asarray(new[0])).any()


def test_personal_parameters_know_no_control_or_pull(problem):
    """v' = v - eta ((v - 1) + decay v), the same under every algorithm."""
    dataset, _ = problem
    v = 0.0
    for epoch in range(EPOCHS):
        eta = LR * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2
        v -= eta * ((v - 1) + DECAY * v)
    for name in ("fedavg", "fedprox", "fednova", "scaffold"):
        _, algorithm = build(name)
        _, rows = run_rounds(algorithm, dataset, [toys.contiguous_cohort(SIZES)], 3)
        np.testing.assert_allclose(rows.personal["v"], [v] * 3, rtol=1e-5)


def assert_same_params(first, second, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
        first.params,
        second.params,
    )


def test_fedprox_without_pull_is_fedavg_bit_for_bit(problem):
    dataset, _ = problem
    cohorts = [toys.contiguous_cohort(SIZES)] * 2
    fedavg = run_rounds(build("fedavg")[1], dataset, cohorts, 3)[0]
    fedprox = run_rounds(build("fedprox", mu=0.0)[1], dataset, cohorts, 3)[0]
    assert_same_params(fedavg, fedprox, rtol=0, atol=0)


def test_fednova_with_equal_step_mass_is_fedavg(problem):
    dataset, _ = problem
    cohorts = [toys.contiguous_cohort(SIZES)] * 2
    fedavg = run_rounds(build("fedavg")[1], dataset, cohorts, 3)[0]
    fednova = run_rounds(build("fednova")[1], dataset, cohorts, 3)[0]
    assert_same_params(fedavg, fednova, rtol=1e-6)


def test_scaffold_from_zero_controls_is_fedavg_for_one_round(problem):
    dataset, _ = problem
    cohorts = [toys.contiguous_cohort(SIZES)]
    fedavg = run_rounds(build("fedavg")[1], dataset, cohorts, 3)[0]
    scaffold = run_rounds(build("scaffold")[1], dataset, cohorts, 3)[0]
    assert_same_params(fedavg, scaffold, rtol=0, atol=0)


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
        _, algorithm = build(name, lr_schedule="constant", **fields)
        state, _ = run_rounds(algorithm, dataset, cohorts, len(sizes))
        w = np.asarray(state.params["w"])
        return np.abs(w - by_size).max(), np.abs(w - uniform).max()

    assert min(distances("fedavg")) > 0.1
    assert distances("scaffold", control_weights="uniform")[1] < 1e-3
    assert distances("scaffold", control_weights="size")[0] < 1e-3


def test_legacy_faults_make_sampled_scaffold_blow_up():
    """Random start r and division by the cohort m: why published curves diverged.

    The server's control is then r + (N/m) (mean of c_k - r) instead of the mean of
    all c_k. It vanishes, and the run rests, only where the mean gradient is
    (1 - m/N) r: on bowls that is a shifted optimum, and where the loss is flat no
    such point exists and the parameters walk away, a step mass in every round.
    Invisible with full participation.
    """
    sizes = (8, 2, 5, 1, 7, 3, 4, 6, 2, 8)
    dataset, bowls = toys.quadratic_dataset(sizes, NUM_DIMS)
    images = dataset.images.copy()
    images[:, 1, 2] = 0  # the last direction is flat for every client
    dataset = dataset._replace(images=images)
    legacy = {"control_init": "random_legacy", "control_divisor": "m_legacy"}

    def end(cohorts, **fields):
        _, algorithm = build("scaffold", lr_schedule="constant", decay=0.0, **fields)
        start, _ = start_of(algorithm, len(sizes))
        state, _ = run_rounds(algorithm, dataset, cohorts, len(sizes))
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


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
def test_optimisers_without_step_mass_are_refused(name):
    task = toys.quadratic_task(NUM_DIMS)
    solver = make_solver(epochs=1, batch_size=1, lr=0.1, optimizer="adam")
    with pytest.raises(ValueError, match=r"client\.optimizer must be sgd"):
        ALGORITHMS[name](task, solver, make_server_tx())


def test_server_optimiser_steps_on_the_pseudo_gradient(problem):
    """Momentum 0.5 and lr 0.25: u = d_2 + 0.5 d_1, w_2 = w_1 - 0.25 u."""
    dataset, bowls = problem
    task = toys.quadratic_task(NUM_DIMS)
    solver = make_solver(epochs=EPOCHS, batch_size=8, lr=LR, weight_decay=DECAY)
    server_tx = make_server_tx("momentum", lr=0.25, momentum=0.5)
    algorithm = ALGORITHMS["fedavg"](task, solver, server_tx)
    w = np.asarray(start_of(algorithm, 3)[0].params["w"], np.float64)
    state, _ = run_rounds(algorithm, dataset, [toys.contiguous_cohort(SIZES)] * 2, 3)
    p, buffer = np.array(SIZES) / sum(SIZES), 0.0
    for _ in range(2):
        delta = w - sum(
            p_k * local_path(bowl, w, 0.0)[0]
            for p_k, bowl in zip(p, bowls, strict=True)
        )
        buffer = delta + 0.5 * buffer
        w = w - 0.25 * buffer
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)


def test_one_client_and_one_epoch_is_plain_sgd(problem):
    dataset, bowls = problem
    _, algorithm = build("fedavg", epochs=1)
    w = np.asarray(start_of(algorithm, 1)[0].params["w"], np.float64)
    one = toys.contiguous_cohort(SIZES[:1])
    state, _ = run_rounds(algorithm, dataset, [one] * 3, 1)
    h, centre = bowls[0]
    for _ in range(3):
        w = w - LR * (h * (w - centre) + DECAY * w)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)


def test_messages_carry_shared_parameters_only(problem):
    """4 bytes a value: 3 params, no personal; controls double it, FedNova adds 4."""
    expected = {
        "fedavg": (12, 12),
        "fedprox": (12, 12),
        "fednova": (12, 16),
        "scaffold": (24, 24),
    }
    for name, (down, up) in expected.items():
        _, algorithm = build(name)
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        sent = traffic(algorithm.messages(state), 5, {})
        assert sent == (5 * down, 5 * up, 5 * down, 5 * up)
