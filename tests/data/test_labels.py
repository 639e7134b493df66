"""The names of classes."""

import pytest

from fedjax_prune.data.datasets import DATASETS
from fedjax_prune.data.labels import labels_of


@pytest.mark.parametrize("name", [n for n, info in DATASETS.items() if not info.own])
def test_each_class_has_its_own_name(name):
    labels = labels_of(name)
    assert len(set(labels)) == len(labels) == DATASETS[name].num_classes


def test_names_are_in_the_order_of_the_labels():
    assert labels_of("cifar10")[3] == "cat"
    assert labels_of("cifar100")[0] == "apple" and labels_of("cifar100")[99] == "worm"
    assert labels_of("femnist")[10] == "A" and labels_of("femnist")[36] == "a"
    assert labels_of("emnist")[46] == "t"
    assert labels_of("synthetic")[9] == "9"
    assert labels_of("image_folder", ["ant", "bee"]) == ("ant", "bee")
