"""Arrivals with independent gaps: stationary renewal processes on the clock of expected arrivals.

Gaps of mean 1 are drawn and summed, then mapped to seconds.
"""

import math
from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from sim.workload.arrivals.rated import (
    CoefficientOfVariation,
    Floats,
    RatedArrivals,
    require_at_least_zero,
)

_SMALLEST_BATCH = 64
_LARGEST_BATCH = 1_000_000
"""Gaps drawn at once; batches of any size give the same arrivals."""
_SMALLEST_SHAPE = 0.05
"""Of a Weibull law; its coefficient of variation is above 300,000."""
_LARGEST_SHAPE = 1000.0
"""Of a Weibull law; its coefficient of variation is 0.0013."""
_BISECTIONS = 200


class RenewalArrivals(RatedArrivals):
    """A stationary renewal process on the clock of expected arrivals.

    Subclasses say how the gaps are distributed and how that clock maps to seconds.
    """

    def _gaps(self, rng: np.random.Generator, count: int) -> Floats:
        """Draw gaps of mean 1."""
        return gamma_gaps(rng, self._gap_cv(), count)

    def _first_gap(self, rng: np.random.Generator) -> float:
        """Draw the time from a random moment to the next arrival, on the clock of gaps."""
        return gamma_residual(rng, self._gap_cv())

    def _gap_cv(self) -> float:
        """Return the coefficient of variation of the gaps."""
        return 1.0

    def _stationary_gaps(self, rng: np.random.Generator, count: int) -> Floats:
        """Draw gaps of mean 1, the first cut at a random moment as an observer finds it."""
        if not count:
            return np.zeros(0)
        first = self._first_gap(rng)
        return np.append(first, self._gaps(rng, count - 1))

    def sample_count(self, rng: np.random.Generator, count: int) -> Floats:
        """Return the first ``count`` arrival times in seconds, rising."""
        require_at_least_zero(count, "a number of requests")
        return self.time_s(np.cumsum(self._stationary_gaps(rng, count)))

    def sample_duration(self, rng: np.random.Generator, duration_s: float) -> Floats:
        """Return the arrival times in [0, ``duration_s``), in seconds, rising."""
        require_at_least_zero(duration_s, "a duration in seconds")
        horizon = self.expected_arrivals(np.array([duration_s]))[0]
        batch = min(_LARGEST_BATCH, math.ceil(1.1 * horizon) + _SMALLEST_BATCH)
        times = np.cumsum(self._stationary_gaps(rng, batch))
        batches = [times]
        while times[-1] < horizon:
            gaps = self._gaps(rng, batch)
            gaps[0] += times[-1]
            times = np.cumsum(gaps)
            batches.append(times)
        arrival_s = self.time_s(np.concatenate(batches))
        return arrival_s[: np.searchsorted(arrival_s, duration_s, side="left")]


class PoissonArrivals(RenewalArrivals):
    """Independent arrivals at a constant rate: exponential gaps.

    Examples
    --------
    In 1,000 s at 2 requests/s expect 2,000 requests, give or take sqrt(2000) = 45:

    >>> law = PoissonArrivals(rate_requests_per_s=2.0)
    >>> 1800 < len(law.sample_duration(np.random.default_rng(1), 1000.0)) < 2200
    True
    """

    kind: Literal["poisson"] = "poisson"


class GammaArrivals(RenewalArrivals):
    """Independent Gamma gaps: burstier (cv > 1) or smoother (cv < 1) than Poisson.

    The counts of long spans have a variance of cv^2 times their mean.
    """

    kind: Literal["gamma"] = "gamma"
    cv: CoefficientOfVariation
    """Coefficient of variation of the gaps; 1 is Poisson."""

    def _gap_cv(self) -> float:
        return self.cv


class WeibullArrivals(RenewalArrivals):
    """Independent Weibull gaps, which fit the bursty clients of many services best.

    Give either the shape or the coefficient of variation. A shape below 1 is burstier than
    Poisson, above 1 smoother. At an equal cv > 1 the gaps are more often very short than those of
    the Gamma law, and the longest ones longer.

    References
    ----------
    Xiang et al., ServeGen: Workload Characterization and Generation of Large Language Model
    Serving in Production, 2025 (arXiv 2505.09999), which fits Gamma and Weibull gaps by client.

    Examples
    --------
    A shape of 1 is the exponential law, with a cv of 1:

    >>> round(WeibullArrivals(rate_requests_per_s=1.0, cv=1.0).gap_shape, 9)
    1.0
    """

    kind: Literal["weibull"] = "weibull"
    cv: CoefficientOfVariation | None = None
    """Coefficient of variation of the gaps; 1 is Poisson."""
    shape: Annotated[float, Field(ge=_SMALLEST_SHAPE, le=_LARGEST_SHAPE)] | None = None
    """Shape of the Weibull law, when no cv is given; 1 is Poisson."""

    @model_validator(mode="after")
    def _one_of_shape_and_cv(self) -> Self:
        if (self.cv is None) == (self.shape is None):
            msg = "give cv or shape, one of the two"
            raise ValueError(msg)
        smallest, largest = weibull_cv(_LARGEST_SHAPE), weibull_cv(_SMALLEST_SHAPE)
        if self.cv is not None and not smallest < self.cv < largest:
            msg = f"cv {self.cv} is outside {smallest:.4f} to {largest:.0f}"
            raise ValueError(msg)
        return self

    @cached_property
    def gap_shape(self) -> float:
        """Shape of the Weibull law of the gaps."""
        return self.shape if self.shape is not None else weibull_shape(self.cv or 1.0)

    def _gap_cv(self) -> float:
        return weibull_cv(self.gap_shape)

    def _gaps(self, rng: np.random.Generator, count: int) -> Floats:
        gaps: Floats = rng.weibull(self.gap_shape, count)
        gaps /= math.gamma(1 + 1 / self.gap_shape)
        return gaps

    def _first_gap(self, rng: np.random.Generator) -> float:
        """Draw the residual life.

        A gap is E^(1/k) with E exponential; weighted by its length, E becomes Gamma of shape
        1 + 1/k.
        """
        power = 1 / self.gap_shape
        found = rng.random() * rng.standard_gamma(1 + power) ** power
        return float(found / math.gamma(1 + power))


def weibull_cv(shape: float) -> float:
    """Return the coefficient of variation of a Weibull law.

    The moments are Gamma(1 + 1/k) and Gamma(1 + 2/k), so cv^2 + 1 is the second over the square
    of the first.

    >>> round(weibull_cv(1.0), 12)  # exponential
    1.0
    """
    return math.sqrt(math.expm1(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)))


def weibull_shape(cv: float) -> float:
    """Return the shape of the Weibull law with a coefficient of variation, by bisection."""
    low, high = _SMALLEST_SHAPE, _LARGEST_SHAPE  # the cv falls as the shape rises
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        if weibull_cv(middle) > cv:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def gamma_gaps(rng: np.random.Generator, cv: float, count: int) -> Floats:
    """Draw gaps of mean 1 and the given coefficient of variation: Gamma of shape cv^-2."""
    shape = cv**-2
    gaps: Floats = rng.standard_gamma(shape, count)
    gaps /= shape
    return gaps


def gamma_residual(rng: np.random.Generator, cv: float) -> float:
    """Draw the time from a random moment to the next arrival.

    That moment falls into a gap with a chance proportional to its length, which makes the gap
    Gamma of shape cv^-2 + 1, and evenly inside it: the residual life (Cox, Renewal Theory, 1962,
    chapter 5).
    """
    shape = cv**-2
    return float(rng.random() * rng.standard_gamma(shape + 1.0) / shape)
