"""The splits of AutoFLIP's experiments: their shapes and their limits."""

import numpy as np
import pytest

from fedjax_prune.data.paper_splits import dirichlet_in_turn, pathological

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 500))


@pytest.mark.parametrize("seed", range(5))
def test_pathological_clients_have_two_whole_shards(seed):
    parts = pathological(LABELS, 20, 2, np.random.RandomState(seed))
    assert len(parts) == 20 and {len(part) for part in parts} == {250}
    assert len(np.unique(np.concatenate(parts))) == 5000
    for part in parts:
        classes, counts = np.unique(LABELS[part], return_counts=True)
        assert len(classes) == 2 and (counts == 125).all()


def test_pathological_clients_draw_by_the_shards_that_are_left():
    """Of two shards of two classes each, a second draw is of the other class in 2/3."""
    labels = np.repeat([0, 1], 2)
    others = 0
    for seed in range(300):
        parts = pathological(labels, 4, 1, np.random.RandomState(seed))
        others += int(labels[parts[0][0]] != labels[parts[1][0]])
    # Binomial(300, 2/3): mean 200, standard deviation 8.2.
    assert abs(others - 200) < 4 * 8.2


def test_pathological_shards_are_drawn_from_the_whole_class():
    labels = np.repeat(np.arange(10), 500)
    for part in pathological(labels, 20, 2, np.random.RandomState(0)):
        for label in np.unique(labels[part]):
            own = part[labels[part] == label]
            assert own.max() - own.min() > len(own)


def test_pathological_limits():
    rng = np.random.RandomState(0)
    with pytest.raises(ValueError, match=r"multiple of the 10 classes, got 3 \* 2"):
        pathological(LABELS, 3, 2, rng)
    with pytest.raises(ValueError, match=r"classes_per_client must be in \[1, 10\]"):
        pathological(LABELS, 20, 11, rng)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_dirichlet_in_turn_takes_at_most_an_even_share(alpha):
    parts = dirichlet_in_turn(LABELS, 20, alpha, np.random.RandomState(0))
    taken = np.concatenate(parts)
    assert len(np.unique(taken)) == len(taken)
    sizes = np.array([len(part) for part in parts])
    assert sizes.min() > 0 and sizes.max() <= 250
    assert 0.6 * 5000 < len(taken) <= 5000
    # Clients take the examples of each class in order.
    for label in range(10):
        own = np.sort(taken[LABELS[taken] == label])
        front = np.flatnonzero(label == LABELS)[: len(own)]
        np.testing.assert_array_equal(own, front)


def test_dirichlet_in_turn_leaves_out_a_class_that_has_too_few():
    """The first client wants two of the one of class 0: it gets floor(50 U) of 1."""
    labels = np.append(0, np.ones(99, int))
    rng = np.random.RandomState(3)
    assert 50 * rng.dirichlet([1.0, 1.0])[0] >= 2
    rng.dirichlet([1.0])
    count = int(50 * rng.random_sample(2)[1])
    first, _ = dirichlet_in_turn(labels, 2, 1.0, np.random.RandomState(3))
    np.testing.assert_array_equal(first, np.arange(1, 1 + count))


def test_dirichlet_in_turn_shrinks_whole_counts():
    """Redrawn counts are floor(floor(60 p) U): floor(60 p U) would be one larger."""
    labels = np.repeat([0, 1, 2], [1, 60, 59])
    rng = np.random.RandomState(0)
    assert 60 * rng.dirichlet([1.0] * 3)[0] >= 2
    p, u = rng.dirichlet([1.0] * 2), rng.random_sample(3)[1:]
    expected = np.floor(np.floor(60 * p) * u).astype(int)
    assert (expected != np.floor(60 * p * u)).any()
    first, _ = dirichlet_in_turn(labels, 2, 1.0, np.random.RandomState(0))
    assert np.bincount(labels[first]).tolist() == [0, *expected]
