"""Numbers that the functions of the data take: whole, and in range, or refused."""

import numpy as np
import pytest

from fedjax_prune.data.by_client import load_by_client
from fedjax_prune.data.datasets import DataError
from fedjax_prune.data.load import as_dataset, load, resize
from fedjax_prune.data.partition import PARTITIONERS, partition
from fedjax_prune.data.population import to_population
from fedjax_prune.data.validation import holdout, matched_test
from fedjax_prune.types import Dataset

LABELS = np.repeat(np.arange(5), 10)
IMAGES = np.zeros((2, 4, 4, 1), np.uint8)
POPULATION = to_population([[0, 1], [2, 3]], num_examples=50)


def matched(**changed):
    numbers = {"num_classes": 5, "seed": 0} | changed
    return matched_test(LABELS, POPULATION, LABELS, **numbers)


def split(name):
    return lambda n: partition(name, LABELS, n, seed=0)


TAKERS = [
    *(("num_clients", split(name)) for name in PARTITIONERS),
    ("num_clients", lambda n: load_by_client("femnist", "", n, seed=0)),
    ("min_size", lambda n: partition("dirichlet", LABELS, 2, seed=0, min_size=n)),
    *(
        (
            "classes_per_client",
            lambda n, name=name: partition(
                name, LABELS, 5, seed=0, classes_per_client=n
            ),
        )
        for name in ("shards", "pathological")
    ),
    ("num_classes", lambda n: as_dataset(IMAGES, [0, 0], num_classes=n)),
    ("num_classes", lambda n: matched(num_classes=n)),
    ("size", lambda n: matched(size=n)),
    ("size", lambda n: resize(Dataset(IMAGES, np.zeros(2, np.int32)), n)),
]

SEEDED = [
    lambda seed: partition("iid", LABELS, 2, seed=seed),
    lambda seed: load_by_client("femnist", "", 2, seed=seed),
    lambda seed: holdout(POPULATION, 0.5, seed),
    lambda seed: matched(seed=seed),
]


@pytest.mark.parametrize(("name", "take"), TAKERS)
@pytest.mark.parametrize("value", [2.0, 2.5, True, "2", None])
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


@pytest.mark.parametrize("take", SEEDED)
def test_seeds_are_in_range(take):
    for value, said in (
        (-1, "in [0, 2^32)"),
        (2**32, "in [0, 2^32)"),
        (0.5, "a whole number"),
        (True, "a whole number"),
    ):
        with pytest.raises(ValueError) as caught:
            take(value)
        assert str(caught.value) == f"seed must be {said}, got {value}."


@pytest.mark.parametrize("count", [0, -1, 2**31 + 1, 2.0, True, "2", None])
def test_the_number_of_examples_of_a_population(count):
    with pytest.raises(ValueError) as caught:
        to_population([[0]], num_examples=count)
    said = f"num_examples must be a whole number in [1, 2^31], got {count!r}."
    assert str(caught.value) == said


@pytest.mark.parametrize("count", [2.0, True, "2", None, 2**40, -1])
def test_parts_of_a_data_set_are_whole_numbers(count):
    with pytest.raises(DataError) as caught:
        load("digits", num_test=count)
    assert str(caught.value).endswith(
        f"must be in [0, 355], the test examples of digits, got {count!r}."
    )


def test_labels_that_are_no_class_are_refused():
    for bad in (-1, 5):
        labels = np.where(np.arange(50) == 7, bad, LABELS)
        with pytest.raises(
            ValueError, match=rf"^train_labels .* \[0, 5\), got {bad} at index"
        ):
            matched_test(labels, [np.arange(50)[None], [50]], LABELS, 5, 0)
        with pytest.raises(ValueError, match=rf"^test_labels .* got {bad} at index 7"):
            matched_test(LABELS, POPULATION, labels, 5, 0)


def test_a_folder_of_a_user_that_is_not_known(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~nobody-of-this-name/data")
    with pytest.raises(DataError, match=r"^~nobody-of-this-name/data cannot be found"):
        load("mnist")
    with pytest.raises(DataError, match=r"^~nobody-of-this-name/x .* no such home"):
        load_by_client("femnist", "~nobody-of-this-name/x", 2, seed=0)
