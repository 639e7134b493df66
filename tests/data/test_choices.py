"""Draws of many clients side by side against NumPy's generators one by one."""

import numpy as np
import pytest

from fedjax_prune.data.choices import BLOCK, MANY, Generators, choose


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_every_client_draws_like_a_generator_of_its_own(seed):
    rng = np.random.default_rng(1)
    sizes = np.concatenate(
        [
            rng.integers(2, 40, 500),
            rng.integers(MANY - 50, MANY + 50, 20),
            [2, MANY, MANY + 1, 12_000],
        ]
    )
    numbers = rng.integers(1, sizes)
    chosen = np.split(choose(seed, sizes, numbers), np.cumsum(sizes)[:-1])
    for client, own in enumerate(chosen):
        alone = np.random.default_rng((seed, client))
        drawn = alone.choice(sizes[client], numbers[client], replace=False)
        np.testing.assert_array_equal(np.flatnonzero(own), np.sort(drawn))


def test_rejected_numbers_are_drawn_again():
    """With a bound of 3/4 of 2^32, every fourth number is rejected."""
    bound, count = 3 * 2**30, 100
    numbers = np.array([0, 3, 2**32 - 1, 8, 1])
    ours = Generators(5, numbers)
    drawn = [ours.below(np.arange(5), np.full(5, bound)) for _ in range(count)]
    for place, number in enumerate(numbers):
        alone = np.random.default_rng((5, number))
        expected = [alone.integers(bound) for _ in range(count)]
        assert [draw[place] for draw in drawn] == expected


def test_a_draw_does_not_depend_on_the_other_clients():
    few = choose(3, np.array([9, 5]), np.array([4, 2]))
    many = choose(3, np.array([9, 5, 800, 3]), np.array([4, 2, 700, 1]))
    np.testing.assert_array_equal(few, many[: len(few)])


def test_blocks_of_clients_draw_alike():
    sizes = np.full(BLOCK + 3, 5)
    sizes[BLOCK - 2] = MANY + 1
    chosen = choose(2, sizes, np.full(len(sizes), 2))
    stops = np.cumsum(sizes)
    for client in range(BLOCK - 3, BLOCK + 3):
        own = chosen[stops[client] - sizes[client] : stops[client]]
        drawn = np.random.default_rng((2, client)).choice(sizes[client], 2, False)
        np.testing.assert_array_equal(np.flatnonzero(own), np.sort(drawn))
