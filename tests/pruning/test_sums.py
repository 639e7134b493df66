"""Channels that meet in a sum are removed in all of its branches or in none."""

import jax.numpy as jnp
import numpy as np

from fedjax_prune.layers import ChannelGroup, Slot
from fedjax_prune.pruning.mask_rule import MaskRule
from fedjax_prune.pruning.masks import structured_masks

SUM = ChannelGroup(
    "sum",
    2,
    producers=(Slot(("a",), -1), Slot(("b",), -1)),
    entries=(),
    consumers=(Slot(("c",), -2),),
)
"""Two branches, `a` and `b`, and what reads their sum, `c`."""


def columns(*counts):
    """[4, 2] bool with so many entries kept in each column."""
    return jnp.asarray(np.arange(4)[:, None] < np.array(counts))


def test_the_branch_that_keeps_most_decides():
    """Channel 0 keeps 2 and 0 of 4 entries, channel 1 keeps 1 and 1."""
    masks = {"a": columns(2, 1), "b": columns(0, 1), "c": jnp.ones((2, 1), bool)}
    found = structured_masks(masks, [SUM], max_density=0.25, residual=True)
    np.testing.assert_array_equal(found["c"][:, 0], [True, False])


def test_a_sum_with_one_exempt_branch_stays():
    masks = {"a": columns(4, 0), "b": columns(4, 0), "c": jnp.ones((2, 1), bool)}
    for exempt in "ab":
        may = {name: name != exempt for name in masks}
        rule = MaskRule(may, (SUM,), min_keep=0.0, residual=True)
        assert rule.complete(masks, masks).masks["c"].all()
    rule = MaskRule(dict.fromkeys(masks, True), (SUM,), min_keep=0.0, residual=True)
    assert not rule.complete(masks, masks).masks["c"][1, 0]
