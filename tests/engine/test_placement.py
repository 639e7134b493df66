"""Rounds on one, two and eight devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.data.population import to_population
from fedjax_prune.engine.dealing import make_cohort
from fedjax_prune.engine.devices import SPLIT, WHOLE, make_placement, share_work
from fedjax_prune.engine.placing import put_cohort, put_split, put_whole, shapes_on
from fedjax_prune.engine.preparation import prepare
from fedjax_prune.engine.store import make_store
from fedjax_prune.runs.compiled_text import collectives, operations
from fedjax_prune.types import RoundInputs
from tests import problems, toys
from tests.seven_clients import SIZES, compiled, dataset, draw_cohort, rounds, start

IDS = (0, 1, 3, 4, 6)


def two_rounds(model, num_devices, reduction, num_lanes, ids=IDS):
    placement = make_placement(num_devices, reduction)
    cohort = draw_cohort(placement, ids, num_lanes)
    after, sums = rounds(model, placement, cohort)
    chex.assert_tree_all_finite(after)
    return after, sums


@pytest.mark.parametrize("num_devices", [2, 8])
@pytest.mark.parametrize("num_lanes", [1, 2])
def test_devices_change_nothing_beyond_rounding(num_devices, num_lanes):
    """Five clients: neither two nor eight devices divide them."""
    one, _ = two_rounds("linear", 1, "all_reduce", num_lanes)
    many, _ = two_rounds("linear", num_devices, "all_reduce", num_lanes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, many)


@pytest.mark.parametrize(
    ("model", "num_lanes", "others"), [("linear", 1, (2, 8)), ("dropout", 2, (2,))]
)
def test_fixed_order_has_the_same_bits_on_any_number_of_devices(
    model, num_lanes, others
):
    one, _ = two_rounds(model, 1, "fixed_order", num_lanes)
    for num_devices in others:
        many, _ = two_rounds(model, num_devices, "fixed_order", num_lanes)
        chex.assert_trees_all_equal(one, many)
    backward, _ = two_rounds(model, 2, "fixed_order", num_lanes, ids=IDS[::-1])
    chex.assert_trees_all_equal(one, backward)


def prepared_and_trained(algorithm, num_devices):
    """Two rounds of three clients, after the preparation if there is one."""
    placement = make_placement(num_devices, "fixed_order")
    key = jax.random.key(0)
    sizes, run = problems.SIZES, dict(epochs=2, batch_size=4)
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    population = to_population(parts, num_examples=sum(sizes))
    rows = make_store("device", algorithm.row(key), len(sizes), placement)
    data = problems.dataset_of_clients()
    state, data, key = put_whole(placement, (algorithm.init(key), data, key))
    state = prepare(
        algorithm, state, rows, data, population, seed=0, placement=placement
    ).state
    train_round = jax.jit(lambda inputs: algorithm.round(inputs, placement))
    for ids in ([0, 1, 4], [1, 2, 3]):
        ids = np.array(ids)
        cohort = make_cohort(population, ids, 1, placement=placement, **run)
        taken = rows.take(cohort.client_ids)
        inputs = RoundInputs(state, taken, data, put_cohort(placement, cohort), key)
        state, taken, _ = train_round(inputs)
        rows.put(cohort.client_ids, taken)
    return jax.device_get(state), toys.all_rows(rows, placement)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_has_the_same_bits_on_two_devices(name):
    """The only client of PruneFL's first stage leaves one of them idle."""
    algorithm = problems.build(name)
    one, two = (prepared_and_trained(algorithm, number) for number in (1, 2))
    chex.assert_tree_all_finite(one)
    chex.assert_trees_all_equal(one, two)


def test_the_fixed_order_joins_flags():
    """A model may have them in its state, here the labels that clients have seen."""
    linear = problems.task()

    def init(key):
        first = linear.init(key)
        flags = {"seen": jnp.zeros(problems.NUM_CLASSES, bool)}
        return first._replace(model_state=first.model_state | flags)

    def loss(variables, batch, key):
        mean, (state, sums) = linear.loss(variables, batch, key)
        labels = jnp.where(batch.example_mask, batch.labels, problems.NUM_CLASSES)
        seen = variables.model_state["seen"].at[labels].set(True, mode="drop")
        return mean, (state | {"seen": seen}, sums)

    task = linear._replace(init=init, loss=loss)
    algorithm = problems.build("fedavg", model_task=task)
    one, two = (prepared_and_trained(algorithm, number) for number in (1, 2))
    chex.assert_trees_all_equal(one, two)
    seen = one[0].model_state["seen"]
    assert seen.dtype == bool and seen.any()


def test_the_idle_device_of_the_fixed_order_takes_no_client():
    placement = make_placement(1, "fixed_order")
    cohort = draw_cohort(placement, (0, 1, 3))
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
    placement = make_placement(2)
    cohort = draw_cohort(placement, IDS, num_lanes=1)
    state, rows = start("linear")
    rows = toys.store_of(rows, placement).take(cohort.client_ids)
    state, data, key = put_whole(placement, (state, dataset(), jax.random.key(3)))
    inputs = RoundInputs(state, rows, data, put_cohort(placement, cohort), key)
    text = compiled("linear", placement).lower(inputs).compile().as_text()
    found = collectives(operations(text))
    assert found and not any(op.in_loop for op in found)


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


def test_a_placement_on_given_devices_has_a_mesh_of_them():
    """Also for one of them, which need not be JAX's default device."""
    last = jax.devices()[-1:]
    assert make_placement(1, devices=last).mesh.devices.tolist() == last
    with pytest.raises(ValueError, match=r"num_devices must be in \[1, 1\], got 2"):
        make_placement(2, devices=last)


def test_shapes_lie_as_the_arrays_that_are_put():
    placement = make_placement(2)
    arrays = {"a": jnp.zeros((4, 3)), "b": {"c": jnp.zeros(2, jnp.int32)}}
    shapes = shapes_on(placement, {"a": SPLIT, "b": WHOLE}, arrays)
    put = {
        "a": put_split(placement, arrays["a"]),
        "b": put_whole(placement, arrays["b"]),
    }
    like = [(x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(put)]
    found = [(x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(shapes)]
    assert found == like
