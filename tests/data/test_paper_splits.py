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
