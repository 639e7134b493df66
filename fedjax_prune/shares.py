"""Shares of a number of things: clients, channels, weights. Fractions are decimals."""

import math
from fractions import Fraction


def num_in(fraction: float, count: int) -> int:
    """Counts a share rounded down to whole things: floor(fraction * count).

    Examples:
      The fraction is read as a decimal: in binary, 0.29 * 100 is below 29.

      >>> num_in(0.29, 100)
      29
    """
    return math.floor(Fraction(str(fraction)) * count)


def nearest_in(fraction: float, count: int) -> int:
    """Counts a share rounded to the nearest whole number, halves up.

    Examples:
      The fraction is read as by `num_in`: in binary, 0.29 * 50 is below 14.5.

      >>> nearest_in(0.29, 50)
      15
    """
    return math.floor(Fraction(str(fraction)) * count + Fraction(1, 2))


def least_in(fraction: float, count: int) -> int:
    """Counts a share rounded up to whole things: ceil(fraction * count).

    Examples:
      The fraction is read as by `num_in`: in binary, 0.07 * 100 is above 7.

      >>> least_in(0.07, 100)
      7
    """
    return math.ceil(Fraction(str(fraction)) * count)
