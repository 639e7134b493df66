"""A round's numbers on the host: whose they are, and whether they are usable."""

import numpy as np

from fedjax_prune.types import Cohort


class TrainingError(RuntimeError):
    """A run that cannot go on; the message names the round and the clients."""


def by_id(cohort: Cohort) -> np.ndarray:
    """The places of a cohort's clients, by ascending client id."""
    real = cohort.client_ids < cohort.num_clients
    return np.argsort(cohort.client_ids)[: real.sum()]


def first_by_id(cohort: Cohort, count: int) -> np.ndarray:
    """Marks the places of the first clients: [num_places] bool."""
    chosen = np.zeros(len(cohort.client_ids), bool)
    chosen[by_id(cohort)[:count]] = True
    return chosen


def of_clients(sums: dict[str, np.ndarray], cohort: Cohort) -> dict[str, np.ndarray]:
    """Sums of clients alone, by ascending client id."""
    places = by_id(cohort)
    return {
        name: value[places] if np.ndim(value) else value for name, value in sums.items()
    }


def require_finite(sums: dict[str, np.ndarray], number: int, cohort: Cohort) -> None:
    """Refuses a round in which a client has diverged.

    Raises:
      TrainingError: naming the clients.
    """
    bad = np.asarray(sums["nonfinite"]) > 0
    if bad.any():
        ids = ", ".join(str(i) for i in cohort.client_ids[by_id(cohort)][bad])
        raise TrainingError(
            f"The loss of client {ids} became non-finite in round {number}. A "
            "smaller client.lr, or model.norm bn or gn, usually helps; the rounds "
            "before are kept."
        )
