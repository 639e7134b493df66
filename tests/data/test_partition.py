"""Partitions: published vectors, cover, and the limits of each."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import quickstart
from fedjax_prune.data.paper_splits import dirichlet_in_turn, pathological
from fedjax_prune.data.partition import (
    PARTITIONERS,
    dirichlet,
    iid,
    partition,
    quantity,
    shards,
)
from fedjax_prune.data.splitting import dirichlet_shares
from fedjax_prune.data.validation import class_counts
from fedjax_prune.runs.settings import SettingsError
from tests.small_runs import build

LABELS = np.repeat(np.arange(10), 5000)  # CIFAR-10's class counts


def held(population):
    return [population.of(client) for client in range(len(population.sizes))]


def assert_covers(population, num_examples):
    np.testing.assert_array_equal(np.sort(population.indices), np.arange(num_examples))
    assert population.indices.dtype == np.int32
    assert population.offsets.dtype == np.int64
    assert population.offsets[0] == 0 and population.sizes.min() > 0


@pytest.mark.parametrize(
    ("seed", "sizes"),
    [
        (2020, [4096, 5674, 4534, 476, 5052, 5256, 7867, 6039, 5711, 5295]),
        (0, [7615, 5142, 7498, 865, 2731, 6130, 6415, 3034, 6091, 4479]),
    ],
)
def test_dirichlet_gives_the_sizes_of_the_published_code(seed, sizes):
    population = dirichlet(LABELS, 10, 0.1, np.random.RandomState(seed))
    np.testing.assert_array_equal(population.sizes, sizes)
    # The sizes do not depend on the order of the images.
    shuffled = np.random.default_rng(0).permutation(LABELS)
    population = dirichlet(shuffled, 10, 0.1, np.random.RandomState(seed))
    np.testing.assert_array_equal(population.sizes, sizes)


@pytest.mark.parametrize(
    ("seed", "num_clients", "draws", "smallest", "median", "largest"),
    [
        (2020, 10, 2, 476, 5276, 7867),
        (2020, 30, 1, 144, 1790, 3700),
        (2020, 50, 1, 19, 1010, 3169),
        (2020, 100, 21, 14, 487, 1990),
        (0, 10, 1, 865, 5617, 7615),
        (0, 30, 1, 22, 1674, 4322),
        (0, 50, 2, 52, 981, 4152),
        (0, 100, 13, 14, 456, 1595),
    ],
)
def test_dirichlet_reference_outcomes(
    seed, num_clients, draws, smallest, median, largest
):
    rng = np.random.RandomState(seed)
    population = dirichlet(LABELS, num_clients, 0.1, rng, max_draws=draws)
    sizes = population.sizes
    assert (sizes.min(), sizes.max()) == (smallest, largest)
    assert abs(np.median(sizes) - median) <= 0.5  # the table has whole numbers
    assert_covers(population, len(LABELS))
    classes = (class_counts(LABELS, population, 10) > 0).sum(1).mean()
    low, high = {10: (5.8, 6.1), 30: (4.5, 4.7), 50: (4.5, 4.6), 100: (4.1, 4.4)}[
        num_clients
    ]
    assert low - 0.051 < classes < high + 0.051  # the table has one decimal
    if draws > 1:
        rng = np.random.RandomState(seed)
        with pytest.raises(ValueError, match=r"Raise alpha, lower min_size"):
            dirichlet(LABELS, num_clients, 0.1, rng, max_draws=draws - 1)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["dirichlet", "iid", "quantity", "shards"]),
    counts=st.lists(st.integers(12, 40), min_size=2, max_size=5),
    num_clients=st.integers(2, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_example_has_exactly_one_client(name, counts, num_clients, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(seed).permutation(labels)
    classes_per_client = max(2, -(-len(counts) // num_clients))
    arguments: dict[str, Any] = {
        "alpha": 1.0,
        "min_size": 1,
        "classes_per_client": classes_per_client,
    }
    population = partition(name, labels, num_clients, seed=seed, **arguments)
    assert_covers(population, len(labels))
    again = partition(name, labels, num_clients, seed=seed, **arguments)
    np.testing.assert_array_equal(population.indices, again.indices)
    if name == "shards":
        held_classes = (class_counts(labels, population, len(counts)) > 0).sum(1)
        np.testing.assert_array_equal(held_classes, classes_per_client)


def test_iid_is_even_and_mixed():
    population = iid(LABELS, 7, np.random.RandomState(0))
    assert set(population.sizes.tolist()) == {7142, 7143}  # 50000 = 7 * 7142 + 6
    counts = class_counts(LABELS, population, 10)
    # Hypergeometric: mean 714, standard deviation about 23.
    assert abs(counts - 714).max() < 6 * 23


def test_quantity_skews_sizes_but_not_classes():
    population = quantity(LABELS, 10, 0.5, np.random.RandomState(0))
    shares = np.random.RandomState(0)
    shares.permutation(50000)
    shares = shares.dirichlet(np.full(10, 0.5))
    sizes = np.diff((np.cumsum(shares) * 50000).astype(int)[:-1], prepend=0)
    np.testing.assert_array_equal(population.sizes[:-1], sizes)
    large = population.sizes > 1000
    counts = class_counts(LABELS, population, 10)[large]
    assert abs(counts / population.sizes[large, None] - 0.1).max() < 0.05


def test_shards_are_equal_for_equal_classes_and_clients_differ():
    population = shards(LABELS, 100, 2, np.random.RandomState(0))
    np.testing.assert_array_equal(population.sizes, 500)
    counts = class_counts(LABELS, population, 10)
    np.testing.assert_array_equal((counts == 250).sum(1), 2)
    assert len({tuple(row) for row in counts > 0}) > 20  # of 45 pairs of classes


def test_shards_of_a_large_class_are_more_not_larger():
    labels = np.repeat([0, 1, 2], [10, 10, 40])
    population = shards(labels, 6, 1, np.random.RandomState(0))
    np.testing.assert_array_equal(population.sizes, 10)


def test_shards_are_dealt_in_random_order():
    """The first to take has a shard of the largest class, but is any client."""
    labels = np.repeat([0, 1, 2], [10, 10, 40])
    of_first_client = [
        shards(labels, 6, 1, np.random.RandomState(seed)).of(0) for seed in range(20)
    ]
    assert {int(labels[own[0]]) for own in of_first_client} == {0, 1, 2}
    for own in of_first_client:
        if labels[own[0]] == 2:
            assert np.ptp(own) > 10 and (np.diff(own) < 0).any()


@pytest.mark.parametrize("split", [dirichlet, quantity])
def test_clients_may_have_exactly_the_smallest_size(split):
    rng = np.random.RandomState(0)
    population = split(np.zeros(20, int), 2, 1e6, rng, min_size=10)
    np.testing.assert_array_equal(population.sizes, [10, 10])


def test_padding_and_one_client():
    population = dirichlet(LABELS[:20], 1, 0.1, np.random.RandomState(0))
    assert_covers(population, 20)


@pytest.mark.parametrize("alpha", [1e-3, 1e-4, 1e-8, 1e-12, 2.0**-126])
def test_a_tiny_alpha_is_as_uneven_as_asked(alpha):
    """With a smaller alpha a client has fewer classes; every example has a client."""

    def mean_classes(name, alpha):
        counts = [
            class_counts(LABELS, partition(name, LABELS, 10, **options), 10)
            for seed in range(5)
            for options in [{"seed": seed, "alpha": alpha, "min_size": 1}]
        ]
        return (np.stack(counts) > 0).sum(2).mean()

    population = dirichlet(LABELS, 3, alpha, np.random.RandomState(0), min_size=1)
    assert_covers(population, len(LABELS))
    for name in ("dirichlet", "dirichlet_in_turn"):
        assert 1 <= mean_classes(name, alpha) <= 1.1 < mean_classes(name, 0.01)


@pytest.mark.parametrize("alpha", [0.3, 1e-2, 1e-4, 1e-8])
def test_shares_equal_numpys_wherever_those_are_finite(alpha):
    """Draws are the same, and the stream ends at the same place, as NumPy's."""
    ours, numpys = np.random.RandomState(0), np.random.RandomState(0)
    largest = []
    for _ in range(1000):
        shares = dirichlet_shares(alpha, np.ones(5, bool), ours)
        expected = numpys.dirichlet(np.full(5, alpha))
        if np.isfinite(expected).all():
            np.testing.assert_array_equal(shares, expected)
        assert abs(shares.sum() - 1) < 1e-12 and shares.min() >= 0
        largest.append(shares.argmax())
    assert ours.random_sample() == numpys.random_sample()
    # Binomial(1000, 0.2): mean 200, standard deviation 12.6.
    assert abs(np.bincount(largest, minlength=5) - 200).max() < 4 * 12.6


def test_shares_of_those_who_take_something():
    """If NumPy gives all to clients who take nothing, the rest is not split evenly."""
    takes = np.arange(5) > 1
    for seed in range(20):
        rng, numpys = np.random.RandomState(seed), np.random.RandomState(seed)
        uniforms = numpys.random_sample(10)[::2]
        shares = dirichlet_shares(1e-6, takes, rng)
        # As x = U^(1 / alpha), the largest uniform among `takes` gets everything.
        expected = np.where(takes, uniforms, 0).argmax()
        np.testing.assert_allclose(shares, np.arange(5) == expected, atol=1e-9)


@pytest.mark.parametrize("name", PARTITIONERS)
@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (np.eye(5, dtype=int)[np.arange(50) % 5], r"int64 of shape \(50, 5\)"),
        (np.arange(50) % 5.0, r"float64 of shape \(50,\)"),
        (np.arange(50) % 2 == 0, r"bool of shape \(50,\)"),
    ],
)
def test_labels_are_one_class_for_each_example(name, labels, got):
    with pytest.raises(ValueError, match=r"labels must be integers .*, got " + got):
        partition(name, labels, 5, seed=0, min_size=1, classes_per_client=1)


@pytest.mark.parametrize("split", [pathological, dirichlet_in_turn])
def test_the_splits_of_papers_check_for_themselves(split):
    rng = np.random.RandomState(0)
    with pytest.raises(ValueError, match=r"labels must be integers"):
        split(np.eye(5, dtype=int), 5, 1, rng)
    with pytest.raises(ValueError, match=r"num_clients must be at most 5 .* got 6"):
        split(np.arange(5), 6, 1, rng)


@pytest.mark.parametrize(("num_clients", "per_class"), [(50, 5), (5000, 500)])
def test_pathological_refuses_a_class_too_rare_for_its_shards(num_clients, per_class):
    labels = np.append(np.repeat(np.arange(9), 600), [9, 9, 9])
    with pytest.raises(ValueError, match=r"at most the 3 examples of class 9, or some"):
        partition("pathological", labels, num_clients, seed=0, classes_per_client=1)
    labels = np.append(labels, np.full(per_class - 3, 9))
    population = partition(
        "pathological", labels, num_clients, seed=0, classes_per_client=1
    )
    assert len(population.sizes) == num_clients and population.sizes.min() == 1


@pytest.mark.parametrize(
    ("name", "num_clients", "options", "message"),
    [
        ("dirichlet", 10, {"alpha": 0.0}, r"alpha must be above 0, got 0\.0"),
        ("quantity", 10, {"alpha": float("nan")}, r"alpha must be .*, got nan"),
        ("dirichlet", 5, {"min_size": 11}, r"must be at most 4 .* got 5"),
        ("dirichlet", 5, {"min_size": 0}, r"min_size must be at least 1, got 0"),
        ("iid", 51, {}, r"must be at most 50 .* got 51"),
        ("iid", 0, {}, r"num_clients must be at least 1, got 0"),
        ("shards", 5, {"classes_per_client": 6}, r"must be in \[1, 5\], got 6"),
        ("shards", 2, {"classes_per_client": 2}, r"in \[5, 10\] to cover .* got 4"),
        ("quantity", 5, {"alpha": 0.01}, r"none of 1000 draws .* Raise alpha"),
        ("even", 5, {}, r"^name must be one of iid, dirichlet, .*, got 'even'"),
    ],
)
def test_impossible_splits_say_why(name, num_clients, options, message):
    labels = np.repeat(np.arange(5), 10)
    with pytest.raises(ValueError, match=message):
        partition(name, labels, num_clients, seed=0, **options)


def test_a_run_says_that_its_examples_cannot_be_split():
    config = quickstart.get_config()
    config.data.update(partitioner="pathological", num_clients=1000)
    with pytest.raises(
        SettingsError, match=r"data cannot be split: .* some shards are"
    ):
        build(config)


@pytest.mark.parametrize(
    ("name", "options"), [("dirichlet", {"alpha": 5.0}), ("shards", {})]
)
def test_a_clients_examples_are_not_in_the_order_of_classes(name, options):
    labels = np.repeat(np.arange(4), 100)
    seen = labels[partition(name, labels, 4, seed=0, **options).of(0)]
    assert np.count_nonzero(np.diff(seen)) > 10
