"""Means over seeds and their intervals."""

from fedjax_prune.runs.tables import with_interval


def test_intervals_are_those_of_a_table_of_students_t():
    """Three values: t = 4.303 with 2 degrees of freedom; ten: 2.262 with 9."""
    assert with_interval([0.1, 0.2, 0.3]) == f"20.0% ± {4.303 * 0.1 / 3**0.5:.1%}"
    # Five of each: s^2 = 10 * 0.1^2 / 9.
    half = 2.262 * (0.1 / 9) ** 0.5 / 10**0.5
    assert with_interval([0.4, 0.6] * 5) == f"50.0% ± {half:.1%}"


def test_one_seed_has_no_interval():
    assert with_interval([0.125]) == "12.5%"
