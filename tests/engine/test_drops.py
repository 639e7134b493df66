"""Clients that diverge: they are missing from the round and nothing else changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.data.population import to_population
from fedjax_prune.engine import store
from fedjax_prune.engine.dealing import make_cohort
from fedjax_prune.engine.devices import ONE_DEVICE, make_placement
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from tests import problems, toys

BAD = 1
"""The client whose pixels are NaN."""
# The other schedules make a round's masks of its cohort before it is known who
# diverges: `test_masks_of_a_cohort_stay_when_a_client_is_dropped` has them.
FIXED = {"mask_schedule": "fixed"}
CASES = {name: (name, {}) for name in ALGORITHMS} | {
    "autoflip": ("autoflip", FIXED),
    "autoflip on scaffold": ("autoflip", FIXED | {"base": "scaffold"}),
}


def poisoned(ids):
    """The data set with NaN in place of the pixels of these clients."""
    dataset = problems.dataset_of_clients()
    images = np.asarray(dataset.images, np.float32)
    for client in ids:
        start = sum(problems.SIZES[:client])
        images[start : start + problems.SIZES[client]] = np.nan
    return dataset._replace(images=jnp.asarray(images))


def build(name):
    algorithm, fields = CASES[name]
    return problems.build(algorithm, **fields)


def cohort_of(ids):
    return toys.contiguous_cohort(problems.SIZES, ids, num_lanes=2, width=12)


def play(algorithm, state, rows, *, ids, dataset, number=0):
    """One round of some clients, and the rows of all."""
    key = jax.random.fold_in(jax.random.key(7), number)
    run = toys.compiled_round(algorithm)
    return run(state, rows, dataset, cohort_of(ids), key)


def assert_dropping_is_leaving_out(algorithm, state, rows):
    """After one good round."""
    # So that no control or momentum is 0.
    everybody = [0, 1, 2, 3]
    clean = problems.dataset_of_clients()
    state, rows, sums = play(algorithm, state, rows, ids=everybody, dataset=clean)
    np.testing.assert_array_equal(sums["arrived"], 1)
    then = functools.partial(
        play, algorithm, state, rows, dataset=poisoned([BAD]), number=1
    )
    dropped, rows_after, sums = then(ids=everybody)
    np.testing.assert_array_equal(sums["arrived"], [1, 0, 1, 1])
    without, others, _ = then(ids=[0, 2, 3])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (dropped, rows_after),
        (without, others),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[BAD], b[BAD]), rows, rows_after
    )


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_dropped_client_equals_a_cohort_without_it(name):
    algorithm = build(name)
    assert_dropping_is_leaving_out(algorithm, *problems.begin(algorithm))


def test_personal_parameters_that_are_not_finite_are_not_kept():
    """The root has no slope at 0: the loss and the message stay finite."""
    quadratic = toys.quadratic_task(2)

    def loss(variables, batch, key):
        mean, rest = quadratic.loss(variables, batch, key)
        return mean + jnp.sqrt(variables.personal["v"]), rest

    solver = make_solver(epochs=1, batch_size=4, lr=0.1)
    algorithm = fedavg(quadratic._replace(loss=loss), solver, make_server_tx())
    state, rows = toys.first(algorithm, 2, jax.random.key(0))
    rows.personal["v"] = jnp.array([0.0, 1.0])
    dataset = jax.device_put(toys.quadratic_dataset((4, 4), 2)[0])
    cohort = toys.contiguous_cohort((4, 4), [0, 1], num_lanes=1)
    clips = make_policy(on_bad_client="clip", clip_norm=1e-3)
    # By hand: the slope at 1 is 1 / 2. With `clip` the second client is a bad one, too.
    for policy, kept in ((make_policy(), 1 - 0.1 / 2), (clips, 1)):
        run = toys.compiled_round(algorithm, ONE_DEVICE._replace(policy=policy))
        _, after, sums = run(state, rows, dataset, cohort, jax.random.key(1))
        np.testing.assert_array_equal(sums["arrived"], [0, 1])
        np.testing.assert_allclose(after.personal["v"], [0, kept])


@pytest.mark.parametrize("schedule", ["participants", "agreement"])
def test_masks_of_a_cohort_stay_when_a_client_is_dropped(schedule):
    algorithm = problems.build("autoflip", mask_schedule=schedule)
    state, rows = problems.begin(algorithm)
    everybody = cohort_of([0, 1, 2, 3])
    state = jax.jit(algorithm.masked.remask)(
        state, store.take(rows, everybody.client_ids), everybody
    )
    assert not all(m.all() for m in jax.tree.leaves(state.server.masks))
    under_masks = algorithm._replace(round=algorithm.masked.train)
    assert_dropping_is_leaving_out(under_masks, state, rows)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_round_without_arrivals_is_counted_and_changes_nothing(name):
    algorithm = build(name)
    state, rows = problems.begin(algorithm)
    clean, ids = problems.dataset_of_clients(), [0, 2, 3]
    # Two rounds, so that no adjustment of PruneFL is due in the third.
    for number in range(2):
        state, rows, _ = play(
            algorithm, state, rows, ids=ids, dataset=clean, number=number
        )
    before = state
    if algorithm.masked is not None:
        cohort = cohort_of(ids)
        taken = store.take(rows, cohort.client_ids)
        before = jax.jit(algorithm.masked.remask)(state, taken, cohort)
    after, rows_after, sums = play(
        algorithm, state, rows, ids=ids, dataset=poisoned(ids), number=2
    )
    assert int(sums["arrived"].sum()) == 0
    assert int(after.round) == int(state.round) + 1
    jax.tree.map(
        np.testing.assert_array_equal, before, after._replace(round=state.round)
    )
    jax.tree.map(np.testing.assert_array_equal, rows, rows_after)


def test_padding_reads_no_example_of_another_client():
    """The first example of the data set is one of client 0, which is not drawn."""
    algorithm, ids = build("fedavg"), [1, 2, 4]
    state, rows = problems.begin(algorithm)
    assert any(problems.SIZES[client] % 4 for client in ids)  # partial batches
    clean, poison = (
        play(algorithm, state, rows, ids=ids, dataset=poisoned(bad))[0]
        for bad in ([], [0])
    )
    jax.tree.map(np.testing.assert_array_equal, clean, poison)


def test_the_server_control_stays_the_mean_of_all_clients_controls():
    algorithm = build("scaffold")
    state, rows = problems.begin(algorithm)
    rng = np.random.default_rng(0)
    dropped = 0
    for number in range(8):
        ids = np.sort(rng.permutation(5)[:3])
        state, rows, sums = play(
            algorithm, state, rows, ids=ids, dataset=poisoned([BAD]), number=number
        )
        dropped += int((sums["arrived"] == 0).sum())
        jax.tree.map(
            lambda c, all_c: np.testing.assert_allclose(
                c, np.asarray(all_c).mean(0), rtol=1e-5, atol=1e-6
            ),
            state.server.control,
            rows.client,
        )
    assert dropped >= 2
    # A control of 0 would pass the check above, so it must exceed the tolerance.
    assert np.abs(state.server.control["kernel"]).max() > 0.01


def test_fixed_order_drops_the_same_clients():
    algorithm = build("scaffold")
    state, rows = problems.begin(algorithm)
    ends = np.cumsum(problems.SIZES)
    population = to_population(
        np.split(np.arange(ends[-1]), ends[:-1]), num_examples=ends[-1]
    )
    results = []
    for reduction in ("all_reduce", "fixed_order"):
        placement = make_placement(1, reduction)
        cohort = make_cohort(
            population,
            np.arange(4),
            num_lanes=2,
            epochs=2,
            batch_size=4,
            placement=placement,
        )
        run = toys.compiled_round(algorithm, placement)
        dataset = poisoned([BAD])
        results.append(run(state, rows, dataset, cohort, jax.random.key(3))[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results
    )


def test_a_message_that_is_not_finite_counts_like_a_loss():
    """The batch statistic of one client overflows, while its loss stays finite."""
    linear = problems.task()
    dataset = problems.dataset_of_clients()
    first_image = dataset.images[sum(problems.SIZES[:BAD])]

    def loss(variables, batch, key):
        mean, (model_state, sums) = linear.loss(variables, batch, key)
        seen = (batch.images == first_image[None]).all(axis=(1, 2, 3)).any()
        broken = {"mean": jnp.where(seen, jnp.inf, model_state["mean"])}
        return mean, (broken, sums)

    algorithm = fedavg(
        linear._replace(loss=loss),
        make_solver(epochs=1, batch_size=16),
        make_server_tx(),
    )
    key = jax.random.key(0)
    state, rows = toys.first(algorithm, len(problems.SIZES), key)
    run = toys.compiled_round(algorithm)
    after, _, sums = run(state, rows, dataset, cohort_of([0, BAD, 2]), key)
    assert np.isfinite(sums["loss"]).all()
    np.testing.assert_array_equal(sums["nonfinite"], [0, 1, 0])
    np.testing.assert_array_equal(sums["arrived"], [1, 0, 1])
    assert np.isfinite(after.model_state["mean"])
