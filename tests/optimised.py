"""Tests of equal bits in programs that XLA has optimised.

`test_optimised` runs these tests in a process of its own, since the rest of the suite
is compiled without optimisation.
"""

import chex
import jax
import pytest

from fedjax_prune.engine.devices import ONE_DEVICE, make_placement
from fedjax_prune.runs import checkpoint
from tests.seven_clients import draw_cohort, rounds

WIDER = 29
COHORT = (0, 1, 2, 3, 4, 6)

GATED = pytest.param("gated", marks=pytest.mark.long)
"""Its programs take most of the time to compile."""


def run(model, placement=ONE_DEVICE, *, ids=COHORT, width=None, **options):
    """The state and the rows of all clients after some rounds, by default three."""
    cohort = draw_cohort(placement, ids, width=width)
    after, _ = rounds(model, placement, cohort, **{"numbers": range(3)} | options)
    chex.assert_tree_all_finite(after)
    return after


@pytest.mark.parametrize("model", ["linear", "gated"])
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(model, tmp_path):
    whole = run(model, numbers=range(4))
    half = run(model, numbers=range(2))
    checkpoint.save(tmp_path, 2, half, keep=1)
    restored = checkpoint.restore(tmp_path, jax.eval_shape(lambda: half))
    resumed = run(model, begin=jax.device_get(restored), numbers=range(2, 4))
    chex.assert_trees_all_equal(whole, resumed)


@pytest.mark.parametrize("model", ["linear", GATED])
def test_wider_padding_changes_no_bit(model):
    narrow = run(model)
    chex.assert_trees_all_equal(narrow, run(model, width=WIDER))


@pytest.mark.parametrize(
    ("model", "others"),
    [("linear", (4,)), pytest.param("gated", (2,), marks=pytest.mark.long)],
)
def test_the_fixed_order_has_the_same_bits_on_any_number_of_devices(model, others):
    expected = run(model, make_placement(1, "fixed_order"))
    for num_devices in others:
        placement = make_placement(num_devices, "fixed_order")
        chex.assert_trees_all_equal(expected, run(model, placement))
    many = make_placement(others[-1], "fixed_order")
    chex.assert_trees_all_equal(expected, run(model, many, ids=COHORT[::-1]))
