"""How forecasts of measured runs answer to the overheads of their engines.

A forecast is a whole simulation, so a fit cannot afford many. Three of each run suffice: as the
catalogue has it, with slower steps, and with slower launches. What other parameters add to a step
is known from the timer, in proportion to what slower steps did to each figure; the time outside
the engine is simply added to the first token.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.calibration.forked import over_runs
from sim.calibration.replay import replay
from sim.calibration.runs import MeasuredRun, Quantity
from sim.catalog import Catalog
from sim.cost.timer import StepTimer
from sim.cost.work import StepShape
from sim.deployment import deploy
from sim.errors import InfeasibleError, InputError
from sim.measured import Statistic
from sim.overhead import NO_OVERHEAD, EngineOverhead
from sim.simulate import Progress
from sim.units import NANOSECOND_S

Array = npt.NDArray[np.float64]


class Parameter(NamedTuple):
    """One field of an engine's overhead, as the fit sees it."""

    field: str
    scale: float
    """Unit in which it is a number near one."""
    prior: float
    spread: float
    """How far it is from the prior, typically, in the same unit."""
    most: float


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("step_s", 1e-3, 1.0, 1.0, 20.0),
    Parameter("layer_s", 1e-5, 0.5, 0.5, 20.0),
    Parameter("dealt_layer_s", 1e-5, 1.0, 1.0, 20.0),
    Parameter("sequence_s", 1e-5, 1.0, 1.0, 20.0),
    Parameter("floor_fraction", 1.0, 0.5, 0.5, 1.0),
    Parameter("launch_s", 1e-5, 2.0, 2.0, 20.0),
    Parameter("frontend_s", 1e-3, 5.0, 5.0, 100.0),
)
"""About a millisecond of scheduling, inputs and sampling per step; two small kernels of 2 to 3 us
per layer, and four where experts are dealt to ranks; 10 us per sequence; half of the floors; 20 us
for the host to launch what one operator stands for; 5 ms of HTTP, tokenising and hand-over."""
SCALES = np.array([each.scale for each in PARAMETERS])
_IN_STEPS = ("step_s", "layer_s", "dealt_layer_s", "sequence_s", "floor_fraction")
_SLOWER_STEP = 0.1
"""By how much of a step it is slowed to see what that does."""
_SLOWER_LAUNCH_S = 1e-5


@dataclass(frozen=True)
class Response:
    """The forecasts of one run, and how they change with the parameters."""

    run: MeasuredRun
    sequences: float
    """That decode at a time, per replica."""
    ttft_s: float
    """Median time to first token as forecast, whether or not it was measured."""
    law: EngineOverhead
    """At which it was forecast."""
    forecasts: Mapping[Quantity, float]
    slopes: Mapping[Quantity, Array]
    """Per unit of each of `PARAMETERS`, in their scales."""

    def at(self, quantity: Quantity, scaled: Array) -> float:
        """Forecast with other parameters, to first order of what takes time."""
        change = float(self.slopes[quantity] @ (scaled - vector(self.law)))
        value = self.forecasts[quantity]
        if quantity == "throughput":  # its inverse is a time
            return value / max(1.0 - change / value, 0.05)
        return max(value + change, 0.05 * value)


def vector(law: EngineOverhead) -> Array:
    """Give the parameters of a law in their scales."""
    return np.array([getattr(law, each.field) / each.scale for each in PARAMETERS])


def law_of(scaled: Array) -> EngineOverhead:
    """Give the law of some parameters, each with three digits; a bound of the solver is nothing."""
    values = [float(f"{value:.3g}") if value > NANOSECOND_S else 0.0 for value in scaled * SCALES]
    fields = dict(zip((each.field for each in PARAMETERS), values, strict=True))
    return NO_OVERHEAD.model_copy(update=fields)


def respond(run: MeasuredRun, catalog: Catalog, seed: int = 1) -> Response | None:
    """Simulate a run three times; none if it cannot be forecast."""
    try:
        deployment = deploy(run.case, catalog)
        found = replay(run.case, catalog, seed)
    except (InfeasibleError, InputError):
        return None
    law, timer = deployment.timer.overhead, deployment.timer
    told = run.forecasts(found)
    sequences = found["output_tokens_per_s"] * found["tpot_s_mean"] / deployment.replicas
    sequences = max(1.0, sequences if np.isfinite(sequences) else 1.0)
    per_unit, step_s = _step_slopes(timer, sequences)
    delay_s = _SLOWER_STEP * step_s
    slower = law.model_copy(update={"step_s": law.step_s + delay_s})
    launches = law.model_copy(update={"launch_s": law.launch_s + _SLOWER_LAUNCH_S})
    at_slower = replay(run.case, catalog.with_overhead(slower), seed)
    eager = timer.execution.eager_prompts
    at_launches = replay(run.case, catalog.with_overhead(launches), seed) if eager else found
    slopes: dict[Quantity, Array] = {}
    for quantity in run.measured:
        statistic: Statistic = run.statistic[quantity]
        per_second = (at_slower[statistic] - found[statistic]) / delay_s
        per_launch = (at_launches[statistic] - found[statistic]) / _SLOWER_LAUNCH_S
        at_first = float(quantity == "ttft")
        slopes[quantity] = SCALES * np.array([*(per_second * per_unit), per_launch, at_first])
    return Response(run, sequences, found["ttft_s_p50"], law, told, slopes)


def _step_slopes(timer: StepTimer, sequences: float) -> tuple[Array, float]:
    """Seconds of one decode step per unit of each parameter that is in steps, and all of it."""
    shape = StepShape(decode_sequences=sequences, decode_context_tokens=sequences)
    with_floors = timer.with_overhead(NO_OVERHEAD).seconds(shape)
    without = timer.with_overhead(NO_OVERHEAD.model_copy(update={"floor_fraction": 0.0}))
    per_unit = [
        timer.with_overhead(NO_OVERHEAD.model_copy(update={field: 1.0})).overhead_s(shape)
        for field in _IN_STEPS[:-1]
    ]
    floors_s = with_floors - without.seconds(shape)
    return np.array([*per_unit, floors_s]), timer.seconds(shape)


def responses(
    runs: Sequence[MeasuredRun],
    catalog: Catalog,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Iterator[Response]:
    """Simulate runs, in several processes if asked, and give those that can be forecast.

    Parameters
    ----------
    runs : sequence of MeasuredRun
    catalog : Catalog
    jobs : int
        Processes.
    progress : callable, optional
        Called after each run with how many are done.
    """
    found = over_runs(respond, runs, catalog, jobs, progress)
    return (each for each in found if each is not None)
