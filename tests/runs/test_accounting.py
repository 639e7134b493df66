"""Epsilon against the textbook: the Gaussian mechanism, and drawn cohorts."""

import math
import sys

import numpy as np
import pytest

from fedjax_prune.engine.privacy import Privacy
from fedjax_prune.runs.accounting import epsilon, privacy_row
from fedjax_prune.runs.settings import SettingsError
from tests.small_runs import plain_config

DELTA = 1e-5


def spent(noise_multiplier, cohort_size, num_clients, rounds):
    privacy = Privacy(1.0, noise_multiplier, DELTA)
    return epsilon(privacy, cohort_size, num_clients, rounds)


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def exact_delta(eps, mu):
    """Balle and Wang, ICML 2018, theorem 8: sensitivity over deviation is mu."""
    return normal_cdf(mu / 2 - eps / mu) - math.exp(eps) * normal_cdf(
        -mu / 2 - eps / mu
    )


@pytest.mark.parametrize(("noise", "rounds"), [(10.0, 1), (4.0, 1), (20.0, 25)])
def test_everybody_in_every_round_is_the_gaussian_mechanism(noise, rounds):
    """A replaced client changes a sum by 2 clip norms; rounds add up in squares."""
    mu = 2 * math.sqrt(rounds) / noise
    found = spent(noise, 10, 10, rounds)
    # The least epsilon of any order, Canonne et al., 2020, proposition 12.
    orders = np.linspace(1.01, 200, 100_000)
    bounds = (
        orders * mu**2 / 2
        + np.log1p(-1 / orders)
        - (math.log(DELTA) + np.log(orders)) / (orders - 1)
    )
    np.testing.assert_allclose(found, bounds.min(), rtol=2e-3)
    assert exact_delta(found, mu) <= DELTA < exact_delta(0.75 * found, mu)


def log_moment(order, q, sigma):
    """Wang et al., theorem 27, as printed, for a whole order of at most 16."""

    def rdp(a):
        return a / (2 * sigma**2)

    def differences(count):
        """Of e^{(l - 1) eps(l)} at l = 0, from theorem 27's definition of B."""
        terms = [
            (-1) ** i * math.comb(count, i) * math.exp((i - 1) * rdp(i))
            for i in range(count + 1)
        ]
        return abs(math.fsum(terms))

    total = 1 + q**2 * math.comb(order, 2) * min(
        4 * (math.exp(rdp(2)) - 1), 2 * math.exp(rdp(2))
    )
    for j in range(3, order + 1):
        b = math.sqrt(differences(2 * (j // 2)) * differences(2 * math.ceil(j / 2)))
        total += q**j * math.comb(order, j) * min(4 * b, 2 * math.exp((j - 1) * rdp(j)))
    return math.log(total)


def test_drawn_cohorts_cost_what_the_theorem_says():
    """Noise so small that the best order is among the first ones."""
    q, sigma, rounds = 0.1, 2.0, 60
    bounds = [
        rounds * log_moment(a, q, sigma) / (a - 1)
        + math.log1p(-1 / a)
        - math.log(DELTA * a) / (a - 1)
        for a in range(2, 17)
    ]
    assert 2 < 2 + int(np.argmin(bounds)) < 16
    found = spent(2 * sigma, 10, 100, rounds)
    # Orders that are not whole are tried, too.
    assert 0.98 * min(bounds) <= found <= min(bounds) * (1 + 1e-6)


@pytest.mark.parametrize("q", [0.1, 0.5, 1.0])
def test_one_round_keeps_its_promise(q):
    """The two models of a replaced client in the worst case, integrated."""
    noise = 1.5
    eps = spent(noise, int(10 * q), 10, 1)
    x = np.linspace(-30, 30, 600_001)

    def density(centre):
        return np.exp(-((x - centre) ** 2) / (2 * noise**2))

    first = (1 - q) * density(0) + q * density(1)
    second = (1 - q) * density(0) + q * density(-1)
    scale = (x[1] - x[0]) / (noise * math.sqrt(2 * math.pi))
    assert np.maximum(first - math.exp(eps) * second, 0).sum() * scale <= DELTA


def test_epsilon_grows_with_rounds_and_falls_with_noise_and_clients():
    assert spent(2.0, 10, 100, 1) < spent(2.0, 10, 100, 2)
    assert spent(4.0, 10, 100, 1) < spent(2.0, 10, 100, 1)
    assert spent(2.0, 10, 1000, 1) < spent(2.0, 10, 100, 1) < spent(2.0, 10, 10, 1)


PRIVATE = {"privacy.clip_norm": 0.5, "privacy.noise_multiplier": 4.0}


def test_a_run_that_is_not_private_has_no_epsilon():
    assert privacy_row(plain_config(), 1) == {}


def test_without_the_library_a_private_run_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(SettingsError, match=r"pip install 'fedjax_prune\[privacy\]'"):
        privacy_row(plain_config(**PRIVATE), 1)
