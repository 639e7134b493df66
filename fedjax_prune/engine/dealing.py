"""Chooses the clients of a round and deals them to lanes.

A round lasts as long as its busiest lane. Lanes run their clients one after
another, so what counts is how evenly the steps are dealt, not how equal clients are.
"""

import heapq

import numpy as np

from fedjax_prune.data.population import check_indices
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
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


def pack_lanes(
    steps: np.ndarray,
    client_ids: np.ndarray,
    num_lanes: int,
    *,
    num_devices: int = 1,
    block_size: int | None = None,
) -> list[list[int]]:
    """Deals clients to lanes as evenly as can be had without a search.

    Longest first, each to the lane with least to do; then the busiest lane swaps
    clients with others as long as that helps. Equal clients are taken by client id,
    equal lanes by number, so each lane runs the same clients in the same order however
    the cohort is ordered.

    Args:
      steps: [cohort_size] integers, local steps per client.
      client_ids: [cohort_size] integers, distinct.
      num_lanes: of each device, at least 1; lanes beyond the cohort's size stay
        empty.
      num_devices: at least 1.
      block_size: the most clients a device can take, at least
        cohort_size / num_devices; None is no bound.

    Returns:
      num_devices * num_lanes lists, device by device: the positions in `steps`
      that each lane runs, in order.

    Raises:
      ValueError: if a number is out of range.

    References:
      Graham, Bounds on Multiprocessing Timing Anomalies, SIAM J. Appl. Math. 1969.
    """
    for name, value in (("num_lanes", num_lanes), ("num_devices", num_devices)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    block_size = len(steps) if block_size is None else block_size
    if block_size * num_devices < len(steps):
        raise ValueError(
            f"block_size must be at least {len(steps)} / {num_devices}, "
            f"got {block_size}."
        )
    lanes: list[list[int]] = [[] for _ in range(num_devices * num_lanes)]
    room = [block_size] * num_devices
    loads = [(0, lane) for lane in range(len(lanes))]
    for position in np.lexsort((client_ids, -np.asarray(steps))):
        load, lane = heapq.heappop(loads)
        while room[lane // num_lanes] == 0:
            load, lane = heapq.heappop(loads)
        room[lane // num_lanes] -= 1
        lanes[lane].append(int(position))
        heapq.heappush(loads, (load + int(steps[position]), lane))
    while _relieve_busiest(lanes, np.asarray(steps)):
        pass
    return lanes


def _relieve_busiest(lanes: list[list[int]], steps: np.ndarray) -> bool:
    """Swaps a client of the busiest lane for a shorter one, where both lanes gain.

    Swaps alone, so that every device keeps as many clients as it has places for.

    Returns:
      Whether there was such a swap; of several the one that evens out most, and of
      equal ones the first client of the busiest lane and the first of the others.
    """
    loads = np.array([steps[lane].sum() for lane in lanes])
    busiest = int(loads.argmax())
    if loads[busiest] * len(lanes) < loads.sum() + len(lanes):
        return False  # no dealing is more even
    # Clients of equal length are alike: of each lane, the first of every length.
    lengths = [np.unique(steps[lane], return_index=True) for lane in lanes]
    own, own_places = lengths[busiest]
    best = (int(loads[busiest]), 0, 0, 0)
    for other, (theirs, places) in enumerate(lengths):
        gap = loads[busiest] - loads[other]
        if gap == 0 or len(theirs) == 0:
            continue
        # Best is half the gap shorter, and one of the two lengths nearest to that.
        above = np.searchsorted(2 * theirs, 2 * own - gap)
        for near in (above - 1, above):
            near = near.clip(0, len(theirs) - 1)
            shift = own - theirs[near]
            after = loads[busiest] - np.minimum(shift, gap - shift)
            places_of_best = np.flatnonzero(after == after.min())
            first = min(places_of_best, key=lambda k: (own_places[k], places[near[k]]))
            swap = after[first], own_places[first], other, places[near[first]]
            best = min(best, tuple(map(int, swap)))
    after, i, other, j = best
    if after == loads[busiest]:
        return False
    lanes[busiest][i], lanes[other][j] = lanes[other][j], lanes[busiest][i]
    return True


def make_cohort(
    population: Population,
    client_ids: np.ndarray,
    num_lanes: int,
    *,
    epochs: int,
    batch_size: int,
    placement: Placement = ONE_DEVICE,
    num_examples: int | None = None,
) -> Cohort:
    """Makes a cohort of chosen clients.

    Args:
      population: all clients.
      client_ids: [cohort_size] integers, distinct, in [0, num_clients).
      num_lanes: of each device, at least 1.
      epochs: local epochs, at least 1.
      batch_size: at least 1.
      placement: of the round; a block for each of its devices.
      num_examples: of the Dataset, which must have all indices; None = not checked.

    Returns:
      A Cohort of numpy arrays, in the order given on one device, and in that order
      within the block of each device on several. `indices` is as wide as the
      population's, so that every cohort of the same size has the same shapes.

    Raises:
      ValueError: if a client is unknown, occurs twice, has no examples or one that the
        Dataset has not, if there is none, or another argument is out of range.
    """
    return make_groups(
        population,
        client_ids,
        len(client_ids),
        num_lanes,
        epochs=epochs,
        batch_size=batch_size,
        placement=placement,
        num_examples=num_examples,
    )[0]


def make_groups(
    population: Population,
    client_ids: np.ndarray,
    most: int,
    num_lanes: int,
    *,
    epochs: int,
    batch_size: int,
    placement: Placement = ONE_DEVICE,
    num_examples: int | None = None,
) -> list[Cohort]:
    """Makes cohorts of chosen clients that are of the same shapes and add up to one.

    Args:
      population: all clients.
      client_ids: as in `make_cohort`.
      most: clients of a group, at least 1; the groups are as even as can be.
      num_lanes: of each device, at least 1.
      epochs: local epochs, at least 1.
      batch_size: at least 1.
      placement: of the groups; a block for each of its devices.
      num_examples: as in `make_cohort`.

    Returns:
      As `make_cohort`. `cohort_size` and `cohort_examples` are those of all groups
      together.

    Raises:
      ValueError: as `make_cohort`.
    """
    client_ids = np.asarray(client_ids, np.int32)
    num_clients = len(population.sizes)
    if len(client_ids) == 0:
        raise ValueError("client_ids must name at least 1 client, got none.")
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}.")
    if client_ids.min() < 0 or client_ids.max() >= num_clients:
        raise ValueError(
            f"client_ids must be in [0, {num_clients}), got {client_ids.tolist()}."
        )
    if len(np.unique(client_ids)) < len(client_ids):
        raise ValueError(f"client_ids must be distinct, got {client_ids.tolist()}.")
    groups = np.array_split(client_ids, -(-len(client_ids) // most))
    block_size = placement.block_size(len(groups[0]))
    all_sizes = np.asarray(population.sizes, np.int32)
    for client in client_ids:
        own = population.indices[client][: all_sizes[client]]
        check_indices(int(client), np.asarray(own), num_examples)

    def make_group(ids: np.ndarray) -> Cohort:
        sizes = all_sizes[ids]
        lanes = pack_lanes(
            num_steps(sizes, epochs, batch_size),
            ids,
            num_lanes,
            num_devices=placement.num_devices,
            block_size=block_size,
        )
        idle = placement.num_blocks - placement.num_devices
        lanes += [[] for _ in range(idle * num_lanes)]
        places, queues = _lay_out(lanes, placement.num_blocks, block_size)
        empty = places == len(ids)
        chosen = np.where(empty, 0, places)
        return Cohort(
            client_ids=np.where(empty, np.int32(num_clients), ids[chosen]),
            sizes=np.where(empty, np.int32(0), sizes[chosen]),
            indices=np.asarray(population.indices)[ids[chosen]],
            queues=queues,
            cohort_size=np.int32(len(client_ids)),
            cohort_examples=all_sizes[client_ids].sum(dtype=np.int32),
            num_clients=np.int32(num_clients),
            num_examples=all_sizes.sum(dtype=np.int32),
        )

    return [make_group(ids) for ids in groups]


def _lay_out(
    lanes: list[list[int]], num_devices: int, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gives every client a place on its device.

    Returns:
      places: [num_devices * block_size] int32, which client is there; their number
        where none is.
      queues: [lanes, block_size] int32, as in Cohort.
    """
    num_lanes = len(lanes) // num_devices
    places = np.full((num_devices, block_size), sum(map(len, lanes)), np.int32)
    queues = np.full((len(lanes), block_size), block_size, np.int32)
    for device in range(num_devices):
        own = range(device * num_lanes, (device + 1) * num_lanes)
        members = sorted(position for lane in own for position in lanes[lane])
        places[device, : len(members)] = members
        for lane in own:
            queues[lane, : len(lanes[lane])] = np.searchsorted(members, lanes[lane])
    return places.reshape(-1), queues


def sample_cohort(
    population: Population,
    cohort_size: int,
    num_lanes: int,
    *,
    seed: int,
    round: int,
    epochs: int,
    batch_size: int,
    placement: Placement = ONE_DEVICE,
    num_examples: int | None = None,
) -> Cohort:
    """Draws the clients of a round uniformly, without replacement.

    The draw depends on (seed, round) alone, so a resumed run draws what an
    uninterrupted one would have.

    Args:
      population: all clients.
      cohort_size: at least 1, at most num_clients.
      num_lanes: of each device, at least 1.
      seed: at least 0.
      round: finished rounds, at least 0.
      epochs: local epochs, at least 1.
      batch_size: at least 1.
      placement: of the round; a block for each of its devices.
      num_examples: as in `make_cohort`.

    Returns:
      A Cohort of numpy arrays, by ascending client id on each device.

    Raises:
      ValueError: if an argument is out of range.
    """
    ids = draw_clients(population, cohort_size, seed=seed, round=round)
    return make_cohort(
        population,
        ids,
        num_lanes,
        epochs=epochs,
        batch_size=batch_size,
        placement=placement,
        num_examples=num_examples,
    )


def draw_clients(
    population: Population, cohort_size: int, *, seed: int, round: int
) -> np.ndarray:
    """Draws clients as `sample_cohort` does.

    Returns:
      [cohort_size] integers, ascending.

    Raises:
      ValueError: if there are not so many.
    """
    num_clients = len(population.sizes)
    if not 1 <= cohort_size <= num_clients:
        raise ValueError(
            f"cohort_size must be in [1, {num_clients}], got {cohort_size}."
        )
    order = np.random.default_rng((seed, round)).permutation(num_clients)
    return np.sort(order[:cohort_size])
