"""What every algorithm promises, whatever it does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine import store
from fedjax_prune.pruning.costs import traffic
from fedjax_prune.runs import checkpoint
from fedjax_prune.types import RoundInputs
from tests import toys
from tests.problems import SIZES, begin, build, dataset_of_clients


@pytest.fixture(params=sorted(ALGORITHMS))
def algorithm(request):
    return build(request.param)


def rounds(run, state, rows, numbers):
    """Rounds with two of the five clients each, chosen by the round's number."""
    losses = []
    for number in numbers:
        chosen = np.random.default_rng(number).permutation(len(SIZES))[:2]
        cohort = toys.contiguous_cohort(SIZES, chosen, width=12, num_lanes=2)
        key = jax.random.fold_in(jax.random.key(9), number)
        state, rows, sums = run(state, rows, dataset_of_clients(), cohort, key)
        losses.append(float(sums["loss"].sum() / sums["count"].sum()))
    return state, rows, losses


def test_state_keeps_tree_shapes_and_dtypes(algorithm):
    state, rows = begin(algorithm)
    after, rows_after, _ = rounds(toys.compiled_round(algorithm), state, rows, range(1))
    chex.assert_trees_all_equal_shapes_and_dtypes((state, rows), (after, rows_after))
    assert int(after.round) == 1
    floats = jax.tree.leaves((after, rows_after))
    allowed = {jnp.dtype(name) for name in ("float32", "int32", "bool")}
    assert {x.dtype for x in floats} <= allowed


def test_no_two_arrays_of_a_state_share_a_buffer(algorithm):
    """Here `init` is not compiled. A state may be donated, and none of it twice."""
    key = jax.random.key(0)
    state = algorithm.init(key)
    if algorithm.prepare is not None:
        ids = np.arange(algorithm.prepare.num_clients(len(SIZES)))
        rows = jax.tree.map(lambda x: jnp.stack([x] * len(ids)), algorithm.row(key))
        cohort = toys.contiguous_cohort(SIZES, ids)
        inputs = RoundInputs(state, rows, dataset_of_clients(), cohort, key)
        state, _, _ = algorithm.prepare.run(inputs)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size]
    assert len(set(buffers)) == len(buffers)


def test_other_cohorts_do_not_recompile(algorithm):
    run = toys.CompiledRound(algorithm)
    rounds(run, *begin(algorithm), range(4))
    assert run.num_traces == 1


# random_steps draws its zeros at random, so its noise does not shrink.
@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - {"random_steps"}))
def test_loss_falls_on_a_convex_problem(name):
    algorithm = build(name)
    _, _, losses = rounds(toys.compiled_round(algorithm), *begin(algorithm), range(30))
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def test_save_and_restore_between_rounds_changes_no_bit(algorithm, tmp_path):
    run = toys.compiled_round(algorithm)
    whole = rounds(run, *begin(algorithm), range(4))[:2]
    half = rounds(run, *begin(algorithm), range(2))[:2]
    checkpoint.save(tmp_path, 2, half, keep=1)
    template = jax.eval_shape(lambda: begin(algorithm))
    restored = checkpoint.restore(tmp_path, template)
    resumed = rounds(run, *restored, range(2, 4))[:2]
    chex.assert_trees_all_equal(whole, resumed)


def test_runs_eagerly_as_it_does_compiled():
    algorithm = build("scaffold")
    state, rows = begin(algorithm)
    cohort = toys.contiguous_cohort(SIZES, [0, 2], num_lanes=2)
    taken = store.take(rows, cohort.client_ids)
    inputs = RoundInputs(state, taken, dataset_of_clients(), cohort, jax.random.key(4))
    compiled = jax.jit(algorithm.round)(inputs)
    eager = algorithm.round(inputs)
    chex.assert_trees_all_close(compiled, eager, rtol=1e-7, atol=1e-6)


def test_traffic_is_whole_numbers_and_grows_with_the_cohort(algorithm):
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    messages = algorithm.messages(state)
    one, many = traffic(messages, 1, {}), traffic(messages, 10**6, {})
    # 9 * 3 + 3 parameters and one statistic, 4 bytes each, at least once each way.
    assert min(one) >= 4 * 31
    assert many == tuple(10**6 * x for x in one)
    assert all(isinstance(x, int) for x in many)
    if algorithm.prepare is not None:
        # Before the rounds, statistics need not travel.
        assert min(traffic(algorithm.prepare.messages(state), 1, {})) >= 4 * 30


def test_rounds_refuse_to_run_before_their_preparation(algorithm):
    """Without the error, the round would silently be one of FedAvg."""
    run = toys.compiled_round(algorithm)
    if algorithm.prepare is None:
        assert rounds(run, *begin(algorithm), range(1))[0].pending == ()
        return
    key = jax.random.key(0)
    state, rows = toys.first(algorithm, len(SIZES), key)
    with pytest.raises(ValueError, match=r"call fedjax_prune\.prepare\(\.\.\.\) once"):
        rounds(run, state, rows, range(1))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_delivered_params_are_masked(name):
    """By the last masks; by those of all explorers where each round makes its own."""
    slow = {"byte_time": 1.0} if name == "prunefl" else {}  # or all weights come back
    algorithm = build(name, **slow)
    state, *_ = rounds(toys.compiled_round(algorithm), *begin(algorithm), range(3))
    delivered = algorithm.deliver(state).params
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), state.params)
    if algorithm.masked is not None:
        masks = state.server.guide if name == "autoflip" else state.server.masks
        # The linear model has no channels that EFLPrune could remove.
        assert all(x.all() for x in jax.tree.leaves(masks)) == (name == "eflprune")
    jax.tree.map(
        lambda m, d, p: np.testing.assert_array_equal(d, np.where(m, p, 0)),
        masks,
        delivered,
        state.params,
    )
