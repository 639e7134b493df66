"""Cohorts: which clients a round has, and which lane of which device runs them."""

import chex
import numpy as np

from fedjax_prune.data.padded import pad_clients, width_of
from fedjax_prune.data.population import as_indices, check_clients, sizes_of
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.packing import pack_lanes
from fedjax_prune.engine.solver import BatchSize, Epochs
from fedjax_prune.fields import Count, Seed, checked
from fedjax_prune.types import Cohort, Population


@checked
def num_steps(sizes: np.ndarray, epochs: Epochs, batch_size: BatchSize) -> np.ndarray:
    """Computes the local steps of a round: epochs * ceil(size / batch_size).

    Args:
      sizes: [num_clients] integers, examples per client.
      epochs: local epochs, at least 1.
      batch_size: at least 1.

    Returns:
      [num_clients] int64.

    Raises:
      ValueError: if `epochs` or `batch_size` is not a whole number or below 1, or if
        a client has 2^31 steps or more.

    Examples:
      >>> num_steps(np.array([5, 8]), epochs=2, batch_size=4).tolist()
      [4, 4]
    """
    steps = epochs * -(-np.asarray(sizes, np.int64) // batch_size)
    if steps.max(initial=0) >= 2**31:
        raise ValueError(
            f"epochs must leave each client less than 2^31 local steps, got {epochs} "
            f"for {steps.max() // epochs} batches."
        )
    return steps


def make_cohort(
    population: Population,
    client_ids: np.ndarray,
    num_lanes: int,
    *,
    epochs: int,
    batch_size: int,
    placement: Placement = ONE_DEVICE,
) -> Cohort:
    """Makes a cohort of chosen clients.

    Args:
      population: all clients, from `to_population`, which has checked their indices.
        In one made by hand, an index beyond the data set is not noticed here, because
        a population does not know how many examples there are; in a round it stands for
        the last example.
      client_ids: [cohort_size] integers, distinct, in [0, num_clients).
      num_lanes: of each device, at least 1.
      epochs: local epochs, at least 1.
      batch_size: at least 1.
      placement: of the round; a block for each of its devices.

    Returns:
      A Cohort of numpy arrays. Its clients are in the given order on one device, and in
      that order within the block of each device on several. `indices` has the width
      that `width_of` chooses for these clients, so that cohorts of the same size have
      few shapes; only one if no client of the population is much larger than others.

    Raises:
      ValueError: if there is no client, if a client is unknown, occurs twice, has no
        examples or negative indices, or if another argument is out of range.

    Examples:
      >>> import fedjax_prune as fp
      >>> population = fp.to_population([[0, 1], [2], [3, 4, 5]], num_examples=6)
      >>> cohort = fp.make_cohort(population, [0, 2], 2, epochs=1, batch_size=1)
      >>> cohort.indices.tolist(), cohort.sizes.tolist()
      ([[0, 1, 0], [3, 4, 5]], [2, 3])
      >>> cohort.queues.tolist()  # the longer client runs in the first lane
      [[1, 2], [0, 2]]
    """
    return make_groups(
        population,
        client_ids,
        len(population.offsets) - 1,
        num_lanes,
        epochs=epochs,
        batch_size=batch_size,
        placement=placement,
    )[0]


@checked
def make_groups(
    population: Population,
    client_ids: np.ndarray,
    group_size: Count,
    num_lanes: Count,
    *,
    epochs: int,
    batch_size: int,
    placement: Placement = ONE_DEVICE,
) -> list[Cohort]:
    """Makes groups of chosen clients: cohorts of the same shapes.

    Args:
      population: all clients.
      client_ids: as in `make_cohort`.
      group_size: the most clients in a group, at least 1; groups differ by one client
        at most.
      num_lanes: of each device, at least 1.
      epochs: local epochs, at least 1.
      batch_size: at least 1.
      placement: of the groups; a block for each of its devices.

    Returns:
      Cohorts as of `make_cohort`, except that `cohort_size` is that of all groups
      together.

    Raises:
      ValueError: as `make_cohort`.
    """
    num_clients = len(population.offsets) - 1
    client_ids = as_indices("client_ids", client_ids, num_clients, of="client")
    if len(np.unique(client_ids)) < len(client_ids):
        raise ValueError(f"client_ids must be distinct, got {client_ids.tolist()}.")
    groups = np.array_split(client_ids, -(-len(client_ids) // group_size))
    block_size = placement.block_size(len(groups[0]))
    check_clients(population, client_ids)
    width = width_of(population, client_ids)

    def make_group(ids: np.ndarray) -> Cohort:
        sizes = sizes_of(population, ids).astype(np.int32)
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
            indices=pad_clients(population, ids[chosen], width).indices,
            queues=queues,
            cohort_size=np.int32(len(client_ids)),
            num_clients=np.int32(num_clients),
            num_examples=np.float64(population.offsets[-1]),
        )

    cohorts = [make_group(ids) for ids in groups]
    if len(cohorts) > 1:  # one compiled program runs all of them
        chex.assert_trees_all_equal_shapes_and_dtypes(*cohorts)
    return cohorts


def _lay_out(
    lanes: list[list[int]], num_devices: int, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gives every client a place on its device.

    Returns:
      places: [num_devices * block_size] int32, the position of the client at each
        place; the number of clients at empty places.
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
) -> Cohort:
    """Draws the clients of a round uniformly, without replacement.

    The draw depends on (seed, round) alone, so a resumed run draws the same clients as
    an uninterrupted one.

    Args:
      population: all clients.
      cohort_size: at least 1, at most num_clients.
      num_lanes: of each device, at least 1.
      seed: in [0, 2^32).
      round: finished rounds, in [0, 2^32).
      epochs: local epochs, at least 1.
      batch_size: at least 1.
      placement: of the round; a block for each of its devices.

    Returns:
      A Cohort of numpy arrays, by ascending client id on each device.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> import fedjax_prune as fp
      >>> population = fp.to_population([[0, 1], [2], [3, 4, 5]], num_examples=6)
      >>> cohort = fp.sample_cohort(
      ...     population, 3, num_lanes=1, seed=0, round=0, epochs=1, batch_size=2
      ... )
      >>> cohort.client_ids.tolist(), cohort.sizes.tolist()
      ([0, 1, 2], [2, 1, 3])
    """
    everyone = len(population.offsets) - 1
    ids = draw_clients(everyone, cohort_size, seed=seed, round=round)
    return make_cohort(
        population,
        ids,
        num_lanes,
        epochs=epochs,
        batch_size=batch_size,
        placement=placement,
    )


@checked
def draw_clients(
    num_clients: int, cohort_size: Count, *, seed: Seed, round: Seed
) -> np.ndarray:
    """Draws clients of a population as `sample_cohort` does.

    Returns:
      [cohort_size] integers, ascending.

    Raises:
      ValueError: if `cohort_size` is not in [1, num_clients], or another number is out
        of range.
    """
    if cohort_size > num_clients:
        raise ValueError(
            f"cohort_size must be in [1, {num_clients}], got {cohort_size}."
        )
    rng = np.random.default_rng((seed, round))
    # Without shuffling, the time depends on the cohort's size and not on num_clients.
    return np.sort(rng.choice(num_clients, cohort_size, replace=False, shuffle=False))
