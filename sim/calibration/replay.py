"""Do in simulation what a benchmark did, and count what it counted."""

import pandas as pd

from sim.catalog import Catalog
from sim.errors import InfeasibleError
from sim.measured import Statistic
from sim.metrics.requests import request_table
from sim.scenario import Case
from sim.service import service_of
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
    service = service_of(case, catalog)
    record = simulate(service, catalog, seed).record
    requests = request_table(record.requests, 0.0 if _in_process(case) else service.frontend_s)
    completed = requests[requests["outcome"] == "completed"]
    if completed.empty:
        raise InfeasibleError(NO_REQUEST_FITS)
    counted = _counted(case, completed)
    output_tokens_per_s = float(counted["output_tokens"].sum()) / counted.attrs["span_s"]
    input_tokens_per_s = float(counted["input_tokens"].sum()) / counted.attrs["span_s"]
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
    """Tell whether start and end of the run are no part of what a benchmark counts."""
    workload = case.workload
    if not isinstance(workload, OpenLoopWorkload):
        return workload.kind == "closed_loop"
    return not _in_process(case) and (workload.requests or 0) >= LONG_RUN_REQUESTS


def _in_process(case: Case) -> bool:
    """Tell whether nothing stood between the benchmark and the engine: offline runs call it."""
    workload = case.workload
    return isinstance(workload, OpenLoopWorkload) and isinstance(workload.arrivals, BurstArrivals)


def _counted(case: Case, completed: pd.DataFrame) -> pd.DataFrame:
    """Keep the requests that a benchmark's throughput counts, with the ``span_s`` they took.

    A closed loop and a long run count their steady part, if they have one; short runs and batches
    everything from the first arrival to the last completion, as their benchmarks do.
    """
    ordered = completed.sort_values("done_s")
    done = ordered["done_s"].to_numpy()
    counted = ordered
    span_s = float(done[-1] - ordered["arrival_s"].min())
    if _is_steady(case):
        first, last = (int(share * (len(ordered) - 1)) for share in STEADY)
        steady_s = float(done[last] - done[first])
        if steady_s > 0:
            counted, span_s = ordered.iloc[first + 1 : last + 1], steady_s
    counted.attrs["span_s"] = span_s
    return counted
