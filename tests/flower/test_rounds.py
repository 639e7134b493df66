"""Rounds of Flower's apps are those of a simulation."""

import jax
import numpy as np
import pytest

pytest.importorskip("flwr")

from configs import base
from fedjax_prune.flower.client import make_client_app
from fedjax_prune.flower.kept import read_rows
from fedjax_prune.flower.server import serve
from fedjax_prune.runs.learning import make_learning
from tests.flower_grid import MemoryGrid, simulate
from tests.small_runs import PRUNED_FIELDS, plain_config, tiny_config

SMALL = {
    "rounds": 3,
    "cohort_size": 2,
    "lanes": 1,
    "data.num_clients": 3,
    "data.num_train": 90,
    "data.partitioner": "iid",
    "eval.every": 3,
}


def feddp():
    return tiny_config(**SMALL)


def fedavg():
    return plain_config(**SMALL)


def scaffold():
    config = plain_config(**SMALL)
    config.algorithm = base.algorithm("scaffold")
    return config


def autoflip():
    config = plain_config(**SMALL)
    config.algorithm = base.algorithm("autoflip")
    config.algorithm.update(PRUNED_FIELDS)
    return config


@pytest.mark.parametrize("make", [fedavg, scaffold, feddp, autoflip])
def test_three_rounds_equal_the_simulation(make):
    config = make()
    learning = make_learning(config)
    app = make_client_app(lambda given: config)
    grid = MemoryGrid(app, config.data.num_clients)
    state = jax.device_get(serve(grid, learning))
    expected, rows = simulate(learning, 3)
    expected = jax.device_get(expected)
    gap = max(
        float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max(initial=0))
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
    )
    print(make.__name__, gap)
    assert gap < 1e-5
