"""Functions that make a Population of the indices of each client, and read it."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from fedjax_prune.fields import TYPES
from fedjax_prune.types import Population


def to_population(parts: Sequence[Any], *, num_examples: int) -> Population:
    """Checks clients' index lists and joins them.

    Clients may share examples, and a client may hold an example twice.

    Args:
      parts: for each client its indices into a Dataset, [size] integers, at least one.
      num_examples: number of examples of that Dataset, in [1, 2^31].

    Returns:
      A Population.

    Raises:
      ValueError: if there is no client, if `num_examples` is out of range, or if a
        client has no examples, an array that is not [size] integers (pass
        `np.flatnonzero(mask)` in place of a mask), or an index outside
        [0, num_examples).

    Examples:
      >>> population = to_population([[4, 5], [1]], num_examples=6)
      >>> population.indices, population.offsets
      (array([4, 5, 1], dtype=int32), array([0, 2, 3]))
    """
    if len(parts) == 0:
        raise ValueError("parts must hold at least 1 client, got none.")
    if not TYPES[int].holds(num_examples) or not 1 <= num_examples <= 2**31:
        raise ValueError(
            f"num_examples must be a whole number in [1, 2^31], got {num_examples!r}."
        )
    joined = _join(parts)
    if joined is None or joined[0].min() < 0 or joined[0].max() >= num_examples:
        for client, part in enumerate(parts):
            as_indices(f"client {client}", part, num_examples)
    assert joined is not None, "as_indices has refused the first wrong list"
    return from_sizes(*joined)


def _join(parts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Joins clients' lists.

    Nothing here is a loop of Python over the clients, who may be a million.

    Returns:
      ([total] numbers, [num_clients] sizes), or None if a list is not [size] integers.
    """
    try:
        arrays = list(map(np.asarray, parts))
    except ValueError:  # lists of several lengths
        return None
    dtypes = set(map(attrgetter("dtype"), arrays))
    if not all(np.issubdtype(dtype, np.integer) for dtype in dtypes):
        return None
    if set(map(attrgetter("ndim"), arrays)) != {1}:
        return None
    sizes = np.fromiter(map(len, arrays), np.int64, len(arrays))
    return (np.concatenate(arrays), sizes) if sizes.all() else None


def from_sizes(indices: np.ndarray, sizes: np.ndarray) -> Population:
    """Deals indices to clients of given sizes, one client after another.

    Args:
      indices: [total] integers that are known to be right.
      sizes: [num_clients] integers, whose sum is `total`.

    Returns:
      A Population.

    Examples:
      >>> from_sizes(np.array([4, 5, 1]), np.array([2, 1])).of(0)
      array([4, 5], dtype=int32)
    """
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return Population(indices.astype(np.int32, copy=False), offsets)


def select(population: Population, chosen: np.ndarray) -> Population:
    """Keeps some of the indices of each client, in their order.

    Args:
      population: all clients.
      chosen: [total] bool, for each entry of `population.indices` whether it is kept.

    Examples:
      >>> population = from_sizes(np.array([4, 5, 1]), np.array([2, 1]))
      >>> select(population, np.array([False, True, True])).indices
      array([5, 1], dtype=int32)
    """
    sizes = np.add.reduceat(chosen, population.offsets[:-1], dtype=np.int64)
    return from_sizes(population.indices[chosen], sizes)


def positions(sizes: np.ndarray) -> np.ndarray:
    """Counts the entries of each client from 0, one client after another.

    Args:
      sizes: [num_clients] integers.

    Returns:
      [sum of sizes] int64.

    Examples:
      >>> positions(np.array([2, 1, 3]))
      array([0, 1, 0, 0, 1, 2])
    """
    sizes = np.asarray(sizes, np.int64)
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def places(population: Population, client_ids: np.ndarray) -> np.ndarray:
    """Gives the places in `population.indices` of some clients, one after another.

    Args:
      population: all clients.
      client_ids: [count] integers in [0, num_clients).

    Returns:
      [examples of these clients] int64.
    """
    starts = np.asarray(population.offsets)[client_ids]
    sizes = sizes_of(population, client_ids)
    return np.repeat(starts, sizes) + positions(sizes)


def sizes_of(population: Population, client_ids: np.ndarray) -> np.ndarray:
    """Gives the numbers of examples of some clients, [count] integers."""
    offsets = np.asarray(population.offsets)
    return offsets[np.asarray(client_ids, np.int64) + 1] - offsets[client_ids]


def check_clients(
    population: Population, client_ids: np.ndarray, num_examples: int = 2**31
) -> None:
    """Refuses clients who cannot be trained, as a population made by hand may have.

    Only these clients are looked at, so that the time does not depend on the others.

    Args:
      population: all clients.
      client_ids: [count] integers in [0, num_clients).
      num_examples: of the data set that is indexed.

    Raises:
      ValueError: if the population does not have two flat arrays of integers that
        agree, or one of these clients has no examples, 2^31 or more, or an index
        outside [0, num_examples).
    """
    indices, offsets = map(np.asarray, (population.indices, population.offsets))
    most = 2**31 - 1
    integers = all(np.issubdtype(x.dtype, np.integer) for x in (indices, offsets))
    if not integers or indices.ndim != 1 or offsets.ndim != 1:
        raise ValueError(
            "population must have integers, indices [total] and offsets "
            f"[num_clients + 1], got {indices.dtype}{list(indices.shape)} and "
            f"{offsets.dtype}{list(offsets.shape)}."
        )
    if (offsets[0], offsets[-1]) != (0, len(indices)):
        raise ValueError(
            "population.offsets must begin with 0 and end with the number of indices, "
            f"{len(indices)}, got {offsets[0]} and {offsets[-1]}."
        )
    first, sizes = offsets[client_ids], sizes_of(population, client_ids)
    wrong = (first < 0) | (sizes < 1) | (sizes > most) | (first + sizes > len(indices))
    if wrong.any():
        place = wrong.argmax()
        raise ValueError(
            f"client {client_ids[place]} must have at least 1 example and at most "
            f"{most} of {len(indices)}, got {sizes[place]} from {first[place]} on."
        )
    held = indices[places(population, client_ids)]
    if held.min() < 0 or held.max() >= num_examples:
        for client in client_ids:
            as_indices(f"client {client}", population.of(client), num_examples)


def as_indices(
    holder: str, values: Any, length: int, *, of: str = "example"
) -> np.ndarray:
    """Checks a list of indices and makes an array of it.

    Args:
      holder: who has them, for the message.
      values: [size] integers, at least one, in [0, length).
      length: of what they are indices into, at most 2^31.
      of: what an index stands for, for the message.

    Returns:
      [size] int32.

    Raises:
      ValueError: if the values are something else. Nothing is cut, wrapped or rounded.

    Examples:
      >>> as_indices("client_ids", [0, 2], 3)
      array([0, 2], dtype=int32)
      >>> as_indices("client_ids", [0, 3], 3)
      Traceback (most recent call last):
      ValueError: client_ids must have indices in [0, 3), got 3 at position 1.
    """
    try:
        indices = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{holder} must have integers of shape [size], got lists of several "
            "lengths."
        ) from error
    if indices.shape == (0,):
        raise ValueError(f"{holder} must have at least 1 {of}, got none.")
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        first = f", first {indices.flat[0]}" if indices.size else ""
        raise ValueError(
            f"{holder} must have integers of shape [size], got "
            f"{indices.dtype} of shape {indices.shape}{first}."
        )
    outside = np.flatnonzero((indices < 0) | (indices >= length))
    if len(outside):
        raise ValueError(
            f"{holder} must have indices in [0, {length}), got "
            f"{indices[outside[0]]} at position {outside[0]}."
        )
    return indices.astype(np.int32)
