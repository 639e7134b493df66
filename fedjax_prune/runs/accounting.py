"""What a private run gives away of a client, as (epsilon, delta).

Assumptions:
  Neighbours differ in all that one client holds (replace one). As each message is at
  most `clip_norm` long, the sum of a round changes by at most 2 clip_norm: its noise is
  noise_multiplier / 2 sensitivities, and the accountant is told that. Each cohort is
  drawn uniformly, without replacement, in a fixed size, as `sample_cohort` does, and
  nobody outside learns who was in it. Rounds are composed adaptively as Rényi
  differential privacy, which gives an upper bound of epsilon.

References:
  Wang, Balle and Kasiviswanathan, Subsampled Rényi Differential Privacy and Analytical
  Moments Accountant, AISTATS 2019, theorem 27, https://arxiv.org/abs/1808.00087.
  https://github.com/google/differential-privacy/tree/main/python/dp_accounting
"""

import functools
from typing import Any

import numpy as np

from fedjax_prune.engine.privacy import Privacy, make_privacy
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.types import Config

EPSILON = "privacy/epsilon"


def privacy_row(config: Config, rounds: int) -> dict[str, float]:
    """Epsilon and delta after some rounds, as fields of a metrics row.

    Args:
      config: already checked.
      rounds: done so far, at least 1.

    Returns:
      Nothing if the run is not private.

    Raises:
      SettingsError: if the library that accounts is not installed.
    """
    privacy = make_privacy(**config.privacy)
    if privacy is None:
        return {}
    spent = epsilon(privacy, config.cohort_size, config.data.num_clients, rounds)
    return {EPSILON: spent, "privacy/delta": privacy.delta}


def epsilon(privacy: Privacy, cohort_size: int, num_clients: int, rounds: int) -> float:
    """Computes epsilon after some rounds.

    Args:
      privacy: of the rounds.
      cohort_size: clients of each round.
      num_clients: clients of the population.
      rounds: at least 1.

    Raises:
      SettingsError: if the library that accounts is not installed.
    """
    orders, rdp = _of_one_round(privacy, cohort_size, num_clients)
    # What rounds give away adds up for each order.
    spent, _ = _library().rdp.compute_epsilon(orders, rounds * rdp, privacy.delta)
    return float(spent)


@functools.lru_cache(maxsize=8)
def _of_one_round(
    privacy: Privacy, cohort_size: int, num_clients: int
) -> tuple[np.ndarray, np.ndarray]:
    """Orders and the Rényi divergences of one round; it takes a fifth of a second."""
    accounting = _library()
    accountant = accounting.rdp.RdpAccountant(
        neighboring_relation=accounting.NeighboringRelation.REPLACE_ONE
    )
    noise = accounting.GaussianDpEvent(privacy.noise_multiplier / 2)
    event = accounting.SampledWithoutReplacementDpEvent(num_clients, cohort_size, noise)
    accountant.compose(event)
    return np.asarray(accountant.orders), np.asarray(accountant.rdp)


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ImportError as error:
        raise SettingsError(
            [
                "privacy.clip_norm must be 0 without the library that computes "
                "epsilon: pip install 'fedjax_prune[privacy]' brings dp-accounting"
            ]
        ) from error
    return dp_accounting
