"""When a run reaches its target, and what that costs by the FedDP paper."""

from collections.abc import Sequence

ROUNDING = 1e-6
"""By how much an accuracy may be below a target: 0.95 in float32 is 0.949999988."""


def cost_paper(
    num_params: float, rounds: int, cohort_size: int, *, factor: float = 1
) -> float:
    """Computes the communication cost as the FedDP paper reports it.

    It counts one direction in float32: 4 bytes times parameters, rounds and clients.

    Args:
      num_params: parameters of the shared model.
      rounds: rounds until the target accuracy.
      cohort_size: clients of each round.
      factor: 2 for algorithms that also send control variates, otherwise 1.

    Returns:
      The cost in GiB (2^30 bytes).

    References:
      Yu et al., Heterogeneous Federated Learning using Dynamic Model Pruning and
      Adaptive Gradient, https://arxiv.org/abs/2106.06921.
    """
    return 4 * num_params * rounds * cohort_size * factor / 2**30


def rounds_to_target(
    rounds: Sequence[int],
    values: Sequence[float],
    target: float,
    *,
    consecutive: int = 1,
) -> int | None:
    """Finds the first round from which a metric stays at its target for a while.

    Args:
      rounds: finished rounds at which the metric was measured, ascending.
      values: the metric at these rounds.
      target: the value that the metric must reach, but for ROUNDING.
      consecutive: number of measurements in a row that must reach it, at least 1.

    Returns:
      The first round of the first such run; None if there is none.

    Raises:
      ValueError: if `consecutive` is below 1 or the lengths differ.
    """
    if consecutive < 1:
        raise ValueError(f"consecutive must be at least 1, got {consecutive}.")
    if len(rounds) != len(values):
        raise ValueError(
            f"values must have the length of rounds, {len(rounds)}, got {len(values)}."
        )
    reached = [value >= target - ROUNDING for value in values]
    for start in range(len(rounds) - consecutive + 1):
        if all(reached[start : start + consecutive]):
            return rounds[start]
    return None
