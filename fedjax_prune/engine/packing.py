"""Packing: which lane runs which clients, so that all lanes take equally long.

A round lasts as long as its busiest lane. Lanes run their clients one after another, so
what counts is how evenly the steps are dealt, not how equal the clients are.
"""

import heapq

import numpy as np

from fedjax_prune.fields import Count, checked


@checked
def pack_lanes(
    steps: np.ndarray,
    client_ids: np.ndarray,
    num_lanes: Count,
    *,
    num_devices: Count = 1,
    block_size: int | None = None,
) -> list[list[int]]:
    """Deals clients to lanes, nearly as evenly as possible.

    The longest client comes first, and each goes to the lane with the fewest steps.
    Then the busiest lane swaps clients with others as long as that helps. Equal clients
    are taken by client id and equal lanes by number, so each lane runs the same clients
    in the same order, however the cohort is ordered.

    Args:
      steps: [cohort_size] integers, local steps per client.
      client_ids: [cohort_size] integers, distinct.
      num_lanes: of each device, at least 1; lanes beyond the cohort's size stay
        empty.
      num_devices: at least 1.
      block_size: the most clients that a device can take, at least
        cohort_size / num_devices; None is no bound.

    Returns:
      num_devices * num_lanes lists, device by device: the positions in `steps`
      that each lane runs, in order.

    Raises:
      ValueError: if a number is out of range.

    References:
      Graham, Bounds on Multiprocessing Timing Anomalies, SIAM J. Appl. Math. 1969.

    Examples:
      >>> pack_lanes(np.array([5, 4, 3]), np.array([0, 1, 2]), 2)
      [[0], [1, 2]]
    """
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
    steps = np.asarray(steps)
    # Clients that are all alike have nothing to swap.
    while steps.size and steps.min() < steps.max() and _relieve_busiest(lanes, steps):
        pass
    return lanes


def _relieve_busiest(lanes: list[list[int]], steps: np.ndarray) -> bool:
    """Swaps a client of the busiest lane for a shorter one, where both lanes gain.

    It only swaps, so that every device keeps as many clients as it has places for. Of
    several swaps it takes the one that evens out most; of equal ones that with the
    first client of the busiest lane, and then with the first of the other lanes.

    Returns:
      Whether there was such a swap.
    """
    loads = np.array([steps[lane].sum() for lane in lanes])
    busiest = int(loads.argmax())
    if loads[busiest] * len(lanes) < loads.sum() + len(lanes):
        return False  # no dealing is more even
    # Clients with equally many steps are alike: each lane's first stands for them.
    lengths = [np.unique(steps[lane], return_index=True) for lane in lanes]
    own, own_places = lengths[busiest]
    best = (int(loads[busiest]), 0, 0, 0)
    for other, (theirs, places) in enumerate(lengths):
        gap = loads[busiest] - loads[other]
        if gap == 0 or len(theirs) == 0:
            continue
        # The best swap moves half the gap, so the two lengths around that are tried.
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
