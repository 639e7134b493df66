"""Every algorithm and policy through Flower's apps, without a line for any of them."""

import jax
import pytest

from configs import base
from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.flower.client import make_client_app
from fedjax_prune.flower.server import serve
from fedjax_prune.runs.learning import make_learning
from tests.flower_grid import MemoryGrid, largest_gap, simulate
from tests.small_runs import PRUNED_FIELDS, plain_config, tiny_config

pytestmark = pytest.mark.long

SMALL = {
    "rounds": 3,
    "cohort_size": 3,
    "lanes": 1,
    "reduction": "fixed_order",
    "data.num_clients": 4,
    "data.num_train": 120,
    "data.partitioner": "iid",
}
AGREEMENT = {"mask_schedule": "agreement", "mask_every": 1, "agreement_change": 0.5}
FIELDS = {
    "autoflip": PRUNED_FIELDS,
    "random_pruning": PRUNED_FIELDS,
    "prunefl": {"max_adjustments": 3, "adjust_every": 1},
}
POLICIES = {
    "median": {"aggregator": "median"},
    "trimmed": {"aggregator": "trimmed_mean", "trim_fraction": 0.34},
    "clipped": {"on_bad_client": "clip", "clip_norm": 0.05},
    "absent": {"client_dropout": 0.3, "stragglers": 0.7},
    "hostile": {"hostile.fraction": 0.5},
}


def plain(name, fields=None, **changes):
    config = plain_config(**SMALL | changes)
    config.algorithm = base.algorithm(name)
    config.algorithm.update(FIELDS.get(name, {}) | (fields or {}))
    return config


def assert_equals_simulation(config):
    learning = make_learning(config)
    grid = MemoryGrid(make_client_app(lambda given: config), 4)
    expected, _ = simulate(learning)
    assert largest_gap(serve(grid, learning), expected) < 1e-5
    return grid


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_equals_its_simulation(name):
    assert_equals_simulation(plain(name))


@pytest.mark.parametrize("source", ["votes", "update_sign"])
@pytest.mark.parametrize("under", ["fedavg", "scaffold"])
def test_masks_by_agreement(source, under):
    fields = AGREEMENT | {"agreement_source": source, "base": under}
    assert_equals_simulation(plain("autoflip", fields))


def test_gates_under_masks():
    config = tiny_config(**SMALL, **{"model.gate_init": "per_client"})
    config.algorithm = base.algorithm("autoflip")
    config.algorithm.update(PRUNED_FIELDS | {"base": "scaffold"})
    assert_equals_simulation(config)


@pytest.mark.parametrize("policy", POLICIES)
def test_policies(policy):
    assert_equals_simulation(plain("fedavg", **POLICIES[policy]))


def test_the_optimiser_of_the_server_is_not_sent():
    config = plain("scaffold", **{"server.optimizer": "adam", "model.norm": "bn"})
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it.
        grid = assert_equals_simulation(config)
    names = {
        name
        for message in grid.sent
        if "state" in message.content
        for name in message.content["state"]
    }
    parts = {name.split("[")[0] for name in names}
    assert parts == {".params", ".server.control", ".model_state"}
