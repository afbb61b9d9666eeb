"""Whether the forecast of one measured run is near enough, and what to say if it is not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

from sim.calibration.replay import replay
from sim.calibration.runs import QUANTITIES, MeasuredRun, Quantity
from sim.calibration.tolerances import Limits, keys_of
from sim.catalog import Catalog
from sim.errors import InfeasibleError, InputError
from sim.scenario import Case
from sim.service import service_of
from sim.units import MILLISECOND_S
from sim.workload.arrivals import BurstArrivals
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload

MOST_CAUSES = 3
"""So many causes are named; there may be more."""
_TELLING = ("calibration: none", "extrapolated", "assumed", "estimate", "not the vendor's")
"""Words by which a note of a forecast says that it stands on less than measurements."""
_POSSIBLE = "may run here"
"""Of a note that warns of larger batches than there may ever be."""


class NotForecast(Exception):  # noqa: N818 - nothing went wrong: the run is left out
    """The run cannot be forecast; the message says why."""


@dataclass(frozen=True)
class Compared:
    """One quantity of one run: times in seconds, throughput in tokens per second."""

    quantity: Quantity
    measured: float
    forecast: float
    tolerance: float | None
    """Largest error allowed; None: not judged."""

    @property
    def error(self) -> float:
        """Forecast over measured, less one."""
        return self.forecast / self.measured - 1

    @property
    def is_near(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.tolerance is None or abs(self.error) <= self.tolerance


def compared(run: MeasuredRun, limits: Limits, catalog: Catalog, seed: int) -> list[Compared]:
    """Simulate a run as it was done and put forecasts beside its figures.

    Parameters
    ----------
    run : MeasuredRun
    limits : Limits
        How far they may be off.
    catalog : Catalog
    seed : int
        Of the simulated traffic.

    Raises
    ------
    NotForecast
        The run tells no figure that is forecast, or its case cannot be done.
    """
    if not run.measured:
        raise NotForecast(f"no figure of {', '.join(QUANTITIES)} is given")
    try:
        forecasts = run.forecasts(replay(run.case, catalog, seed))
    except InfeasibleError as error:
        raise NotForecast(_in_short(run, error)) from error
    except InputError as error:
        raise NotForecast(str(error)) from error
    return [
        Compared(
            quantity,
            float(run.measured[quantity]),
            forecasts[quantity],
            limits.tolerances.get(quantity),
        )
        for quantity in QUANTITIES
        if quantity in run.measured
    ]


def _in_short(run: MeasuredRun, error: InfeasibleError) -> str:
    """Leave out the figures of the one run, so that like reasons are counted together."""
    if "\n" not in str(error) and not any(sign.isdigit() for sign in str(error)):
        return str(error)
    return f"{run.case.model} does not fit on {run.hardware} with tp {run.case.parallelism.tp}"


def failure(
    run: MeasuredRun, found: list[Compared], limits: Limits, catalog: Catalog, file: str
) -> str:
    """Say how far the forecasts of a run are off, of what, and where to look.

    Returns
    -------
    text : str
        Several lines; the first says by itself what is wrong.
    """
    off = ", ".join(_headline(each) for each in found if not each.is_near)
    case = run.case
    facts = {
        "run": f"{run.row_id} in {file}",
        "system": f"{_chips(case)} x {run.hardware} (as {case.system}), tp {case.parallelism.tp}",
        "model": f"{run.model} (as {case.model}), weights {case.precision.weights}",
        "engine": f"{run.engine} (as {case.engine.name})",
        "load": load_in_words(case),
    }
    lines = [off, *(f"  {name:<8}{text}" for name, text in facts.items()), ""]
    lines += [_row("quantity", "measured", "forecast", "error", "tolerance")]
    lines += [_figures(each) for each in found]
    lines += [f"  tolerance by {reason}" for reason in limits.reasons]
    lines += _causes(run, catalog)
    lines += ["", f"look closer: rackcast validate {file} --select row_id={run.row_id}"]
    return "\n".join(lines)


def _headline(item: Compared) -> str:
    return f"{item.quantity} {item.error:+.1%} (tolerance {item.tolerance:.1%})"


def _chips(case: Case) -> int:
    return case.parallelism.chips * (case.replicas or 1)


def load_in_words(case: Case) -> str:
    """Say in a few words what a case is loaded with."""
    workload = case.workload
    if isinstance(workload, ClosedLoopWorkload):
        clients = f"{workload.concurrency} clients, {workload.requests} requests"
        return f"{clients}{_lengths(workload)}"
    if isinstance(workload, OpenLoopWorkload):
        if isinstance(workload.arrivals, BurstArrivals):
            return f"{workload.requests} requests at once{_lengths(workload)}"
        rate = workload.rate_requests_per_s or getattr(
            workload.arrivals, "rate_requests_per_s", None
        )
        speed = "free arrivals" if rate is None else f"{rate:g} requests/s"
        return f"{speed}{_lengths(workload)}"
    return workload.kind


def _lengths(workload: ClosedLoopWorkload | OpenLoopWorkload) -> str:
    if workload.lengths is None:
        return f", lengths of {workload.traffic}"
    mean = workload.lengths.mean_tokens
    return f", {mean.input_tokens:.0f} tokens in and {mean.output_tokens:.0f} out"


def _row(*cells: str) -> str:
    name, *rest = cells
    return f"  {name:<12}" + "".join(f"{cell:>17}" for cell in rest)


def _figures(item: Compared) -> str:
    tolerance = "not judged" if item.tolerance is None else f"{item.tolerance:.1%}"
    return _row(
        item.quantity,
        _with_unit(item.quantity, item.measured),
        _with_unit(item.quantity, item.forecast),
        f"{item.error:+.1%}",
        tolerance,
    )


def _with_unit(quantity: Quantity, value: float) -> str:
    if quantity == "throughput":
        return f"{value:.4g} tokens/s"
    return f"{value / MILLISECOND_S:.4g} ms"


def _causes(run: MeasuredRun, catalog: Catalog) -> list[str]:
    """Name what is known to make this forecast less sure; nothing is guessed."""
    causes = list(dict.fromkeys(_doubts(run, catalog)))
    if not causes:
        return []
    more = len(causes) - MOST_CAUSES
    tail = [f"  - and {more} more"] if more > 0 else []
    return [
        "",
        "this forecast stands on:",
        *(f"  - {each}" for each in causes[:MOST_CAUSES]),
        *tail,
    ]


def _doubts(run: MeasuredRun, catalog: Catalog) -> Iterator[str]:
    if run.assumed:
        yield f"a guess at what the file leaves out: {', '.join(run.assumed)}"
    for note in service_of(run.case, catalog).notes:
        if any(words in note for words in _TELLING) and _POSSIBLE not in note:
            yield note.removeprefix(f"{run.case.name}: ")


class RunRecord(TypedDict):
    """What became of a run, as plain data that travels from process to process."""

    keys: dict[str, str]
    """What runs are grouped by."""
    figures: dict[Quantity, tuple[float, float, float | None, bool]]
    """Measured, forecast, tolerance and whether the error is within it."""


def record_of(run: MeasuredRun, found: list[Compared]) -> RunRecord:
    """Put what became of a run into plain data."""
    figures = {
        each.quantity: (each.measured, each.forecast, each.tolerance, each.is_near)
        for each in found
    }
    return RunRecord(keys=keys_of(run), figures=figures)
