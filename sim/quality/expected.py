"""Expected accuracy of strategies in closed form: what simulated questions must average to."""

from functools import lru_cache

import numpy as np
from scipy import special, stats

from sim.errors import InputError
from sim.quality.benchmark import Benchmark, Laws, Point
from sim.quality.laws import Difficulty, Floats, VerifierLaw, WrongAnswers

CELLS = 24
"""Top shares of wrong answers, equally spaced, that stand for all."""
MOST_EXACT = 40
"""Votes up to which the plurality is exact; beyond, classes are taken as independent."""
MOST_CLASSES = 60
"""Wrong classes that are told apart; the rest are too rare to win."""
RARE = 1e-3


def counts_of_right(difficulty: Difficulty, samples: int) -> Floats:
    """Return the chances of 0 to ``samples`` right answers to a question: beta-binomial."""
    inner = 1.0 - difficulty.never_fraction - difficulty.always_fraction
    found = inner * stats.betabinom.pmf(np.arange(samples + 1), samples, difficulty.a, difficulty.b)
    found[0] += difficulty.never_fraction
    found[-1] += difficulty.always_fraction
    return np.asarray(found)


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
    edges = np.linspace(0.0, 1.0, CELLS + 1)
    weights = np.diff(special.betainc(*wrong.shape, edges))
    wins = weights @ _wins(samples)
    return float(counts_of_right(difficulty, samples) @ wins)


@lru_cache(maxsize=64)
def _wins(samples: int) -> Floats:
    """Chances to win with m right votes of some, shape ``(CELLS, samples + 1)``."""
    shares = (np.arange(CELLS) + 0.5) / CELLS
    law = _exact_wins if samples <= MOST_EXACT else _independent_wins
    return np.array([law(samples, float(share)) for share in shares])


def _class_shares(share: float) -> Floats:
    """Shares of wrong classes among wrong answers, the rare ones left out."""
    shares = share * (1 - share) ** np.arange(MOST_CLASSES)
    return np.asarray(shares[shares >= RARE], dtype=np.float64)


def _exact_wins(samples: int, share: float) -> Floats:
    """Chances to win with m votes, by exponential generating functions.

    Others have n = samples - m votes, of which class j has i with weight w_j^i / i!. Terms i > m
    are left out (the class has won), and a term i = m (a tie) bears a factor z: with T ties the
    chance is 1 / (1 + T), the integral of z^T over z from 0 to 1.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(6)  # exact up to 11 ties
    z = (nodes + 1) / 2
    m = np.arange(samples + 1)
    shares = _class_shares(share)
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
    shares = _class_shares(share)[None, :]
    fewer = stats.binom.cdf(m - 1, samples - m, shares)
    ties = stats.binom.pmf(m, samples - m, shares)
    wins = np.asarray(np.prod(fewer + ties / 2, axis=1))
    wins[0] = 0.0
    return wins


def best_of(difficulty: Difficulty, law: VerifierLaw, samples: int) -> float:
    """Return the chance that the best scored of ``samples`` answers is right.

    With m right ones, P = integral of m phi(x - d) Phi(x - d)^(m-1) Phi(x)^(N-m) dx, averaged
    over the beta-binomial law of m.

    Raises
    ------
    InputError
        Scores are shared by equal answers: there is no closed form.
    """
    if law.shared_fraction:
        raise InputError("verifiers with a shared_fraction have no closed form")
    x = np.linspace(-9.0, 9.0 + abs(law.separation), 1501)
    log_right, log_wrong = special.log_ndtr(x - law.separation), special.log_ndtr(x)
    density = stats.norm.logpdf(x - law.separation)
    # Between the integers that matter little changes: many samples are taken at 400 counts.
    m = np.unique(np.rint(np.geomspace(1, samples, min(samples, 400))).astype(int))
    inner = (m[:, None] - 1) * log_right + (samples - m[:, None]) * log_wrong + density
    chosen = m * np.trapezoid(np.exp(inner), x, axis=1)
    counts = counts_of_right(difficulty, samples)
    return float(counts[1:] @ np.interp(np.arange(1, samples + 1), m, chosen))


def predicted(laws: Laws, point: Point) -> float:
    """Return what the laws say of a published point.

    Raises
    ------
    InputError
        There is no law of its strategy, or only simulation tells.
    """
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
    if point.strategy == "vote":
        return vote(difficulty, laws.wrong_answers, round(point.x))
    if point.strategy == "best_of" and verifier is not None:
        return best_of(difficulty, verifier, round(point.x))
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
