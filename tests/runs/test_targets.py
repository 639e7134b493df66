"""When a run reaches its target, and the cost that the papers report."""

import math

import pytest

from fedjax_prune.runs.targets import cost_paper, rounds_to_target


def test_cost_of_the_papers():
    # Their 42 MB and 3.2 MB per client and round, in 4-byte parameters of MiB.
    vgg, resnet = 42 * 2**20 // 4, 3.2 * 2**20 / 4
    assert cost_paper(vgg, 181, 10, factor=1) == pytest.approx(74.24, abs=5e-3)
    assert cost_paper(vgg, 159, 10, factor=2) == pytest.approx(130.43, abs=5e-3)
    assert cost_paper(resnet, 192, 10, factor=1) == pytest.approx(6.00, abs=5e-3)


def test_rounds_to_target():
    rounds, values = [5, 10, 15, 20, 25], [0.1, 0.6, 0.4, 0.5, 0.7]
    assert rounds_to_target(rounds, values, 0.5) == 10
    assert rounds_to_target(rounds, values, 0.5, consecutive=2) == 20
    assert rounds_to_target(rounds, values, 0.5, consecutive=3) is None
    assert rounds_to_target(rounds, values, 0.8) is None
    assert rounds_to_target([5], [0.949999988], 0.95) == 5
    assert rounds_to_target([], [], 0.5) is None
    assert rounds_to_target([1], [math.nan], 0.0) is None
    with pytest.raises(ValueError, match="consecutive must be at least 1, got 0"):
        rounds_to_target(rounds, values, 0.5, consecutive=0)
    with pytest.raises(ValueError, match="length of rounds, 5, got 4"):
        rounds_to_target(rounds, values[:4], 0.5)
