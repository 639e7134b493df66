"""Tables of clients' indices, and the widths that they have."""

import numpy as np
import pytest

from fedjax_prune.data.padded import ALWAYS, pad_clients, width_of
from fedjax_prune.data.population import from_sizes


def of_sizes(sizes):
    return from_sizes(np.zeros(np.sum(sizes), np.int32), np.array(sizes))


def test_a_table_holds_each_client_and_then_zeros():
    population = from_sizes(np.array([7, 8, 9, 6, 5, 4]), np.array([3, 1, 2]))
    table = pad_clients(population, np.array([2, 0, 2]), 4)
    assert table.indices.tolist() == [[5, 4, 0, 0], [7, 8, 9, 0], [5, 4, 0, 0]]
    assert table.sizes.tolist() == [2, 3, 2]
    assert table.indices.dtype == table.sizes.dtype == np.int32


def test_small_or_even_populations_have_one_width():
    small = of_sizes([1] * 1000 + [ALWAYS])
    assert width_of(small, np.array([0])) == ALWAYS
    even = of_sizes([5_000, 10_000, 30_000])  # the mean is 15,000
    assert {width_of(even, np.array([client])) for client in range(3)} == {30_000}


@pytest.mark.parametrize(
    ("size", "width"),
    [
        (1, 4096),
        (4096, 4096),
        (4097, 16_384),
        (16_384, 16_384),
        (16_385, 50_000),
        (50_000, 50_000),
    ],
)
def test_widths_grow_by_fours(size, width):
    population = of_sizes([1] * 1000 + [size, 50_000])
    assert width_of(population, np.array([3, 1000])) == width


def test_the_least_width_is_four_times_the_mean():
    population = of_sizes([2_000] * 999 + [102_000])  # the mean is 2,100
    widths = [width_of(population, np.array([client])) for client in (0, 999)]
    assert widths == [8_400, 102_000]
