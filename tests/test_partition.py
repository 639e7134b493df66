"""Partitions: published vectors, cover, and the limits of each."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_prune.data.partition import (
    dirichlet,
    iid,
    partition,
    quantity,
    shards,
)
from fedjax_prune.data.validation import class_counts

LABELS = np.repeat(np.arange(10), 5000)  # CIFAR-10's class counts


def held(population):
    return [
        row[:size]
        for row, size in zip(population.indices, population.sizes, strict=True)
    ]


def assert_covers(population, num_examples):
    everything = np.concatenate(held(population))
    np.testing.assert_array_equal(np.sort(everything), np.arange(num_examples))
    assert population.indices.dtype == population.sizes.dtype == np.int32
    assert population.indices.shape[1] == population.sizes.max()
    padding = np.arange(population.indices.shape[1]) >= population.sizes[:, None]
    assert not population.indices[padding].any()


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


def test_padding_and_one_client():
    population = dirichlet(LABELS[:20], 1, 0.1, np.random.RandomState(0))
    assert_covers(population, 20)


def test_a_tiny_alpha_still_covers_everything():
    # Every draw of the shares underflows to NaN or to one client.
    for alpha in (1e-12, 1e-3):
        rng = np.random.RandomState(0)
        assert_covers(dirichlet(LABELS, 3, alpha, rng, min_size=1), len(LABELS))


@pytest.mark.parametrize(
    ("name", "num_clients", "options", "message"),
    [
        ("dirichlet", 10, {"alpha": 0.0}, r"alpha must be .* above 0, got 0\.0"),
        ("quantity", 10, {"alpha": float("nan")}, r"alpha must be .*, got nan"),
        ("dirichlet", 5, {"min_size": 11}, r"must be at most 4 .* got 5"),
        ("dirichlet", 5, {"min_size": 0}, r"min_size must be at least 1, got 0"),
        ("iid", 51, {}, r"must be at most 50 .* got 51"),
        ("iid", 0, {}, r"num_clients must be at least 1, got 0"),
        ("shards", 5, {"classes_per_client": 6}, r"must be in \[1, 5\], got 6"),
        ("shards", 2, {"classes_per_client": 2}, r"in \[5, 10\] to cover .* got 4"),
        ("quantity", 5, {"alpha": 0.01}, r"none of 1000 draws .* Raise alpha"),
        ("even", 5, {}, r"one of iid, dirichlet, quantity, shards, .*, got 'even'"),
    ],
)
def test_impossible_splits_say_why(name, num_clients, options, message):
    labels = np.repeat(np.arange(5), 10)
    with pytest.raises(ValueError, match=message):
        partition(name, labels, num_clients, seed=0, **options)
