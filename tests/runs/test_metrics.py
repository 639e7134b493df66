"""Masks that end a run."""

import ml_collections
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.runs.metrics import require_alive
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
