"""When a run reaches its target, and what that costs by the FedDP paper."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_prune.runs.metrics import HEADLINE

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
    rows: Sequence[Mapping[str, Any]], target: float, *, consecutive: int = 1
) -> int | None:
    """Finds the first round from which the accuracy stays at a target for a while.

    Args:
      rows: of metrics.jsonl, ascending; those without an evaluation do not count.
      target: accuracy in [0, 1] that HEADLINE must reach, but for ROUNDING.
      consecutive: number of evaluations in a row that must reach it, at least 1.

    Returns:
      The first round of the first such evaluations; None if there are none.

    Raises:
      ValueError: if `consecutive` is below 1.
    """
    if consecutive < 1:
        raise ValueError(f"consecutive must be at least 1, got {consecutive}.")
    evaluated = [row for row in rows if row.get(HEADLINE) is not None]
    reached = [row[HEADLINE] >= target - ROUNDING for row in evaluated]
    for start in range(len(evaluated) - consecutive + 1):
        if all(reached[start : start + consecutive]):
            return evaluated[start]["round"]
    return None
