"""The data of the suites: who has which images, and who trains in which round.

Each function takes a generator and a number of rounds, and returns arrays of the data
file. Images are random, because only time is measured.
"""

from typing import Any

import numpy as np

from fedjax_prune.data.partition import partition
from fedjax_prune.data.population import to_population
from fedjax_prune.types import Population


def _arrays(
    population: Population, cohorts: np.ndarray, batch_size: int, num_images: int
) -> dict[str, Any]:
    return {
        "indices": population.indices,
        "offsets": population.offsets,
        "cohorts": cohorts.astype(np.int32),
        "batch_size": batch_size,
        "num_images": num_images,
    }


def _cohorts(
    rng: np.random.Generator, rounds: int, num_clients: int, cohort_size: int
) -> np.ndarray:
    draws = [rng.permutation(num_clients)[:cohort_size] for _ in range(rounds)]
    return np.sort(draws)


def w1(rng: np.random.Generator, rounds: int, cohort_size: int = 50) -> dict[str, Any]:
    parts = np.split(rng.permutation(50_000), 1000)
    cohorts = _cohorts(rng, rounds, 1000, cohort_size)
    return _arrays(to_population(parts, num_examples=50_000), cohorts, 10, 50_000)


def w2_one(rng: np.random.Generator, rounds: int) -> dict[str, Any]:
    population = to_population([rng.permutation(640)], num_examples=640)
    return _arrays(population, np.zeros((rounds, 1)), 64, 640)


def w2_ten(rng: np.random.Generator, rounds: int) -> dict[str, Any]:
    # FedDP's split of CIFAR-10 for ten clients at 6% of its size. Batches are whole,
    # because partial ones are rare at full size but would be a third of all here.
    labels = np.repeat(np.arange(10), 5000)
    sizes = partition("dirichlet", labels, 10, seed=2020, alpha=0.1).sizes
    sizes = 64 * np.maximum(1, np.rint(sizes * 0.06 / 64)).astype(int)
    parts = np.split(rng.permutation(sizes.sum()), np.cumsum(sizes)[:-1])
    cohorts = np.tile(np.arange(10), (rounds, 1))
    population = to_population(parts, num_examples=sizes.sum())
    return _arrays(population, cohorts, 64, int(sizes.sum()))


def w3(rng: np.random.Generator, rounds: int) -> dict[str, Any]:
    sizes = rng.lognormal(np.log(200) - 0.4**2 / 2, 0.4, 3400)
    sizes = np.clip(np.rint(sizes), 10, 400).astype(int)
    # Clients share a pool, because 680,000 images would only take more memory.
    pool = 20_000
    parts = [rng.integers(0, pool, size) for size in sizes]
    cohorts = _cohorts(rng, rounds, 3400, 10)
    return _arrays(to_population(parts, num_examples=pool), cohorts, 20, pool)


def w2_four(rng: np.random.Generator, rounds: int) -> dict[str, Any]:
    population = to_population(np.split(rng.permutation(1280), 4), num_examples=1280)
    return _arrays(population, np.tile(np.arange(4), (rounds, 1)), 64, 1280)


def two_cnn(rng: np.random.Generator, rounds: int) -> dict[str, Any]:
    population = to_population(np.split(rng.permutation(2000), 4), num_examples=2000)
    cohorts = np.tile(np.arange(4), (rounds, 1))
    return {**_arrays(population, cohorts, 50, 2000), "epochs": 5}
