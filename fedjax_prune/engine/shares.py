"""Shares of a number of clients."""

import math
from fractions import Fraction


def num_in(fraction: float, count: int) -> int:
    """Counts the whole clients in a share of some: floor(fraction * count).

    Examples:
      The fraction is read as a decimal: in binary, 0.29 * 100 is below 29.

      >>> num_in(0.29, 100)
      29
    """
    return math.floor(Fraction(str(fraction)) * count)
