"""The numbers of a round on the host: whose they are, and whether they are finite."""

import numpy as np

from fedjax_prune.types import Cohort

NOBODY = (
    "No client of the preparation is left: the loss, update or gates of all of them "
    "became non-finite. A smaller client.lr usually helps."
)


class TrainingError(RuntimeError):
    """A run cannot go on. The message names the round and the clients, or the array.

    Examples:
      >>> import fedjax_prune as fp
      >>> try:
      ...     raise fp.TrainingError("The update of client 3 became non-finite.")
      ... except RuntimeError as error:
      ...     print(error)
      The update of client 3 became non-finite.
    """


def by_id(cohort: Cohort) -> np.ndarray:
    """Sorts the places of a cohort's clients by client id, without empty places."""
    real = cohort.client_ids < cohort.num_clients
    return np.argsort(cohort.client_ids)[: real.sum()]


def first_by_id(cohort: Cohort, count: int) -> np.ndarray:
    """Marks the places of the clients with the smallest ids.

    Args:
      cohort: of the round, numpy.
      count: how many clients are marked.

    Returns:
      [num_places] bool.
    """
    chosen = np.zeros(len(cohort.client_ids), bool)
    chosen[by_id(cohort)[:count]] = True
    return chosen


def of_clients(sums: dict[str, np.ndarray], cohort: Cohort) -> dict[str, np.ndarray]:
    """Takes the clients' sums by ascending client id, without empty places."""
    places = by_id(cohort)
    return {
        name: value[places] if np.ndim(value) else value for name, value in sums.items()
    }


def diverged(sums: dict[str, np.ndarray], cohort: Cohort) -> np.ndarray:
    """Lists the clients whose loss, update or gates were not finite, by ascending id.

    Args:
      sums: of clients, as `of_clients` gives them.
      cohort: of the round, numpy.
    """
    return flagged(sums, "nonfinite", cohort.client_ids[by_id(cohort)])


def flagged(sums: dict[str, np.ndarray], name: str, ids: np.ndarray) -> np.ndarray:
    """Lists the clients one of whose sums is above 0, by ascending id.

    Args:
      sums: of clients, as `of_clients` gives them.
      name: of the sum; nobody is listed if there is none of that name.
      ids: of the clients, ascending.
    """
    return ids[np.asarray(sums.get(name, np.zeros(len(ids)))) > 0]


def require_finite(sums: dict[str, np.ndarray], number: int, cohort: Cohort) -> None:
    """Refuses a round in which a client has diverged.

    Args:
      sums: of clients, as `of_clients` gives them.
      number: of the round; 0 is the preparation.
      cohort: of the round, numpy.

    Raises:
      TrainingError: naming the clients.
    """
    bad = diverged(sums, cohort)
    if bad.size:
        ids = ", ".join(str(i) for i in bad)
        everybody = bad.size == cohort.cohort_size
        cause = ""
        if everybody and number > 1:  # The server has made a step.
            cause = " All clients diverged: server.lr may be too large."
        raise TrainingError(
            f"The loss, update or gates of client {ids} became non-finite in round "
            f"{number}. A smaller client.lr, or model.norm bn or gn, usually "
            f"helps.{cause}"
        )


def require_finite_server(sums: dict[str, np.ndarray], number: int) -> None:
    """Refuses a round whose server's step has left the finite numbers.

    Args:
      sums: of the round.
      number: of the round.

    Raises:
      TrainingError: naming the round.
    """
    if sums["server_nonfinite"] > 0:
        raise TrainingError(
            f"The server's step of round {number} made the model non-finite, though "
            "all updates that arrived were finite. A smaller server.lr usually helps."
        )
