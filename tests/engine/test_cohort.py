"""Cohorts, their widths, and lanes."""

import jax
import numpy as np
import pytest

from fedjax_prune.data.padded import ALWAYS, pad_clients
from fedjax_prune.data.partition import dirichlet, quantity
from fedjax_prune.data.population import from_sizes, to_population
from fedjax_prune.engine.dealing import (
    draw_clients,
    make_cohort,
    num_steps,
    sample_cohort,
)
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.engine.packing import pack_lanes
from fedjax_prune.engine.placing import put_cohort
from fedjax_prune.types import Population

LABELS = np.repeat(np.arange(10), 5000)
RUN = dict(epochs=10, batch_size=64)


def paper_population(num_clients):
    return dirichlet(LABELS, num_clients, 0.1, np.random.RandomState(2020))


def lanes_of(cohort):
    """Client ids run by each lane, in order."""
    size = len(cohort.client_ids)
    return [
        [int(cohort.client_ids[p]) for p in queue if p < size]
        for queue in cohort.queues
    ]


def assert_dtypes(cohort):
    """All int32, except the sum of examples, which may be larger."""
    dtypes = {name: np.asarray(x).dtype for name, x in cohort._asdict().items()}
    assert dtypes.pop("num_examples") == np.dtype(np.float64)
    assert set(dtypes.values()) == {np.dtype(np.int32)}


def test_num_steps_counts_the_partial_batch():
    steps = num_steps(np.array([1, 64, 65, 128]), epochs=3, batch_size=64)
    np.testing.assert_array_equal(steps, [3, 3, 6, 6])


def test_pack_lanes_by_hand():
    # 7 -> lane 0, 5 -> lane 1, 4 -> lane 1 (5 < 7), 3 -> lane 0 (7 < 9), 3 -> lane 1;
    # then the 4 and the first 3 change places, and both lanes have 11.
    steps, ids = np.array([3, 7, 5, 3, 4]), np.arange(5)
    assert pack_lanes(steps, ids, num_lanes=2) == [[1, 4], [2, 0, 3]]
    # At most three on a device: swapping keeps their number.
    two = pack_lanes(steps, ids, num_lanes=1, num_devices=2, block_size=3)
    assert two == [[1, 4], [2, 0, 3]]
    # Nothing is left to swap: 6 + 2 against 4 + 3.
    assert pack_lanes(np.array([6, 4, 3, 2]), ids[:4], 2) == [[0, 3], [1, 2]]
    two = pack_lanes(np.array([9, 1, 1, 1]), ids[:4], 1, num_devices=2, block_size=2)
    assert two == [[0, 3], [1, 2]]
    with pytest.raises(ValueError, match=r"block_size must be at least 5 / 2, got 2"):
        pack_lanes(steps, ids, 1, num_devices=2, block_size=2)


def test_ten_thousand_equal_clients_are_dealt_evenly():
    lanes = pack_lanes(np.full(10_001, 10), np.arange(10_001), 2)
    assert [len(lane) for lane in lanes] == [5001, 5000]
    assert sorted(lanes[0] + lanes[1]) == list(range(10_001))


def busiest_after_best_swap(lanes, steps):
    """The least that any exchange of two clients leaves on the busiest lane."""
    loads = [steps[lane].sum() for lane in lanes]
    own = int(np.argmax(loads))
    return min(
        max(loads[own] - steps[i] + steps[j], loads[other] + steps[i] - steps[j])
        for other in range(len(lanes))
        if other != own
        for i in lanes[own]
        for j in lanes[other]
    )


@pytest.mark.parametrize("longest", [5, 50, 1000])
def test_no_swap_is_left_that_helps_the_busiest_lane(longest):
    rng = np.random.default_rng(longest)
    for _ in range(20):
        steps = rng.integers(1, longest, 30)
        lanes = pack_lanes(steps, rng.permutation(30), int(rng.integers(2, 8)))
        assert sorted(i for lane in lanes for i in lane) == list(range(30))
        loads = [steps[lane].sum() for lane in lanes]
        assert busiest_after_best_swap(lanes, steps) >= max(loads)


@pytest.mark.parametrize("num_devices", [2, 8])
def test_every_device_has_its_block_of_the_cohort(num_devices):
    population = paper_population(30)
    ids = np.random.default_rng(0).permutation(30)[:12]
    cohort = make_cohort(
        population, ids, 2, placement=make_placement(num_devices), **RUN
    )
    blocks = cohort.client_ids.reshape(num_devices, -1)
    queues = cohort.queues.reshape(num_devices, 2, -1)
    assert blocks.shape[1] == queues.shape[2] == -(-15 // num_devices)
    run = [
        int(block[place])
        for block, lanes in zip(blocks, queues, strict=True)
        for place in lanes.ravel()
        if place < len(block)
    ]
    assert sorted(run) == sorted(ids)
    empty = cohort.client_ids == 30
    assert (~empty).sum() == 12 and (cohort.sizes[empty] == 0).all()
    real = cohort.client_ids[~empty]
    np.testing.assert_array_equal(cohort.sizes[~empty], population.sizes[real])
    table = pad_clients(population, real, population.max_size)
    np.testing.assert_array_equal(cohort.indices[~empty], table.indices)
    assert cohort.cohort_size == 12


def test_every_client_runs_once_and_order_changes_no_lane():
    population = paper_population(30)
    ids = np.random.default_rng(0).permutation(30)[:12]
    cohort = make_cohort(population, ids, 4, **RUN)
    reverse = make_cohort(population, ids[::-1], 4, **RUN)
    assert lanes_of(cohort) == lanes_of(reverse)
    assert sorted(np.concatenate(lanes_of(cohort))) == sorted(ids)
    np.testing.assert_array_equal(cohort.sizes, population.sizes[ids])
    table = pad_clients(population, ids, population.max_size)
    np.testing.assert_array_equal(cohort.indices, table.indices)
    assert (cohort.num_clients, cohort.num_examples) == (30, 50000)
    assert_dtypes(cohort)


def test_more_lanes_than_clients_leaves_lanes_empty():
    population = to_population([np.arange(3), np.arange(3, 5)], num_examples=5)
    cohort = make_cohort(population, np.array([0, 1]), 4, epochs=1, batch_size=2)
    assert lanes_of(cohort) == [[0], [1], [], []]


@pytest.mark.parametrize("num_devices", [1, 2, 8])
@pytest.mark.parametrize(
    ("num_clients", "cohort_size", "num_lanes", "bound"),
    [(100, 40, 8, 0.012), (50, 35, 8, 0.013), (30, 12, 8, 0.24)],
)
def test_few_lane_steps_are_wasted(
    num_clients, cohort_size, num_lanes, bound, num_devices
):
    population = paper_population(num_clients)
    wasted = []
    for t in range(50):
        drawn = np.random.default_rng((0, t)).permutation(num_clients)[:cohort_size]
        cohort = make_cohort(
            population,
            np.sort(drawn),
            num_lanes // num_devices,
            placement=make_placement(num_devices),
            **RUN,
        )
        steps = 10 * np.ceil(cohort.sizes / 64).reshape(num_devices, -1)
        steps = np.pad(steps, ((0, 0), (0, 1)))
        device = np.arange(num_lanes)[:, None] // (num_lanes // num_devices)
        loads = steps[device, cohort.queues].sum(1)
        wasted.append(1 - loads.mean() / loads.max())
    assert np.mean(wasted) < bound
    if num_clients > 30:  # of twelve, one often has more than an eighth of the steps
        assert max(wasted) < 0.03


def test_draws_depend_on_seed_and_round_alone():
    population = paper_population(30)

    def draw(seed, t):
        cohort = sample_cohort(population, 12, 4, seed=seed, round=t, **RUN)
        return cohort.client_ids.tolist()

    rng = np.random.default_rng((3, 5))
    expected = np.sort(rng.choice(30, 12, replace=False, shuffle=False))
    assert draw(3, 5) == expected.tolist()
    assert draw(3, 5) != draw(3, 6)
    assert draw(3, 5) != draw(4, 5)
    drawn = np.concatenate([draw(0, t) for t in range(200)])
    times = np.bincount(drawn, minlength=30)
    # Binomial(200, 0.4): mean 80, standard deviation 7.
    assert abs(times - 80).max() < 4 * 7


def test_a_draw_does_not_look_at_all_clients():
    """A permutation of a billion clients would take 8 GB."""
    ids = draw_clients(10**9, 50, seed=0, round=0)
    assert len(np.unique(ids)) == 50 and ids.min() >= 0 and ids.max() < 10**9
    assert (np.diff(ids) > 0).all() and ids.max() > 10**8


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 2], "have indices in [0, 2), got 2 at position 1."),
        ([-1], "have indices in [0, 2), got -1 at position 0."),
        ([2**33], f"have indices in [0, 2), got {2**33} at position 0."),
        (np.array([1, 2**32]), f"have indices in [0, 2), got {2**32} at position 1."),
        ([1, 1], "be distinct, got [1, 1]."),
        ([], "have at least 1 client, got none."),
        ([True, False], "got bool of shape (2,), first True."),
        ([0.7, 1.9], "got float64 of shape (2,), first 0.7."),
        ([[0, 1]], "got int64 of shape (1, 2), first 0."),
        ([[0], [0, 1]], "got lists of several lengths."),
        (["0"], "got <U1 of shape (1,), first 0."),
        ([2**64], f"got object of shape (1,), first {2**64}."),
        (1, "got int64 of shape (), first 1."),
    ],
)
def test_bad_cohorts(ids, message):
    population = to_population([np.arange(3), np.arange(3, 5)], num_examples=5)
    with pytest.raises(ValueError) as caught:
        make_cohort(population, ids, 1, **RUN)
    assert str(caught.value).startswith("client_ids must ")
    assert str(caught.value).endswith(message)


def test_a_cohort_is_int32_whatever_its_population():
    population = Population(np.array([0, 1, 2]), np.array([0, 2, 3], np.uint8))
    cohort = make_cohort(population, np.array([1, 0], np.uint8), 1, **RUN)
    assert_dtypes(cohort)
    assert cohort.indices.tolist() == [[2, 0], [0, 1]]


def test_a_client_without_examples_has_no_round():
    population = from_sizes(np.zeros(3, np.int32), np.array([2, 0, 1]))
    assert make_cohort(population, np.array([0, 2]), 1, **RUN).sizes.sum() == 3
    with pytest.raises(ValueError, match=r"client 1 must have at least 1 example"):
        make_cohort(population, np.array([2, 1]), 1, **RUN)


def test_sums_of_examples_beyond_int32():
    """No array of 3e9 indices: clients share one example by strides of 0."""
    sizes = np.array([1_500_000_001, 1_500_000_002, 1])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    indices = np.broadcast_to(np.int32(0), offsets[-1])
    cohort = make_cohort(Population(indices, offsets), [2], 1, **RUN)
    assert cohort.num_examples == 3_000_000_004
    put = put_cohort(make_placement(), cohort)
    assert put.num_examples.dtype == np.float32
    assert jax.jit(lambda c: c.num_examples)(cohort) == np.float32(3_000_000_004)


def test_one_width_where_no_client_is_much_larger():
    """So the program of an ordinary run is compiled once."""
    uneven = quantity(LABELS, 100, 0.5, np.random.RandomState(0), min_size=1)
    assert 4 * uneven.sizes.mean() < uneven.max_size <= ALWAYS
    for population in (paper_population(10), paper_population(100), uneven):
        assert widths_of_rounds(population, 3, 20) == {population.max_size}


def test_few_widths_where_some_clients_are_much_larger():
    """1,000 clients with sizes in proportion to a Dirichlet(0.05)."""
    shares = np.random.default_rng(0).dirichlet(np.full(1000, 0.05))
    sizes = 1 + np.floor(1_000_000 * shares).astype(int)
    population = from_sizes(np.zeros(sizes.sum(), np.int32), sizes)
    assert population.max_size == 60_377 > 60 * sizes.mean()
    assert widths_of_rounds(population, 10, 1000) == {4096, 16_384, 60_377}


def widths_of_rounds(population, cohort_size, rounds):
    """The widths that some rounds' cohorts have; each is wide enough."""
    widths = set()
    for t in range(rounds):
        run = dict(epochs=1, batch_size=10)
        cohort = sample_cohort(population, cohort_size, 1, seed=0, round=t, **run)
        assert cohort.sizes.max() <= cohort.indices.shape[1]
        widths.add(cohort.indices.shape[1])
    return widths


def test_bad_sizes():
    population = to_population([np.arange(3), np.arange(3, 5)], num_examples=5)
    with pytest.raises(ValueError, match=r"cohort_size must be in \[1, 2\], got 3"):
        sample_cohort(population, 3, 1, seed=0, round=0, **RUN)
    with pytest.raises(ValueError, match=r"num_lanes must be at least 1, got 0"):
        sample_cohort(population, 2, 0, seed=0, round=0, **RUN)
    with pytest.raises(ValueError, match=r"epochs must be at least 1, got 0"):
        num_steps(np.ones(1, int), 0, 1)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, got 0"):
        num_steps(np.ones(1, int), 1, 0)
    sizes = np.array([1, 5], np.int32)
    assert num_steps(sizes, 2**28, 1).tolist() == [2**28, 5 * 2**28]
    with pytest.raises(ValueError, match=r"2\^31 local steps, got 1073741824 for 5"):
        num_steps(sizes, 2**30, 1)
