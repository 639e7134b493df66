"""Rounds on one, two and eight devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.data.population import to_population
from fedjax_prune.engine.dealing import make_cohort
from fedjax_prune.engine.devices import (
    make_placement,
    put_cohort,
    put_whole,
    share_work,
)
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.engine.store import DeviceStore
from fedjax_prune.models import CNN
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task
from fedjax_prune.types import RoundInputs
from tests import toys

SIZES = (5, 12, 1, 8, 3, 9, 2)
RUN = dict(epochs=2, batch_size=4)


@functools.cache
def algorithm(model):
    if model == "linear":
        task = toys.linear_task((4, 4, 1), 3)
    else:
        gates = GateSettings(0.5)
        network = CNN(3, width=0.25, norm="bn", gates=gates, dropout=0.5)
        task = make_task(network, (4, 4, 1), lasso_weight=1e-3)
    solver = make_solver(lr=0.2, momentum=0.9, weight_decay=0.01, **RUN)
    return ALGORITHMS["scaffold"](task, solver, make_server_tx("momentum"))


@functools.cache
def compiled(model, num_devices, reduction):
    placement = make_placement(num_devices, reduction)
    chosen = algorithm(model)

    @jax.jit
    def step(state, rows, dataset, cohort, key):
        return chosen.round(RoundInputs(state, rows, dataset, cohort, key), placement)

    return placement, step


def arguments(model, placement, ids, num_lanes):
    parts = np.split(np.arange(40), np.cumsum(SIZES)[:-1])
    population = to_population(parts, num_examples=40)
    cohort = make_cohort(
        population,
        ids,
        num_lanes,
        placement=placement,
        **RUN,
    )
    key = jax.random.key(3)
    state = algorithm(model).init(key)
    row = algorithm(model).row(key)
    return (
        put_whole(placement, state),
        DeviceStore(row, len(SIZES), placement),
        cohort.client_ids,
        put_whole(placement, toys.image_dataset(40, (4, 4, 1), 3)),
        put_cohort(placement, cohort),
        put_whole(placement, key),
    )


def two_rounds(model, num_devices, reduction, num_lanes, ids=(0, 1, 3, 4, 6)):
    placement, step = compiled(model, num_devices, reduction)
    state, rows, places, *others = arguments(model, placement, np.array(ids), num_lanes)
    for _ in range(2):
        state, taken, sums = step(state, rows.take(places), *others)
        rows.put(places, taken)
    return (jax.device_get(state), toys.all_rows(rows, placement)), sums


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("num_devices", [2, 8])
@pytest.mark.parametrize("num_lanes", [1, 2])
def test_devices_change_nothing_beyond_rounding(num_devices, num_lanes):
    """Five clients: neither two nor eight devices divide them."""
    one, _ = two_rounds("linear", 1, "all_reduce", num_lanes)
    many, _ = two_rounds("linear", num_devices, "all_reduce", num_lanes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, many)


@pytest.mark.parametrize(
    ("model", "num_lanes", "others"), [("linear", 1, (2, 8)), ("gated", 2, (2,))]
)
def test_fixed_order_has_the_same_bits_on_any_number_of_devices(
    model, num_lanes, others
):
    one, _ = two_rounds(model, 1, "fixed_order", num_lanes)
    for num_devices in others:
        many, _ = two_rounds(model, num_devices, "fixed_order", num_lanes)
        assert_equal(one, many)
    backward, _ = two_rounds(model, 2, "fixed_order", num_lanes, ids=(6, 4, 3, 1, 0))
    assert_equal(one, backward)


def test_the_idle_device_of_the_fixed_order_takes_no_client():
    placement = make_placement(1, "fixed_order")
    cohort = arguments("linear", placement, np.array([0, 1, 3]), 2)[4]
    np.testing.assert_array_equal(cohort.client_ids, [0, 1, 3] + [len(SIZES)] * 3)
    np.testing.assert_array_equal(
        cohort.queues, [[1, 3, 3], [0, 2, 3], [3] * 3, [3] * 3]
    )
    _, sums = two_rounds("linear", 1, "fixed_order", 1)
    assert int(sums["steps_executed"]) == 18


def test_fixed_order_is_the_mean_of_all_reduce():
    fixed, _ = two_rounds("linear", 1, "fixed_order", 1)
    running, _ = two_rounds("linear", 1, "all_reduce", 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), fixed, running
    )


def test_all_lanes_wait_for_the_slowest_device():
    """Steps 4, 6, 4, 2, 2 of clients 0, 1, 3, 4, 6.

    On two devices with one lane: 6 + 2 + 2 beside 4 + 4. On eight the longest is 6.
    """
    for num_devices, executed in ((1, 18), (2, 2 * 10), (8, 8 * 6)):
        _, sums = two_rounds("linear", num_devices, "all_reduce", 1)
        assert int(sums["steps_executed"]) == executed
        assert int(sums["steps"].sum()) == 18


def test_devices_are_silent_during_local_training():
    placement, step = compiled("linear", 2, "all_reduce")
    state, rows, places, *rest = arguments("linear", placement, np.array([0, 1, 3]), 1)
    text = step.lower(state, rows.take(places), *rest).compile().as_text()
    talk = re.compile(
        r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\S*\("
    )
    bodies = {}
    for block in re.split(r"\n}\n", text):
        name = re.search(r"^(?:ENTRY )?%?([\w.\-]+) \(", block, re.M)
        if name:
            bodies[name[1]] = block

    def reached(name, seen):
        if name in bodies and name not in seen:
            seen.add(name)
            for other in re.findall(
                r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", bodies[name]
            ):
                reached(other, seen)
            for branches in re.findall(r"branch_computations={([^}]*)}", bodies[name]):
                for other in branches.split(","):
                    reached(other.strip().lstrip("%"), seen)
        return seen

    loops = set(re.findall(r"body=%?([\w.\-]+)", text))
    assert loops and talk.search(text)
    for loop in loops:
        for name in reached(loop, set()):
            assert not talk.search(bodies[name]), name


def test_shared_work_is_the_whole_work():
    x = jnp.arange(15.0).reshape(5, 3)
    scale = jnp.float32(2)
    for num_devices in (1, 2, 8):
        placement = make_placement(num_devices)
        rows = share_work(placement, lambda s, part: s * part.sum(1), scale, x)
        np.testing.assert_array_equal(rows, 2 * x.sum(1))
        columns = share_work(
            placement, lambda s, part: s * part.T, scale, x, out_axis=1
        )
        np.testing.assert_array_equal(columns, 2 * x.T)


def test_bad_placements():
    with pytest.raises(ValueError, match=r"devices must be in \[1, 8\], got 9"):
        make_placement(9)
    with pytest.raises(ValueError, match="one of all_reduce, fixed_order, got 'any'"):
        make_placement(1, "any")
