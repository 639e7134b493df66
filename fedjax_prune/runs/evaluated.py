"""Which clients a run evaluates, and when."""

import numpy as np

from fedjax_prune.engine.dealing import draw_clients
from fedjax_prune.engine.outcome import by_id
from fedjax_prune.types import Cohort, Config


def _at_most(wanted: int, available: int) -> int:
    """The number asked for, 0 for all, but at most what is available."""
    return min(wanted or available, available)


def num_measured(config: Config, finished: int) -> int:
    """How many clients of a round's cohort are measured before they are averaged."""
    is_due = finished % config.eval.every == 0 or finished == config.rounds
    return _at_most(config.eval.num_clients, config.cohort_size) if is_due else 0


def numbers_evaluated(config: Config) -> set[int]:
    """How many clients an evaluation has: during the run, and after its last round."""
    wanted = config.eval.num_clients
    return {
        _at_most(wanted, config.cohort_size),
        _at_most(wanted, config.data.num_clients),
    }


def evaluated_clients(config: Config, cohort: Cohort, finished: int) -> np.ndarray:
    """The first clients of the cohort; after the last round, of the population."""
    if finished == config.rounds:
        return last_clients(config)
    count = _at_most(config.eval.num_clients, config.cohort_size)
    return cohort.client_ids[by_id(cohort)[:count]]


def evaluates_last_clients(config: Config, finished: int) -> bool:
    """Whether an evaluation on the way has the clients of one after the last round."""
    drawn = draw_clients(
        config.data.num_clients,
        config.cohort_size,
        seed=config.seed,
        round=finished - 1,
    )
    count = _at_most(config.eval.num_clients, config.cohort_size)
    return np.array_equal(np.sort(drawn)[:count], last_clients(config))


def last_clients(config: Config) -> np.ndarray:
    """The clients that are evaluated after the last round, those with the lowest ids.

    Returns:
      [count] int32.
    """
    count = _at_most(config.eval.num_clients, config.data.num_clients)
    return np.arange(count, dtype=np.int32)
