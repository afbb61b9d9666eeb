"""Arrivals whose rate follows the clock: any repeating profile, a day, a week."""

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from sim.units import DAY_S, Seconds
from sim.workload.arrivals.rated import CoefficientOfVariation, Floats
from sim.workload.arrivals.renewal import RenewalArrivals

HOURS = 24
DAYS = 7
RelativeRate = Annotated[float, Field(ge=0)]
Hourly = Annotated[tuple[RelativeRate, ...], Field(min_length=HOURS, max_length=HOURS)]
Daily = Annotated[tuple[RelativeRate, ...], Field(min_length=DAYS, max_length=DAYS)]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_WEEKDAYS: tuple[Weekday, ...] = (
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
)


class ProfiledArrivals(RenewalArrivals):
    """Gamma renewal arrivals on the clock of a repeating rate profile.

    The renewal process runs on the clock of expected arrivals, so gaps shrink where the rate is
    high (time change; for cv = 1 this is exactly the Poisson process of that rate).
    """

    cv: CoefficientOfVariation = 1.0
    """Coefficient of variation of the gaps on the clock of expected arrivals; 1 is Poisson."""

    def _gap_cv(self) -> float:
        return self.cv

    def _rates(self) -> tuple[float, ...]:
        """Return the relative rates of equal parts of the period."""
        raise NotImplementedError

    def _period_s(self) -> float:
        """Return the length of the profile, in seconds."""
        raise NotImplementedError

    def _start_s(self) -> float:
        """Return the moment of the profile at which a run starts, in seconds."""
        return 0.0

    def expected_arrivals(self, time_s: Floats) -> Floats:
        """Return how many arrivals are expected before each time, given in seconds."""
        since_start = self._from_zero(np.asarray(time_s + self._start_s(), dtype=np.float64))
        return since_start - self._before_start()

    def time_s(self, expected_arrivals: Floats) -> Floats:
        """Return the times in seconds before which so many arrivals are expected."""
        of_period = self.rate_requests_per_s * self._period_s()
        part, whole = np.modf((expected_arrivals + self._before_start()) / of_period)
        times, fractions = self._profile()
        time_s = (whole + np.interp(part, fractions, times)) * self._period_s() - self._start_s()
        # Interpolation may overshoot a knot by a rounding error; arrivals never go back.
        return np.maximum.accumulate(np.maximum(time_s, 0.0))

    def _before_start(self) -> float:
        return float(self._from_zero(np.array([self._start_s()]))[0])

    def _from_zero(self, time_s: Floats) -> Floats:
        """Return how many arrivals are expected between the profile's own zero and each time."""
        part, whole = np.modf(time_s / self._period_s())
        periods = whole + np.interp(part, *self._profile())
        return periods * (self.rate_requests_per_s * self._period_s())

    def _profile(self) -> tuple[Floats, Floats]:
        """Return fractions of the period and the fraction of its arrivals expected by then."""
        cumulative = np.append(0.0, np.cumsum(self._rates()))
        return np.linspace(0.0, 1.0, len(cumulative)), cumulative / cumulative[-1]


class ModulatedArrivals(ProfiledArrivals):
    """Gamma renewal arrivals whose rate follows a repeating profile, as over an hour or a day.

    A run shorter than `period_s` sees only the beginning of the profile, and its rate is then not
    the mean rate: `stretched_to` fits the whole profile to a run.

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
    relative_rates: Annotated[tuple[RelativeRate, ...], Field(min_length=1)]
    """Rates of equal parts of the period, relative to each other (their mean is divided out)."""

    @model_validator(mode="after")
    def _some_rate_is_positive(self) -> Self:
        _require_a_positive_rate(self.relative_rates, "relative_rates")
        return self

    def stretched_to(self, period_s: float) -> Self:
        """Return the same law with its whole profile stretched or squeezed to ``period_s``."""
        return type(self)(**(self.model_dump() | {"period_s": period_s}))

    def _rates(self) -> tuple[float, ...]:
        return self.relative_rates

    def _period_s(self) -> float:
        return self.period_s


class DailyShape(ProfiledArrivals):
    """What laws of a day and of a week share: how the rate moves over the 24 hours.

    Give the hours, or a smooth day by its peak. A smooth day is ``1 + a cos`` of the time since
    the peak, ``a`` being the peak over the mean less 1.
    """

    hourly_rates: Hourly | None = None
    """Rates of the 24 hours from midnight, relative to each other."""
    peak_over_mean: Annotated[float, Field(ge=1, le=2)] | None = None
    """Highest rate of a smooth day over its mean."""
    peak_hour: Annotated[float, Field(ge=0, lt=HOURS)] | None = None
    """Hour of a smooth day at which its rate is highest."""
    start_hour: Annotated[float, Field(ge=0, lt=HOURS)] = 0.0
    """Hour of the day at which a run starts."""
    day_s: Annotated[Seconds, Field(gt=0)] = DAY_S
    """Length of a day; a shorter one squeezes the profile into a shorter run."""

    @model_validator(mode="after")
    def _a_day_is_given_once(self) -> Self:
        smooth = (self.peak_over_mean, self.peak_hour)
        if (self.hourly_rates is None) == (smooth == (None, None)) or (
            self.hourly_rates is None and None in smooth
        ):
            msg = "give hourly_rates, or both peak_over_mean and peak_hour"
            raise ValueError(msg)
        if self.hourly_rates is not None:
            _require_a_positive_rate(self.hourly_rates, "hourly_rates")
        return self

    def _hours(self) -> tuple[float, ...]:
        """Return the relative rates of the 24 hours."""
        if self.hourly_rates is not None:
            return self.hourly_rates
        swing, peak = (self.peak_over_mean or 1.0) - 1.0, self.peak_hour or 0.0
        turn = 2 * math.pi / HOURS
        # The mean of 1 + a cos over each hour, so that no hour is below zero.
        edges = [math.sin(turn * (hour - peak)) / turn for hour in range(HOURS + 1)]
        return tuple(1.0 + swing * (edges[hour + 1] - edges[hour]) for hour in range(HOURS))


class DiurnalArrivals(DailyShape):
    """Gamma renewal arrivals whose rate follows the hours of a day.

    Examples
    --------
    A day with a peak of 1.5 times its mean at 15:00; the hour from 15:00 to 16:00 expects the
    mean of ``1 + 0.5 cos`` over it, 1.5 less half a percent:

    >>> law = DiurnalArrivals(
    ...     rate_requests_per_s=1.0, peak_over_mean=1.5, peak_hour=15.0, start_hour=15.0
    ... )
    >>> round(float(law.expected_arrivals(np.array([3600.0]))[0]) / 3600, 4)
    1.4943
    """

    kind: Literal["diurnal"] = "diurnal"

    def _rates(self) -> tuple[float, ...]:
        return self._hours()

    def _period_s(self) -> float:
        return self.day_s

    def _start_s(self) -> float:
        return self.start_hour / HOURS * self.day_s


class WeeklyArrivals(DailyShape):
    """Gamma renewal arrivals whose rate follows the hours of a day and the days of a week."""

    kind: Literal["weekly"] = "weekly"
    daily_rates: Daily
    """Rates of the seven days from Monday, relative to each other; each has the same hours."""
    start_day: Weekday = "monday"
    """Day of the week on which a run starts."""

    @model_validator(mode="after")
    def _some_day_has_requests(self) -> Self:
        _require_a_positive_rate(self.daily_rates, "daily_rates")
        return self

    def _rates(self) -> tuple[float, ...]:
        hours = self._hours()
        return tuple(day * hour for day in self.daily_rates for hour in hours)

    def _period_s(self) -> float:
        return DAYS * self.day_s

    def _start_s(self) -> float:
        days = _WEEKDAYS.index(self.start_day) + self.start_hour / HOURS
        return days * self.day_s


def _require_a_positive_rate(rates: tuple[float, ...], name: str) -> None:
    if not any(rates):
        msg = f"{name} are all zero; at least one must be positive"
        raise ValueError(msg)
