"""Tests of equal bits in programs that XLA has optimised.

`test_optimised` runs these tests in a process of its own, since the rest of the suite
is compiled without optimisation.
"""

import functools

import chex
import jax
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.data.population import to_population
from fedjax_prune.engine import store
from fedjax_prune.engine.dealing import make_cohort
from fedjax_prune.engine.devices import make_placement, put_cohort, put_whole
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.models import CNN
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task
from fedjax_prune.runs import checkpoint
from fedjax_prune.types import RoundInputs
from tests import toys

# Clients of several batches, of one that is partly padded, and of one example.
SIZES = (5, 12, 1, 8, 3, 9, 2)
WIDER = 29
COHORT = (0, 1, 2, 3, 4, 6)
RUN = dict(epochs=2, batch_size=4)
SHAPES = {"linear": (3, 3, 1), "gated": (8, 8, 1)}

both_models = pytest.mark.parametrize("model", SHAPES)


@functools.cache
def algorithm(model):
    if model == "linear":
        task = toys.linear_task(SHAPES[model], 3)
    else:
        # The second convolution reads 8 channels: `lax` convolves it on a CPU.
        network = CNN(3, width=0.5, norm="bn", gates=GateSettings(0.5))
        task = make_task(network, SHAPES[model], lasso_weight=1e-3)
    solver = make_solver(lr=0.2, momentum=0.9, weight_decay=0.01, **RUN)
    return ALGORITHMS["scaffold"](task, solver, make_server_tx("momentum"))


@functools.cache
def compiled(model, placement):
    """One program for all tests with this placement and these shapes."""
    chosen = algorithm(model)
    return jax.jit(lambda inputs: chosen.round(inputs, placement))


@functools.cache
def start(model):
    """The state before the first round and the rows of all clients, on the host."""
    key = jax.random.key(3)
    rows = store.create(algorithm(model).row(key), len(SIZES))
    return jax.device_get((algorithm(model).init(key), rows))


def run(model, placement, *, begin=None, numbers=range(3), ids=COHORT, width=None):
    """The state and the rows of all clients after rounds with these numbers."""
    state, rows = begin or start(model)
    parts = np.split(np.arange(40), np.cumsum(SIZES)[:-1])
    population = to_population(parts, num_examples=40)
    if width is not None:
        missing = width - population.indices.shape[1]
        indices = np.pad(population.indices, ((0, 0), (0, missing)))
        population = population._replace(indices=indices)
    cohort = make_cohort(population, np.array(ids), 2, placement=placement, **RUN)
    rows = toys.store_of(rows, placement)
    data = toys.image_dataset(40, SHAPES[model], 3)
    state, data = put_whole(placement, (state, data))
    for number in numbers:
        key = put_whole(placement, jax.random.fold_in(jax.random.key(9), number))
        taken = rows.take(cohort.client_ids)
        inputs = RoundInputs(state, taken, data, put_cohort(placement, cohort), key)
        state, taken, _ = compiled(model, placement)(inputs)
        rows.put(cohort.client_ids, taken)
    after = toys.all_rows(rows, placement)
    chex.assert_tree_all_finite((state.params, after))
    return jax.device_get(state), after


@both_models
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(model, tmp_path):
    whole = run(model, make_placement(), numbers=range(4))
    half = run(model, make_placement(), numbers=range(2))
    checkpoint.save(tmp_path, 2, half, keep=1)
    restored = checkpoint.restore(tmp_path, jax.eval_shape(lambda: half))
    resumed = run(
        model, make_placement(), begin=jax.device_get(restored), numbers=range(2, 4)
    )
    chex.assert_trees_all_equal(whole, resumed)


@both_models
def test_wider_padding_changes_no_bit(model):
    narrow = run(model, make_placement())
    chex.assert_trees_all_equal(narrow, run(model, make_placement(), width=WIDER))


@both_models
def test_the_fixed_order_has_the_same_bits_on_any_number_of_devices(model):
    one, two, four = (make_placement(n, "fixed_order") for n in (1, 2, 4))
    expected = run(model, one)
    chex.assert_trees_all_equal(expected, run(model, two))
    chex.assert_trees_all_equal(expected, run(model, four))
    chex.assert_trees_all_equal(expected, run(model, two, ids=COHORT[::-1]))
