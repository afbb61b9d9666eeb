"""Expected accuracy of strategies in closed form: what simulated questions must average to."""

from functools import lru_cache

import numpy as np
from scipy import special, stats

from sim.errors import InputError
from sim.quality.benchmark import Benchmark, Laws, Point
from sim.quality.laws import Difficulty, Floats, WrongAnswers
from sim.quality.selection import (
    best_of,
    cells_of_top_share,
    class_shares,
    counts_of_right,
    top_shares,
)

MOST_EXACT = 40
"""Votes up to which the plurality is exact; beyond, classes are taken as independent."""
MOST_CLASSES = 60
"""Wrong classes that are told apart; the rest are too rare to win."""


def vote(difficulty: Difficulty, wrong: WrongAnswers, samples: int) -> float:
    """Return the chance that the right answer has most of ``samples`` votes, ties by lot.

    Given m right votes, whether others have more does not depend on p; so the chances of m are
    beta-binomial, and those of winning with m are averaged over the shares of wrong answers.
    Exact up to `MOST_EXACT` votes but for the `CELLS`; beyond, within 0.005.

    Examples
    --------
    Two votes cannot outvote the first:

    >>> even, wrong = Difficulty(a=2, b=2), WrongAnswers(mean_top_share=0.5, strength=2)
    >>> round(vote(even, wrong, 1), 6), round(vote(even, wrong, 2), 6)
    (0.5, 0.5)
    """
    wins = cells_of_top_share(wrong) @ _wins(samples)
    return float(counts_of_right(difficulty, samples) @ wins)


@lru_cache(maxsize=64)
def _wins(samples: int) -> Floats:
    """Chances to win with m right votes of some, shape ``(CELLS, samples + 1)``."""
    law = _exact_wins if samples <= MOST_EXACT else _independent_wins
    return np.array([law(samples, float(share)) for share in top_shares()])


def _exact_wins(samples: int, share: float) -> Floats:
    """Chances to win with m votes, by exponential generating functions.

    Others have n = samples - m votes, of which class j has i with weight w_j^i / i!. Terms i > m
    are left out (the class has won), and a term i = m (a tie) bears a factor z: with T ties the
    chance is 1 / (1 + T), the integral of z^T over z from 0 to 1.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(6)  # exact up to 11 ties
    z = (nodes + 1) / 2
    m = np.arange(samples + 1)
    shares = class_shares(share, MOST_CLASSES)
    rest = max(1.0 - float(shares.sum()), 0.0)
    powers = np.arange(samples + 1)
    inverse = 1.0 / special.factorial(powers)
    # Rare wrong answers are all different: one vote each, which ties at m = 1 and else loses.
    tie = np.where(m[:, None] == 1, z[None, :], 1.0)
    table = (rest * tie[:, :, None]) ** powers * inverse
    for weight in shares:
        kernel = weight**powers * inverse
        grown = np.zeros_like(table)
        for i in range(samples + 1):
            factor = np.where(m[:, None] == i, z[None, :], (m[:, None] > i).astype(float))
            grown[:, :, i:] += table[:, :, : samples + 1 - i] * (kernel[i] * factor)[:, :, None]
        table = grown
    found = table[m, :, samples - m] * special.factorial(samples - m)[:, None]
    wins = found @ (node_weights / 2)
    wins[0] = 0.0
    return np.clip(wins, 0.0, 1.0)


def _independent_wins(samples: int, share: float) -> Floats:
    """Chances to win with m votes, were the counts of wrong classes independent binomials."""
    m = np.arange(samples + 1)[:, None]
    shares = class_shares(share, MOST_CLASSES)[None, :]
    fewer = stats.binom.cdf(m - 1, samples - m, shares)
    ties = stats.binom.pmf(m, samples - m, shares)
    wins = np.asarray(np.prod(fewer + ties / 2, axis=1))
    wins[0] = 0.0
    return wins


def predicted(laws: Laws, point: Point) -> float:
    """Return what the laws say of a published point.

    Raises
    ------
    InputError
        There is no law of its strategy, or only simulation tells.
    """
    if point.model is not None:
        other = laws.models.get(point.model)
        found = None if other is None else other.mean
    else:
        found = _of_samples(laws, point)
        found = _of_work_on_one(laws, point) if found is None else found
    if found is None:
        raise InputError(f"no closed form for {point.strategy} at {point.x:g} {point.x_unit}")
    return found


def _of_samples(laws: Laws, point: Point) -> float | None:
    difficulty, verifier = laws.difficulty, laws.verifiers.get(point.verifier or "")
    if point.strategy == "answer":
        return difficulty.mean
    if point.strategy == "coverage":
        return difficulty.coverage(point.x)
    if point.strategy == "below":
        return difficulty.share_below(point.x)
    if point.strategy == "vote":
        return vote(difficulty, laws.wrong_answers, round(point.x))
    if point.strategy == "best_of" and verifier is not None:
        return best_of(difficulty, laws.wrong_answers, verifier, round(point.x))
    return None


def _of_work_on_one(laws: Laws, point: Point) -> float | None:
    if point.strategy == "effort" and laws.effort is not None:
        return laws.effort.accuracy(point.x)
    if point.strategy == "revision" and laws.revision is not None:
        return laws.revision.accuracy(laws.difficulty.mean, round(point.x))
    if point.strategy == "search" and laws.search is not None:
        return laws.search.accuracy(round(point.x), 1)
    return None


def residuals(benchmark: Benchmark) -> dict[Point, float]:
    """Return law minus point for all points that a closed form covers."""
    found: dict[Point, float] = {}
    for point in benchmark.points:
        try:
            found[point] = predicted(benchmark.laws, point) - point.accuracy
        except InputError:
            continue
    return found
