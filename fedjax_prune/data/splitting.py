"""What several partitioners share: their fields, checks, and shares of a Dirichlet."""

import math
from typing import Annotated

import numpy as np

from fedjax_prune.fields import above, at_least, checked

NumClients = Annotated[int, at_least(1), "Clients in the population."]
Alpha = Annotated[
    float,
    above(0),
    "Evenness of dirichlet, dirichlet_in_turn and quantity; small is uneven.",
]
MinSize = Annotated[
    int, at_least(1), "Examples that dirichlet and quantity give every client."
]
ClassesPerClient = Annotated[
    int, at_least(1), "Classes that shards and pathological give a client."
]


@checked
def check_split(
    labels: np.ndarray,
    num_clients: NumClients,
    *,
    min_size: MinSize = 1,
    alpha: Alpha = 1.0,
    classes_per_client: ClassesPerClient = 1,
) -> None:
    """Refuses arguments with which no partitioner can work.

    Args:
      labels: [num_examples] integers.
      num_clients: at most num_examples / min_size.
      min_size: of a partitioner that reads it.
      alpha: of a partitioner that reads it.
      classes_per_client: of a partitioner that reads it; at most the number of classes.

    Raises:
      ValueError: if an argument is something else.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "labels must be integers of shape [num_examples], one class for each "
            f"example, got {labels.dtype} of shape {labels.shape}."
        )
    if num_clients * min_size > len(labels):
        raise ValueError(
            f"num_clients must be at most {len(labels) // min_size} for "
            f"{len(labels)} examples and min_size {min_size}, got {num_clients}."
        )
    if classes_per_client > (num_classes := len(np.unique(labels))):
        raise ValueError(
            f"classes_per_client must be in [1, {num_classes}], "
            f"got {classes_per_client}."
        )


def dirichlet_shares(
    alpha: float, takes: np.ndarray, rng: np.random.RandomState
) -> np.ndarray:
    """Draws p ~ Dirichlet(alpha, ..., alpha) and sets some of the shares to zero.

    NumPy makes the draw. With a tiny alpha, its gamma variables underflow for all
    shares, or for all that are not set to zero. Then this function computes them once
    more as logarithms, from the same random numbers.

    Args:
      alpha: above 0.
      takes: [number] bool, False for the shares set to zero; at least one is True.
      rng: is advanced in place, as far as by its own `dirichlet`.

    Returns:
      [number] float64 in [0, 1], in proportion to p. Their sum is 1 if `takes` is True
      everywhere, and never 0.
    """
    before = rng.get_state()
    shares = np.where(takes, rng.dirichlet(np.full(len(takes), alpha)), 0.0)
    if 0 < shares.sum() < math.inf:  # a draw that underflows can be NaN or infinite
        return shares
    rng.set_state(before)
    logs = np.array([_alpha_log_gamma(alpha, rng) for _ in takes])
    logs[~takes] = -np.inf
    # The smallest alphas overflow here, and exp(-inf) is then the right share.
    with np.errstate(over="ignore"):
        shares = np.exp((logs - logs.max()) / alpha)
    return shares / shares.sum()


def _alpha_log_gamma(alpha: float, rng: np.random.RandomState) -> float:
    """Gives alpha log(x) of the gamma variable x that `rng.standard_gamma` draws.

    This is the rejection sampler of NumPy's legacy generator for an alpha below 1; with
    a larger alpha nothing underflows.

    References:
      Ahrens and Dieter, Computer Methods for Sampling from Gamma, Beta, Poisson and
      Binomial Distributions, Computing 1974, algorithm GS.
    """
    while True:
        uniform, exponential = rng.random_sample(), -math.log1p(-rng.random_sample())
        if uniform <= 1 - alpha:
            log = math.log(uniform or 2.0**-54)
        else:
            excess = -math.log((1 - uniform) / alpha)
            log = math.log(1 - alpha + alpha * excess)
            exponential += excess
        if math.exp(log / alpha) <= exponential:
            return log
