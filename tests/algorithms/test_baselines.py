"""The pruning baselines, each against numpy written from its rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_prune.algorithms.random_pruning import permute, shrinking_counts
from fedjax_prune.engine.aggregate import receive
from fedjax_prune.engine.devices import ONE_DEVICE
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.engine.transforms import (
    accumulate,
    add_proximal,
    mean_accumulated,
    zero_random,
)
from fedjax_prune.models import CNN
from fedjax_prune.models.task import make_task
from fedjax_prune.types import RoundInputs
from tests import toys
from tests.problems import SIZES, build, dataset_of_clients, task

KEY = jax.random.key(1)


def first(algorithm):
    return toys.first(algorithm, len(SIZES), KEY)


def play(algorithm, state, rows, number=1, dataset=None):
    """State and rows after rounds of all clients, and the last sums."""
    run, cohort = toys.compiled_round(algorithm), toys.contiguous_cohort(SIZES)
    for i in range(number):
        key = jax.random.fold_in(KEY, i)
        state, rows, sums = run(
            state, rows, dataset or dataset_of_clients(), cohort, key
        )
    return state, rows, sums


def test_magnitude_prunes_the_smallest_weights_once():
    algorithm = build("magnitude", threshold=0.5)
    state, rows = first(algorithm)
    size = np.abs(np.asarray(state.params["kernel"]))
    expected = size > np.quantile(size, 0.5)
    for _ in range(3):
        state, rows, _ = play(algorithm, state, rows)
        np.testing.assert_array_equal(state.server.masks["kernel"], expected)
        assert state.server.masks["bias"].all()


def test_magnitude_after_a_warm_up():
    algorithm = build("magnitude", threshold=0.5, warmup_rounds=2)
    state, rows, _ = play(algorithm, *first(algorithm), number=2)
    assert state.server.masks["kernel"].all()
    size = np.abs(np.asarray(state.params["kernel"]))
    state, rows, _ = play(algorithm, state, rows)
    expected = size > np.quantile(size, 0.5)
    np.testing.assert_array_equal(state.server.masks["kernel"], expected)


@pytest.mark.parametrize("batch_size", [12, 1])
def test_fedsnip_keeps_what_the_loss_is_sensitive_to(batch_size):
    """s = |w sum_k p_k g_k|, g_k the mean of the gradients of a client's batches."""
    # Batches of one example or of all: their mean does not depend on the order.
    solver = make_solver(epochs=2, batch_size=batch_size, lr=0.2)
    algorithm = build("fedsnip", solver=solver, threshold=0.4)
    state, dataset = algorithm.init(KEY), dataset_of_clients()
    w = np.asarray(state.params["kernel"], np.float64)
    images = np.asarray(dataset.images, np.float64).reshape(sum(SIZES), -1) / 255
    labels = np.eye(3)[np.asarray(dataset.labels)]
    gradient, start = 0, 0
    for size in SIZES:
        x, y = images[start : start + size], labels[start : start + size]
        logits = x @ w + np.asarray(state.params["bias"])
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = gradient + size / sum(SIZES) * x.T @ (p - y) / size
        start += size
    score = np.abs(gradient * w)
    expected = score > np.quantile(score, 0.4)
    cohort = toys.contiguous_cohort(SIZES)
    after, _, sums = toys.prepare(algorithm, dataset, cohort, KEY)
    np.testing.assert_array_equal(after.server.masks["kernel"], expected)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert int(after.round) == 0 and int(sums["mask/kept/kernel"]) == expected.sum()


def sensitivity(algorithm):
    """The mean gradient that FedSNIP makes its masks from."""
    state, rows = first(algorithm)
    dataset, cohort = dataset_of_clients(), toys.contiguous_cohort(SIZES)
    inputs = RoundInputs(state, rows, dataset, cohort, KEY)
    begun = algorithm.prepare.start(state)
    gathered, _, _ = algorithm.prepare.gather(begun, inputs, ONE_DEVICE)
    return receive(gathered)["gradient"]


def test_fedsnip_measures_the_loss_alone():
    """A proximal term has no gradient at the parameters that a round begins with."""
    plain = make_solver(epochs=1, batch_size=4, lr=0.1)
    proximal = plain.before_descent(add_proximal(0.1))
    found = [sensitivity(build("fedsnip", solver=s)) for s in (plain, proximal)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_fedsnip_moves_no_gate():
    """The loss is scaled by a gate, which would fall from batch to batch."""
    linear = task()

    def init(key):
        return linear.init(key)._replace(personal={"gate": jnp.float32(1)})

    def loss(variables, batch, key):
        mean, rest = linear.loss(variables, batch, key)
        return variables.personal["gate"] * mean, rest

    gated, gradients = linear._replace(init=init, loss=loss), []
    for lr in (1e-6, 0.1):
        solver = make_solver(epochs=1, batch_size=4, lr=lr)
        algorithm = build("fedsnip", model_task=gated, solver=solver)
        gradients.append(sensitivity(algorithm))
    jax.tree.map(np.testing.assert_array_equal, *gradients)


def test_eflprune_refuses_a_model_without_kernels_before_a_round():
    network = make_task(CNN(3, width=0.5), (8, 8, 1))

    def init(key):
        first = network.init(key)
        params = {layer: {"w": x["kernel"]} for layer, x in first.params.items()}
        return first._replace(params=params)

    with pytest.raises(ValueError, match="a model must have an array with the name"):
        build("eflprune", model_task=network._replace(init=init), channel_share=0.5)


def test_eflprune_sends_the_channels_of_largest_norm():
    shape = (8, 8, 1)
    network = make_task(CNN(3, width=0.5), shape)
    algorithm = build("eflprune", model_task=network, channel_share=0.5)
    dataset = jax.device_put(toys.image_dataset(sum(SIZES), shape, 3))
    state, rows = first(algorithm)
    for _ in range(2):
        norms = {
            name: np.abs(np.asarray(state.params[name]["kernel"]))
            for name in ("conv1", "conv2", "fc1")
        }
        norms = {n: k.reshape(-1, k.shape[-1]).sum(0) for n, k in norms.items()}
        before = state.params
        state, rows, sums = play(algorithm, state, rows, dataset=dataset)
        for name, norm in norms.items():
            kept = np.zeros(norm.size, bool)
            kept[np.argsort(-norm)[: norm.size // 2]] = True
            masks = state.server.masks[name]
            np.testing.assert_array_equal(masks["bias"], kept)
            assert int(sums[f"mask/channels/{name}"]) == norm.size // 2
            # What is left out keeps its values.
            np.testing.assert_array_equal(
                np.asarray(state.params[name]["kernel"])[..., ~kept],
                np.asarray(before[name]["kernel"])[..., ~kept],
            )


def test_places_without_a_client_are_sent_no_masks():
    algorithm = build("magnitude", threshold=0.5)
    cohort = toys.contiguous_cohort(SIZES, [0, 1, 2, 3])
    cohort = cohort._replace(
        client_ids=np.array([0, 1, 2, 3, len(SIZES)], np.int32),
        sizes=np.array([*SIZES[:4], 0], np.int32),
        indices=np.pad(cohort.indices, ((0, 1), (0, 0))),
        queues=np.array([[0, 1, 2, 3, 5]], np.int32),
    )
    run = toys.compiled_round(algorithm)
    _, _, sums = run(*first(algorithm), dataset_of_clients(), cohort, KEY)
    assert int(sums["mask/sent"]) == 4


def test_random_masks_have_as_many_entries_of_every_array():
    fields = {"explore_epochs": 2, "threshold": 0.4}
    guided = build("autoflip", mask_schedule="fixed", **fields)
    random = build("random_pruning", **fields)
    cohort = toys.contiguous_cohort(SIZES)
    masks = []
    for algorithm in (guided, random):
        state, _, _ = toys.prepare(algorithm, dataset_of_clients(), cohort, KEY)
        masks.append(state.server.masks)
    counts = [jax.tree.map(lambda m: int(m.sum()), m) for m in masks]
    assert counts[0] == counts[1]
    assert (masks[0]["kernel"] != masks[1]["kernel"]).any()


def test_permuted_masks_are_random():
    mask = {"a": jnp.arange(1000) < 300}
    other = permute(mask, KEY)["a"]
    assert int(other.sum()) == 300 and 60 < int(other[:300].sum()) < 120


def test_shrinking_budget_by_hand():
    """TwoCNN with one channel: 45 % of 1,663,370 entries, then what is left."""
    sizes = {"a": 100, "b": 50, "c": 50}
    shapes = {n: jax.ShapeDtypeStruct((k,), jnp.float32) for n, k in sizes.items()}
    # B = 90: floor(90 / 2) = 45; 45 left: floor(45 / 4) = 11; 34 left: 8.
    assert shrinking_counts(shapes, 0.45) == {"a": 45, "b": 11, "c": 8}
    # In binary 0.29 * 100 is below 29.
    assert shrinking_counts({"a": shapes["a"]}, 0.29) == {"a": 29}


def test_random_entries_are_zero_after_every_step():
    tx = optax.with_extra_args_support(zero_random({"a": 3, "b": 0}))
    params = {"a": jnp.arange(1.0, 11.0), "b": jnp.ones(4)}
    steps = {"a": jnp.full(10, 0.5), "b": jnp.full(4, 0.5)}
    zeros = set()
    for seed in range(4):
        updates, _ = tx.update(steps, tx.init(params), params, key=jax.random.key(seed))
        after = optax.apply_updates(params, updates)
        gone = np.flatnonzero(np.asarray(after["a"]) == 0)
        assert len(gone) == 3
        kept = np.setdiff1d(np.arange(10), gone)
        np.testing.assert_array_equal(after["a"][kept], params["a"][kept] + 0.5)
        np.testing.assert_array_equal(after["b"], 1.5)
        zeros.add(tuple(gone))
    assert len(zeros) > 1


def test_random_entries_of_a_large_array_are_as_many_as_asked_and_everywhere():
    tx, counts = zero_random({"a": 300}), np.zeros(1000)
    update = jax.jit(lambda key: tx.update(*[{"a": jnp.ones(1000)}] * 3, key=key)[0])
    for key in jax.random.split(jax.random.key(0), 200):
        gone = np.asarray(update(key)["a"]) == -1
        assert gone.sum() == 300
        counts += gone
    # Binomial with mean 60 and deviation 6.5: six deviations.
    assert counts.min() > 21 and counts.max() < 99


def test_accumulated_squares():
    tx = accumulate(jnp.square)
    state = tx.init({"a": jnp.zeros(2)})
    for value in (1.0, 3.0):
        _, state = tx.update({"a": jnp.array([value, 2.0])}, state)
    np.testing.assert_array_equal(state[0]["a"], [10, 8])
    assert float(state[1]) == 2
    np.testing.assert_array_equal(mean_accumulated(state)["a"], [5, 4])


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("magnitude", {"threshold": 1.0}, r"threshold must be in \[0, 1\)"),
        ("magnitude", {"warmup_rounds": -1}, "warmup_rounds must be at least 0"),
        ("fedsnip", {"min_keep": 2.0}, r"min_keep must be in \[0, 1\]"),
        ("eflprune", {"channel_share": 1.0}, r"channel_share must be in \[0, 1\)"),
        ("random_steps", {"ratio": 1.0}, r"ratio must be in \[0, 1\), got 1.0"),
        ("prunefl", {"adjust_every": 0}, "adjust_every must be at least 1, got 0"),
        ("prunefl", {"constant_time": 0.0}, "constant_time must be above 0, got 0.0"),
    ],
)
def test_bad_fields(name, fields, words):
    with pytest.raises(ValueError, match=words):
        build(name, **fields)


def test_eflprune_needs_to_know_the_channels():
    with pytest.raises(
        ValueError, match=r"task must have groups, .* got groups = None"
    ):
        build("eflprune", model_task=task()._replace(groups=None))
    with pytest.raises(ValueError, match=r"channel_share must be 0 .*, got 0\.3"):
        build("eflprune", channel_share=0.3)


def test_arrays_of_one_shape_are_permuted_apart():
    mask = jnp.arange(1000) < 300
    found = permute({"a": mask, "b": mask}, KEY)
    assert (found["a"] != found["b"]).any()
