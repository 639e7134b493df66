"""Tables of clients' indices, padded to a width that few programs are compiled for.

A program has arrays of one shape, so what it reads of some clients is a table as wide
as the largest of them, or wider. A wide table costs memory, and time where a client's
order is drawn, but no local step. Every other width is another program to compile.
"""

import math
from typing import NamedTuple

import numpy as np

from fedjax_prune.data.population import places, positions, sizes_of
from fedjax_prune.types import Population

ALWAYS = 4096
"""Width up to which no table is cut: 1,000 clients take 16 MB, and drawing the order of
a client takes less than a millisecond."""
TIMES_MEAN = 4
"""Widths up to this many times the mean size of all clients are not cut, either."""
GROWTH = 4
"""Factor between one width and the next."""


class Padded(NamedTuple):
    """The indices of some clients as a table.

    Attributes:
      indices: [num_clients, width] int32 into a Dataset, padded with 0.
      sizes: [num_clients] int32, the number of real entries.

    Examples:
      >>> Padded(np.array([[0, 1], [2, 0]]), sizes=np.array([2, 1])).sizes.tolist()
      [2, 1]
    """

    indices: np.ndarray
    sizes: np.ndarray


def width_of(population: Population, client_ids: np.ndarray) -> int:
    """Chooses the width of a table of some clients.

    If no client of the population has more than 4,096 examples, or more than 4 times
    the mean, all tables are as wide as the largest client. In any other population, the
    width is the first of b, 4 b, 16 b, ... that is enough, b the larger of these two
    bounds, and at most the size of the largest client.

    Args:
      population: all clients.
      client_ids: [count] integers in [0, num_clients).

    Returns:
      At least the size of the largest of these clients.

    Examples:
      >>> offsets = np.cumsum([0] + [1] * 98 + [5_000, 90_000])
      >>> population = Population(np.zeros(95_098, np.int32), offsets)
      >>> [width_of(population, np.array([client])) for client in (0, 98, 99)]
      [4096, 16384, 90000]
    """
    mean = len(population.indices) / (len(population.offsets) - 1)
    width = max(ALWAYS, math.ceil(TIMES_MEAN * mean))
    needed = sizes_of(population, client_ids).max()
    while width < needed:
        width *= GROWTH
    return min(width, population.max_size)


def table_of(population: Population, client_ids: np.ndarray) -> Padded:
    """Makes a table of the indices of some clients, as wide as `width_of` says."""
    return pad_clients(population, client_ids, width_of(population, client_ids))


def pad_clients(population: Population, client_ids: np.ndarray, width: int) -> Padded:
    """Makes a table of the indices of some clients.

    Args:
      population: all clients.
      client_ids: [count] integers in [0, num_clients).
      width: at least the size of the largest of them.

    Examples:
      >>> population = Population(np.array([4, 5, 1]), offsets=np.array([0, 2, 3]))
      >>> pad_clients(population, np.array([1, 0]), 3).indices.tolist()
      [[1, 0, 0], [4, 5, 0]]
    """
    sizes = sizes_of(population, client_ids)
    indices = np.zeros((len(sizes), width), np.int32)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    held = np.asarray(population.indices)[places(population, client_ids)]
    indices[rows, positions(sizes)] = held
    return Padded(indices, sizes.astype(np.int32))
