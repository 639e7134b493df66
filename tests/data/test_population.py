"""Populations: two flat arrays, made of lists or by hand, and checked."""

import numpy as np
import pytest

from fedjax_prune.data.population import (
    check_clients,
    from_sizes,
    places,
    select,
    to_population,
)
from fedjax_prune.types import Population


def test_clients_may_share_examples():
    parts = [range(3), [4, 2], np.array([2], np.uint64), (7, 7, 7)]
    population = to_population(parts, num_examples=8)
    assert population.indices.tolist() == [0, 1, 2, 4, 2, 2, 7, 7, 7]
    assert population.offsets.tolist() == [0, 3, 5, 6, 9]
    assert population.sizes.tolist() == [3, 2, 1, 3] and population.max_size == 3
    assert population.of(1).tolist() == [4, 2]
    assert population.indices.dtype == np.int32
    assert population.offsets.dtype == np.int64
    last = to_population([[2**31 - 1]], num_examples=2**31)
    assert last.indices.tolist() == [2**31 - 1]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (range(0), "client 1 must have at least 1 example, got none"),
        ([], "client 1 must have at least 1 example, got none"),
        ([0, 1, -1], "client 1 must have indices in [0, 60), got -1 at position 2"),
        ([0, 60], "client 1 must have indices in [0, 60), got 60 at position 1"),
        ([2**33], f"client 1 must have indices in [0, 60), got {2**33} at position 0"),
        ([2.5, 3.0], "got float64 of shape (2,), first 2.5"),
        (np.arange(60) == 3, "got bool of shape (60,), first False"),
        ([[5, 6], [7, 8]], "got int64 of shape (2, 2), first 5"),
        ([2**70], f"got object of shape (1,), first {2**70}"),
        (7, "got int64 of shape (), first 7"),
        (["a"], "got <U1 of shape (1,), first a"),
        ([[], []], "got float64 of shape (2, 0)."),
        ([[5], [6, 7]], "client 1 must have integers of shape [size], got lists"),
    ],
)
def test_to_population_names_client_and_index(part, said):
    parts = [range(30), part, range(30, 60)]
    with pytest.raises(ValueError) as caught:
        to_population(parts, num_examples=60)
    assert said in str(caught.value) and "client 1 " in str(caught.value)


def test_to_population_needs_clients():
    with pytest.raises(ValueError, match=r"at least 1 client, got none"):
        to_population([], num_examples=60)


def test_a_large_client_beside_small_ones_takes_no_more_than_its_examples():
    parts = [np.arange(50_000), *np.arange(1999)[:, None]]
    population = to_population(parts, num_examples=50_000)
    assert population.indices.nbytes == 4 * 51_999


def test_places_are_those_of_the_clients_in_turn():
    sizes = np.array([3, 1, 4])
    population = from_sizes(np.arange(8), sizes)
    assert places(population, np.array([2, 0])).tolist() == [4, 5, 6, 7, 0, 1, 2]


def test_selected_entries_stay_with_their_clients():
    population = from_sizes(np.array([5, 3, 1, 4, 2]), np.array([2, 1, 2]))
    chosen = np.array([False, True, False, True, True])
    kept = select(population, chosen)
    assert kept.indices.tolist() == [3, 4, 2] and kept.offsets.tolist() == [0, 1, 1, 3]


@pytest.mark.parametrize(
    ("indices", "offsets", "message"),
    [
        ([0, 1, -1, 2], [0, 2, 4], r"client 1 .* \[0, 60\), got -1 at position 0"),
        ([0, 1, 1, 60], [0, 2, 4], r"client 1 .* \[0, 60\), got 60 at position 1"),
        ([0, 1, 1, 2**33], [0, 2, 4], rf"client 1 .*, got {2**33} at position 1"),
        ([0, 1], [0, 2, 2], r"client 1 must have at least 1 example .* got 0 from 2"),
        ([0, 1], [0, 3, 2], r"client 0 .* at most \d+ of 2, got 3 from 0 on"),
        ([0, 1], [0, -1, 2], r"client 0 must have at least 1 .* got -1 from 0 on"),
        ([0, 1], [0, 1, 3], r"begin with 0 and end with .* 2, got 0 and 3"),
        ([0, 1], [1, 1, 2], r"begin with 0 and end with .* 2, got 1 and 2"),
        ([0, 1], [0.0, 1.0, 2.0], r"population must have integers, .* float64\[3\]"),
        ([0.5, 1.0], [0, 1, 2], r"population must have integers, .* float64\[2\]"),
        ([[0], [1]], [0, 1, 2], r"indices \[total\] .* got int64\[2, 1\] and"),
        ([0, 1], [[0, 1, 2]], r"offsets \[num_clients \+ 1\], .* int64\[1, 3\]"),
    ],
)
def test_populations_made_by_hand(indices, offsets, message):
    population = Population(np.array(indices), np.array(offsets))
    with pytest.raises(ValueError, match=message):
        check_clients(population, np.array([0, 1]), 60)


def test_only_the_clients_asked_for_are_checked():
    population = from_sizes(np.array([0, -1, 1]), np.array([1, 1, 1]))
    check_clients(population, np.array([2, 0]), 60)
