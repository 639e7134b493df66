"""Chooses the clients of a round and deals them to lanes.

A round lasts as long as its busiest lane. Lanes run their clients one after
another, so what counts is how evenly the steps are dealt, not how equal clients are.
"""

import heapq

import numpy as np

from fedjax_prune.types import Cohort, Population


def num_steps(sizes: np.ndarray, epochs: int, batch_size: int) -> np.ndarray:
    """Local steps of a round: epochs * ceil(size / batch_size).

    Args:
      sizes: [num_clients] integers, examples per client.
      epochs: local epochs, at least 1.
      batch_size: at least 1.

    Returns:
      [num_clients] integers.

    Raises:
      ValueError: if `epochs` or `batch_size` is below 1.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    return epochs * -(-np.asarray(sizes) // batch_size)


def pack_lanes(steps: np.ndarray, client_ids: np.ndarray, num_lanes: int) -> np.ndarray:
    """Deals clients to lanes, longest first, each to the lane with least to do.

    Equal clients are taken by client id, equal lanes by number, so each lane runs
    the same clients in the same order however the cohort is ordered.

    Args:
      steps: [cohort_size] integers, local steps per client.
      client_ids: [cohort_size] integers, distinct.
      num_lanes: at least 1; lanes beyond the cohort's size stay empty.

    Returns:
      [num_lanes, cohort_size] int32, the positions in this cohort that each lane
      runs, in order, padded with `cohort_size`.

    Raises:
      ValueError: if `num_lanes` is below 1.

    References:
      Graham, Bounds on Multiprocessing Timing Anomalies, SIAM J. Appl. Math. 1969.
    """
    if num_lanes < 1:
        raise ValueError(f"num_lanes must be at least 1, got {num_lanes}.")
    cohort_size = len(steps)
    queues = np.full((num_lanes, cohort_size), cohort_size, np.int32)
    lengths = [0] * num_lanes
    loads = [(0, lane) for lane in range(num_lanes)]
    for position in np.lexsort((client_ids, -np.asarray(steps))):
        load, lane = heapq.heappop(loads)
        queues[lane, lengths[lane]] = position
        lengths[lane] += 1
        heapq.heappush(loads, (load + int(steps[position]), lane))
    return queues


def make_cohort(
    population: Population,
    client_ids: np.ndarray,
    num_lanes: int,
    *,
    epochs: int,
    batch_size: int,
) -> Cohort:
    """Makes a cohort of chosen clients, in the order given.

    Args:
      population: all clients.
      client_ids: [cohort_size] integers, distinct, in [0, num_clients).
      num_lanes: at least 1.
      epochs: local epochs, at least 1.
      batch_size: at least 1.

    Returns:
      A Cohort of numpy arrays. `indices` is as wide as the population's, so that
      every cohort of the same size has the same shapes.

    Raises:
      ValueError: if a client is unknown or occurs twice, there is none, or another
        argument is out of range.
    """
    client_ids = np.asarray(client_ids, np.int32)
    num_clients = len(population.sizes)
    if len(client_ids) == 0:
        raise ValueError("client_ids must name at least 1 client, got none.")
    if client_ids.min() < 0 or client_ids.max() >= num_clients:
        raise ValueError(
            f"client_ids must be in [0, {num_clients}), got {client_ids.tolist()}."
        )
    if len(np.unique(client_ids)) < len(client_ids):
        raise ValueError(f"client_ids must be distinct, got {client_ids.tolist()}.")
    sizes = np.asarray(population.sizes)[client_ids]
    steps = num_steps(sizes, epochs, batch_size)
    return Cohort(
        client_ids=client_ids,
        sizes=sizes,
        indices=np.asarray(population.indices)[client_ids],
        queues=pack_lanes(steps, client_ids, num_lanes),
        num_clients=np.int32(num_clients),
        num_examples=np.int32(np.sum(population.sizes)),
    )


def sample_cohort(
    population: Population,
    cohort_size: int,
    num_lanes: int,
    *,
    seed: int,
    round: int,
    epochs: int,
    batch_size: int,
) -> Cohort:
    """Draws the clients of a round uniformly, without replacement.

    The draw depends on (seed, round) alone, so a resumed run draws what an
    uninterrupted one would have.

    Args:
      population: all clients.
      cohort_size: at least 1, at most num_clients.
      num_lanes: at least 1.
      seed: at least 0.
      round: finished rounds, at least 0.
      epochs: local epochs, at least 1.
      batch_size: at least 1.

    Returns:
      A Cohort of numpy arrays, by ascending client id.

    Raises:
      ValueError: if an argument is out of range.
    """
    num_clients = len(population.sizes)
    if not 1 <= cohort_size <= num_clients:
        raise ValueError(
            f"cohort_size must be in [1, {num_clients}], got {cohort_size}."
        )
    order = np.random.default_rng((seed, round)).permutation(num_clients)
    return make_cohort(
        population,
        np.sort(order[:cohort_size]),
        num_lanes,
        epochs=epochs,
        batch_size=batch_size,
    )
