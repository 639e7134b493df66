"""Clients that do not report, and stragglers: drawn, replayed, and counted."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.devices import ONE_DEVICE, make_placement
from fedjax_prune.engine.participation import Participation
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.engine.server import make_server_tx
from tests import problems, quadratic, seven_clients, toys

ALL = range(5)


def play(algorithm, ids=ALL, *, policy=None, begin=None, number=0):
    """One round of some clients, and the rows of all."""
    placement = ONE_DEVICE if policy is None else ONE_DEVICE._replace(policy=policy)
    state, rows = begin or problems.begin(algorithm)
    cohort = toys.contiguous_cohort(problems.SIZES, ids, num_lanes=2, width=12)
    run = toys.compiled_round(algorithm, placement)
    key = jax.random.fold_in(jax.random.key(7), number)
    return run(state, rows, problems.dataset_of_clients(), cohort, key)


def close(first, second):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        first,
        second,
    )


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "autoflip", "prunefl"])
def test_absent_clients_are_missing_and_nothing_else(name):
    """PruneFL's mean over the steps of a client is 0 / 0 if there are none."""
    fields = {"mask_schedule": "fixed"} if name == "autoflip" else {}
    algorithm = problems.build(name, **fields)
    policy = make_policy(client_dropout=0.5)
    begin = play(algorithm)[:2]
    state, rows, sums = play(algorithm, policy=policy, begin=begin, number=1)
    absent = np.flatnonzero(sums["absent"])
    assert 0 < len(absent) < 5
    np.testing.assert_array_equal(sums["arrived"], 1 - sums["absent"])
    np.testing.assert_array_equal(sums["nonfinite"], 0)
    np.testing.assert_array_equal(sums["slow"], 0)
    for name in ("steps", "count"):
        assert not np.asarray(sums[name])[absent].any()
    present = np.setdiff1d(ALL, absent)
    without = play(algorithm, present, begin=begin, number=1)
    close((state, rows), without[:2])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[absent], b[absent]), rows, begin[1]
    )


def test_a_round_in_which_nobody_reports_changes_nothing():
    algorithm = problems.build("scaffold")
    begin = play(algorithm)[:2]
    policy = make_policy(client_dropout=0.999)
    state, rows, sums = play(algorithm, policy=policy, begin=begin, number=1)
    assert int(sums["absent"].sum()) == 5
    chex.assert_trees_all_equal((state._replace(round=begin[0].round), rows), begin)
    assert int(state.round) == int(begin[0].round) + 1


def test_numbers_of_steps_are_drawn_as_said():
    participation = Participation(0.2, 0.5, 0.25)
    planned = jnp.int32(40)
    draw = jax.jit(jax.vmap(lambda key: participation.num_steps(key, planned)))
    steps = np.asarray(draw(jax.random.split(jax.random.key(0), 20_000)))
    absent, slow = steps == 0, (steps > 0) & (steps < 40)
    assert abs(absent.mean() - 0.2) < 0.015
    # Of ceil(40 u) the value 40 is no sign of a straggler.
    assert abs(slow.mean() - 0.8 * 0.5 * 29 / 30) < 0.015
    assert steps[slow].min() == 11 and steps[slow].max() == 39
    np.testing.assert_allclose(steps[slow].mean(), 25, atol=0.5)


@pytest.mark.parametrize(("least", "steps"), [(0.0, {1}), (1.0, {1})])
def test_one_step_is_made_at_least_and_all_at_most(least, steps):
    participation = Participation(0.0, 1.0, least)
    draw = jax.vmap(lambda key: participation.num_steps(key, jnp.int32(1)))
    assert {*draw(jax.random.split(jax.random.key(1), 50)).tolist()} == steps


def test_a_probability_of_zero_changes_nothing():
    assert make_policy(straggler_steps=0.5).participation is None
    algorithm = problems.build("scaffold")
    policy = make_policy()._replace(participation=Participation(0.0, 0.0, 0.0))
    plain, played = play(algorithm), play(algorithm, policy=policy)
    close(plain[:2], played[:2])
    assert not played[2]["absent"].any() and not played[2]["slow"].any()


def step_sizes(count):
    """Of the first local steps; a client of `quadratic` has one batch an epoch."""
    return [
        quadratic.LR * (1 + np.cos(np.pi * epoch / quadratic.EPOCHS)) / 2
        for epoch in range(count)
    ]


def path(bowl, start, count, correction):
    """Numpy: where some local steps lead, their mass, and the weighted gradient."""
    (h, centre), w, gradients = bowl, start.copy(), []
    for eta in step_sizes(count):
        gradients.append(h * (w - centre) + quadratic.DECAY * w)
        w = w - eta * (gradients[-1] + correction)
    mass = sum(step_sizes(count))
    weighted = sum(e * g for e, g in zip(step_sizes(count), gradients, strict=True))
    return w, mass, weighted / mass


def stragglers_of(name) -> tuple[FederatedAlgorithm, tuple, np.ndarray, list]:
    """Two rounds of stragglers on quadratics, the state before the second."""
    algorithm = quadratic.build(name, server_tx=make_server_tx())
    dataset, bowls = quadratic.problem()
    policy = make_policy(stragglers=0.9)
    run = toys.compiled_round(algorithm, ONE_DEVICE._replace(policy=policy))
    cohort = toys.contiguous_cohort(quadratic.SIZES, num_lanes=2)
    state, rows = toys.first(algorithm, 3, quadratic.KEY)
    for number in range(2):
        before = jax.device_get((state, rows))
        key = jax.random.fold_in(jax.random.key(4), number)
        state, rows, sums = run(state, rows, dataset, cohort, key)
    steps = np.asarray(sums["steps"]).astype(int)
    assert len({*steps}) > 1 and sums["slow"].sum() >= 2
    np.testing.assert_array_equal(sums["slow"], steps < quadratic.EPOCHS)
    return before, (state, rows), steps, bowls


def test_fednova_divides_by_the_mass_of_the_steps_really_made():
    (before, _), (after, _), steps, bowls = stragglers_of("fednova")
    start = np.asarray(before.params["w"], float)
    weights = np.array(quadratic.SIZES) / sum(quadratic.SIZES)
    paths = [path(b, start, n, np.zeros(3)) for b, n in zip(bowls, steps, strict=True)]
    normalised = sum(
        p * (start - w) / mass for p, (w, mass, _) in zip(weights, paths, strict=True)
    )
    whole = sum(p * mass for p, (_, mass, _) in zip(weights, paths, strict=True))
    expected = start - whole * normalised
    np.testing.assert_allclose(after.params["w"], expected, rtol=1e-5, atol=1e-6)


def test_scaffold_controls_are_the_mean_gradients_of_the_steps_really_made():
    (before, rows), (_, after), steps, bowls = stragglers_of("scaffold")
    start = np.asarray(before.params["w"], float)
    server = np.asarray(before.server.control["w"], float)
    for client, (bowl, count) in enumerate(zip(bowls, steps, strict=True)):
        own = np.asarray(rows.client["w"][client], float)
        _, _, gradient = path(bowl, start, count, server - own)
        np.testing.assert_allclose(
            after.client["w"][client], gradient, rtol=2e-4, atol=1e-5
        )


@pytest.mark.parametrize("reduction", ["all_reduce", "fixed_order"])
def test_lanes_devices_and_order_draw_the_same(reduction):
    policy = make_policy(client_dropout=0.3, stragglers=0.6)
    ids, seen = (0, 1, 3, 4, 6), []
    for num_devices, num_lanes, order in ((1, 2, ids), (2, 1, ids), (2, 2, ids[::-1])):
        placement = make_placement(num_devices, reduction, policy=policy)
        cohort = seven_clients.draw_cohort(placement, order, num_lanes)
        after, sums = seven_clients.rounds("linear", placement, cohort)
        places = np.argsort(cohort.client_ids)[: len(ids)]
        flags = {n: np.asarray(sums[n])[places] for n in ("absent", "slow", "steps")}
        seen.append((after, flags))
    assert seen[0][1]["absent"].any() and seen[0][1]["slow"].any()
    for after, flags in seen[1:]:
        chex.assert_trees_all_equal(flags, seen[0][1])
        close(after, seen[0][0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"client_dropout": 1.0}, r"client_dropout must be in \[0, 1\), got 1\.0"),
        ({"stragglers": 1.1}, r"stragglers must be in \[0, 1\], got 1\.1"),
        ({"straggler_steps": -1.0}, r"straggler_steps must be in \[0, 1\], got -1"),
    ],
)
def test_bad_probabilities(fields, message):
    with pytest.raises(ValueError, match=message):
        make_policy(**fields)
