"""Validation sets of clients: drawn with their class shares, or held out."""

import numpy as np
import pytest

from fedjax_prune.data.partition import dirichlet
from fedjax_prune.data.population import to_population
from fedjax_prune.data.validation import (
    class_counts,
    holdout,
    matched_test,
    require_matched,
)

LABELS = np.repeat(np.arange(10), 5000)


def paper_population(num_clients):
    return dirichlet(LABELS, num_clients, 0.1, np.random.RandomState(2020))


def largest_remainder(counts, total):
    quotas = counts * total / counts.sum()
    rounded = np.floor(quotas).astype(int)
    for k in np.argsort(rounded - quotas, kind="stable")[: total - rounded.sum()]:
        rounded[k] += 1
    return rounded


def test_matched_test_has_each_clients_class_shares():
    population = paper_population(10)
    test_labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 1000))
    matched = matched_test(LABELS, population, test_labels, 10, seed=0)
    np.testing.assert_array_equal(matched.sizes, 1000)
    own = class_counts(LABELS, population, 10)
    drawn = class_counts(test_labels, matched, 10)
    for counts, got in zip(own, drawn, strict=True):
        np.testing.assert_array_equal(got, largest_remainder(counts, 1000))
    for row in matched.indices.reshape(10, 1000):
        assert len(np.unique(row)) == 1000


def test_matched_draw_belongs_to_the_client():
    parts = np.split(np.arange(20), [9, 12])
    population = to_population(parts, num_examples=20)
    labels, test_labels = np.arange(20) % 2, np.arange(100) % 2
    whole = matched_test(labels, population, test_labels, 2, 5, size=10)
    # Other clients' data change nothing for client 0.
    other = to_population([np.arange(0, 9), np.arange(9, 20)], num_examples=20)
    part = matched_test(labels, other, test_labels, 2, 5, size=10)
    np.testing.assert_array_equal(whole.of(0), part.of(0))
    other_seed = matched_test(labels, population, test_labels, 2, 6, size=10)
    assert (whole.of(0) != other_seed.of(0)).any()


@pytest.mark.parametrize("test_counts", [(3, 5), (0, 4), (100, 1), (2, 100)])
def test_matched_test_shrinks_to_a_small_test_set(test_counts):
    labels = np.repeat([0, 1], [3, 7])
    population = to_population([np.arange(10)], num_examples=10)
    test_labels = np.repeat([0, 1], test_counts)
    matched = matched_test(labels, population, test_labels, 2, 0, size=20)
    feasible = [
        total
        for total in range(1, 21)
        if (largest_remainder(np.array([3, 7]), total) <= test_counts).all()
    ]
    assert matched.sizes.tolist() == [max(feasible)]
    drawn = class_counts(test_labels, matched, 2)[0]
    expected = largest_remainder(np.array([3, 7]), max(feasible))
    np.testing.assert_array_equal(drawn, expected)


def test_matched_test_without_any_fitting_example():
    population = to_population([np.arange(2), np.arange(2, 4)], num_examples=4)
    labels = np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"client 1 holds .* larger test set"):
        matched_test(labels, population, np.zeros(5, int), 2, 0, size=3)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        matched_test(labels, population, labels, 2, 0, size=0)


def test_holdout_splits_each_client():
    parts = [np.arange(10)[::-1], np.arange(10, 12), np.arange(12, 112)]
    train, validation = holdout(to_population(parts, num_examples=112), 0.2, seed=0)
    np.testing.assert_array_equal(validation.sizes, [2, 1, 20])
    np.testing.assert_array_equal(train.sizes, [8, 1, 80])
    for client, part in enumerate(parts):
        kept, aside = train.of(client), validation.of(client)
        np.testing.assert_array_equal(np.sort([*kept, *aside]), np.sort(part))
    assert (np.diff(train.of(0)) < 0).all()  # the order stays


def test_holdout_limits():
    population = to_population([np.arange(5), np.arange(5, 6)], num_examples=6)
    with pytest.raises(ValueError, match="got 1 for client 1"):
        holdout(population, 0.2, 0)
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\), got 1\.0"):
        holdout(population, 1.0, 0)


def test_matched_test_of_some_clients_is_that_of_all():
    rng = np.random.default_rng(0)
    labels, test_labels = rng.integers(0, 4, 60), rng.integers(0, 4, 30)
    population = to_population(np.split(np.arange(60), 12), num_examples=60)
    whole = matched_test(labels, population, test_labels, 4, seed=3, size=9)
    some = np.array([7, 2, 11])
    part = matched_test(
        labels, population, test_labels, 4, seed=3, size=9, client_ids=some
    )
    assert len(part.sizes) == 3
    for place, client in enumerate(some):
        np.testing.assert_array_equal(part.of(place), whole.of(client))


def test_clients_who_cannot_be_matched_are_known_before_any_draw():
    """For 300 random clients and test sets, some without one or two classes."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        labels = rng.integers(0, 4, rng.integers(1, 12))
        test_labels = rng.choice(rng.permutation(4)[: rng.integers(2, 5)], 6)
        population = to_population([np.arange(len(labels))], num_examples=len(labels))
        messages = []
        for function, numbers in ((require_matched, ()), (matched_test, (0,))):
            try:
                function(labels, population, test_labels, 4, *numbers)
            except ValueError as error:
                messages.append(str(error))
        assert len(messages) in (0, 2) and len(set(messages)) < 2
        refused += bool(messages)
    assert 30 < refused < 270
