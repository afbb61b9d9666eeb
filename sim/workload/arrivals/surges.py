"""Extra load on top of another law: launches, news, retries of somebody's clients."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from sim.schema import StrictModel
from sim.units import Seconds
from sim.workload.arrivals.markov import MarkovModulatedArrivals
from sim.workload.arrivals.profiles import DiurnalArrivals, ModulatedArrivals, WeeklyArrivals
from sim.workload.arrivals.rated import Floats, require_at_least_zero
from sim.workload.arrivals.regular import UniformArrivals
from sim.workload.arrivals.renewal import GammaArrivals, PoissonArrivals, WeibullArrivals

SteadyArrivalLaw = Annotated[
    PoissonArrivals
    | GammaArrivals
    | WeibullArrivals
    | ModulatedArrivals
    | DiurnalArrivals
    | WeeklyArrivals
    | MarkovModulatedArrivals
    | UniformArrivals,
    Field(discriminator="kind"),
]
"""Any law with a mean rate, without surges."""

Factor = Annotated[float, Field(ge=1)]


class Surge(StrictModel):
    """One stretch of time with more requests."""

    start_s: Seconds
    """When it starts, from the start of the run."""
    duration_s: Annotated[Seconds, Field(gt=0)]
    """How long it lasts."""
    factor: Factor
    """Rate during the surge over the rate without it."""


class RandomSurges(StrictModel):
    """Surges that come at random: a Poisson process of starts, exponential durations."""

    mean_interval_s: Annotated[Seconds, Field(gt=0)]
    """Mean time from one start to the next."""
    mean_duration_s: Annotated[Seconds, Field(gt=0)]
    """Mean duration."""
    factor: Factor
    """Rate during a surge over the rate without it."""


class SurgingArrivals(StrictModel):
    """A law of arrivals, and surges that add independent requests to it.

    During a surge of factor f, requests come on top of the law as a Poisson process of f - 1 times
    its expected rate; surges that overlap add up. The law itself stays as it is, bursts and all.

    Examples
    --------
    2 requests/s, and ten times as many from second 10 to 15: 18/s on top for 5 s.

    >>> law = SurgingArrivals(
    ...     base=PoissonArrivals(rate_requests_per_s=2.0),
    ...     surges=(Surge(start_s=10.0, duration_s=5.0, factor=10.0),),
    ... )
    >>> arrival_s = law.sample_duration(np.random.default_rng(1), 20.0)
    >>> 60 < int(np.count_nonzero((arrival_s >= 10) & (arrival_s < 15))) < 140
    True
    """

    kind: Literal["spikes"] = "spikes"
    base: SteadyArrivalLaw
    """The law without surges."""
    surges: tuple[Surge, ...] = ()
    """Surges at known times."""
    random_surges: RandomSurges | None = None
    """Surges at random times."""

    @model_validator(mode="after")
    def _something_surges(self) -> Self:
        if not self.surges and self.random_surges is None:
            msg = "give surges, random_surges or both"
            raise ValueError(msg)
        return self

    @property
    def rate_requests_per_s(self) -> float:
        """Mean rate without the surges."""
        return self.base.rate_requests_per_s

    def at_rate(self, rate_requests_per_s: float) -> Self:
        """Return the same law at another mean rate without the surges, which grow with it."""
        return self.model_copy(update={"base": self.base.at_rate(rate_requests_per_s)})

    def sample_count(self, rng: np.random.Generator, count: int) -> Floats:
        """Return the first ``count`` arrival times in seconds, rising."""
        base_rng, *surge_rngs = rng.spawn(4)
        base = self.base.sample_count(base_rng, count)
        if not count:
            return base
        return self._with_extra(base, surge_rngs, float(base[-1]))[:count]

    def sample_duration(self, rng: np.random.Generator, duration_s: float) -> Floats:
        """Return the arrival times in [0, ``duration_s``), in seconds, rising."""
        require_at_least_zero(duration_s, "a duration in seconds")
        base_rng, *surge_rngs = rng.spawn(4)
        base = self.base.sample_duration(base_rng, duration_s)
        arrival_s = self._with_extra(base, surge_rngs, duration_s)
        return arrival_s[: np.searchsorted(arrival_s, duration_s, side="left")]

    def _with_extra(self, base: Floats, rngs: list[np.random.Generator], end_s: float) -> Floats:
        """Add the requests of all surges that start before ``end_s``, and sort."""
        known_rng, path_rng, random_rng = rngs
        known = sorted(self.surges, key=lambda surge: (surge.start_s, surge.duration_s))
        extra = [self._extra(known_rng, surge) for surge in known if surge.start_s < end_s]
        extra += [self._extra(random_rng, surge) for surge in self._random(path_rng, end_s)]
        return np.sort(np.concatenate([base, *extra]), kind="stable")

    def _random(self, rng: np.random.Generator, end_s: float) -> Iterator[Surge]:
        law, start_s = self.random_surges, 0.0
        while law is not None:
            start_s += law.mean_interval_s * rng.standard_exponential()
            duration_s = law.mean_duration_s * rng.standard_exponential()
            if start_s >= end_s:
                return
            yield Surge.model_construct(start_s=start_s, duration_s=duration_s, factor=law.factor)

    def _extra(self, rng: np.random.Generator, surge: Surge) -> Floats:
        """Draw what a whole surge adds, even if the run ends within it."""
        ends_s = np.array([surge.start_s, surge.start_s + surge.duration_s])
        start, end = self.base.expected_arrivals(ends_s).tolist()
        count = rng.poisson((surge.factor - 1.0) * (end - start))
        return self.base.time_s(np.sort(start + (end - start) * rng.random(count)))
