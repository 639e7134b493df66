"""When a run reaches its target, and the cost that the papers report."""

import math

import pytest

from fedjax_prune.runs.metrics import HEADLINE
from fedjax_prune.runs.targets import cost_paper, rounds_to_target


def test_cost_of_the_papers():
    # Their 42 MB and 3.2 MB per client and round, in 4-byte parameters of MiB.
    vgg, resnet = 42 * 2**20 // 4, 3.2 * 2**20 / 4
    assert cost_paper(vgg, 181, 10, factor=1) == pytest.approx(74.24, abs=5e-3)
    assert cost_paper(vgg, 159, 10, factor=2) == pytest.approx(130.43, abs=5e-3)
    assert cost_paper(resnet, 192, 10, factor=1) == pytest.approx(6.00, abs=5e-3)


def test_rounds_to_target():
    values = {5: 0.1, 10: 0.6, 15: 0.4, 20: 0.5, 25: 0.7}
    rows = [{"round": number, HEADLINE: x} for number, x in values.items()]
    assert rounds_to_target(rows, 0.5) == 10
    assert rounds_to_target(rows, 0.5, consecutive=2) == 20
    assert rounds_to_target(rows, 0.5, consecutive=3) is None
    assert rounds_to_target(rows, 0.8) is None
    # Rounds without an evaluation do not part those that have one.
    rows[4:4] = [{"round": 21}, {"round": 22, HEADLINE: None}]
    assert rounds_to_target(rows, 0.5, consecutive=2) == 20
    assert rounds_to_target([{"round": 5, HEADLINE: 0.949999988}], 0.95) == 5
    assert rounds_to_target([], 0.5) is None
    assert rounds_to_target([{"round": 1, HEADLINE: math.nan}], 0.0) is None
    with pytest.raises(ValueError, match="consecutive must be at least 1, got 0"):
        rounds_to_target(rows, 0.5, consecutive=0)
