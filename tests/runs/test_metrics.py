"""Rows of metrics, and masks that end a run."""

import ml_collections
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.runs.metrics import require_alive, round_row
from fedjax_prune.runs.settings import default_config

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
