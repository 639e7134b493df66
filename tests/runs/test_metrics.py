"""Rows of metrics, and masks that end a run."""

import jax
import ml_collections
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics import cost_row, require_alive, round_row
from fedjax_prune.runs.settings import default_config
from tests.small_runs import pruned_config, tiny_config

EMPTY = {"mask/kept/conv1/kernel": np.int32(2), "mask/kept/fc/kernel": np.int32(0)}


def config_of(name):
    return ml_collections.ConfigDict(default_config(name))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("eflprune", "lower algorithm.channel_share = 0.3."),
        ("prunefl", "lower algorithm.prune_share = 0.3."),
        ("fedsnip", "lower algorithm.threshold = 0.3 or raise algorithm.min_keep = 0."),
    ],
)
def test_a_mask_that_empties_an_array_is_refused_by_name(name, advice):
    with pytest.raises(TrainingError) as caught:
        require_alive(config_of(name), EMPTY)
    wanted = f"The masks of {name} leave nothing of fc/kernel: {advice}"
    assert str(caught.value).startswith(wanted)


@pytest.mark.parametrize("name", [n for n, a in ALGORITHMS.items() if a.has_masks])
def test_every_algorithm_with_masks_has_a_field_to_change(name):
    with pytest.raises(TrainingError, match=r"(lower|raise) algorithm"):
        require_alive(config_of(name), EMPTY)


def test_an_algorithm_that_tells_no_field_is_named():
    config = config_of("fedavg")
    with pytest.raises(TrainingError, match=r"of fedavg .* fc/kernel: choose fields"):
        require_alive(config, EMPTY)


def test_how_evenly_channels_are_selected():
    """Three channels of eight images: one client uses all, another two of them."""
    selected = {
        "selected/conv": np.array([[8.0, 8.0, 8.0], [8.0, 8.0, 0.0]]),
        "selected/single": np.array([[8.0], [8.0]]),
    }
    ones = {name: np.ones(2) for name in ("count", "arrived", "loss", "correct")}
    row = round_row(
        1, 0.5, ones | selected | {"steps": np.ones(2), "steps_executed": np.float32(2)}
    )
    assert row["gates/conv/used"] == 5 / 6 and row["gates/single/used"] == 1
    assert row["gates/conv/entropy"] == pytest.approx((1 + np.log(2) / np.log(3)) / 2)
    assert row["gates/single/entropy"] == 1


def test_only_clients_that_arrived_tell_how_channels_are_selected():
    sums = {name: np.ones(2) for name in ("count", "loss", "correct", "steps")}
    sums |= {"arrived": np.array([1.0, 0.0]), "steps_executed": np.float32(2)}
    sums |= {"selected/conv": np.array([[8.0, 8.0], [8.0, 0.0]])}
    row = round_row(1, 0.5, sums)
    assert row["gates/conv/used"] == row["gates/conv/entropy"] == 1


def test_the_costs_of_a_round_by_hand():
    """A step is three passes of two FLOPs; clients of 5 and 7 images, half of fc1."""
    learning = make_learning(pruned_config())
    state = jax.eval_shape(learning.algorithm.init, jax.random.key(0))
    sizes = {
        "/".join(entry.key for entry in path): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    half = sizes["fc1/kernel"] // 2
    kept = sizes | {"fc1/kernel": half}
    sums = {f"mask/kept/{name}": np.int32(n) for name, n in kept.items()}
    sums |= {"mask/prunable": 4, "mask/prunable_kept": 3, "mask/guarded": 0}
    sums |= {"count": np.array([5.0, 7.0])}
    row = cost_row(learning, learning.algorithm.messages(state), sums)
    flops, macs = 3 * 2 * 12, learning.macs
    assert row["flops/dense"] == row["flops/realisable"] == flops * macs.dense
    # An entry of fc1 is multiplied once for each image.
    sparse = [row[f"flops/{kind}"] for kind in ("theoretical", "hybrid")]
    assert sparse == [flops * (macs.dense - half)] * 2
    total = sum(sizes.values())
    assert row["compression"] == total / (total - half) > 1
    shares = [row[f"sparsity/{name}"] for name in ("fc1/kernel", "conv1/kernel")]
    assert [*shares, row["sparsity/prunable"]] == [0.5, 0.0, 0.25]


def test_gates_spare_what_they_do_not_keep():
    """A step is three passes of two FLOPs, here of 12 images."""
    learning = make_learning(tiny_config())
    state = jax.eval_shape(learning.algorithm.init, jax.random.key(0))
    messages = learning.algorithm.messages(state)
    row = cost_row(learning, messages, {"count": np.array([5.0, 7.0])})
    macs = learning.macs
    found = [row["flops/dense"], row["flops/kept"]]
    assert found == [3 * 2 * 12 * macs.dense, 3 * 2 * 12 * macs.kept]
    assert macs.kept < macs.dense


def test_other_sums_may_be_zero():
    alive = {"mask/kept/fc/kernel": np.int32(1), "correct": np.zeros(3)}
    alive |= {"mask/channels/conv1": np.int32(0)}
    require_alive(config_of("magnitude"), alive)
    # The same sums with one empty array more name that array alone.
    with pytest.raises(TrainingError) as error:
        require_alive(
            config_of("magnitude"), alive | {"mask/kept/conv1/kernel": np.int32(0)}
        )
    assert "conv1/kernel" in str(error.value) and "fc" not in str(error.value)
