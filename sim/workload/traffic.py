"""A law of traffic fitted to a recorded trace: lengths, arrivals, and where they come from."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from sim.schema import StrictModel
from sim.units import PositiveInt
from sim.workload.arrivals import ArrivalLaw
from sim.workload.lengths import LengthLaw


class TrafficLaw(StrictModel):
    """What ``workloads/lengths/*.yaml`` hold: fitted coefficients with their provenance.

    Lengths and arrivals are independent of each other: the law keeps how long a prompt's answer is,
    and how the rate moves, but not a mix of requests that drifts over the hour.
    """

    source: Annotated[str, Field(min_length=1)]
    """Where the trace comes from, as it asks to be cited."""
    licence: Annotated[str, Field(min_length=1)]
    """Licence of the trace, e.g. ``CC-BY-4.0``."""
    fitted_on: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """Date of the fit, as YYYY-MM-DD."""
    rows: PositiveInt
    """Requests of the trace that the law was fitted to."""
    fit_quality: Mapping[str, float]
    """How well the law reproduces the trace: names and figures, as the fit explains them."""
    lengths: LengthLaw
    """Law of the token lengths."""
    arrivals: ArrivalLaw
    """Law of the arrivals at the trace's own mean rate; ``at_rate`` moves it to another."""
