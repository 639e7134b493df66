"""Integers in means, such as counters of steps: the largest that arrives is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.engine.aggregate import REDUCTION_BY_NAME, join, receive
from fedjax_prune.engine.devices import AXIS
from fedjax_prune.types import Mean
from tests import toys

COUNTS = np.array([-5, -3, 9], np.int32)
ARRIVED = np.array([True, True, False])
SUM = REDUCTION_BY_NAME["all_reduce"]


def kept_of(reduction):
    """What is kept of three clients, of which the last does not arrive."""
    parts = {"state": Mean({"steps": COUNTS}, np.ones(3, np.int32))}
    first = jax.tree.map(lambda x: x[0], parts)
    return reduction.add(reduction.empty(first, 3), parts, ARRIVED, jnp.arange(3))


def gathered(reduction):
    return reduction.total(kept_of(reduction), toys.contiguous_cohort([1] * 3), False)


def steps(found):
    return int(receive(found)["state"]["steps"])


@pytest.mark.parametrize("name", REDUCTION_BY_NAME)
def test_of_clients_also_if_all_are_negative(name):
    assert steps(gathered(REDUCTION_BY_NAME[name])) == -3


def test_of_two_groups():
    one = gathered(SUM)
    assert steps(join(one, one)) == -3


def test_of_two_devices():
    kept = jax.tree.map(lambda x: jnp.stack([x, x]), kept_of(SUM))
    cohort = toys.contiguous_cohort([1] * 3)
    total = jax.vmap(lambda x: SUM.total(x, cohort, True), axis_name=AXIS)
    found = jax.tree.map(lambda x: x[0], total(kept))
    assert (steps(found), int(found.num_clients)) == (-3, 4)
