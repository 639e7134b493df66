"""Draws without replacement, of many clients at once.

Each client's draw is that of a NumPy generator of its own,
`default_rng((seed, client_id)).choice(size, number, replace=False)`, bit for bit.
Making a million generators takes half a minute, so here the few steps of arithmetic
that such a generator makes are made for all clients side by side.

References:
  O'Neill, PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms
  for Random Number Generation, 2014 (the variant XSL RR 128/64), and, for NumPy's
  SeedSequence, Developing a seed_seq Alternative, 2015, https://www.pcg-random.org.
  Lemire, Fast Random Integer Generation in an Interval, TOMACS 2019,
  https://arxiv.org/abs/1805.10941. Bentley and Floyd, A Sample of Brilliance,
  Communications of the ACM 1987.
"""

import numpy as np

MANY = 1000
"""Clients with more examples have generators of NumPy; they are few for the examples
that they hold. NumPy's `choice` takes another algorithm above 10,000."""

BLOCK = 2**16
"""Most clients who draw side by side, so that their generators take little memory."""

WORD = np.uint64(0xFFFFFFFF)
"""The largest number of 32 bits; as a mask, the lower half of 64."""
MULTIPLIER_HIGH = np.uint64(0x2360ED051FC65DA4)
MULTIPLIER_LOW = np.uint64(0x4385DF649FCCF645)
"""The two halves of PCG's multiplier."""


def choose(seed: int, sizes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Chooses some entries of every client.

    Args:
      seed: in [0, 2^32). A client's draw depends on (seed, client_id) alone.
      sizes: [num_clients] integers, entries of each client, at least 2.
      numbers: [num_clients] integers, how many are chosen, in [1, size - 1].

    Returns:
      [sum of sizes] bool, one client after another.

    Examples:
      >>> choose(0, np.array([3, 2]), np.array([2, 1])).tolist()
      [False, True, True, False, True]
    """
    sizes, numbers = np.asarray(sizes, np.int64), np.asarray(numbers, np.int64)
    chosen = np.zeros(sizes.sum(), bool)
    is_few = sizes <= MANY
    starts = np.cumsum(sizes) - sizes
    for client in np.flatnonzero(~is_few).tolist():
        rng = np.random.default_rng((seed, client))
        own = rng.choice(sizes[client], numbers[client], replace=False)
        chosen[starts[client] + own] = True
    few = np.flatnonzero(is_few)
    blocks = [few[start : start + BLOCK] for start in range(0, len(few), BLOCK)]
    parts = [_choose_few(seed, ids, sizes[ids], numbers[ids]) for ids in blocks]
    chosen[np.repeat(is_few, sizes)] = np.concatenate([chosen[:0], *parts])
    return chosen


def _choose_few(
    seed: int, client_ids: np.ndarray, sizes: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """As `choose`, of some clients with few entries, who draw side by side."""
    starts = np.cumsum(sizes) - sizes
    chosen = np.zeros(sizes.sum(), bool)
    # Those who choose most come first, so at each step the first ones are left.
    order = np.argsort(-numbers, kind="stable")
    sizes, numbers, starts = sizes[order], numbers[order], starts[order]
    generators = Generators(seed, client_ids[order])
    steps = np.arange(numbers.max(initial=0))
    left = len(order) - np.searchsorted(numbers[::-1], steps, "right")
    for step, count in enumerate(left):
        # Floyd's algorithm: the last one stands for any that is chosen already.
        last = sizes[:count] - numbers[:count] + step
        drawn = generators.below(np.arange(count), last + 1)
        taken = chosen[starts[:count] + drawn]
        chosen[starts[:count] + np.where(taken, last, drawn)] = True
    return chosen


class Generators:
    """NumPy's `default_rng((seed, number))` for many numbers, side by side."""

    def __init__(self, seed: int, numbers: np.ndarray):
        """Seeds the generators.

        Args:
          seed: in [0, 2^32).
          numbers: [num_generators] integers in [0, 2^32).
        """
        first, second, third, fourth = _seed_words(seed, numbers)
        # The stream's number is doubled and made odd.
        self._high_step = third << 1 | fourth >> 63
        self._low_step = fourth << 1 | 1
        # From state 0: a step, the seed is added, another step.
        self._low = self._low_step + second
        carry = (self._low < second).astype(np.uint64)
        self._high = self._high_step + first + carry
        self._step(np.arange(len(numbers)))
        self._spare = np.zeros(len(numbers), np.uint64)
        self._has_spare = np.zeros(len(numbers), bool)

    def _step(self, which: np.ndarray) -> None:
        """Multiplies and adds modulo 2^128."""
        high, low = self._high[which], self._low[which]
        product = low * MULTIPLIER_LOW
        high = high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH + _upper_half(low)
        step = self._low_step[which]
        low = product + step
        self._low[which] = low
        self._high[which] = high + self._high_step[which] + (low < step)

    def _draw(self, which: np.ndarray) -> np.ndarray:
        """Draws uniformly from [0, 2^32): the two halves of 64 bits in turn."""
        fresh = which[~self._has_spare[which]]
        self._step(fresh)
        high, low = self._high[fresh], self._low[fresh]
        turn, bits = high >> 58, high ^ low
        bits = bits >> turn | bits << (-turn & 63)
        drawn = self._spare[which]
        drawn[~self._has_spare[which]] = bits & WORD
        self._spare[fresh] = bits >> 32
        self._has_spare[which] ^= True
        return drawn

    def below(self, which: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """Draws uniformly from [0, bound) with some of the generators.

        Args:
          which: [count] integers, distinct generators.
          bounds: [count] integers in [2, 2^32).

        Returns:
          [count] int64.
        """
        bounds = bounds.astype(np.uint64)
        products = self._draw(which) * bounds
        # Lemire's rejection, which makes the draw exactly uniform.
        excess = (WORD + 1 - bounds) % bounds
        while len(again := np.flatnonzero(products & WORD < excess)):
            products[again] = self._draw(which[again]) * bounds[again]
        return (products >> 32).astype(np.int64)


def _upper_half(low: np.ndarray) -> np.ndarray:
    """Gives the upper 64 bits of low * MULTIPLIER_LOW, from products of 32 bits."""
    a, b = low >> 32, low & WORD
    c, d = MULTIPLIER_LOW >> np.uint64(32), MULTIPLIER_LOW & WORD
    middle = (b * d >> 32) + (a * d & WORD) + (b * c & WORD)
    return a * c + (a * d >> 32) + (b * c >> 32) + (middle >> 32)


def _seed_words(seed: int, numbers: np.ndarray) -> np.ndarray:
    """Makes the four uint64 words of `SeedSequence((seed, number))`, [4, count]."""
    word = np.uint32
    constant = word(0x43B0D7E5)

    def hashed(value: np.ndarray, multiplier: np.uint32) -> np.ndarray:
        nonlocal constant
        value = value ^ constant
        constant = word(int(constant) * int(multiplier) & 0xFFFFFFFF)
        value = value * constant
        return value ^ value >> word(16)

    zeros = np.zeros(len(numbers), word)
    entropy = [zeros + word(seed), numbers.astype(word), zeros, zeros]
    pool = [hashed(value, word(0x931E8875)) for value in entropy]
    for source in range(4):
        for target in range(4):
            if source != target:
                mixed = pool[target] * word(0xCA01F9DD)
                mixed -= hashed(pool[source], word(0x931E8875)) * word(0x4973F715)
                pool[target] = mixed ^ mixed >> word(16)
    constant = word(0x8B51F9DD)
    words = [hashed(pool[i % 4], word(0x58F38DED)).astype(np.uint64) for i in range(8)]
    return np.stack([words[2 * i] | words[2 * i + 1] << 32 for i in range(4)])
