"""Arrival times of requests that come whether or not earlier ones are done (open loop).

Every law is one class: its fields are its configuration; `sample_count` draws a number of
arrivals and `sample_duration` the arrivals of a span of time, both as rising ``float64`` seconds
from the start of the run. `ArrivalLaw` is the union of them all, told apart by ``kind``.

Every random law is stationary from the first second: the run starts at a random moment of the
process, not just after an arrival, so a span of ``t`` seconds expects exactly ``rate * t``
arrivals however bursty the law is. With equal generators a shorter sample is a prefix of a longer
one.

``rated`` holds what the laws share, ``renewal`` independent gaps, ``profiles`` rates that follow
the clock, ``markov`` rates that jump at random, ``surges`` extra load on top of another law, and
``regular`` what is not random.
"""

from typing import Annotated

from pydantic import Field

from sim.workload.arrivals.markov import ArrivalState, MarkovModulatedArrivals
from sim.workload.arrivals.profiles import DiurnalArrivals, ModulatedArrivals, WeeklyArrivals
from sim.workload.arrivals.regular import BurstArrivals, UniformArrivals
from sim.workload.arrivals.renewal import GammaArrivals, PoissonArrivals, WeibullArrivals
from sim.workload.arrivals.surges import RandomSurges, SteadyArrivalLaw, Surge, SurgingArrivals

__all__ = [
    "ArrivalLaw",
    "ArrivalState",
    "BurstArrivals",
    "DiurnalArrivals",
    "GammaArrivals",
    "MarkovModulatedArrivals",
    "ModulatedArrivals",
    "PoissonArrivals",
    "RandomSurges",
    "SteadyArrivalLaw",
    "Surge",
    "SurgingArrivals",
    "UniformArrivals",
    "WeeklyArrivals",
    "WeibullArrivals",
]

ArrivalLaw = Annotated[
    PoissonArrivals
    | GammaArrivals
    | WeibullArrivals
    | ModulatedArrivals
    | DiurnalArrivals
    | WeeklyArrivals
    | MarkovModulatedArrivals
    | SurgingArrivals
    | UniformArrivals
    | BurstArrivals,
    Field(discriminator="kind"),
]
"""Any law of open-loop arrivals, told apart by ``kind``."""
