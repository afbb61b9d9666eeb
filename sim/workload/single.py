"""Laws of one quantity: a number of tokens, a time, a number of turns.

Every law is one class: its fields are its configuration, `sample` draws from it, and ``kind``
tells the laws of one quantity apart.
"""

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.schema import StrictModel
from sim.units import PositiveInt, Seconds, Tokens
from sim.workload.lengths import ClippedLognormal, QuantileTable

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class ConstantTokens(StrictModel):
    """Always the same number of tokens."""

    kind: Literal["constant"] = "constant"
    tokens: Tokens
    """How many."""

    @property
    def mean_tokens(self) -> float:
        """Expected tokens."""
        return float(self.tokens)

    def sample(self, rng: np.random.Generator, count: int) -> Integers:
        """Return ``count`` equal numbers; draws nothing from ``rng``."""
        del rng
        return np.full(count, self.tokens, dtype=np.int64)


class UniformTokens(StrictModel):
    """Any whole number of a range, with equal chance.

    >>> UniformTokens(min_tokens=10, max_tokens=20).mean_tokens
    15.0
    """

    kind: Literal["uniform"] = "uniform"
    min_tokens: Tokens
    """Fewest."""
    max_tokens: Tokens
    """Most."""

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.min_tokens > self.max_tokens:
            msg = f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}"
            raise ValueError(msg)
        return self

    @property
    def mean_tokens(self) -> float:
        """Expected tokens."""
        return (self.min_tokens + self.max_tokens) / 2

    def sample(self, rng: np.random.Generator, count: int) -> Integers:
        """Return ``count`` numbers of tokens."""
        return rng.integers(self.min_tokens, self.max_tokens + 1, count)


class LognormalTokens(ClippedLognormal):
    """A lognormal number of tokens, rounded and clipped to a range."""

    kind: Literal["lognormal"] = "lognormal"

    def sample(self, rng: np.random.Generator, count: int) -> Integers:
        """Return ``count`` numbers of tokens."""
        return self.tokens(rng.standard_normal(count))


class QuantileTokens(QuantileTable):
    """Numbers of tokens by their quantiles."""

    kind: Literal["quantiles"] = "quantiles"

    def sample(self, rng: np.random.Generator, count: int) -> Integers:
        """Return ``count`` numbers of tokens."""
        return self.tokens(rng.random(count))


TokensLaw = Annotated[
    ConstantTokens | UniformTokens | LognormalTokens | QuantileTokens, Field(discriminator="kind")
]
"""Any law of one number of tokens, told apart by ``kind``."""


class ConstantTime(StrictModel):
    """Always the same time."""

    kind: Literal["constant"] = "constant"
    duration_s: Seconds
    """How long."""

    @property
    def mean_s(self) -> float:
        """Expected time."""
        return self.duration_s

    def sample(self, rng: np.random.Generator, count: int) -> Floats:
        """Return ``count`` equal times; draws nothing from ``rng``."""
        del rng
        return np.full(count, self.duration_s)


class ExponentialTime(StrictModel):
    """An exponential time."""

    kind: Literal["exponential"] = "exponential"
    mean_s: Annotated[Seconds, Field(gt=0)]
    """Mean."""

    def sample(self, rng: np.random.Generator, count: int) -> Floats:
        """Return ``count`` times in seconds."""
        return self.mean_s * rng.standard_exponential(count)


class LognormalTime(StrictModel):
    """A lognormal time, cut off at the longest.

    Examples
    --------
    Without a cut the mean is median * exp(sigma^2 / 2) = 10 * exp(0.5):

    >>> round(LognormalTime(median_s=10.0, sigma=1.0).mean_s, 3)
    16.487
    """

    kind: Literal["lognormal"] = "lognormal"
    median_s: Annotated[Seconds, Field(gt=0)]
    """Median."""
    sigma: Annotated[float, Field(gt=0)]
    """Standard deviation of the natural logarithm."""
    max_s: Annotated[Seconds, Field(gt=0)] | None = None
    """Longest; longer draws become this long."""

    @property
    def mean_s(self) -> float:
        """Expected time where nothing is cut off."""
        return float(self.median_s * np.exp(self.sigma**2 / 2))

    def sample(self, rng: np.random.Generator, count: int) -> Floats:
        """Return ``count`` times in seconds."""
        times = self.median_s * np.exp(self.sigma * rng.standard_normal(count))
        return np.asarray(np.minimum(times, self.max_s) if self.max_s is not None else times)


TimeLaw = Annotated[ConstantTime | ExponentialTime | LognormalTime, Field(discriminator="kind")]
"""Any law of one span of time, told apart by ``kind``."""


class ConstantTurns(StrictModel):
    """Always the same number of turns."""

    kind: Literal["constant"] = "constant"
    turns: PositiveInt
    """How many."""

    def sample(self, rng: np.random.Generator, count: int) -> Integers:
        """Return ``count`` equal numbers; draws nothing from ``rng``."""
        del rng
        return np.full(count, self.turns, dtype=np.int64)


class GeometricTurns(StrictModel):
    """After each turn the session ends with the same chance, 1 over the mean."""

    kind: Literal["geometric"] = "geometric"
    mean_turns: Annotated[float, Field(ge=1)]
    """Mean."""

    def sample(self, rng: np.random.Generator, count: int) -> Integers:
        """Return ``count`` numbers of turns, at least 1 each."""
        return rng.geometric(1 / self.mean_turns, count)


class LognormalTurns(StrictModel):
    """A lognormal number of turns, rounded and clipped to a range."""

    kind: Literal["lognormal"] = "lognormal"
    median_turns: Annotated[float, Field(gt=0)]
    """Median before clipping."""
    sigma: Annotated[float, Field(gt=0)]
    """Standard deviation of the natural logarithm."""
    max_turns: PositiveInt
    """Most turns."""

    def sample(self, rng: np.random.Generator, count: int) -> Integers:
        """Return ``count`` numbers of turns, at least 1 each."""
        turns = np.rint(self.median_turns * np.exp(self.sigma * rng.standard_normal(count)))
        return np.clip(turns, 1, self.max_turns).astype(np.int64)


TurnsLaw = Annotated[ConstantTurns | GeometricTurns | LognormalTurns, Field(discriminator="kind")]
"""Any law of the number of turns, told apart by ``kind``."""
