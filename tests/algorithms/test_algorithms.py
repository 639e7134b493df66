"""Each algorithm against numpy written from its formula, on quadratic clients."""

import jax
import numpy as np
import optax
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.rounds import make_algorithm
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.models.cnn import CNN
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task
from fedjax_prune.pruning.costs import traffic
from fedjax_prune.types import RoundInputs
from tests import toys
from tests.quadratic import (
    DECAY,
    EPOCHS,
    KEY,
    LR,
    NUM_DIMS,
    SIZES,
    build,
    local_path,
    problem,
    run_rounds,
    same_params,
)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedavg_equals_numpy(momentum):
    dataset, bowls = problem()
    algorithm = build("fedavg", momentum=momentum)
    w = np.asarray(algorithm.init(KEY).params["w"], np.float64)
    state, _ = run_rounds(algorithm, dataset, [toys.contiguous_cohort(SIZES)] * 2)
    p = np.array(SIZES) / sum(SIZES)
    for _ in range(2):
        w = sum(
            p_k * local_path(bowl, w, 0.0, momentum=momentum)[0]
            for p_k, bowl in zip(p, bowls, strict=True)
        )
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)


def test_fedprox_equals_numpy():
    dataset, bowls = problem()
    algorithm = build("fedprox", mu=0.7)
    w = np.asarray(algorithm.init(KEY).params["w"], np.float64)
    state, _ = run_rounds(algorithm, dataset, [toys.contiguous_cohort(SIZES)])
    p = np.array(SIZES) / sum(SIZES)
    expected = sum(
        p_k * local_path(bowl, w, 0.0, anchor_pull=0.7)[0]
        for p_k, bowl in zip(p, bowls, strict=True)
    )
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5, atol=1e-6)


def test_fednova_equals_numpy_with_unequal_step_mass():
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
    algorithm = build("fednova", batch_size=2)
    w0 = np.asarray(algorithm.init(KEY).params["w"], np.float64)
    state, _ = run_rounds(algorithm, dataset, [toys.contiguous_cohort(sizes)])
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


def test_rows_of_absent_clients_keep_their_bits():
    dataset, _ = problem()
    algorithm = build("scaffold")
    cohorts = [
        toys.contiguous_cohort(SIZES),
        toys.contiguous_cohort(SIZES, (0, 2)),
    ]
    _, before = run_rounds(algorithm, dataset, cohorts[:1])
    _, after = run_rounds(algorithm, dataset, cohorts)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[1], new[1])
        assert (np.asarray(old[0]) != np.asarray(new[0])).any()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_control_and_pull_do_not_act_on_personal_parameters(momentum):
    """u' = momentum u + (v - 1) + decay v and v' = v - eta u' with all of them."""
    dataset, _ = problem()
    v = velocity = 0.0
    for epoch in range(EPOCHS):
        eta = LR * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2
        velocity = momentum * velocity + (v - 1) + DECAY * v
        v -= eta * velocity
    for name in ("fedavg", "fedprox", "fednova", "scaffold"):
        algorithm = build(name, momentum=momentum)
        _, rows = run_rounds(algorithm, dataset, [toys.contiguous_cohort(SIZES)])
        np.testing.assert_allclose(rows.personal["v"], [v] * 3, rtol=1e-5)


def test_fedprox_without_pull_is_fedavg_bit_for_bit():
    dataset, _ = problem()
    cohorts = [toys.contiguous_cohort(SIZES)] * 2
    fedavg = run_rounds(build("fedavg"), dataset, cohorts)[0]
    fedprox = run_rounds(build("fedprox", mu=0.0), dataset, cohorts)[0]
    same_params(fedavg, fedprox, rtol=0, atol=0)


def test_fednova_with_equal_step_mass_is_fedavg():
    dataset, _ = problem()
    cohorts = [toys.contiguous_cohort(SIZES)] * 2
    fedavg = run_rounds(build("fedavg"), dataset, cohorts)[0]
    fednova = run_rounds(build("fednova"), dataset, cohorts)[0]
    same_params(fedavg, fednova, rtol=1e-6)


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
def test_optimisers_without_step_mass_are_refused(name):
    task = toys.quadratic_task(NUM_DIMS)
    solver = make_solver(epochs=1, batch_size=1, lr=0.1, optimizer="adam")
    with pytest.raises(ValueError, match=r"client\.optimizer must be sgd"):
        ALGORITHMS[name](task, solver, make_server_tx())


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
@pytest.mark.parametrize("place", ["before_descent", "after_descent"])
def test_transformations_of_unknown_step_mass_are_refused(name, place):
    task, solver = toys.quadratic_task(NUM_DIMS), make_solver(epochs=1)
    with pytest.raises(ValueError, match="must have keeps_mass=True"):
        added = getattr(solver, place)(optax.scale(3.0))
        ALGORITHMS[name](task, added, make_server_tx())
    kept = getattr(solver, place)(optax.identity(), keeps_mass=True)
    ALGORITHMS[name](task, kept, make_server_tx())


def test_server_optimiser_steps_on_the_pseudo_gradient():
    """Momentum 0.5 and lr 0.25: u = d_2 + 0.5 d_1, w_2 = w_1 - 0.25 u."""
    dataset, bowls = problem()
    server_tx = make_server_tx("momentum", lr=0.25, momentum=0.5)
    algorithm = build("fedavg", server_tx=server_tx)
    w = np.asarray(algorithm.init(KEY).params["w"], np.float64)
    state, _ = run_rounds(algorithm, dataset, [toys.contiguous_cohort(SIZES)] * 2)
    p, buffer = np.array(SIZES) / sum(SIZES), 0.0
    for _ in range(2):
        delta = w - sum(
            p_k * local_path(bowl, w, 0.0)[0]
            for p_k, bowl in zip(p, bowls, strict=True)
        )
        buffer = delta + 0.5 * buffer
        w = w - 0.25 * buffer
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)


def test_one_client_and_one_epoch_is_plain_sgd():
    dataset, bowls = problem()
    algorithm = build("fedavg", epochs=1)
    w = np.asarray(algorithm.init(KEY).params["w"], np.float64)
    one = toys.contiguous_cohort(SIZES[:1])
    state, _ = run_rounds(algorithm, dataset, [one] * 3)
    h, centre = bowls[0]
    for _ in range(3):
        w = w - LR * (h * (w - centre) + DECAY * w)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)


def test_messages_carry_shared_parameters_only():
    """4 bytes a value: 3 params, no personal; controls double it, FedNova adds 4."""
    expected = {
        "fedavg": (12, 12),
        "fedprox": (12, 12),
        "fednova": (12, 16),
        "scaffold": (24, 24),
    }
    for name, (down, up) in expected.items():
        algorithm = build(name)
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        sent = traffic(algorithm.messages(state), 5, {})
        assert sent == (5 * down, 5 * up, 5 * down, 5 * up)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fednova", "scaffold"])
def test_a_client_sends_what_is_declared_and_no_gates(name):
    """Of a network with gates and batch statistics; each part of the real message."""
    shape = (8, 8, 1)
    task = make_task(CNN(3, width=0.25, norm="bn", gates=GateSettings(0.5)), shape)
    solver = make_solver(epochs=1, batch_size=4, lr=0.1)
    algorithm = ALGORITHMS[name](task, solver, make_server_tx())
    sent = []

    def program(state, cohort):
        inner = algorithm.rules.program(state, cohort)

        def upload(result, row):
            assert jax.tree.leaves(result.personal)
            message, after = inner.upload(result, row)
            sent.append([part.values for part in message.values()])
            return message, after

        return inner._replace(upload=upload)

    rules = algorithm.rules._replace(program=program)
    watched = make_algorithm(task, rules, algorithm.messages)
    state, rows = jax.eval_shape(lambda: toys.first(watched, len(SIZES), KEY))
    dataset = toys.image_dataset(sum(SIZES), shape, 3)
    cohort = toys.contiguous_cohort(SIZES)
    inputs = RoundInputs(state, rows, dataset, cohort, KEY)
    jax.eval_shape(watched.round, inputs)
    declared = jax.tree.leaves(algorithm.messages(state)[1])
    for message in sent:
        found = sorted(x.shape for x in jax.tree.leaves(message))
        assert found == sorted(x.shape for x in declared)
    assert sent


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_the_properties_that_it_declares(name):
    solver = make_solver(epochs=1, batch_size=1, lr=0.1, optimizer="adam")
    task = make_task(CNN(3, width=0.1), (4, 4, 1))
    if ALGORITHMS[name].needs_step_mass:
        with pytest.raises(ValueError, match="divides by the step mass"):
            ALGORITHMS[name](task, solver, make_server_tx())
        assert not ALGORITHMS[name].has_masks
        return
    algorithm = ALGORITHMS[name](task, solver, make_server_tx())
    assert (algorithm.masked is not None) == ALGORITHMS[name].has_masks
