"""What all laws of arrivals with a mean rate share."""

import math
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sim.errors import InputError
from sim.schema import StrictModel

Floats = NDArray[np.float64]
RequestsPerSecond = Annotated[float, Field(gt=0)]
CoefficientOfVariation = Annotated[float, Field(gt=0)]


class RatedArrivals(StrictModel):
    """A law with a mean rate, and the clock of expected arrivals that belongs to it."""

    rate_requests_per_s: RequestsPerSecond
    """Mean arrival rate, in requests per second."""

    def at_rate(self, rate_requests_per_s: float) -> Self:
        """Return the same law at another mean rate."""
        return type(self)(**(self.model_dump() | {"rate_requests_per_s": rate_requests_per_s}))

    def expected_arrivals(self, time_s: Floats) -> Floats:
        """Return how many arrivals are expected before each time, given in seconds."""
        return self.rate_requests_per_s * time_s

    def time_s(self, expected_arrivals: Floats) -> Floats:
        """Return the times in seconds before which so many arrivals are expected."""
        return expected_arrivals / self.rate_requests_per_s


def require_at_least_zero(number: float, what: str) -> None:
    """Raise `InputError` unless a number of requests or of seconds is finite and at least 0."""
    if not (math.isfinite(number) and number >= 0):
        msg = f"{number} is not {what}; it must be finite and at least 0"
        raise InputError(msg)
