"""Laws of accuracy: each a small class with its formula and where it comes from.

Chances are fractions, x of an effort law is output tokens, logarithms are natural.
"""

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import special

from sim.figures import Confidence
from sim.schema import StrictModel
from sim.units import Fraction, NonNegativeInt, PositiveInt

Floats = NDArray[np.float64]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

GRID = 4_000
"""Questions, equally spaced in rank, that stand for all of them in an integral."""
STEEPEST = 600.0
"""Largest shift of log-odds; more would leave the range of floats."""


class LawFit(StrictModel):
    """How a law was fitted to the points of its file, and how well it holds on them."""

    points: NonNegativeInt
    """Points that it was fitted to; 0: all its numbers are assumed."""
    parameters: NonNegativeInt
    """Numbers that were free. As many as points: the law retells them, and shows nothing."""
    max_error_fraction: NotNegative
    """Largest |law - point| in accuracy."""
    rms_error_fraction: NotNegative
    """Root of the mean square of that."""
    range: tuple[float, float]
    """Smallest and largest x of the points; outside, the law is clipped or extrapolates."""
    date: str
    """When it was fitted."""
    assumed: str | None = None
    """Numbers that no point of the file determines, and why they are what they are."""


class Difficulty(StrictModel):
    """Chance p of one direct answer to a question to be right: p ~ Beta(a, b).

    Coverage c(k) = E[1 - (1 - p)^k] = 1 - B(a, b + k) / B(a, b). For large k, 1 - c falls like
    k^-a: mass near p = 0 makes power laws (Schaeffer et al., How Do Large Language Monkeys Get
    Their Power (Laws)?, arXiv:2502.17578). Shares of questions may be never or always solved.
    """

    a: Positive
    b: Positive
    never_fraction: Fraction = 0.0
    """Share of questions that are never solved, apart from the Beta."""
    always_fraction: Fraction = 0.0
    """Share of them that always are."""
    fit: LawFit | None = None

    @property
    def mean(self) -> float:
        """Expected accuracy of one answer."""
        return self.always_fraction + self._between * self.a / (self.a + self.b)

    @property
    def _between(self) -> float:
        return 1.0 - self.never_fraction - self.always_fraction

    def chances(self, rank: Floats) -> Floats:
        """Return the chances of questions by their rank among all, 0 hardest to 1 easiest.

        >>> Difficulty(a=1, b=1).chances(np.array([0.25]))
        array([0.25])
        """
        if self._between <= 0:
            return (np.asarray(rank) >= self.never_fraction).astype(float)
        inner = np.clip((rank - self.never_fraction) / self._between, 0.0, 1.0)
        found = special.betaincinv(self.a, self.b, inner)
        found = np.where(rank < self.never_fraction, 0.0, found)
        return np.asarray(np.where(rank > 1.0 - self.always_fraction, 1.0, found))

    def share_below(self, rate: float) -> float:
        """Return the share of questions that are answered right less often than that.

        >>> Difficulty(a=1, b=1).share_below(0.2)
        0.2
        """
        return float(self.never_fraction + self._between * special.betainc(self.a, self.b, rate))

    def coverage(self, samples: float) -> float:
        """Return the expected share of questions with a right answer among ``samples``.

        >>> Difficulty(a=1, b=1).coverage(3)
        0.75
        """
        log_miss = special.betaln(self.a, self.b + samples) - special.betaln(self.a, self.b)
        return float(self.always_fraction - self._between * np.expm1(log_miss))


class PowerCoverage(StrictModel):
    """Coverage as an exponentiated power law, c(k) = exp(a k^b) with a, b < 0.

    Brown et al., Large Language Monkeys, arXiv:2407.21787. It says how many questions are solved
    but not which, so forecasts use `Difficulty` and this stands beside it for comparison.
    """

    a: Annotated[float, Field(le=0)]
    b: Annotated[float, Field(le=0)]
    fit: LawFit | None = None

    def coverage(self, samples: float) -> float:
        """Return the share of questions with a right answer among ``samples``."""
        return float(np.exp(self.a * samples**self.b))


class WrongAnswers(StrictModel):
    """How wrong answers to a question agree: class j = 1, 2, ... has share c (1 - c)^(j - 1).

    Each question has its own c ~ Beta(mean s, (1 - mean) s), s the ``strength``, independent of its
    difficulty. Votes then tend to the share of questions with p > c (1 - p), not to 1. This shape
    is assumed: published tables hold shares of right answers, and no classes of wrong ones.
    """

    mean_top_share: Annotated[float, Field(gt=0, lt=1)]
    """Mean of c: share of the most frequent wrong answer among wrong ones."""
    strength: Positive
    """How much alike questions are in it; small: either all wrong answers agree or none do."""
    fit: LawFit | None = None

    @property
    def shape(self) -> tuple[float, float]:
        """Both parameters of the Beta law of c."""
        return self.mean_top_share * self.strength, (1 - self.mean_top_share) * self.strength


class LogitEffort(StrictModel):
    """Accuracy log-linear in length: logit A(x) = intercept + slope log2(x / x_min).

    The shape that s1 (arXiv:2501.19393) and OpenAI's o1 report show over the range they measured.
    """

    kind: Literal["logit"] = "logit"
    x_min_tokens: Positive
    x_max_tokens: Positive
    intercept: float
    slope: float
    fit: LawFit | None = None

    def accuracy(self, tokens: float) -> float:
        """Return the expected accuracy of answers so long, clipped to the measured lengths."""
        x = min(max(tokens, self.x_min_tokens), self.x_max_tokens)
        return float(special.expit(self.intercept + self.slope * np.log2(x / self.x_min_tokens)))


class PowerEffort(StrictModel):
    """Accuracy that saturates with length: A(x) = top - span (x / x_min)^-rate, at least 0.

    A law of the error that falls like a power of length to a floor, fitted here.
    """

    kind: Literal["power"] = "power"
    x_min_tokens: Positive
    x_max_tokens: Positive
    top: Fraction
    span: float
    rate: NotNegative
    fit: LawFit | None = None

    def accuracy(self, tokens: float) -> float:
        """Return the expected accuracy of answers so long, clipped to the measured lengths."""
        x = min(max(tokens, self.x_min_tokens), self.x_max_tokens)
        return float(np.clip(self.top - self.span * (x / self.x_min_tokens) ** -self.rate, 0, 1))


EffortLaw = Annotated[LogitEffort | PowerEffort, Field(discriminator="kind")]


class VerifierLaw(StrictModel):
    """Score of an answer = separation [right] + noise of variance 1.

    Of the noise, ``shared_fraction`` of the variance is common to equal answers to a question:
    what a verifier believes wrongly of an answer it believes each time. Selection then saturates,
    and more samples can hurt as they turn up more answers to be wrong about (over-optimisation,
    Cobbe et al., arXiv:2110.14168 section 5.1; Snell et al., arXiv:2408.03314). At 0 the law is
    that of independent Gaussian scores.
    """

    separation: float
    """Mean score of right answers over that of wrong ones, in standard deviations."""
    shared_fraction: Fraction = 0.0
    fit: LawFit | None = None


class RevisionLaw(StrictModel):
    """Two-state chain: in each round wrong answers turn right, and right ones wrong.

    In round r, from 0, with chances fixed decay^r and broken decay^r, alike for all questions. With
    decay 1 accuracy tends to fixed / (fixed + broken). Right answers turned wrong in about 38 % of
    the rounds of Snell et al.'s reviser (arXiv:2408.03314, section 6.1).
    """

    fixed: Fraction
    broken: Fraction
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What remains of both chances from one round to the next."""
    max_rounds: PositiveInt
    """Rounds that were measured; beyond them nothing changes any more."""
    fit: LawFit | None = None

    def rates(self, rounds_before: int) -> tuple[float, float]:
        """Return the chances of wrong to right and of right to wrong after so many rounds."""
        if rounds_before >= self.max_rounds:
            return 0.0, 0.0
        left = self.decay**rounds_before
        return self.fixed * left, self.broken * left

    def accuracy(self, start: float, rounds: int) -> float:
        """Return the expected accuracy after some rounds.

        >>> round(RevisionLaw(fixed=0.5, broken=0.25, max_rounds=9).accuracy(0.5, 1), 4)
        0.625
        """
        for before in range(rounds):
            fixed, broken = self.rates(before)
            start += (1 - start) * fixed - start * broken
        return start


class SearchLaw(StrictModel):
    """Tree search: logit A = intercept + slope ln(breadth depth), clipped to the measured range.

    A is the mean over questions. Two published points fix both numbers; with one, the line passes
    through the accuracy of a direct answer at breadth x depth = 1.
    """

    intercept: float
    slope: float
    min_nodes: PositiveInt
    max_nodes: PositiveInt
    """Breadth times depth of the searches that were measured."""
    fit: LawFit | None = None

    def accuracy(self, breadth: int, depth: int) -> float:
        """Return the expected accuracy of a search."""
        nodes = min(max(breadth * depth, self.min_nodes), self.max_nodes)
        return float(special.expit(self.intercept + self.slope * np.log(nodes)))


class GateLaw(StrictModel):
    """What a gate knows: normal scores of guess and truth correlate by ``correlation``.

    The guess has the distribution of the true chances (Gaussian copula); 1: it is the truth,
    0: it says nothing.
    """

    correlation: Annotated[float, Field(ge=0, le=1)]
    source: str
    confidence: Confidence
    fit: LawFit | None = None

    def guessed_rank(self, rank: float, noise: float) -> float:
        """Return the rank that a gate believes a question to have."""
        rho = self.correlation
        truth = special.ndtri(min(max(rank, 1e-12), 1 - 1e-12))
        return float(special.ndtr(rho * truth + np.sqrt(1 - rho * rho) * noise))


def all_ranks() -> Floats:
    """Return the ranks of equally spaced questions that stand for all."""
    return (np.arange(GRID) + 0.5) / GRID


def shifted(chances: Floats, shift: float) -> Floats:
    """Add to the log-odds of chances; 0 and 1 stay what they are.

    >>> shifted(np.array([0.5]), float(np.log(3.0)))
    array([0.75])
    """
    if shift <= -STEEPEST:
        return np.where(chances >= 1.0, 1.0, 0.0)
    odds = chances * np.exp(min(shift, STEEPEST))
    return np.asarray(odds / (odds + (1.0 - chances)))


@lru_cache(maxsize=4096)
def shift_to(difficulty: Difficulty, accuracy: float) -> float:
    """Return the shift of log-odds, alike for all questions, that makes their mean ``accuracy``.

    Found by bisection over `all_ranks`. What no shift reaches, for some questions are never or
    always solved, becomes the nearest that it can be.
    """
    chances = difficulty.chances(all_ranks())
    low, high = -STEEPEST, STEEPEST
    for _ in range(80):
        middle = (low + high) / 2
        if float(np.mean(shifted(chances, middle))) < accuracy:
            low = middle
        else:
            high = middle
    return low if accuracy <= 0 else high
