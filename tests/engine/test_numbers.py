"""Numbers that the functions of the engine take: whole, and in range, or refused."""

import numpy as np
import pytest

from fedjax_prune.data.population import to_population
from fedjax_prune.engine.dealing import make_groups, num_steps, sample_cohort
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.engine.packing import pack_lanes
from fedjax_prune.engine.preparation import prepare
from fedjax_prune.engine.store import make_store
from fedjax_prune.types import ClientState

POPULATION = to_population([[0, 1, 2], [3, 4]], num_examples=5)


def sample(**changed):
    numbers = {"cohort_size": 2, "num_lanes": 1, "seed": 0, "round": 0}
    return sample_cohort(
        POPULATION, **(numbers | {"epochs": 1, "batch_size": 2} | changed)
    )


def group(size):
    return make_groups(POPULATION, [0, 1], size, 1, epochs=1, batch_size=1)


def prepared(num_lanes):
    """Refused before anything else is looked at."""
    return prepare(None, None, None, None, None, seed=0, num_lanes=num_lanes)


TAKERS = [
    ("cohort_size", lambda n: sample(cohort_size=n)),
    ("num_lanes", lambda n: sample(num_lanes=n)),
    ("num_lanes", prepared),
    ("epochs", lambda n: sample(epochs=n)),
    ("batch_size", lambda n: sample(batch_size=n)),
    ("group_size", group),
    ("num_devices", make_placement),
    ("num_clients", lambda n: make_store("host", ClientState({}, {}), n)),
]


@pytest.mark.parametrize(("name", "take"), TAKERS)
@pytest.mark.parametrize("value", [1.0, 2.5, True, "1", None, np.float32(1)])
def test_counts_are_whole_numbers(name, take, value):
    with pytest.raises(ValueError) as caught:
        take(value)
    assert str(caught.value) == f"{name} must be a whole number, got {value!r}."


@pytest.mark.parametrize(("name", "take"), TAKERS)
def test_counts_are_in_range(name, take):
    for value in (0, -1):
        with pytest.raises(ValueError) as caught:
            take(value)
        assert str(caught.value) == f"{name} must be at least 1, got {value}."
    with pytest.raises(ValueError, match=f"{name} must be .* below 2.31, got {2**40}"):
        take(2**40)


@pytest.mark.parametrize("name", ["seed", "round"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-1, "in [0, 2^32), got -1."),
        (2**32, f"in [0, 2^32), got {2**32}."),
        (0.0, "a whole number, got 0.0."),
        (True, "a whole number, got True."),
    ],
)
def test_seeds_and_rounds(name, value, said):
    with pytest.raises(ValueError) as caught:
        sample(**{name: value})
    assert str(caught.value) == f"{name} must be {said}"


def test_whole_numbers_of_numpy_are_taken():
    kinds = (np.int64(1), np.uint8(1))
    for one in kinds:
        cohort = sample(cohort_size=one, num_lanes=one, seed=one, round=one, epochs=one)
        assert cohort.client_ids.shape == (1,)
    assert num_steps(np.array([3]), np.int32(2), np.int32(2)).tolist() == [4]
    assert pack_lanes(np.array([1]), np.array([0]), np.int32(1)) == [[0]]
