"""AutoFLIP's exploration: independent explorers, where they start, when they stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune import store
from fedjax_prune.algorithms import autoflip
from fedjax_prune.costs import tree_bytes
from fedjax_prune.models import CNN
from fedjax_prune.server import make_server_tx
from fedjax_prune.solver import make_solver
from fedjax_prune.task import make_task
from fedjax_prune.types import Task
from tests import toys
from tests.test_autoflip import (
    FIELDS,
    KEY,
    LR,
    NUM_DIMS,
    SIZES,
    build,
    kernel,
    layered_task,
    prepare,
    walk,
)


@pytest.fixture(scope="module")
def problem():
    return toys.quadratic_dataset(SIZES, NUM_DIMS)


def test_explorers_do_not_depend_on_order_or_lanes(problem):
    dataset, _ = problem
    algorithm = build(**FIELDS, mask_schedule="agreement")
    one, _, _ = prepare(algorithm, dataset)
    for ids, lanes in (([3, 1, 0, 2], 2), (range(4), 1), (range(4), 4)):
        other, _, _ = prepare(algorithm, dataset, ids, lanes)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other
        )


def test_explorers_keep_their_first_step_size(problem):
    """A cosine over the two epochs of a round says nothing of the three explored."""
    dataset, _ = problem
    explored = []
    for schedule in ("constant", "cosine_epoch"):
        solver = make_solver(epochs=2, batch_size=8, lr=LR, lr_schedule=schedule)
        algorithm = autoflip(layered_task(), solver, make_server_tx(), explore_epochs=3)
        explored.append(prepare(algorithm, dataset)[1].client.own.tree)
    jax.tree.map(np.testing.assert_array_equal, *explored)


def test_warm_exploration_measures_from_the_first_epoch(problem):
    """One epoch more, and the deviation is from where the first one ended."""
    dataset, bowls = problem
    algorithm = build(
        **FIELDS, explore_base="warm", mask_schedule="participants", min_keep=0.0
    )
    state, rows, sums = prepare(algorithm, dataset)
    w = kernel(state.params)
    expected = [(walk(w, b, 4) - walk(w, b, 1)) ** 2 for b in bowls]
    np.testing.assert_allclose(
        kernel(rows.client.own.tree), expected, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(sums["steps"], [4, 4, 4, 4])


def test_starting_from_the_explored_mean(problem):
    dataset, bowls = problem
    algorithm = build(**FIELDS, start_from="explored_mean", mask_schedule="fixed")
    state, _, _ = prepare(algorithm, dataset)
    w = kernel(algorithm.init(KEY).params)
    expected = np.mean([walk(w, b, 3) for b in bowls], axis=0)
    np.testing.assert_allclose(kernel(state.params), expected, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_explorers():
    """With one mask for all rounds nothing is kept of an explorer but its sums."""
    task = make_task(CNN(4, width=0.5), (8, 8, 1))
    solver = make_solver(epochs=1, batch_size=4, lr=LR, lr_schedule="constant")
    algorithm = autoflip(task, solver, make_server_tx(), mask_schedule="fixed")
    dataset = toys.image_dataset(4, (8, 8, 1), 4)

    def temporary_bytes(num_explorers):
        cohort = toys.contiguous_cohort((4,) * num_explorers, num_lanes=2)
        cohort = cohort._replace(indices=np.tile(np.arange(4), (num_explorers, 1)))
        state = jax.eval_shape(algorithm.init, KEY)
        rows = jax.eval_shape(lambda: store.create(algorithm.row(KEY), num_explorers))
        run = jax.jit(algorithm.prepare.run).lower(state, rows, dataset, cohort, KEY)
        return run.compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(3), temporary_bytes(60)
    params = tree_bytes(jax.eval_shape(algorithm.init, KEY).params)
    # Deviations of 57 more would be 57 times the parameters.
    assert few > 2 * params and many - few < params


def test_stopped_explorers_make_room():
    """Stopping after 3 to 40 epochs; lanes that take the next client waste little."""
    sizes = (8,) * 30
    limits = np.random.default_rng(0).integers(3, 41, 30)
    images = np.zeros((sum(sizes), 2, 2, 1), np.uint8)
    labels = np.repeat(limits, 8).astype(np.int32)

    def init(key):
        del key
        zeros = jnp.zeros(())
        return fedavg_variables({"fc": {"kernel": jnp.zeros(2), "steps": zeros}})

    def loss(variables, batch, key):
        """Falls for as many steps as the label says, then rises."""
        del key
        steps = variables.params["fc"]["steps"]
        limit = batch.labels[0].astype(jnp.float32)
        value = jnp.abs(jax.lax.stop_gradient(steps) - limit)
        count = batch.example_mask.sum(dtype=jnp.float32)
        sums = {"loss": value * count, "correct": 0 * count, "count": count}
        # Its gradient is -1 wherever it is: each step of size 1 counts one.
        return -steps, ({}, sums)

    task = Task(init, loss, lambda variables, images: images[:, 0, :, 0], groups=())
    solver = make_solver(epochs=1, batch_size=8, lr=1.0, lr_schedule="constant")
    algorithm = autoflip(
        task,
        solver,
        make_server_tx(),
        explore_epochs=100,
        explore_patience=2,
        mask_schedule="fixed",
        threshold=0.0,
    )
    cohort = toys.contiguous_cohort(sizes, num_lanes=4)
    dataset = jax.device_put(toys.Dataset(images, labels))
    _, _, sums = jax.jit(algorithm.prepare.run)(
        algorithm.init(KEY),
        store.create(algorithm.row(KEY), 30),
        dataset,
        cohort,
        KEY,
    )
    # The lowest loss is seen before step limit + 1; two epochs later it stops.
    np.testing.assert_array_equal(sums["steps"], limits + 3)
    assert float(sums["steps_executed"]) / float(sums["steps"].sum()) <= 1.1
    planned = sum(max(limits[lane::4] + 3) for lane in range(4))
    assert planned < float(sums["steps"].sum())


def fedavg_variables(params):
    return toys.Variables(params, {}, {})
