"""Forecast measured serving runs and say how far the forecasts are off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sim.calibration.coverage import intervals
from sim.calibration.replay import NO_REQUEST_FITS, replay
from sim.calibration.runs import QUANTITIES, MeasuredRun, Quantity, Skipped
from sim.catalog import Catalog
from sim.errors import InfeasibleError, InputError
from sim.schema import did_you_mean
from sim.simulate import Progress


@dataclass(frozen=True)
class Validation:
    """Forecasts beside measurements, one row per run and quantity."""

    rows: pd.DataFrame
    """``row_id``, the run's keys, ``quantity, measured, forecast, ape, low, high``; APE is a
    fraction, the last two are the ends of the 80 % interval."""
    skipped: pd.Series
    """Number of runs by the reason why they were left out."""

    def coverage(self) -> float | None:
        """Give the share of measured figures inside their 80 % intervals; None: there are none.

        Runs that the residuals were fitted to count too; `sim.calibration.scatter` prints the
        coverage of runs held out.
        """
        rows = self.rows[self.rows["low"].notna()]
        inside = rows["measured"].between(rows["low"], rows["high"])
        return float(inside.mean()) if len(rows) else None

    def errors(self, by: Sequence[str] = ()) -> pd.DataFrame:
        """Sum up the errors by quantity, and by other columns if asked.

        Raises
        ------
        InputError
            There is no such column.
        """
        missing = [column for column in by if column not in self.rows]
        if missing:
            hint = did_you_mean(missing[0], [str(column) for column in self.rows.columns])
            raise InputError(f"runs have no column {missing[0]!r}{hint}")
        parts = self.rows.groupby(["quantity", *by])
        rows = [(_key(key), _errors(part)) for key, part in parts]
        names = ["quantity", *by]
        return pd.DataFrame([dict(zip(names, key, strict=True)) | found for key, found in rows])


def validate_runs(
    runs: Sequence[MeasuredRun | Skipped],
    catalog: Catalog,
    seed: int = 1,
    progress: Progress | None = None,
) -> Validation:
    """Simulate each run as it was done and compare.

    Parameters
    ----------
    runs : sequence
        From `sim.calibration.runs.read_runs`.
    catalog : Catalog
    seed : int
    progress : callable, optional
        Called after each run with how many are done.

    Raises
    ------
    InputError
        No run could be forecast.
    """
    rows: list[dict[str, object]] = []
    reasons: list[str] = []
    for index, run in enumerate(runs):
        if isinstance(run, Skipped):
            reasons.append(run.reason)
        else:
            try:
                forecasts = run.forecasts(replay(run.case, catalog, seed))
                rows += _compare(run, forecasts, intervals(run, forecasts, catalog))
            except InfeasibleError as error:
                reasons.append(_why_not(run, error))
            except InputError as error:
                reasons.append(str(error))
        if progress is not None:
            progress(index + 1, len(runs))
    skipped = pd.Series(reasons, dtype=str).value_counts()
    if not rows:
        raise InputError(f"no run could be forecast: {_reasons(skipped)}")
    return Validation(pd.DataFrame(rows), skipped)


def _why_not(run: MeasuredRun, error: InfeasibleError) -> str:
    """Name what does not fit without the figures of the one run, so that like runs are counted."""
    if str(error) == NO_REQUEST_FITS:
        return NO_REQUEST_FITS
    split = f"on {run.hardware} with tp {run.case.parallelism.tp}"
    if " needs " in str(error) or " need " in str(error):
        return f"{run.case.model} does not fit {split}"
    return f"{run.case.model} cannot be cut {split}"


def _compare(
    run: MeasuredRun,
    forecasts: Mapping[Quantity, float],
    ends: Mapping[Quantity, tuple[float, float]],
) -> list[dict[str, object]]:
    return [
        _row(run, quantity, forecasts[quantity], ends.get(quantity))
        for quantity in QUANTITIES
        if quantity in run.measured
    ]


def _row(
    run: MeasuredRun, quantity: Quantity, value: float, ends: tuple[float, float] | None
) -> dict[str, object]:
    measured = run.measured[quantity]
    low, high = (np.nan, np.nan) if ends is None else ends
    return {
        "row_id": run.row_id,
        **run.keys,
        "quantity": quantity,
        "measured": measured,
        "forecast": value,
        "ape": abs(value / measured - 1),
        "low": low,
        "high": high,
    }


def document(found: Validation, by: Sequence[str] = ()) -> dict[str, object]:
    """Everything that ``rackcast validate --json`` prints; APE as a fraction."""
    errors = found.errors().set_index("quantity").to_dict("index")
    runs = found.rows["row_id"].nunique()
    return {
        "runs": runs + int(found.skipped.sum()),
        "covered": runs,
        "skipped": {str(reason): int(count) for reason, count in found.skipped.items()},
        **{str(quantity): figures for quantity, figures in errors.items()},
        "interval_coverage": {"p80": found.coverage()},
        "by": {column: found.errors([column]).to_dict("records") for column in by},
    }


def error_table(found: Validation, by: Sequence[str] = ()) -> str:
    """Lay the errors out for people, one table per grouping."""
    runs = found.rows["row_id"].nunique()
    lines = [f"{runs} runs forecast, {int(found.skipped.sum())} skipped"]
    lines += [f"  {count:5d}  {reason}" for reason, count in found.skipped.items()]
    for columns in ([], *([column] for column in by)):
        table = found.errors(columns)
        percent = ["median_ape", "mean_ape", "p90_ape", "bias"]
        table[percent] = table[percent].map("{:+.1%}".format)
        lines += ["", table.to_string(index=False)]
    inside = found.coverage()
    if inside is not None:
        lines += ["", f"80 % intervals hold {inside:.1%} of the measured figures"]
    return "\n".join(lines)


def _reasons(skipped: pd.Series) -> str:
    """Say how many runs were left out and why, the most frequent reason first."""
    return ", ".join(f"{count} x {reason}" for reason, count in skipped.items()) or "none is there"


def _key(key: object) -> tuple[object, ...]:
    return key if isinstance(key, tuple) else (key,)


def _errors(rows: pd.DataFrame) -> dict[str, float]:
    ape = rows["ape"]
    return {
        "runs": len(rows),
        "median_ape": float(ape.median()),
        "mean_ape": float(ape.mean()),
        "p90_ape": float(ape.quantile(0.9)),
        "bias": float(np.mean(rows["forecast"] / rows["measured"] - 1)),
    }
