"""Shares of weights and channels are exact where binary floats round them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models.channels import between
from fedjax_prune.pruning import masks as masks_module
from fedjax_prune.pruning.guidance import NORMALIZATIONS
from fedjax_prune.pruning.masks import guard, structured_masks


@pytest.mark.parametrize("fan_in", [30, 40, 60, 120, 240])
def test_a_channel_of_exactly_the_largest_density_goes(fan_in):
    """A mean of a tenth that are kept may be rounded to above a tenth."""
    kernel = np.zeros((fan_in, 2), bool)
    kernel[: fan_in // 10, 0] = kernel[: fan_in // 10 + 1, 1] = True
    masks = {"one": {"kernel": kernel}, "two": {"kernel": np.ones((2, 3), bool)}}
    found = jax.jit(
        lambda masks: structured_masks(
            masks, (between("one", 2, "two"),), max_density=0.1
        )
    )(masks)
    assert found["two"]["kernel"].any(-1).tolist() == [False, True]


def test_shares_are_rounded_up_as_decimals(monkeypatch):
    """In binary, 0.07 of 100 is above 7."""
    masks, scores = jnp.zeros(100, bool), jnp.arange(100.0)
    assert int(guard(masks, scores, True, 0.07).sum()) == 7
    masks = {"one": {"kernel": jnp.zeros((1, 100), bool)}}
    masks["two"] = {"kernel": jnp.ones((100, 1), bool)}
    groups = (between("one", 100, "two"),)
    monkeypatch.setattr(masks_module, "MIN_UNITS", 0.07)
    found = structured_masks(masks, groups, max_density=0.1)
    assert int(found["two"]["kernel"].sum()) == 7


@pytest.mark.parametrize("norm", ["minmax", "robust"])
def test_deviations_closer_than_the_smallest_float_are_equal(norm):
    close = jnp.array([1.2e-38, 1.3e-38, 1.25e-38, 1.28e-38])
    assert NORMALIZATIONS[norm](close).tolist() == [0, 0, 0, 0]
