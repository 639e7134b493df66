"""AutoFLIP's exploration: independent explorers, where they start, when they stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms import autoflip
from fedjax_prune.algorithms.autoflip.exploration import Exploration
from fedjax_prune.data.population import to_population
from fedjax_prune.engine.devices import ONE_DEVICE
from fedjax_prune.engine.preparation import prepare as prepare_in_groups
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.engine.store import make_store
from fedjax_prune.types import Dataset, Task, Variables
from tests import problems, toys
from tests.layered import (
    FIELDS,
    KEY,
    LR,
    SIZES,
    build,
    kernel,
    layered_task,
    prepare,
    problem,
    walk,
)


def test_explorers_do_not_depend_on_order_or_lanes():
    algorithm = build(**FIELDS, mask_schedule="agreement")
    one, _, _ = prepare(algorithm)
    for ids, lanes in (([3, 1, 0, 2], 2), (range(4), 1), (range(4), 4)):
        other, _, _ = prepare(algorithm, ids, lanes)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other
        )


def test_explorers_keep_their_first_step_size():
    """A cosine over the two epochs of a round says nothing of the three explored."""
    explored = []
    for schedule in ("constant", "cosine_epoch"):
        solver = make_solver(epochs=2, batch_size=8, lr=LR, lr_schedule=schedule)
        algorithm = autoflip(layered_task(), solver, make_server_tx(), explore_epochs=3)
        explored.append(prepare(algorithm)[1].client.own.tree)
    jax.tree.map(np.testing.assert_array_equal, *explored)


def test_warm_exploration_measures_from_the_first_epoch():
    """One epoch more, and the deviation is from where the first one ended."""
    _, bowls = problem()
    algorithm = build(**FIELDS, explore_base="warm", mask_schedule="participants")
    state, rows, sums = prepare(algorithm)
    w = kernel(state.params)
    expected = [(walk(w, b, 4) - walk(w, b, 1)) ** 2 for b in bowls]
    np.testing.assert_allclose(
        kernel(rows.client.own.tree), expected, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(sums["steps"], [4, 4, 4, 4])


def test_starting_from_the_explored_mean():
    _, bowls = problem()
    algorithm = build(**FIELDS, start_from="explored_mean", mask_schedule="fixed")
    state, _, _ = prepare(algorithm)
    w = kernel(algorithm.init(KEY).params)
    expected = np.mean([walk(w, b, 3) for b in bowls], axis=0)
    np.testing.assert_allclose(kernel(state.params), expected, rtol=1e-5, atol=1e-6)


def test_explorers_may_count_by_their_examples():
    _, bowls = problem()
    fields = {"start_from": "explored_mean", "mask_schedule": "fixed"}
    algorithm = build(**FIELDS, **fields, explorer_weighting="samples")
    state, _, _ = prepare(algorithm)
    w = kernel(algorithm.init(KEY).params)
    expected = np.average([walk(w, b, 3) for b in bowls], axis=0, weights=SIZES)
    np.testing.assert_allclose(kernel(state.params), expected, rtol=1e-5, atol=1e-6)


def test_the_explored_mean_has_the_batch_statistics_of_the_explorers():
    """Each client has one batch, whose mean pixel is its statistic."""
    solver = make_solver(epochs=1, batch_size=12, lr=0.1)
    fields = {"start_from": "explored_mean", "mask_schedule": "fixed"}
    algorithm = problems.build("autoflip", solver=solver, **fields)
    state, _ = problems.begin(algorithm)
    images = np.asarray(problems.dataset_of_clients().images, np.float64) / 255
    parts = np.split(images, np.cumsum(problems.SIZES)[:-1])
    expected = np.mean([part.mean() for part in parts])
    np.testing.assert_allclose(state.model_state["mean"], expected, rtol=1e-5)
    received, sent = algorithm.prepare.messages(state)
    assert len(jax.tree.leaves(received)) == 2 and len(jax.tree.leaves(sent)) == 5


def counting_task(value):
    """A parameter counts the steps of size 1; value(steps, label) is told as loss."""

    def init(key):
        del key
        params = {"fc": {"kernel": jnp.zeros(2), "steps": jnp.zeros(())}}
        return Variables(params, {}, {})

    def loss(variables, batch, key):
        del key
        steps = variables.params["fc"]["steps"]
        label = batch.labels[0].astype(jnp.float32)
        count = batch.example_mask.sum(dtype=jnp.float32)
        told = value(jax.lax.stop_gradient(steps), label) * count
        # The gradient is -1 everywhere.
        return -steps, ({}, {"loss": told, "correct": 0 * count, "count": count})

    return Task(init, loss, lambda variables, images: images[:, 0, :, 0], groups=())


@pytest.mark.parametrize(("monitor", "steps"), [("epoch", 20), ("last_batch", 6)])
def test_explorers_watch_the_loss_that_is_asked_for(monitor, steps):
    """The mean of the two batches of an epoch falls, the loss of the last one rises."""
    task = counting_task(lambda n, _: jnp.where(n % 2 == 0, 100 - 4 * n, n))
    assert explored_steps(task, explore_monitor=monitor) == [steps]


@pytest.mark.parametrize(("base", "steps"), [("init", 6), ("warm", 22)])
def test_the_epoch_before_the_reference_is_not_watched(base, steps):
    """Its loss is the lowest; then the loss falls from epoch to epoch."""
    task = counting_task(lambda n, _: jnp.where(n < 2, 0, 100 - n))
    assert explored_steps(task, explore_base=base) == [steps]


def explored_steps(task, **fields):
    """Steps of a client with two batches in at most ten epochs of exploration."""
    solver = make_solver(epochs=1, batch_size=8, lr=1.0, lr_schedule="constant")
    algorithm = autoflip(
        task,
        solver,
        make_server_tx(),
        explore_epochs=10,
        explore_patience=2,
        **fields,
    )
    examples = Dataset(np.zeros((16, 2, 2, 1), np.uint8), np.zeros(16, np.int32))
    population = to_population([np.arange(16)], num_examples=16)
    rows = make_store("host", algorithm.row(KEY), 1)
    prepared = prepare_in_groups(
        algorithm, algorithm.init(KEY), rows, examples, population, seed=0
    )
    return prepared.sums["steps"].tolist()


def test_stopped_explorers_make_room():
    """Stopping after 3 to 40 epochs; lanes that take the next client waste little."""
    num_explorers, lanes = 200, 4
    limits = np.random.default_rng(0).integers(3, 41, num_explorers)
    images = np.zeros((8 * num_explorers, 2, 2, 1), np.uint8)
    labels = np.repeat(limits, 8).astype(np.int32)
    parts = np.split(np.arange(len(labels)), num_explorers)

    def value(steps, label):
        """Falls for as many steps as the label says, then rises."""
        return jnp.abs(steps - label)

    task = counting_task(value)
    solver = make_solver(epochs=1, batch_size=8, lr=1.0, lr_schedule="constant")
    algorithm = autoflip(
        task, solver, make_server_tx(), explore_epochs=100, explore_patience=2
    )
    rows = make_store("host", algorithm.row(KEY), num_explorers)
    state = algorithm.init(KEY)
    sums = prepare_in_groups(
        algorithm,
        state,
        rows,
        Dataset(images, labels),
        to_population(parts, num_examples=len(labels)),
        seed=0,
        num_lanes=lanes,
    ).sums
    # The lowest loss is seen before step limit + 1; two epochs later it stops.
    np.testing.assert_array_equal(sums["steps"], limits + 3)
    assert num_explorers > ONE_DEVICE.group_size(lanes)
    assert sums["steps_executed"] / sums["steps"].sum() <= 1.1
    kept = toys.all_rows(rows).client.own.tree["fc"]["steps"]
    np.testing.assert_array_equal(kept, (limits + 3.0) ** 2)


@pytest.mark.parametrize(
    ("share", "clients", "explorers"),
    [(0.15, 10, 2), (0.3, 9, 3), (0.3, 8, 2), (0.01, 5, 1), (0.29, 50, 15)],
)
def test_the_number_of_explorers_is_rounded(share, clients, explorers):
    assert Exploration(share=share).num_clients(clients) == explorers
