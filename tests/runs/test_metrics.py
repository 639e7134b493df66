"""Masks that end a run."""

import ml_collections
import numpy as np
import pytest

from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.runs.metrics import require_alive

CONFIG = ml_collections.ConfigDict({"algorithm": {"threshold": 0.999}})


def test_a_mask_that_empties_an_array_is_refused_by_name():
    sums = {"mask/kept/conv1/kernel": np.int32(2), "mask/kept/fc/kernel": np.int32(0)}
    with pytest.raises(TrainingError, match=r"threshold 0\.999 leaves nothing of fc/k"):
        require_alive(CONFIG, sums)


def test_other_sums_may_be_zero():
    sums = {"mask/kept/fc/kernel": np.int32(1), "correct": np.zeros(3)}
    require_alive(CONFIG, sums)
    require_alive(CONFIG, {"mask/channels/conv1": np.int32(0)})
