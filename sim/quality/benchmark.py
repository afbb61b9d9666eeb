"""Benchmarks: published points of accuracy, and the laws that were fitted to them."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from sim.figures import Confidence
from sim.quality.drawn import LEAST_TOP_SHARE, DrawnQuestion, Questions
from sim.quality.grounds import Told
from sim.quality.laws import (
    Difficulty,
    EffortLaw,
    GateLaw,
    NotNegative,
    Positive,
    PowerCoverage,
    RevisionLaw,
    SearchLaw,
    VerifierLaw,
    WrongAnswers,
)
from sim.schema import StrictModel
from sim.units import Fraction, PositiveInt

AccuracyStrategy = Literal[
    "answer", "coverage", "below", "vote", "best_of", "effort", "revision", "search", "dynamic"
]
"""What was done: one answer; some right answer among x samples; questions (not answers) that are
answered right in less than a share x of many samples; the plurality of x; the best scored of x; an
answer of x tokens; x rounds of revision; a search of x nodes (breadth times depth); a gate that
spends x direct answers on average."""

XUnit = Literal["samples", "rate", "tokens", "rounds", "nodes", "direct_answers"]

_UNITS: Mapping[AccuracyStrategy, XUnit] = {
    "answer": "samples",
    "coverage": "samples",
    "below": "rate",
    "vote": "samples",
    "best_of": "samples",
    "effort": "tokens",
    "revision": "rounds",
    "search": "nodes",
    "dynamic": "direct_answers",
}


GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Its multiples, less their whole parts, fill the unit interval more evenly than any others."""


class TokensSpread(StrictModel):
    """A lognormal number of tokens; `sim.workload` draws it."""

    median: Positive
    """Median, tokens."""
    sigma: NotNegative
    """Standard deviation of its natural logarithm."""
    source: str
    """Where both were read."""
    confidence: Confidence

    @property
    def mean_tokens(self) -> float:
        """Expected tokens: median exp(sigma^2 / 2)."""
        return float(self.median * np.exp(self.sigma**2 / 2))


class Point(StrictModel):
    """One published accuracy."""

    strategy: AccuracyStrategy
    x: NotNegative
    x_unit: XUnit
    accuracy: Fraction
    source: str
    """Paper, table or file where it stands."""
    confidence: Confidence
    verifier: str | None = None
    """Who chose, of ``best_of``."""
    model: str | None = None
    """Which other model of a case answered, by its name there; the benchmark's own unless given."""
    fitted: bool = True
    """Whether laws are fitted to it; others are kept to test against, or for the record."""
    note: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.x_unit != _UNITS[self.strategy]:
            raise ValueError(f"x of {self.strategy} is in {_UNITS[self.strategy]}")
        if (self.strategy == "best_of") != (self.verifier is not None):
            raise ValueError("best_of needs a verifier, and nothing else has one")
        if self.model is not None and self.strategy != "answer":
            raise ValueError("of other models single answers are known, so strategy is answer")
        return self


class GateMeasurement(StrictModel):
    """How well somebody's guesses of difficulty fitted what questions turned out to be."""

    statistic: Literal["spearman", "auc"]
    """Rank correlation of guesses and shares of right answers; or the chance that a question that
    was answered right was guessed to be easier than one that was not."""
    value: Fraction
    samples: PositiveInt
    """Answers from which a question's share of right ones was taken; 1 for ``auc``."""
    source: str
    confidence: Confidence
    fitted: bool = True
    """Whether the gate is fitted to it; others are kept to test against, or for the record."""
    note: str | None = None

    @model_validator(mode="after")
    def _auc_is_of_one_answer(self) -> Self:
        if self.statistic == "auc" and self.samples != 1:
            raise ValueError("auc tells one right answer from one wrong: samples is 1")
        return self


class Laws(StrictModel):
    """Fitted laws; missing ones are of strategies that nobody measured here."""

    difficulty: Difficulty
    wrong_answers: WrongAnswers
    coverage_power: PowerCoverage | None = None
    effort: EffortLaw | None = None
    verifiers: Mapping[str, VerifierLaw] = {}
    """By the name that a scenario gives to the model that verifies."""
    revision: RevisionLaw | None = None
    search: SearchLaw | None = None
    gate: GateLaw | None = None
    models: Mapping[str, Difficulty] = {}
    """Difficulty for other models of a case, by their names there. What is hard for one is hard for
    all: questions keep their rank."""


class Assumed(StrictModel):
    """What the fit must be told, for no point of the file determines it."""

    difficulty_mean: Annotated[float, Field(gt=0, lt=1)] | None = None
    difficulty_strength: Positive | None = None
    """a + b of the Beta law."""
    mean_top_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    top_share_strength: Positive = 2.0
    effort_kind: Literal["logit", "power"] = "logit"
    revision_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    revision_broken: Fraction | None = None
    gate_correlation: Fraction | None = None
    shared_fraction: Fraction | None = None
    """Of verifiers that too few points tell it of."""
    why: str
    """Where these numbers come from."""


class Benchmark(StrictModel):
    """Questions of one benchmark as one model, or family of models, answers them.

    ``points`` are facts with their sources. ``laws`` are fitted to them by
    ``python -m sim.calibration.quality_fit`` and stand last in the file, unless the user writes
    both: laws need no points.
    """

    benchmark: str
    """The set of questions: ``MATH``, ``GSM8K``."""
    model: str
    """Who answers."""
    description: str
    questions_in_set: PositiveInt | None = None
    """How many the set has: the standard error of a published accuracy A is sqrt(A (1 - A) / n)."""
    question_tokens: TokensSpread
    answer_tokens: TokensSpread
    """Of one direct answer, effort 1."""
    points: tuple[Point, ...] = ()
    gates: tuple[GateMeasurement, ...] = ()
    assumed: Assumed | None = None
    laws: Laws

    @model_validator(mode="after")
    def _other_models_have_one_accuracy(self) -> Self:
        others = [point.model for point in self.points if point.model is not None and point.fitted]
        twice = sorted({name for name in others if others.count(name) > 1})
        if twice:
            raise ValueError(f"model {twice[0]!r} has {others.count(twice[0])} points to fit: one")
        return self

    @property
    def title(self) -> str:
        """Benchmark and model, as messages name them.

        It is not the id of the file, which the catalogue knows.
        """
        return f"{self.benchmark} ({self.model})"

    @property
    def direct_accuracy(self) -> float:
        """Expected accuracy of one direct answer, effort 1."""
        law = self.laws.effort
        return (
            self.laws.difficulty.mean
            if law is None
            else law.accuracy(self.answer_tokens.mean_tokens)
        )

    def questions(self, rng: np.random.Generator, count: int) -> Questions:
        """Draw questions.

        Parameters
        ----------
        rng : numpy.random.Generator
        count : int
            How many. The first of many are those of few, and any number of them is spread evenly
            over the laws: steps of the golden ratio from a random start, so that chance makes them
            differ less from the whole set than independent draws would.
        """
        ranks = (rng.random() + GOLDEN_RATIO * np.arange(count)) % 1.0
        shares = np.maximum(rng.beta(*self.laws.wrong_answers.shape, count), LEAST_TOP_SHARE)
        seeds = rng.integers(0, 2**62, count)
        told = Told()
        drawn = zip(ranks.tolist(), shares.tolist(), seeds.tolist(), strict=True)
        return Questions([DrawnQuestion(self, *each, told) for each in drawn], told)
