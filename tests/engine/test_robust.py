"""Medians, trimmed means and clipped norms against numpy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.engine.aggregate import receive
from fedjax_prune.engine.clipping import SIGNS, SQUARES, clip_change, clip_parts
from fedjax_prune.engine.devices import ONE_DEVICE, make_placement
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.engine.robust import reduction_for
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.types import Anchor, Mean, Total
from tests import problems, seven_clients, toys

PLAIN_STEP = make_server_tx()
MEDIAN = make_policy(aggregator="median")
TRIMMED = make_policy(aggregator="trimmed_mean", trim_fraction=0.25)


def median(values):
    return np.median(values, axis=0)


def trimmed(values, fraction=0.25):
    """Definition 2 of Yin et al., of what arrives."""
    cut = int(fraction * len(values))
    return np.sort(values, axis=0)[cut : len(values) - cut].mean(0)


STATISTICS = {"median": (MEDIAN, median), "trimmed mean": (TRIMMED, trimmed)}


def gather(policy, parts, arrived, num_lanes=2):
    """What the server receives of these messages, one client a place."""
    reduction = reduction_for(ONE_DEVICE._replace(policy=policy))
    num_places = len(arrived)

    @jax.jit
    def run(parts, arrived):
        weighted = jax.vmap(reduction.weigh)(parts)
        first = jax.tree.map(lambda x: x[0], weighted)
        kept = reduction.empty(first, num_places)
        for begin in range(0, num_places, num_lanes):
            places = jnp.arange(begin, min(begin + num_lanes, num_places))
            lanes = jax.tree.map(lambda x, p=places: x[p], weighted)
            kept = reduction.add(kept, lanes, arrived[places], places)
        cohort = toys.contiguous_cohort([1] * num_places)
        gathered = reduction.total(kept, cohort, False)
        return receive(gathered), gathered.num_clients

    return run(parts, arrived)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("num_arrived", [1, 2, 4, 5, 8])
def test_statistics_are_of_what_arrives(name, num_arrived):
    policy, statistic = STATISTICS[name]
    rng = np.random.default_rng(num_arrived)
    arrived = np.zeros(9, bool)
    arrived[rng.permutation(9)[:num_arrived]] = True
    values = rng.normal(size=(9, 3, 2)).astype(np.float32)
    # The rarest weights and large values of those that are missing do not matter.
    values[~arrived] = 1e30
    weights = rng.integers(1, 50, 9).astype(np.int32)
    counts = rng.integers(-5, 5, 9).astype(np.int32)
    flags = rng.random(9) < 0.5
    parts = {
        "delta": Mean({"w": values}, weights),
        "state": Mean({"count": counts, "seen": flags}, weights),
        "change": Total(values / 7),
    }
    received, num_clients = gather(policy, parts, arrived)
    assert int(num_clients) == num_arrived
    expected = statistic(values[arrived].astype(np.float64))
    np.testing.assert_allclose(received["delta"]["w"], expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(
        received["change"], num_arrived * expected / 7, rtol=2e-6, atol=1e-7
    )
    lower = (num_arrived - 1) // 2
    assert received["state"]["count"] == np.sort(counts[arrived])[lower]
    assert received["state"]["seen"] == np.sort(flags[arrived])[lower]


@pytest.mark.parametrize("policy", [MEDIAN, TRIMMED])
def test_a_part_without_weight_does_not_count(policy):
    values = np.array([1.0, 2.0, 100.0], np.float32)
    parts = {"delta": Mean(values, np.array([5, 7, 0], np.int32))}
    received, num_clients = gather(policy, parts, np.ones(3, bool))
    assert (float(received["delta"]), int(num_clients)) == (1.5, 3)


@pytest.mark.parametrize("policy", [MEDIAN, TRIMMED])
def test_nothing_is_received_of_nobody(policy):
    values = np.ones((2, 3), np.float32)
    parts = {"delta": Mean(values, np.ones(2, np.int32)), "change": Total(values)}
    received, num_clients = gather(policy, parts, np.zeros(2, bool))
    assert int(num_clients) == 0
    for leaf in jax.tree.leaves(received):
        np.testing.assert_array_equal(leaf, np.zeros(3))


@pytest.mark.parametrize(
    ("fraction", "count", "trimmed"), [(0.29, 100, 29), (0.3, 10, 3), (0.1, 9, 0)]
)
def test_a_fraction_is_a_decimal(fraction, count, trimmed):
    """0.29 * 100 is below 29 in binary."""
    policy = make_policy(aggregator="trimmed_mean", trim_fraction=fraction)
    values = np.arange(count, dtype=np.float32) ** 2
    parts = {"delta": Mean(values, np.ones(count, np.int32))}
    received, _ = gather(policy, parts, np.ones(count, bool), num_lanes=count)
    expected = values[trimmed : count - trimmed].mean()
    np.testing.assert_allclose(received["delta"], expected, rtol=1e-6)


@functools.cache
def alone(name):
    """The state before a round, and what it is after a round of one client."""
    algorithm = problems.build(name, server_tx=PLAIN_STEP)
    state, rows = problems.begin(algorithm)
    return state, [play(algorithm, state, rows, [client])[0] for client in range(5)]


def play(algorithm, state, rows, ids, placement=ONE_DEVICE):
    cohort = toys.contiguous_cohort(problems.SIZES, ids, num_lanes=2, width=12)
    run = toys.compiled_round(algorithm, placement)
    dataset = problems.dataset_of_clients()
    state, rows, sums = run(state, rows, dataset, cohort, jax.random.key(7))
    return state, sums


def shared(state):
    """What a round changes by a mean, and what it changes by a total."""
    control = getattr(state.server, "control", {})
    return (state.params, state.model_state), control


@pytest.mark.parametrize("name", ["fedavg", "magnitude", "scaffold"])
@pytest.mark.parametrize("kind", STATISTICS)
def test_rounds_take_the_statistic_of_the_clients(name, kind):
    """The server's step is w - delta, so a round of one client shows its delta."""
    policy, statistic = STATISTICS[kind]
    before, after = alone(name)
    algorithm = problems.build(name, server_tx=PLAIN_STEP)
    rows = problems.begin(algorithm)[1]
    placement = ONE_DEVICE._replace(policy=policy)
    found, _ = play(algorithm, before, rows, range(5), placement)

    def compare(now, start, *others, count):
        changes = np.stack([np.asarray(x, np.float64) - start for x in others])
        expected = start + count * statistic(changes)
        np.testing.assert_allclose(now, expected, rtol=1e-5, atol=1e-6)

    for part, count in ((0, 1), (1, 5)):
        jax.tree.map(
            functools.partial(compare, count=count),
            *(shared(state)[part] for state in (found, before, *after)),
        )


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)], dtype=float)


def test_norms_are_clipped_part_by_part():
    """Weighted by examples; batch statistics are measured from the server's."""
    before, after = alone("fedavg")
    algorithm = problems.build("fedavg", server_tx=PLAIN_STEP)
    rows = problems.begin(algorithm)[1]
    before = before._replace(model_state={"mean": jnp.float32(0.2)})
    after = [play(algorithm, before, rows, [client])[0] for client in range(5)]
    expected, clipped = {}, np.zeros(5, bool)
    norms = [np.linalg.norm(flat(x.params) - flat(before.params)) for x in after]
    bound = float(np.median(norms)) * 1.01
    for part in ("params", "model_state"):
        start = flat(getattr(before, part))
        changes = np.stack([flat(getattr(x, part)) - start for x in after])
        lengths = np.linalg.norm(changes, axis=1, keepdims=True)
        clipped |= lengths[:, 0] > bound
        changes *= np.minimum(1, bound / lengths)
        weights = np.array(problems.SIZES) / sum(problems.SIZES)
        expected[part] = start + weights @ changes
    policy = make_policy(aggregator="norm_clipping", clip_norm=bound)
    placement = ONE_DEVICE._replace(policy=policy)
    found, sums = play(algorithm, before, rows, range(5), placement)
    for part, values in expected.items():
        np.testing.assert_allclose(flat(getattr(found, part)), values, atol=1e-6)
    np.testing.assert_array_equal(sums["clipped"], clipped)
    np.testing.assert_array_equal(sums["arrived"], 1)
    assert 0 < clipped.sum() < 5


def test_the_bound_of_a_total_is_that_of_one_share():
    """SCAFFOLD divides changes of controls by the clients of the population."""
    algorithm = problems.build("scaffold", server_tx=PLAIN_STEP)
    state, rows = problems.begin(algorithm)
    policy = make_policy(aggregator="norm_clipping", clip_norm=0.01)
    placement = ONE_DEVICE._replace(policy=policy)
    after, _ = play(algorithm, state, rows, [3], placement)
    np.testing.assert_allclose(
        np.linalg.norm(flat(after.server.control)), 0.01 / 5, rtol=1e-5
    )


@pytest.mark.parametrize("weights", ["uniform", "size"])
@pytest.mark.parametrize(
    "fields", [{"aggregator": "norm_clipping"}, {"on_bad_client": "clip"}]
)
def test_clients_keep_the_control_that_the_server_has_received(fields, weights):
    """So the server's is still the mean of all clients', of those not drawn, too."""
    algorithm = problems.build("scaffold", control_weights=weights)
    state, rows = problems.begin(algorithm)
    placement = ONE_DEVICE._replace(policy=make_policy(clip_norm=0.3, **fields))
    run, clipped = toys.compiled_round(algorithm, placement), 0
    for ids in ([0, 2, 3], [1, 3, 4], [0, 1, 4]):
        cohort = toys.contiguous_cohort(problems.SIZES, ids, num_lanes=2, width=12)
        dataset, key = problems.dataset_of_clients(), jax.random.key(7)
        state, rows, sums = run(state, rows, dataset, cohort, key)
        clipped += sums["clipped"].sum()
        counts = problems.SIZES if weights == "size" else None
        for mean, each in zip(
            jax.tree.leaves(state.server.control),
            jax.tree.leaves(rows.client),
            strict=True,
        ):
            expected = np.average(each, axis=0, weights=counts)
            np.testing.assert_allclose(mean, expected, atol=1e-6)
    assert 0 < clipped < 9


def test_a_step_mass_is_no_change():
    """FedNova's server multiplies by it, so a bound would shorten each update."""
    mass = Mean(jnp.float32(9), jnp.float32(2))
    delta = Mean(jnp.full(4, 0.1), jnp.float32(2))
    message = {"normalised_delta": delta, "step_mass": mass}
    found, scaled = clip_parts(message, Anchor({}, {}, jnp.int32(0)), 1.0, jnp.int32(5))
    assert found["step_mass"] is mass and not scaled
    np.testing.assert_array_equal(found["normalised_delta"].values, delta.values)


def test_signs_have_no_size_and_large_squares_make_no_client_bad():
    """A bound would let votes of many weights fade beside those of few."""
    message = {name: Mean(jnp.ones(100), jnp.float32(2)) for name in (SIGNS, SQUARES)}
    found, scaled = clip_parts(message, Anchor({}, {}, jnp.int32(0)), 1.0, jnp.int32(5))
    assert found[SIGNS] is message[SIGNS] and not scaled
    np.testing.assert_allclose(found[SQUARES].values, 0.1, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 3e38])
def test_large_and_small_numbers_are_scaled(size):
    values = {"a": np.full(4, size, np.float32), "b": np.full((3, 4), -size)}
    values["b"] = values["b"].astype(np.float32)
    clip = jax.jit(lambda tree, bound: clip_change(tree, (), bound))
    norm = 4 * np.float64(np.float32(size))
    found, large = clip(values, jnp.float32(2.0))
    assert bool(large) == (norm > 2)
    np.testing.assert_allclose(np.linalg.norm(flat(found)), min(norm, 2), rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_is_not_scaled(broken):
    values = np.array([1.0, broken, 3.0], np.float32)
    found, large = clip_change(values, (), jnp.float32(1.0))
    np.testing.assert_array_equal(found, values)
    assert not large


def test_zeros_and_integers_stay():
    values = {"w": jnp.zeros(3), "n": jnp.int32(10**6), "e": jnp.zeros((0, 2))}
    found, large = clip_change(values, (), jnp.float32(1.0))
    chex.assert_trees_all_equal(found, values)
    assert not large


@pytest.mark.parametrize("policy", [MEDIAN, TRIMMED])
def test_several_devices_and_another_order_have_the_same_bits(policy):
    ids, results = (0, 1, 3, 4, 6), []
    for num_devices, order in ((1, ids), (2, ids), (8, ids), (2, ids[::-1])):
        placement = make_placement(num_devices, "fixed_order", policy=policy)
        cohort = seven_clients.draw_cohort(placement, order, 2)
        results.append(seven_clients.rounds("linear", placement, cohort)[0])
    for other in results[1:]:
        chex.assert_trees_all_equal(results[0], other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aggregator": "mode"}, "aggregator must be one of mean, median, .* 'mode'"),
        ({"trim_fraction": 0.5}, r"trim_fraction must be in \[0, 0\.5\), got 0\.5"),
        ({"clip_norm": 0.0}, r"clip_norm must be above 0, got 0\.0"),
    ],
)
def test_bad_policies(fields, message):
    with pytest.raises(ValueError, match=message):
        make_policy(**fields)


def grown(client, factor):
    """SCAFFOLD whose client moves `factor` times as far as it should."""
    linear = problems.task()
    first_image = problems.dataset_of_clients().images[sum(problems.SIZES[:client])]

    def loss(variables, batch, key):
        mean, rest = linear.loss(variables, batch, key)
        is_it = (
            (batch.images == first_image.astype(np.float32)[None])
            .all(axis=(1, 2, 3))
            .any()
        )
        return jnp.where(is_it, factor, 1) * mean, rest

    solver = make_solver(epochs=2, batch_size=16, lr=0.1)
    task = linear._replace(loss=loss)
    return problems.build("scaffold", model_task=task, solver=solver)


def test_a_bad_client_is_clipped_and_its_row_follows():
    """Client 1 moves a million times too far; client 3 is not a number."""
    algorithm = grown(1, 1e6)
    state, rows = problems.begin(algorithm)
    images = np.asarray(problems.dataset_of_clients().images, np.float32)
    images[18:26] = np.nan
    dataset = problems.dataset_of_clients()._replace(images=jnp.asarray(images))
    policy = make_policy(on_bad_client="clip", clip_norm=5.0)
    run = toys.compiled_round(algorithm, ONE_DEVICE._replace(policy=policy))
    cohort = toys.contiguous_cohort(problems.SIZES, range(5), num_lanes=2, width=16)
    after, rows_after, sums = run(state, rows, dataset, cohort, jax.random.key(7))
    np.testing.assert_array_equal(sums["clipped"], [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(sums["nonfinite"] > 0, [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(sums["arrived"], [1, 1, 1, 0, 1])
    controls = jax.vmap(lambda x: jax.flatten_util.ravel_pytree(x)[0])(
        rows_after.client
    )
    lengths = np.linalg.norm(controls, axis=1)
    np.testing.assert_allclose(lengths[1], 5, rtol=1e-5)
    assert lengths[3] == 0 and (lengths[[0, 2, 4]] > 0).all()
    np.testing.assert_allclose(
        flat(after.server.control), np.mean(controls, axis=0), atol=1e-6
    )
    # The mean of what is at most 5; the bound of a control's share is 5 / 5.
    assert 0.5 < np.linalg.norm(flat(after.params) - flat(state.params)) < 5
    assert np.linalg.norm(flat(after.server.control)) < 1.5
