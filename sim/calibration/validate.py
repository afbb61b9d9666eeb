"""Forecast measured serving runs and say how far the forecasts are off."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from sim.calibration.coverage import intervals
from sim.calibration.forked import over_runs
from sim.calibration.replay import NO_REQUEST_FITS, replay, replay_with_power
from sim.calibration.runs import QUANTITIES, MeasuredRun, Quantity, Skipped, check_keys
from sim.catalog import Catalog
from sim.errors import InfeasibleError, InputError
from sim.simulate import Progress

POWER = "power"
"""Mean power of one chip, where a run measured it, beside the quantities that fits know."""
USUAL_GROUPS = ("source", "system", "model", "engine", "load")
"""Columns that errors are told by where nobody says otherwise."""
_ABSOLUTE = ["median_ape", "mean_ape", "p90_ape"]


@dataclass(frozen=True)
class Validation:
    """Forecasts beside measurements, one row per run and quantity."""

    rows: pd.DataFrame
    """``row_id``, the run's keys, ``quantity, measured, forecast, ape, low, high``; APE is a
    fraction, the last two are the ends of the 80 % interval."""
    skipped: pd.Series
    """Number of runs by the reason why they were left out."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Row ids of those, by the same reasons."""
    notes: tuple[str, ...] = ()
    """What else is not compared, and why."""

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
        check_keys(by)
        parts = self.rows.groupby(["quantity", *by])
        rows = [(_key(key), _errors(part)) for key, part in parts]
        names = ["quantity", *by]
        return pd.DataFrame([dict(zip(names, key, strict=True)) | found for key, found in rows])

    def covered(self) -> tuple[int, int]:
        """Count the runs that were forecast, and all of them."""
        covered = int(self.rows["row_id"].nunique())
        return covered, covered + int(self.skipped.sum())

    def groups(self, by: Sequence[str]) -> list[str]:
        """Give the columns that errors are told by: those asked for, else the usual ones.

        Of these only such as tell runs apart.
        """
        usual = [column for column in USUAL_GROUPS if len(self.rows[column].unique()) > 1]
        return list(by) or usual


def validate_runs(
    runs: Sequence[MeasuredRun | Skipped],
    catalog: Catalog,
    seed: int = 1,
    progress: Progress | None = None,
    jobs: int = 1,
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
    jobs : int
        Processes.

    Raises
    ------
    InputError
        No run could be forecast.
    """
    compared = partial(_compared, seed=seed)
    rows: list[dict[str, object]] = []
    reasons: list[str] = []
    left_out: dict[str, list[str]] = {}
    for run, found in zip(runs, over_runs(compared, runs, catalog, jobs, progress), strict=True):
        if isinstance(found, str):
            reasons.append(found)
            left_out.setdefault(found, []).append(run.row_id)
        else:
            rows += found
    skipped = pd.Series(reasons, dtype=str).value_counts()
    if not rows:
        raise InputError(f"no run could be forecast: {_reasons(skipped)}")
    return Validation(pd.DataFrame(rows), skipped, left_out, tuple(_notes(runs, catalog)))


def _notes(runs: Sequence[MeasuredRun | Skipped], catalog: Catalog) -> Iterator[str]:
    more = sum(isinstance(run, MeasuredRun) and _is_of_more_chips(run, catalog) for run in runs)
    if more:
        yield (
            f"power of {more} run{'s' * (more > 1)} not compared: above the board limit of the "
            "chips used, so others were metered too"
        )


def _compared(
    run: MeasuredRun | Skipped, catalog: Catalog, seed: int
) -> list[dict[str, object]] | str:
    """Give the rows of one run, or why there are none."""
    if isinstance(run, Skipped):
        return run.reason
    try:
        if run.chip_power_w is None or _is_of_more_chips(run, catalog):
            forecasts = run.forecasts(replay(run.case, catalog, seed))
            return _compare(run, forecasts, intervals(run, forecasts, catalog))
        found = replay_with_power(run.case, catalog, seed)
        forecasts = run.forecasts(found.statistics)
        rows = _compare(run, forecasts, intervals(run, forecasts, catalog))
        return [*rows, _row(run, POWER, run.chip_power_w, found.chip_power_w, None)]
    except InfeasibleError as error:
        return _why_not(run, error)
    except InputError as error:
        return str(error)


def _is_of_more_chips(run: MeasuredRun, catalog: Catalog) -> bool:
    """Tell whether the power measured is more than the chips of the run can draw."""
    chip = catalog.accelerator(catalog.system(run.case.system).accelerator)
    return (run.chip_power_w or 0.0) > chip.power.tdp_w.value


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
        _row(run, quantity, run.measured[quantity], forecasts[quantity], ends.get(quantity))
        for quantity in QUANTITIES
        if quantity in run.measured
    ]


def _row(
    run: MeasuredRun,
    quantity: str,
    measured: float,
    value: float,
    ends: tuple[float, float] | None,
) -> dict[str, object]:
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
    covered, runs = found.covered()
    return {
        "runs": runs,
        "covered": covered,
        "covered_fraction": covered / runs,
        "skipped": {str(reason): int(count) for reason, count in found.skipped.items()},
        "skipped_row_ids": {reason: list(names) for reason, names in found.left_out.items()},
        "notes": list(found.notes),
        **{str(quantity): figures for quantity, figures in errors.items()},
        "interval_coverage": {"p80": found.coverage()},
        "by": {column: found.errors([column]).to_dict("records") for column in found.groups(by)},
    }


def error_table(found: Validation, by: Sequence[str] = ()) -> str:
    """Lay the errors out for people, one table per grouping."""
    covered, runs = found.covered()
    lines = [f"{covered} runs forecast, {runs - covered} skipped"]
    lines += [f"  {count:5d}  {reason}" for reason, count in found.skipped.items()]
    lines += [f"coverage: {covered} of {runs} runs forecast ({covered / runs:.1%})", *found.notes]
    for columns in ([], *([column] for column in found.groups(by))):
        table = found.errors(columns)
        table[_ABSOLUTE] = table[_ABSOLUTE].map("{:.1%}".format)
        table["bias"] = table["bias"].map("{:+.1%}".format)
        lines += ["", table.to_string(index=False)]
    inside = found.coverage()
    if inside is not None:
        lines += ["", f"80 % intervals hold {inside:.1%} of the measured figures"]
    return "\n".join(lines)


def _reasons(skipped: pd.Series) -> str:
    """Say how many runs were left out and why, the most frequent reason first."""
    return ", ".join(f"{count} x {reason}" for reason, count in skipped.items()) or (
        "none is there: the file has no row below the names of its columns"
    )


def _key(key: object) -> tuple[object, ...]:
    return key if isinstance(key, tuple) else (key,)


def _errors(rows: pd.DataFrame) -> dict[str, float]:
    ape = rows["ape"]
    return {
        "runs": len(rows),
        "median_ape": float(ape.median()),
        "mean_ape": float(ape.mean()),
        "p90_ape": float(ape.quantile(0.9)),
        "bias": float((rows["forecast"] / rows["measured"]).median()) - 1,
    }
