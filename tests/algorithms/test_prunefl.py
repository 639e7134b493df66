"""PruneFL's adjustments, against numpy written from its rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms.prunefl import SETTLED, _times, adjust
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.engine.transforms import make_transformation
from fedjax_prune.models import CNN
from fedjax_prune.models.task import make_task
from tests import toys
from tests.problems import SIZES, SOLVER, build, dataset_of_clients
from tests.small_models import Headed

KEY = jax.random.key(1)
EVEN = {"byte_time": 10**9, "mac_time": 0, "constant_time": 1e-30}
"""All weights take the same time: whole numbers, of which int32 could not hold one."""


def begin(algorithm, dataset=None):
    """The state and the rows after the first stage, and how often that has adjusted."""
    cohort = toys.contiguous_cohort(SIZES, [0])
    dataset = dataset or dataset_of_clients()
    state, rows, sums = toys.prepare(algorithm, dataset, cohort, KEY)
    # Two epochs of its five examples in batches of four.
    return state, rows, int(sums["steps"].sum()) // 4


def without_images():
    """Examples by which no kernel has a gradient, so what is dropped stays away."""
    dataset = dataset_of_clients()
    return dataset._replace(images=jnp.zeros_like(dataset.images))


def numpy_adjust(mask, w, g2, t, share, constant):
    """PruneFL's adjustment of two arrays, one entry after another."""
    safe = {}
    for name in mask:
        active = np.flatnonzero(mask[name])
        order = active[np.argsort(np.abs(w[name][active]), kind="stable")]
        safe[name] = set(order[int(share * len(active)) :])
    kept = [(n, i) for n in mask for i in safe[n]]
    gain = sum(g2[n][i] for n, i in kept)
    time = constant + sum(t[n] for n, _ in kept)
    others = [(n, i) for n in mask for i in range(len(w[n])) if i not in safe[n]]
    others.sort(key=lambda e: -g2[e[0]][e[1]] / t[e[0]])
    for n, i in others:
        if g2[n][i] / t[n] <= gain / time:
            break
        kept.append((n, i))
        gain, time = gain + g2[n][i], time + t[n]
    result = {n: np.zeros(len(w[n]), bool) for n in mask}
    for n, i in kept:
        result[n][i] = True
    return result


@pytest.mark.parametrize("seed", range(6))
def test_prunefl_adjusts_as_its_rule_says(seed):
    rng = np.random.default_rng(seed)
    sizes, t = {"a": 12, "b": 8}, {"a": 0.5, "b": 2.0}
    mask = {n: rng.random(k) < 0.7 for n, k in sizes.items()}
    w = {n: rng.normal(size=k).astype(np.float32) for n, k in sizes.items()}
    g2 = {n: rng.exponential(size=k).astype(np.float32) for n, k in sizes.items()}
    found = adjust(
        masks=jax.tree.map(jnp.asarray, mask),
        params=w,
        squares=jax.tree.map(jnp.asarray, g2),
        times=t,
        prunable=dict.fromkeys(sizes, True),
        share=jnp.float32(0.3),
        constant=3.0,
    )
    expected = numpy_adjust(mask=mask, w=w, g2=g2, t=t, share=0.3, constant=3.0)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert 0 < sum(m.sum() for m in expected.values()) < 20


DROPPED = [(0.52, 475, 247), (0.1111, 9, 0), (0.52, 1_945_600, 1_011_712)]


@pytest.mark.parametrize(("share", "count", "dropped"), DROPPED)
def test_a_share_is_rounded_down_as_a_decimal(share, count, dropped):
    """In float32 the first and the last product are below the whole number."""
    masks, params = {"kernel": jnp.ones(count, bool)}, {"kernel": jnp.zeros(count)}
    left = adjust(
        masks,
        params,
        squares=params,
        times={"kernel": 1.0},
        prunable={"kernel": True},
        share=jnp.float32(share),
        constant=1.0,
    )
    assert int(left["kernel"].sum(dtype=jnp.int32)) == count - dropped


def test_prunefl_adjusts_every_so_many_rounds_and_regrows_from_zero():
    algorithm = build("prunefl", adjust_every=2, byte_time=0.1, constant_time=0.1)
    state, rows = toys.first(algorithm, len(SIZES), KEY)
    # As if the first stage had pruned nothing.
    state = state._replace(pending=())
    run, cohort = toys.compiled_round(algorithm), toys.contiguous_cohort(SIZES)
    masks, states = [], []
    for number in range(1, 7):
        state, rows, sums = run(state, rows, dataset_of_clients(), cohort, KEY)
        # Before an adjustment clients send a square for every entry.
        size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        assert int(sums["mask/extra"]) == (number % 2 == 0) * size
        masks.append(np.asarray(state.server.masks["kernel"]))
        states.append(state)
        kernel = np.asarray(state.params["kernel"])
        np.testing.assert_array_equal(kernel[~masks[-1]], 0)
    np.testing.assert_array_equal(masks[2], masks[3])
    assert (masks[1] != masks[2]).any()


def adjusted(algorithm, state, finished=1):
    """The state after an adjustment, as if every squared gradient were 1."""
    ones = {
        "squares": jax.tree.map(jnp.ones_like, state.params),
        "round": jnp.int32(finished),
    }
    server = state.server._replace(guide=ones)
    state = state._replace(round=jnp.int32(finished), server=server)
    return jax.jit(algorithm.masked.remask)(state, None, None)


@pytest.mark.parametrize("every", [1, 3])
def test_prunefl_drops_a_share_that_decays(every):
    """floor(27 / 2), then floor(14 / 4) entries; as time is even, none comes back."""
    algorithm = build(
        "prunefl", adjust_every=every, prune_share=0.5, share_decay=0.5, **EVEN
    )
    state, kept = algorithm.init(KEY), []
    for finished in (every, 2 * every):
        state = adjusted(algorithm, state, finished)
        kept.append(int(state.server.masks["kernel"].sum()))
    assert kept == [14, 11]


@pytest.mark.parametrize("every", [1, 2])
def test_a_round_in_which_nothing_arrives_adjusts_no_mask(every):
    """Squares of a round before it are not those that the mask is adjusted by."""
    algorithm = build("prunefl", adjust_every=every, prune_share=0.5, **EVEN)
    state, rows, _ = begin(algorithm)
    where = make_placement(policy=make_policy(on_bad_client="drop"))
    run, cohort = toys.CompiledRound(algorithm, where), toys.contiguous_cohort(SIZES)
    dataset = dataset_of_clients()
    nowhere = dataset._replace(images=jnp.full(dataset.images.shape, jnp.nan))
    masks, versions = [], []
    # Rounds 1 to every - 1 arrive, round `every` does not, then all do.
    for data in [*[dataset] * (every - 1), nowhere, *[dataset] * (every + 1)]:
        state, rows, _ = run(state, rows, data, cohort, KEY)
        masks.append(state.server.masks)
        versions.append(int(state.server.version))
    toys.assert_same_bits(masks[every], masks[0])
    assert versions[every] == versions[0] < versions[-1]


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_first_stage_of_prunefl_always_drops_the_whole_share(decay):
    """Of 27 entries 14, 7, 4 and 2 are left."""
    shares = {"prune_share": 0.5, "share_decay": decay, "max_adjustments": 4}
    algorithm = build("prunefl", **shares, **EVEN)
    state, _, adjustments = begin(algorithm, without_images())
    assert (int(state.server.masks["kernel"].sum()), adjustments) == (2, 4)


@pytest.mark.parametrize(("share", "adjustments"), [(0.05, SETTLED), (0.2, 15)])
def test_the_first_stage_ends_when_the_size_has_settled(share, adjustments):
    """After five small changes in a row.

    With 0.05 one of 27 entries goes each time. With 0.2 there are 22, 18, 15, 12, 10,
    8, 7, 6, 5 and 4 left, and then always 4, beside three biases. To go from 8 to 7 is
    a small change between large ones.
    """
    fields = {"prune_share": share, "max_adjustments": 50}
    _, _, found = begin(build("prunefl", **fields, **EVEN), without_images())
    assert found == adjustments


def test_a_message_that_is_dropped_adjusts_no_mask():
    dataset = dataset_of_clients()
    nowhere = dataset._replace(images=jnp.full(dataset.images.shape, jnp.nan))
    fields = {"prune_share": 0.5, "max_adjustments": SETTLED + 1}
    algorithm = build("prunefl", **fields, **EVEN)
    state, _, tries = begin(algorithm, nowhere)
    assert tries == SETTLED + 1  # none of them counts as a small change
    assert all(mask.all() for mask in jax.tree.leaves(state.server.masks))


def test_rounds_of_the_first_stage_draw_apart():
    """What a transformation adds to the steps is not the same in two rounds."""

    def update(updates, state, params=None, *, key, **extra_args):
        noise = jax.tree.map(lambda x: jax.random.normal(key, x.shape), updates)
        return noise, state

    solver = SOLVER.after_descent(make_transformation(update, lambda params: ()))
    moved = []
    for rounds in (1, 2):
        fields = {"prune_share": 0.0, "max_adjustments": rounds}
        algorithm = build("prunefl", solver=solver, **fields)
        start = algorithm.init(KEY).params["kernel"]
        state, _, adjustments = begin(algorithm, without_images())
        assert adjustments == rounds
        moved.append(np.asarray(state.params["kernel"] - start))
    correlation = np.corrcoef(moved[0].ravel(), (moved[1] - moved[0]).ravel())[0, 1]
    assert abs(correlation) < 0.9


def test_a_weight_takes_the_time_of_its_four_bytes():
    network = make_task(CNN(3, width=0.1), (8, 8, 1))
    shapes = jax.eval_shape(lambda: network.init(KEY)).params
    assert set(jax.tree.leaves(_times(network, shapes, 1.0, 0.0))) == {4.0}


def test_a_weight_inside_a_layer_takes_its_time_for_each_place_of_the_layer():
    task = make_task(Headed(), (2, 2, 1))
    times = _times(task, task.shapes.params, 1.0, 10.0)
    assert set(jax.tree.leaves(times)) == {4.0 + 2 * 10.0}


def test_squares_are_those_of_each_clients_gradient_weighted_by_examples():
    """One step so small that the parameters stand still."""
    solver = make_solver(epochs=1, batch_size=max(SIZES), lr=1e-7)
    algorithm = build("prunefl", solver=solver, adjust_every=50)
    state, rows = toys.first(algorithm, len(SIZES), KEY)
    state, dataset = state._replace(pending=()), dataset_of_clients()
    w, b = (np.asarray(state.params[n], np.float64) for n in ("kernel", "bias"))
    images = np.asarray(dataset.images, np.float64).reshape(sum(SIZES), -1) / 255
    labels = np.eye(3)[np.asarray(dataset.labels)]
    expected, start = 0, 0
    for size in SIZES:
        x, y = images[start : start + size], labels[start : start + size]
        odds = np.exp(x @ w + b)
        gradient = x.T @ (odds / odds.sum(1, keepdims=True) - y) / size
        expected = expected + size / sum(SIZES) * gradient**2
        start += size
    run, cohort = toys.compiled_round(algorithm), toys.contiguous_cohort(SIZES)
    state, _, _ = run(state, rows, dataset, cohort, KEY)
    squares = state.server.guide["squares"]["kernel"]
    np.testing.assert_allclose(squares, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("array", ["", "/kernel"])
def test_prunefl_regrows_what_is_multiplied_at_few_places(array):
    """8x8 and 4x4 for the convolutions, one for the others, of which all come back.

    A layer is named by its module or by its array.
    """
    network = make_task(CNN(3, width=0.1), (8, 8, 1))
    layers = [layer._replace(name=layer.name + array) for layer in network.layers]
    network = network._replace(layers=tuple(layers))
    algorithm = build(
        "prunefl",
        model_task=network,
        adjust_every=1,
        prune_share=0.5,
        byte_time=0.0,
        mac_time=1.0,
    )
    masks = adjusted(algorithm, algorithm.init(KEY)).server.masks
    kept = {name: float(masks[name]["kernel"].mean()) for name in masks}
    assert kept == {"conv1": 0.5, "conv2": 0.5, "fc1": 1.0, "fc2": 1.0}
