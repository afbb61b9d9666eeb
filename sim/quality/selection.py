"""Expected accuracy of the best scored of many answers, also where a verifier errs alike each time.

Noise of scores that is shared by equal answers ties answers together: a wrong one that the verifier
believes in comes up again and again, and the more samples, the surer. Two steps give the chance
that the best score is a right one. The exact law of independent scores is an integral over counts.
What sharing takes from it is taken from Poisson numbers of samples of the same mean, under which
classes of answers are independent of each other: right ones Poisson(N p), class j of wrong ones
Poisson(N (1 - p) w_j).
"""

from functools import lru_cache

import numpy as np
from scipy import special, stats

from sim.quality.laws import Difficulty, Floats, VerifierLaw, WrongAnswers

CELLS = 24
"""Top shares of wrong answers, equally spaced, that stand for all."""
RARE = 1e-3
"""Classes with less of the wrong answers are told apart no more."""
FEWEST_SHARED = 3
"""Samples from which on sharing matters: of two that differ in class, none shares anything."""

_X = np.linspace(-6.0, 16.0, 221)
"""Scores, in standard deviations."""
_BELIEFS = special.ndtri((np.arange(200) + 0.5) / 200)
"""Equally likely values of the shared part of the noise."""
_LOG_COUNTS = np.linspace(np.log(1e-3), np.log(1e5), 93)
"""Logarithms of expected numbers of equal answers."""
_LOG_ODDS = np.linspace(-14.0, 14.0, 113)
"""Edges of cells of log-odds of the chance p."""


def counts_of_right(difficulty: Difficulty, samples: int) -> Floats:
    """Return the chances of 0 to ``samples`` right answers to a question: beta-binomial."""
    inner = 1.0 - difficulty.never_fraction - difficulty.always_fraction
    found = inner * stats.betabinom.pmf(np.arange(samples + 1), samples, difficulty.a, difficulty.b)
    found[0] += difficulty.never_fraction
    found[-1] += difficulty.always_fraction
    return np.asarray(found)


def cells_of_top_share(wrong: WrongAnswers) -> Floats:
    """Return the chances of the `CELLS` of top shares."""
    edges = np.linspace(0.0, 1.0, CELLS + 1)
    return np.asarray(np.diff(special.betainc(*wrong.shape, edges)))


def top_shares() -> Floats:
    """Return the middles of the `CELLS`."""
    return np.asarray((np.arange(CELLS) + 0.5) / CELLS)


def class_shares(share: float, most: int) -> Floats:
    """Return shares of wrong classes among wrong answers, the `RARE` ones left out."""
    shares = share * (1 - share) ** np.arange(most)
    return np.asarray(shares[shares >= RARE], dtype=np.float64)


@lru_cache(maxsize=1024)
def best_of(difficulty: Difficulty, wrong: WrongAnswers, law: VerifierLaw, samples: int) -> float:
    """Return the chance that the best scored of ``samples`` answers is right.

    Exact without shared noise; with it within 0.005 (simulated questions), and less accurate the
    fewer samples there are.

    Examples
    --------
    Of two answers to an even question, both are right in 1/4 of cases, and in 1/2 the right one is
    chosen with chance Phi(separation / sqrt 2):

    >>> even, wrong = Difficulty(a=5e5, b=5e5), WrongAnswers(mean_top_share=0.5, strength=2)
    >>> round(best_of(even, wrong, VerifierLaw(separation=0, shared_fraction=0.5), 2), 4)
    0.5
    """
    found = _independent(difficulty, law.separation, samples)
    if law.shared_fraction == 0 or samples < FEWEST_SHARED:
        return found
    taken = _of_poisson(difficulty, wrong, law, samples)
    alone = law.model_copy(update={"shared_fraction": 0.0})
    return found + taken - _of_poisson(difficulty, wrong, alone, samples)


def _independent(difficulty: Difficulty, separation: float, samples: int) -> float:
    """Return the chance where scores are independent.

    With m right ones, P = integral of m phi(x - d) Phi(x - d)^(m-1) Phi(x)^(N-m) dx, averaged
    over the beta-binomial law of m.
    """
    return float(counts_of_right(difficulty, samples)[1:] @ _chosen_of(separation, samples))


@lru_cache(maxsize=256)
def _chosen_of(separation: float, samples: int) -> Floats:
    """Chances that a right answer is chosen where 1 to ``samples`` are right."""
    x = np.linspace(-9.0, 9.0 + abs(separation), 1501)
    log_right, log_wrong = special.log_ndtr(x - separation), special.log_ndtr(x)
    density = stats.norm.logpdf(x - separation)
    # Between the integers that matter little changes: many samples are taken at 400 counts.
    m = np.unique(np.rint(np.geomspace(1, samples, min(samples, 400))).astype(int))
    inner = (m[:, None] - 1) * log_right + (samples - m[:, None]) * log_wrong + density
    chosen = m * np.trapezoid(np.exp(inner), x, axis=1)
    return np.asarray(np.interp(np.arange(1, samples + 1), m, chosen))


def _of_poisson(
    difficulty: Difficulty, wrong: WrongAnswers, law: VerifierLaw, samples: int
) -> float:
    """Return the chance that a Poisson number of answers has a right one with the best score."""
    edges = special.betainc(difficulty.a, difficulty.b, special.expit(_LOG_ODDS))
    edges[0], edges[-1] = 0.0, 1.0
    chance = special.expit((_LOG_ODDS[1:] + _LOG_ODDS[:-1]) / 2)
    shared = law.shared_fraction
    right_count, wrong_count = samples * chance, samples * (1 - chance)
    if shared:
        no_wrong = np.exp(_at(_no_wrong_above(shared, wrong), wrong_count))
        right = np.exp(_at(_none_above(shared), right_count))
    else:
        no_wrong = np.exp(-np.outer(wrong_count, special.ndtr(-_X)))
        right = np.exp(-np.outer(right_count, special.ndtr(-_X)))
    none = np.exp(-right_count)
    below = _moved(right, law.separation, none)
    middle = (no_wrong[:, 1:] + no_wrong[:, :-1]) / 2
    inner = 1.0 - difficulty.never_fraction - difficulty.always_fraction
    chosen = (np.diff(below, axis=1) * middle).sum(axis=1)
    return float(inner * (np.diff(edges) @ chosen) + difficulty.always_fraction)


def _moved(chances: Floats, separation: float, least: Floats) -> Floats:
    """Return rows of chances over scores `_X`, with scores higher by some separation.

    Left of `_X` stands the ``least`` of each row, right of it 1.
    """
    place = (_X - separation - _X[0]) / (_X[1] - _X[0])
    low = np.clip(place.astype(int), 0, len(_X) - 2)
    found = chances[:, low] + (chances[:, low + 1] - chances[:, low]) * (place - low)
    return np.where(place < 0, least[:, None], np.where(place > len(_X) - 1, 1.0, found))


@lru_cache(maxsize=16)
def _none_above(shared: float) -> Floats:
    """Logarithms of the chances that no answer of a class has a higher score.

    Of Poisson(mu) equal answers none is above x with chance E exp(-mu Q(x, belief)), Q the chance
    of one of them. Shape ``(mu, x)``.
    """
    alone = np.sqrt(max(1.0 - shared, 1e-9))
    above = special.ndtr(-(_X[:, None] - np.sqrt(shared) * _BELIEFS) / alone)
    chances = [np.exp(-count * above).mean(axis=1) for count in np.exp(_LOG_COUNTS)]
    return np.asarray(np.log(np.maximum(chances, 1e-300)))


@lru_cache(maxsize=64)
def _no_wrong_above(shared: float, wrong: WrongAnswers) -> Floats:
    """Logarithms of the chances that none of mu wrong answers has a higher score: ``(mu, x)``."""
    by_cell = np.exp(_no_wrong_by_cell(shared))
    chances = np.einsum("c,mcx->mx", cells_of_top_share(wrong), by_cell)
    return np.asarray(np.log(np.maximum(chances, 1e-300)))


@lru_cache(maxsize=16)
def _no_wrong_by_cell(shared: float) -> Floats:
    """Logarithms of the same chances by top share.

    The sum over classes; those that are rare are all different. Shape ``(mu, cell, x)``.
    """
    sums, rare = _sums_over_classes()
    of_rare = np.exp(_LOG_COUNTS)[:, None, None] * rare[:, None] * special.ndtr(-_X)
    return np.asarray(np.moveaxis(np.tensordot(sums, _none_above(shared), 1), 0, 1) - of_rare)


@lru_cache(maxsize=1)
def _sums_over_classes() -> tuple[Floats, Floats]:
    """How a table over `_LOG_COUNTS` adds up over the classes of wrong answers, by top share.

    Looking a table up is linear in it: per cell a matrix ``(mu, mu)`` times the table of equal
    answers is the sum over classes. Beside it the share of classes too rare to be told apart.
    """
    counts, rows = np.exp(_LOG_COUNTS), np.eye(len(_LOG_COUNTS))
    told_apart = [class_shares(float(share), 200) for share in top_shares()]
    sums = [sum(_at(rows, counts * one) for one in shares) for shares in told_apart]
    rare = [max(1.0 - float(shares.sum()), 0.0) for shares in told_apart]
    return np.array(sums), np.array(rare)


def _at(table: Floats, counts: Floats) -> Floats:
    """Return rows of a table over `_LOG_COUNTS`; below its range rows are in proportion."""
    step = _LOG_COUNTS[1] - _LOG_COUNTS[0]
    least = np.exp(_LOG_COUNTS[0])
    counts = np.maximum(counts, 1e-300)
    place = np.clip((np.log(counts) - _LOG_COUNTS[0]) / step, 0.0, len(_LOG_COUNTS) - 1.001)
    low = place.astype(int)
    shape = (-1, *[1] * (table.ndim - 1))
    part = (place - low).reshape(shape)
    found = table[low] * (1 - part) + table[low + 1] * part
    return np.asarray(found * np.minimum(counts / least, 1.0).reshape(shape))
