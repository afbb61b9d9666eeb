"""How many decode steps an answer takes when a step may yield several tokens.

Each step of a sequence yields 1 to ``draft_tokens + 1`` tokens, independently of the others. The
number of steps until an answer is complete has a distribution with a simple table; drawing it at
once spares drawing every step, and the draw depends on the request alone, not on its neighbours.
"""

from bisect import bisect_right
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv

from sim.seeds import stream
from sim.speculation import AcceptanceLaw, step_distribution

Floats = NDArray[np.float64]

TABLE_TOKENS = 256
"""Longest answer whose number of steps comes out of one look-up."""
LONGEST_JUMP_STEPS = 2048
"""Most steps whose yield is drawn at once."""
CLASSES = 16
"""Classes of requests, equally frequent, that stand for a spread of acceptance."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_UNIT = 2.0**-53


class DecodeSteps:
    """Draws the decode steps of requests.

    Parameters
    ----------
    law : AcceptanceLaw
    seed : int
        Seed of the run. The same request gets the same draw whoever asks, in any order.
    """

    def __init__(self, law: AcceptanceLaw, seed: int) -> None:
        self._key = int(stream(seed, "speculation").integers(1 << 63))
        self._widest = law.draft_tokens + 1
        self._tables = [
            _YieldTables((first, *law.acceptance[1:])) for first in _first_acceptances(law)
        ]

    def __call__(self, request_id: int, tokens: int) -> int:
        """Draw the steps that a request needs for so many tokens, what is too much discarded."""
        state = _scrambled(self._key ^ _scrambled(request_id & _MASK))
        tables = self._tables[0]
        if len(self._tables) > 1:
            tables = self._tables[_scrambled(state) * CLASSES >> 64]
            state = (state + _GOLDEN) & _MASK
        steps, left = 0, tokens
        while left > TABLE_TOKENS:
            # So many steps cannot overshoot: the answer is not complete before the last of them.
            jump = min(LONGEST_JUMP_STEPS, 1 << ((left // self._widest).bit_length() - 1))
            state = (state + _GOLDEN) & _MASK
            uniform = (_scrambled(state) >> 11) * _UNIT
            left -= jump + bisect_right(tables.extra_tokens(jump), uniform)
            steps += jump
        if left:
            state = (state + _GOLDEN) & _MASK
            uniform = (_scrambled(state) >> 11) * _UNIT
            steps += 1 + bisect_right(tables.steps_for(left), uniform)
        return steps


class _YieldTables:
    """Cumulative distributions of what steps with one acceptance yield, made when needed."""

    def __init__(self, acceptance: tuple[float, ...]) -> None:
        self._one = np.array(step_distribution(acceptance))
        self.extra_tokens = cache(self._extra_tokens)
        self.steps_for = cache(self._steps_for)
        self._sums = cache(self._sum_of)
        self._reached: Floats | None = None

    def _extra_tokens(self, steps: int) -> list[float]:
        """Cumulative probabilities of 0, 1, ... tokens above one for each of ``steps`` steps."""
        return _cumulated(self._sums(steps))

    def _sum_of(self, steps: int) -> Floats:
        if steps == 1:
            return self._one
        half = self._sums(steps // 2)
        return np.convolve(half, half)

    def _steps_for(self, tokens: int) -> list[float]:
        """Cumulative probabilities that 1, 2, ... ``tokens`` steps yield so many tokens."""
        if self._reached is None:
            self._reached = self._reach()
        reached: list[float] = self._reached[:tokens, tokens].tolist()
        reached[-1] = 1.0
        return reached

    def _reach(self) -> Floats:
        """Probability that 1, 2, ... steps (rows) yield at least 0, 1, ... tokens (columns)."""
        reached = np.ones((TABLE_TOKENS, TABLE_TOKENS + 1))
        fewer = np.zeros(TABLE_TOKENS)  # of exactly 0, 1, ... tokens, short of the whole table
        fewer[0] = 1.0
        for row in reached:
            fewer = np.convolve(fewer, [0.0, *self._one])[:TABLE_TOKENS]
            row[1:] = 1.0 - np.minimum(np.cumsum(fewer), 1.0)
        return reached


def _cumulated(probabilities: Floats) -> list[float]:
    cumulated: list[float] = np.cumsum(probabilities).tolist()
    cumulated[-1] = 1.0
    return cumulated


def _first_acceptances(law: AcceptanceLaw) -> list[float]:
    """Return the acceptance of the first position in each class of requests; one if all are alike.

    Between requests it has a beta distribution. The later positions, given the first, are the
    same for all, so the mean over requests of every share of accepted tokens is that of the law.
    """
    mean = law.acceptance[0]
    if not law.spread or not 0 < mean < 1:
        return [mean]
    weight = mean * (1 - mean) / law.spread**2 - 1
    a, b = mean * weight, (1 - mean) * weight
    edges = betaincinv(a, b, np.arange(CLASSES + 1) / CLASSES)
    means: list[float] = (CLASSES * mean * np.diff(betainc(a + 1, b, edges))).tolist()
    return [min(each, 1.0) for each in means]


def _scrambled(word: int) -> int:
    """Mix 64 bits, as SplitMix64 does (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195)."""
    word = (word + _GOLDEN) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)
