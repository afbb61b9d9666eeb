"""How far measured figures lie from forecasts: quantiles of their log ratio, by regime.

A file of ``hardware/residuals`` holds what runs that no fit had seen said of the forecasts
(`sim.calibration.scatter` makes it). A regime is what can be told of a forecast before anybody
measures: how requests arrive, what of engine and model was fitted, whether requests queue, and on
which system. Regimes with few runs are pulled to the next more general one when the file is made.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from statistics import NormalDist
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from sim.schema import StrictModel

Quantity = Literal["tpot", "ttft", "throughput"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

Arrivals = Literal["free", "closed"]
"""``free``: requests come when they come; ``closed``: a fixed number of clients, each of which
sends the next request when it has its answer, or everything at once."""
Ground = Literal["fitted", "other_model", "borrowed"]
"""What the engine's overhead rests on. ``fitted``: runs of this model on this family of chips;
``other_model``: runs of other models; ``borrowed``: other families, or an assumption."""
GROUNDS: tuple[Ground, ...] = get_args(Ground)
"""From the best to the worst."""
Load = Literal["light", "queued"]

QUEUED_RATIO = 10.0
"""Time to first token over that of the same prompt alone from which requests are said to queue:
there its error is that of the whole server's speed, many times over."""
BLEND = 2.0
"""Factor to each side of it within which an interval passes from one regime to the other."""

COVERED = 0.8
"""Share of measured figures that an interval is meant to hold."""
NORMAL = NormalDist()
EDGE = NORMAL.inv_cdf(0.5 + COVERED / 2)
"""Standard deviations of a normal law from its middle to the end of such an interval."""
_MEDIAN_ERROR = NORMAL.inv_cdf(0.75)
"""Median of the absolute value, in standard deviations."""

POOLED = "pooled"


class Scatter(StrictModel):
    """Quantiles of log(measured / forecast) in one regime."""

    q10: float
    q50: float
    q90: float
    rows: Annotated[int, Field(ge=0)]
    """Measured figures of the regime itself."""
    groups: Annotated[int, Field(ge=0)]
    """Systems, models and engines that differ among them: what a regime is trusted by."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.q10 <= self.q50 <= self.q90:
            raise ValueError("quantiles must rise: q10 <= q50 <= q90")
        return self


class QuantityScatter(StrictModel):
    """What is known of one quantity."""

    regimes: Mapping[str, Scatter]
    """By path: ``pooled``, and from the general to the special ``free``, ``free/fitted``,
    ``free/fitted/light``, ``free/fitted/light/h100_sxm_x8``."""
    shared_fraction: Annotated[float, Field(ge=0.0, le=1.0)]
    """Part of the variance that runs of one system, model and engine have in common: it moves two
    such cases alike and does not tell them apart."""
    coverage: Mapping[str, float]
    """Share of held-out figures inside intervals made without them: ``all``, and by system."""

    @model_validator(mode="after")
    def _has_a_root(self) -> Self:
        if POOLED not in self.regimes:
            raise ValueError(f"regimes need {POOLED!r}, the one of all rows")
        return self


class Residuals(StrictModel):
    """How far measured runs lie from forecasts (``hardware/residuals``)."""

    about: str
    date: str
    """Day of the fit."""
    method: str
    source: str
    """Which runs, and how each was held out."""
    quantities: Mapping[Quantity, QuantityScatter]
    correlation: Annotated[float, Field(ge=-1.0, le=1.0)]
    """Rank correlation of the errors of TTFT and TPOT in one run."""

    @model_validator(mode="after")
    def _has_both_times(self) -> Self:
        missing = {"tpot", "ttft"} - set(self.quantities)
        if missing:
            raise ValueError(f"quantities lack {', '.join(sorted(missing))}")
        return self


@dataclass(frozen=True)
class LogSpread:
    """Where the log of measured over forecast lies: the ends of an 80 % interval and its middle.

    Below the middle it is half of a normal law, above it half of another one, so that one side may
    reach further than the other.
    """

    low: float
    middle: float
    high: float

    def quantile(self, share: float) -> float:
        """Give the log ratio below which a share of all measurements lies."""
        deviations = NORMAL.inv_cdf(share) / EDGE
        side = self.high - self.middle if deviations > 0 else self.middle - self.low
        return self.middle + deviations * side

    def below(self, log_ratio: float) -> float:
        """Give the chance that the log ratio is no more than a value."""
        return NORMAL.cdf(self.deviations(log_ratio))

    def deviations(self, log_ratio: float) -> float:
        """Give the place of a log ratio in standard deviations, each side by its own.

        >>> LogSpread(-0.1, 0.0, 0.2).deviations(0.2) == EDGE
        True
        """
        off = log_ratio - self.middle
        side = self.high - self.middle if off > 0 else self.middle - self.low
        if side == 0.0:
            return math.copysign(math.inf, off) if off else math.inf
        return off / side * EDGE

    def interval(self, value: float) -> tuple[float, float]:
        """Give the interval of a forecast.

        >>> low, high = LogSpread(math.log(0.5), 0.0, math.log(2.0)).interval(10.0)
        >>> round(low, 9), round(high, 9)
        (5.0, 20.0)
        """
        return value * math.exp(self.low), value * math.exp(self.high)

    def widened(self, down: float, up: float) -> "LogSpread":
        """Add independent errors, given by how far their own 80 % interval reaches to each side."""
        return LogSpread(
            self.middle - math.hypot(self.middle - self.low, down),
            self.middle,
            self.middle + math.hypot(self.high - self.middle, up),
        )

    def inverse(self) -> "LogSpread":
        """Give that of the inverse quantity: of a rate, if this is of a time."""
        return LogSpread(-self.high, -self.middle, -self.low)

    def around(self, other: "LogSpread") -> "LogSpread":
        """Reach as far to each side as either of two."""
        return LogSpread(min(self.low, other.low), self.middle, max(self.high, other.high))


def combined(
    share: float, first: LogSpread, second: LogSpread, correlation: float = 0.0
) -> LogSpread:
    """Give the spread of a sum of two times, the first of which is some share of it.

    To first order the log of a sum moves by the logs of its parts, each by its share.

    >>> one = LogSpread(-0.3, 0.0, 0.3)
    >>> round(combined(0.5, one, one, correlation=1.0).high, 9)
    0.3
    >>> round(combined(0.5, one, one).high, 4)  # 0.3 / sqrt(2)
    0.2121
    """
    rest = 1.0 - share

    def reach(one: float, other: float) -> float:
        square = (share * one) ** 2 + (rest * other) ** 2
        return math.sqrt(max(square + 2.0 * correlation * share * one * rest * other, 0.0))

    middle = share * first.middle + rest * second.middle
    down = reach(first.middle - first.low, second.middle - second.low)
    up = reach(first.high - first.middle, second.high - second.middle)
    return LogSpread(middle - down, middle, middle + up)


@dataclass(frozen=True)
class Regime:
    """What can be told of a forecast before anybody measures."""

    arrivals: Arrivals
    ground: Ground
    load_ratio: float
    """Time to first token over that of the same prompt alone."""
    system: str
    kernel_spread_fraction: float = 0.0
    """Typical error of a kernel under the chip's prior; 0: its kernels were measured."""
    outside: tuple[str, ...] = ()
    """Why no measured run is like it, where none is."""

    @property
    def queued_share(self) -> float:
        """How much of the regime in which requests queue it has, from 0 to 1.

        >>> [Regime("free", "fitted", x, "").queued_share for x in (1.0, 10.0, 20.0)]
        [0.0, 0.5, 1.0]
        """
        place = math.log(max(self.load_ratio, 1e-9) * BLEND / QUEUED_RATIO) / math.log(BLEND**2)
        return min(max(place, 0.0), 1.0)

    def path(self, load: Load) -> tuple[str, ...]:
        """Give the way to one of its regimes, from the general to the special."""
        return (self.arrivals, self.ground, load, self.system)

    @property
    def words(self) -> str:
        """Say what it is in a few words."""
        said = _GROUND_WORDS[self.ground]
        if self.kernel_spread_fraction:
            said += (
                "; its kernels were not measured, and one is typically off by "
                f"{self.kernel_spread_fraction:.0%}"
            )
        return said


_GROUND_WORDS: Mapping[Ground, str] = {
    "fitted": "engine fitted to this model on this family of chips",
    "other_model": "engine fitted to other models on this family of chips",
    "borrowed": "engine fitted on other families of chips, or assumed",
}


def keys_of(path: tuple[str, ...]) -> Iterator[str]:
    """Name the regimes along a path, the most special one first.

    >>> list(keys_of(("free", "fitted")))
    ['free/fitted', 'free', 'pooled']
    """
    yield from ("/".join(path[:depth]) for depth in range(len(path), 0, -1))
    yield POOLED


def spread_of(residuals: Residuals, quantity: Quantity, regime: Regime) -> LogSpread:
    """Give the spread of a quantity in a regime.

    The most special regime that runs were measured in counts. Where the chip's kernels were not
    measured, the error of its prior comes on top, as an independent one. Where no measured run is
    like the case, the interval reaches as far as the worse of its own regime and of borrowed
    overheads: a guess, which is why such a case is said to lie outside.

    Raises
    ------
    KeyError
        Nothing is known of the quantity.
    """
    known = residuals.quantities[quantity].regimes
    found = _first(known, regime)
    if regime.outside:
        found = found.around(_first(known, replace(regime, ground="borrowed")))
    if regime.kernel_spread_fraction:
        typical = math.log1p(regime.kernel_spread_fraction)
        reach = EDGE * typical / _MEDIAN_ERROR
        found = found.widened(reach, reach)
    return found


def _first(known: Mapping[str, Scatter], regime: Regime) -> LogSpread:
    """Give the spread of the most special known regime, or between those of both loads."""
    queued = regime.queued_share
    light = _known(known, regime.path("light"))
    if not queued:
        return light
    other = _known(known, regime.path("queued"))
    ends = zip(astuple(light), astuple(other), strict=True)
    return LogSpread(*((1.0 - queued) * a + queued * b for a, b in ends))


def _known(known: Mapping[str, Scatter], path: tuple[str, ...]) -> LogSpread:
    scatter = next(known[key] for key in keys_of(path) if key in known)
    return LogSpread(scatter.q10, scatter.q50, scatter.q90)
