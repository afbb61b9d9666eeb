"""Arrival times of requests that come whether or not earlier ones are done (open loop).

Every law is one class: its fields are its configuration; `sample_count` draws a number of
arrivals and `sample_duration` the arrivals of a span of time, both as rising ``float64`` seconds
from the start of the run. `ArrivalLaw` is the union of them all, told apart by ``kind``.

The random laws are renewal processes that run on a clock of expected arrivals: gaps of mean 1 are
drawn and summed, then mapped to seconds. They are stationary from the first second: the run starts
at a random moment of the process, not just after an arrival, so a span of ``t`` seconds expects
exactly ``rate * t`` arrivals however bursty the law is. With equal generators a shorter sample is a
prefix of a longer one.
"""

import math
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.errors import InputError
from sim.schema import StrictModel
from sim.units import Seconds

Floats = NDArray[np.float64]
RequestsPerSecond = Annotated[float, Field(gt=0)]
CoefficientOfVariation = Annotated[float, Field(gt=0)]

_SMALLEST_BATCH = 64
_LARGEST_BATCH = 1_000_000
"""Gaps drawn at once; batches of any size give the same arrivals."""


class _RatedArrivals(StrictModel):
    """What all laws with a mean rate share."""

    rate_requests_per_s: RequestsPerSecond
    """Mean arrival rate, in requests per second."""

    def at_rate(self, rate_requests_per_s: float) -> Self:
        """Return the same law at another mean rate."""
        return type(self)(**(self.model_dump() | {"rate_requests_per_s": rate_requests_per_s}))


class _RenewalArrivals(_RatedArrivals):
    """A stationary Gamma renewal process on the clock of expected arrivals.

    Subclasses say how bursty it is and how that clock maps to seconds.
    """

    def _gap_cv(self) -> float:
        """Return the coefficient of variation of the gaps."""
        return 1.0

    def expected_arrivals(self, time_s: Floats) -> Floats:
        """Return how many arrivals are expected before each time, given in seconds."""
        return self.rate_requests_per_s * time_s

    def _time_s(self, expected_arrivals: Floats) -> Floats:
        """Return the times in seconds before which so many arrivals are expected."""
        return expected_arrivals / self.rate_requests_per_s

    def sample_count(self, rng: np.random.Generator, count: int) -> Floats:
        """Return the first ``count`` arrival times in seconds, rising."""
        _require_at_least_zero(count, "a number of requests")
        gaps = _stationary_gaps(rng, self._gap_cv(), count)
        return self._time_s(np.cumsum(gaps))

    def sample_duration(self, rng: np.random.Generator, duration_s: float) -> Floats:
        """Return the arrival times in [0, ``duration_s``), in seconds, rising."""
        _require_at_least_zero(duration_s, "a duration in seconds")
        horizon = self.expected_arrivals(np.array([duration_s]))[0]
        batch = min(_LARGEST_BATCH, math.ceil(1.1 * horizon) + _SMALLEST_BATCH)
        times = np.cumsum(_stationary_gaps(rng, self._gap_cv(), batch))
        batches = [times]
        while times[-1] < horizon:
            gaps = _gamma_gaps(rng, self._gap_cv(), batch)
            gaps[0] += times[-1]
            times = np.cumsum(gaps)
            batches.append(times)
        arrival_s = self._time_s(np.concatenate(batches))
        return arrival_s[: np.searchsorted(arrival_s, duration_s, side="left")]


class PoissonArrivals(_RenewalArrivals):
    """Independent arrivals at a constant rate: exponential gaps.

    Examples
    --------
    In 1,000 s at 2 requests/s expect 2,000 requests, give or take sqrt(2000) = 45:

    >>> law = PoissonArrivals(rate_requests_per_s=2.0)
    >>> 1800 < len(law.sample_duration(np.random.default_rng(1), 1000.0)) < 2200
    True
    """

    kind: Literal["poisson"] = "poisson"


class GammaArrivals(_RenewalArrivals):
    """Independent Gamma gaps: burstier (cv > 1) or smoother (cv < 1) than Poisson.

    The counts of long spans have a variance of cv^2 times their mean.
    """

    kind: Literal["gamma"] = "gamma"
    cv: CoefficientOfVariation
    """Coefficient of variation of the gaps; 1 is Poisson."""

    def _gap_cv(self) -> float:
        return self.cv


class ModulatedArrivals(_RenewalArrivals):
    """Gamma renewal arrivals whose rate follows a repeating profile, as over an hour or a day.

    The renewal process runs on the clock of expected arrivals, so gaps shrink where the rate is
    high (time change; for cv = 1 this is exactly the Poisson process of that rate). A run shorter
    than `period_s` sees only the beginning of the profile, and its rate is then not the mean
    rate: `stretched_to` fits the whole profile to a run.

    Examples
    --------
    A mean of 3 requests/s, one part to the first 10 s and two parts to the next: 2/s, then 4/s.

    >>> law = ModulatedArrivals(
    ...     rate_requests_per_s=3.0, cv=1.0, period_s=20.0, relative_rates=(1.0, 2.0)
    ... )
    >>> law.expected_arrivals(np.array([10.0, 15.0, 20.0, 40.0])).round(6).tolist()
    [20.0, 40.0, 60.0, 120.0]
    >>> law.stretched_to(100.0).expected_arrivals(np.array([50.0])).round(6).tolist()
    [100.0]
    """

    kind: Literal["modulated"] = "modulated"
    cv: CoefficientOfVariation
    """Coefficient of variation of the gaps on the clock of expected arrivals; 1 is Poisson."""
    period_s: Annotated[Seconds, Field(gt=0)]
    """Length of the profile, in seconds; it repeats after that."""
    relative_rates: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
    """Rates of equal parts of the period, relative to each other (their mean is divided out)."""

    @model_validator(mode="after")
    def _some_rate_is_positive(self) -> Self:
        if not any(self.relative_rates):
            msg = "relative_rates are all zero; at least one must be positive"
            raise ValueError(msg)
        return self

    def stretched_to(self, period_s: float) -> Self:
        """Return the same law with its whole profile stretched or squeezed to ``period_s``."""
        return type(self)(**(self.model_dump() | {"period_s": period_s}))

    def expected_arrivals(self, time_s: Floats) -> Floats:
        """Return how many arrivals are expected before each time, given in seconds."""
        part, whole = np.modf(time_s / self.period_s)
        periods = whole + np.interp(part, *self._profile())
        return periods * (self.rate_requests_per_s * self.period_s)

    def _gap_cv(self) -> float:
        return self.cv

    def _profile(self) -> tuple[Floats, Floats]:
        """Return fractions of the period and the fraction of its arrivals expected by then."""
        cumulative = np.append(0.0, np.cumsum(self.relative_rates))
        return np.linspace(0.0, 1.0, len(cumulative)), cumulative / cumulative[-1]

    def _time_s(self, expected_arrivals: Floats) -> Floats:
        part, whole = np.modf(expected_arrivals / (self.rate_requests_per_s * self.period_s))
        times, fractions = self._profile()
        time_s = (whole + np.interp(part, fractions, times)) * self.period_s
        # Interpolation may overshoot a knot by a rounding error; arrivals never go back.
        return np.maximum.accumulate(time_s)


class UniformArrivals(_RatedArrivals):
    """Evenly spaced arrivals, the first at time 0.

    Examples
    --------
    >>> law = UniformArrivals(rate_requests_per_s=4.0)
    >>> law.sample_duration(np.random.default_rng(0), 1.0).tolist()
    [0.0, 0.25, 0.5, 0.75]
    """

    kind: Literal["uniform"] = "uniform"

    def sample_count(self, rng: np.random.Generator, count: int) -> Floats:
        """Return the first ``count`` arrival times in seconds; draws nothing from ``rng``."""
        del rng
        _require_at_least_zero(count, "a number of requests")
        return np.arange(count) / self.rate_requests_per_s

    def sample_duration(self, rng: np.random.Generator, duration_s: float) -> Floats:
        """Return the arrival times in [0, ``duration_s``), in seconds."""
        _require_at_least_zero(duration_s, "a duration in seconds")
        arrival_s = self.sample_count(rng, math.ceil(duration_s * self.rate_requests_per_s))
        return arrival_s[arrival_s < duration_s]


class BurstArrivals(StrictModel):
    """Every request at time 0, as in an offline batch.

    Examples
    --------
    >>> BurstArrivals().sample_count(np.random.default_rng(0), 3).tolist()
    [0.0, 0.0, 0.0]
    """

    kind: Literal["burst"] = "burst"

    def sample_count(self, rng: np.random.Generator, count: int) -> Floats:
        """Return ``count`` zeros; draws nothing from ``rng``."""
        del rng
        _require_at_least_zero(count, "a number of requests")
        return np.zeros(count)

    def sample_duration(self, rng: np.random.Generator, duration_s: float) -> Floats:
        """Raise `InputError`: a burst has no rate, so a span of time does not say how many."""
        del rng
        msg = (
            f"burst arrivals have no rate, so {duration_s} s do not say how many requests come;"
            " give the number of requests instead of a duration"
        )
        raise InputError(msg)


ArrivalLaw = Annotated[
    PoissonArrivals | GammaArrivals | ModulatedArrivals | UniformArrivals | BurstArrivals,
    Field(discriminator="kind"),
]
"""Any law of open-loop arrivals, told apart by ``kind``."""


def _gamma_gaps(rng: np.random.Generator, cv: float, count: int) -> Floats:
    """Draw gaps of mean 1 and the given coefficient of variation: Gamma of shape cv^-2."""
    shape = cv**-2
    gaps: Floats = rng.standard_gamma(shape, count)
    gaps /= shape
    return gaps


def _stationary_gaps(rng: np.random.Generator, cv: float, count: int) -> Floats:
    """Draw gaps of mean 1, the first cut at a random moment as an observer finds it.

    That moment falls into a gap with a chance proportional to its length, which makes the gap
    Gamma of shape cv^-2 + 1, and evenly inside it: the residual life (Cox, Renewal Theory, 1962,
    chapter 5).
    """
    shape = cv**-2
    first = rng.random() * rng.standard_gamma(shape + 1.0) / shape
    return np.append(first, _gamma_gaps(rng, cv, count - 1)) if count else np.zeros(0)


def _require_at_least_zero(number: float, what: str) -> None:
    if not (math.isfinite(number) and number >= 0):
        msg = f"{number} is not {what}; it must be finite and at least 0"
        raise InputError(msg)
