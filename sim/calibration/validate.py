"""Forecast measured serving runs and say how far the forecasts are off."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sim.calibration.runs import QUANTITIES, MeasuredRun, Quantity, Skipped
from sim.catalog import Catalog
from sim.deployment import deploy
from sim.errors import InfeasibleError, InputError
from sim.metrics import request_table
from sim.simulate import simulate

STEADY = (0.2, 0.8)
"""Share of the completions, by time, that a closed loop's throughput is counted over."""


@dataclass(frozen=True)
class Validation:
    """Forecasts beside measurements, one row per run and quantity."""

    rows: pd.DataFrame
    """Columns ``row_id, source, hardware, model, engine, tp, weights, quantity, measured,
    forecast, ape``; APE is a fraction."""
    skipped: pd.Series
    """Number of runs by the reason why they were left out."""

    def errors(self, by: Sequence[str] = ()) -> pd.DataFrame:
        """Sum up the errors by quantity, and by other columns if asked."""
        grouped = self.rows.groupby(["quantity", *by])
        return grouped.apply(_errors).reset_index()


def validate_runs(
    runs: Iterable[MeasuredRun | Skipped],
    catalog: Catalog,
    seed: int = 1,
    progress: Callable[[], None] | None = None,
) -> Validation:
    """Simulate each run as it was done and compare.

    Parameters
    ----------
    runs : iterable
        From `sim.calibration.runs.read_runs`.
    catalog : Catalog
    seed : int
    progress : callable, optional
        Called after each run.
    """
    rows: list[dict[str, object]] = []
    reasons: list[str] = []
    for run in runs:
        if isinstance(run, Skipped):
            reasons.append(run.reason)
        else:
            try:
                rows += _compare(run, forecast(run, catalog, seed))
            except (InfeasibleError, InputError) as error:
                reasons.append(str(error).split(": ", 1)[-1])
        if progress is not None:
            progress()
    return Validation(pd.DataFrame(rows), pd.Series(reasons, dtype=str).value_counts())


def forecast(run: MeasuredRun, catalog: Catalog, seed: int) -> dict[str, float]:
    """Simulate a measured run and return the statistics that measurements are compared with."""
    deployment = deploy(run.case, catalog)
    record = simulate(deployment, catalog, seed).record
    requests = request_table(record)
    completed = requests[requests["outcome"] == "completed"]
    if completed.empty:
        raise InfeasibleError(f"case {run.row_id!r}: no request fits into the KV cache")
    return {
        "tpot_s_p50": float(completed["tpot_s"].median()),
        "tpot_s_mean": float(completed["tpot_s"].mean()),
        "ttft_s_p50": float(completed["ttft_s"].median()),
        "ttft_s_mean": float(completed["ttft_s"].mean()),
        "output_tokens_per_s": _steady_throughput(completed),
    }


def _steady_throughput(completed: pd.DataFrame) -> float:
    """Output tokens per second between two quantiles of the completions."""
    ordered = completed.sort_values("done_s")
    first, last = (int(share * (len(ordered) - 1)) for share in STEADY)
    done = ordered["done_s"].to_numpy()
    tokens = float(ordered["output_tokens"].iloc[first + 1 : last + 1].sum())
    span = float(done[last] - done[first])
    return tokens / span if span > 0 else float(ordered["output_tokens"].sum()) / done[-1]


def _compare(run: MeasuredRun, forecasts: dict[str, float]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for quantity in QUANTITIES:
        if quantity in run.measured:
            rows.append(_row(run, quantity, forecasts[run.statistic[quantity]]))
    return rows


def _row(run: MeasuredRun, quantity: Quantity, value: float) -> dict[str, object]:
    measured = run.measured[quantity]
    return {
        "row_id": run.row_id,
        "source": run.source,
        "hardware": run.hardware,
        "model": run.model,
        "engine": run.case.engine.name,
        "tp": run.case.parallelism.tp,
        "weights": run.case.precision.weights,
        "quantity": quantity,
        "measured": measured,
        "forecast": value,
        "ape": abs(value / measured - 1),
    }


def _errors(rows: pd.DataFrame) -> pd.Series:
    ape = rows["ape"]
    return pd.Series(
        {
            "runs": len(rows),
            "median_ape": ape.median(),
            "mean_ape": ape.mean(),
            "p90_ape": ape.quantile(0.9),
            "bias": float(np.mean(rows["forecast"] / rows["measured"] - 1)),
        }
    )
