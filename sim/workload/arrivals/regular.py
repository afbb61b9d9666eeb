"""Arrivals that nothing is random about: evenly spaced ones, and all at once."""

import math
from typing import Literal

import numpy as np

from sim.errors import InputError
from sim.schema import StrictModel
from sim.workload.arrivals.rated import Floats, RatedArrivals, require_at_least_zero


class UniformArrivals(RatedArrivals):
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
        require_at_least_zero(count, "a number of requests")
        return np.arange(count) / self.rate_requests_per_s

    def sample_duration(self, rng: np.random.Generator, duration_s: float) -> Floats:
        """Return the arrival times in [0, ``duration_s``), in seconds."""
        require_at_least_zero(duration_s, "a duration in seconds")
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
        require_at_least_zero(count, "a number of requests")
        return np.zeros(count)

    def sample_duration(self, rng: np.random.Generator, duration_s: float) -> Floats:
        """Raise `InputError`: a burst has no rate, so a span of time does not say how many."""
        del rng
        msg = (
            f"burst arrivals have no rate, so {duration_s} s do not say how many requests come;"
            " give the number of requests instead of a duration"
        )
        raise InputError(msg)
