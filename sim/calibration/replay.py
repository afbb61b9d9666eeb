"""Do in simulation what a benchmark did, and count what it counted."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from sim.catalog import Catalog
from sim.engine.cluster import RunRecord
from sim.errors import InfeasibleError
from sim.measured import Statistic
from sim.metrics.accounts import inventories, replicas_power_w
from sim.metrics.requests import Window, answers_inside, request_table
from sim.scenario import Case
from sim.service import Service, service_of
from sim.simulate import simulate
from sim.workload.arrivals import BurstArrivals
from sim.workload.kinds import OpenLoopWorkload

NO_REQUEST_FITS = "no request fits into the KV cache"
STEADY = (0.2, 0.8)
"""Share of the completions, by time, that a closed loop's throughput is counted over."""
LONG_RUN_REQUESTS = 5_000
"""Free arrivals of so many requests stand for a run that is longer still, such as the hours of
LoadGen: its throughput is counted over the same part."""


def replay(case: Case, catalog: Catalog, seed: int) -> dict[Statistic, float]:
    """Simulate a case and return the statistics that benchmarks publish.

    Returns
    -------
    statistics : dict

    Raises
    ------
    InfeasibleError
        The case does not fit, or none of its requests does.
    """
    return _statistics(*_done(case, catalog, seed))


class Watched(NamedTuple):
    """What a benchmark publishes of a run, and what a power meter showed meanwhile."""

    statistics: dict[Statistic, float]
    chip_power_w: float
    """Mean over the run of one chip of the replicas, busy or idle, without the host."""


def replay_with_power(case: Case, catalog: Catalog, seed: int) -> Watched:
    """Do the same and measure the power too, from the first arrival to the last completion.

    Raises
    ------
    InfeasibleError
        As for `replay`.
    """
    service, record = _done(case, catalog, seed)
    statistics = _statistics(service, record)
    requests = record.requests
    run = np.array(
        [requests["arrival_s"].min(), np.nanmax(requests["done_s"])]
    )  # refused ones never end
    (inventory,) = inventories(service, record, run)
    return Watched(statistics, float(replicas_power_w(service, inventory)[0]) / service.chips)


def _done(case: Case, catalog: Catalog, seed: int) -> tuple[Service, RunRecord]:
    service = service_of(case, catalog)
    return service, simulate(service, catalog, seed).record


def _statistics(service: Service, record: RunRecord) -> dict[Statistic, float]:
    case = service.case
    requests = request_table(record.requests, 0.0 if _in_process(case) else service.frontend_s)
    completed = requests[requests["outcome"] == "completed"]
    if completed.empty:
        raise InfeasibleError(NO_REQUEST_FITS)
    output_tokens_per_s, input_tokens_per_s = _rates_tokens_per_s(
        completed, _window(case, completed)
    )
    total_tokens_per_s = output_tokens_per_s + input_tokens_per_s
    return {
        "tpot_s_p50": float(completed["tpot_s"].median()),
        "tpot_s_mean": float(completed["tpot_s"].mean()),
        "ttft_s_p50": float(completed["ttft_s"].median()),
        "ttft_s_mean": float(completed["ttft_s"].mean()),
        "output_tokens_per_s": output_tokens_per_s,
        "total_tokens_per_s": total_tokens_per_s,
        "output_tokens_per_s_per_chip": output_tokens_per_s / service.chips,
        "total_tokens_per_s_per_chip": total_tokens_per_s / service.chips,
    }


def _is_steady(case: Case) -> bool:
    """Tell whether start and end of the run are no part of what a benchmark counts.

    Of a closed loop they are one where the case leaves nothing out, as those do that tell how many
    requests were sent (`sim.calibration.benchmarks.plain.Benchmark.measure`).
    """
    workload = case.workload
    if not isinstance(workload, OpenLoopWorkload):
        return workload.kind == "closed_loop" and case.measure.warmup_fraction > 0
    return not _in_process(case) and (workload.requests or 0) >= LONG_RUN_REQUESTS


def _in_process(case: Case) -> bool:
    """Tell whether nothing stood between the benchmark and the engine: offline runs call it."""
    workload = case.workload
    return isinstance(workload, OpenLoopWorkload) and isinstance(workload.arrivals, BurstArrivals)


def _window(case: Case, completed: pd.DataFrame) -> Window:
    """Find the part of a run that a benchmark's throughput counts.

    Of a closed loop and a long run that is their steady part, if they have one; of short runs and
    batches everything from the first arrival to the last completion, as their benchmarks do.
    """
    done_s = np.sort(completed["done_s"].to_numpy())
    if _is_steady(case):
        first, last = (int(share * (len(done_s) - 1)) for share in STEADY)
        if done_s[last] > done_s[first]:
            return Window(float(done_s[first]), float(done_s[last]))
    return Window(float(completed["arrival_s"].min()), float(done_s[-1]))


def _rates_tokens_per_s(completed: pd.DataFrame, window: Window) -> tuple[float, float]:
    """Give the rates of output and input tokens inside a window.

    A request counts with the share of its answer that falls into it: counted whole, when they end,
    requests that end together would count or not by the place of the window's edge.
    """
    outputs = answers_inside(completed, window)
    shares = outputs / completed["output_tokens"].to_numpy()
    inputs = completed["input_tokens"].to_numpy() * shares
    return float(outputs.sum()) / window.duration_s, float(inputs.sum()) / window.duration_s
