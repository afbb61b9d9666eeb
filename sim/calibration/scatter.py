"""Fit how far measured runs lie from forecasts, from a table of forecasts of runs held out.

::

    python -m sim.calibration.scatter TABLE --out hardware/residuals

The table (CSV or Parquet) has a row for each figure: ``row_id``, ``quantity`` (``tpot``, ``ttft``
or ``throughput``), ``measured``, ``forecast``, ``scheme``, and what a regime is told by
(`features`). The scheme says what the fit behind the forecast had not seen: ``random`` (the row),
``leave_model_out`` (any run of its model) or ``leave_system_out`` (any run of its system). Rows of
the scheme ``fitted`` are left out: their fit had seen them. What a forecast then rests on, its
ground, is told from ``overheads`` and ``family``, the file and chip family of the engine's
overhead, and from what the other rows have of these; a column ``ground`` says it instead.

How it is fitted. In each regime the quantiles of log(measured / forecast) are taken at ranks of
n + 1, as split-conformal prediction does (Vovk, Gammerman and Shafer, Algorithmic Learning in a
Random World, 2005). Regimes form a tree; each is pulled to the one above it::

    quantile = (g * own + PULL * parent) / (g + PULL)

where g is the number of groups, that is systems, models and engines that differ: rows of one group
share their errors, and a thousand of them tell no more of other groups than a few. Finally all
intervals are stretched by one factor per quantity, ground and system, so that four fifths of the
figures lie inside intervals made without them: a group is forecast without its own rows, a model
held out without any row of it, a system held out without any row of it. The coverage written down
is that of such intervals, their factor too being that of the other groups.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, cast, get_args

import numpy as np
import pandas as pd
import typer
import yaml

from sim.calibration.completion import LENGTHS
from sim.calibration.overhead_fit import UNFIT
from sim.calibration.regression import Array
from sim.calibration.runs import MeasuredRun
from sim.catalog import Catalog
from sim.errors import InputError, exit_on_error
from sim.metrics.regimes import kernel_spread_fraction, unloaded_ttft_s
from sim.service import service_of
from sim.uncertainty import (
    COVERED,
    POOLED,
    QUANTITIES,
    QUEUED_RATIO,
    Arrivals,
    Ground,
    Quantity,
    QuantityScatter,
    Regime,
    Residuals,
    Scatter,
    keys_of,
    spread_of,
)
from sim.workload.arrivals import BurstArrivals
from sim.workload.kinds import OpenLoopWorkload

IN_SAMPLE = "fitted"
"""Scheme of rows whose fit had seen them."""
HELD_OUT: Mapping[str, str] = {
    "random": "group",
    "leave_model_out": "model",
    "leave_system_out": "system",
}
"""Column whose values are left out one by one to see how intervals do without them, by scheme."""
NEW = "new"
"""Stands for a system of which no run was seen."""
LEVELS = ("arrivals", "ground", "load", "place")
"""Columns of the path of a regime, see `sim.uncertainty.Regime.path`; the place is the system,
unless no run of it was seen."""
PULL = 8.0
"""Groups that the more general regime counts as."""
AIM = 0.84
"""Share of the figures that the factors put inside: a little more than asked for, as a factor found
on some groups holds somewhat less on another one. Both are chosen so that coverage of held-out
figures lies near four fifths, overall and by system."""
LEAST_ROWS = 5
"""Regimes with fewer rows have no quantiles of their own."""
SHARES = (0.5 - COVERED / 2, 0.5, 0.5 + COVERED / 2)
LEAST_STRETCH, MOST_STRETCH = 0.5, 3.0

_NEEDED = (
    "row_id",
    "quantity",
    "measured",
    "forecast",
    "scheme",
    "system",
    "model",
    "engine",
    "arrivals",
    "load_ratio",
)

Cells = Mapping[str, tuple[Array, int, int]]
"""Quantiles, rows and groups of each regime."""


@dataclass(frozen=True)
class Checked:
    """The fit of one quantity, and how its intervals did on rows that they had not seen."""

    scatter: QuantityScatter
    rows: pd.DataFrame
    """With ``inside``, and ``low``, ``high`` of the log ratio."""


def features(run: MeasuredRun, catalog: Catalog, ttft_s: float) -> dict[str, object]:
    """Give the columns of a table of forecasts that tell the regime of a run.

    Parameters
    ----------
    run : MeasuredRun
    catalog : Catalog
    ttft_s : float
        Its time to first token as forecast, median or mean.
    """
    case, workload = run.case, run.case.workload
    service = service_of(case, catalog)
    at_once = isinstance(workload, OpenLoopWorkload) and isinstance(
        workload.arrivals, BurstArrivals
    )
    lengths = getattr(workload, "lengths", None)
    prompt_tokens = 1.0 if lengths is None else float(lengths.mean_tokens.input_tokens)
    return {
        "system": case.system,
        "model": case.model,
        "engine": case.engine.kernels,
        "arrivals": "closed" if workload.kind == "closed_loop" or at_once else "free",
        "load_ratio": ttft_s / unloaded_ttft_s(service, prompt_tokens),
        "kernel_spread_fraction": kernel_spread_fraction(service.answer_pool, catalog),
    }


def prepared(table: pd.DataFrame) -> pd.DataFrame:
    """Check a table of forecasts, and tell the regime of each row.

    Raises
    ------
    InputError
        A column is missing, or a row says what cannot be.
    """
    needed = {*_NEEDED, *(() if "ground" in table else ("overheads", "family"))}
    missing = sorted(needed - set(table.columns))
    if missing:
        raise InputError(f"the table of forecasts lacks the columns {', '.join(missing)}")
    rows = table[table["scheme"] != IN_SAMPLE].copy()
    _only(rows, "scheme", tuple(HELD_OUT))
    for column in ("source", "assumed"):
        if column not in rows:
            rows[column] = ""
    if "kernel_spread_fraction" not in rows:
        rows["kernel_spread_fraction"] = 0.0
    if "ground" not in rows:
        rows["ground"] = _grounds(rows)
    _only(rows, "ground", get_args(Ground))
    _only(rows, "arrivals", get_args(Arrivals))
    _only(rows, "quantity", QUANTITIES)
    wrong = ~((rows["measured"] > 0) & (rows["forecast"] > 0))
    if wrong.any():
        first = rows.loc[wrong, "row_id"].iloc[0]
        raise InputError(f"run {first}: measured and forecast must be positive")
    rows["load"] = np.where(rows["load_ratio"] >= QUEUED_RATIO, "queued", "light")
    rows["place"] = rows["system"].where(rows["scheme"] != "leave_system_out", NEW)
    rows["group"] = rows[["system", "model", "engine"]].astype(str).agg("|".join, axis=1)
    rows["log_ratio"] = np.log(rows["measured"] / rows["forecast"])
    return rows.reset_index(drop=True)


def _grounds(rows: pd.DataFrame) -> "pd.Series[str]":
    """Tell what each forecast rests on: what its fit had of its engine and family of chips."""
    about = ["overheads", "family", "system", "model"]
    fitted = ~(rows["kernel_spread_fraction"] > 0)  # no overhead is fitted under a prior
    known = rows.loc[fitted, about].drop_duplicates()
    found: dict[tuple[str, ...], Ground] = {}
    for row in rows[["scheme", *about]].drop_duplicates().itertuples(index=False, name=None):
        scheme, overheads, family, system, model = row
        left = known[(known["overheads"] == overheads) & (known["family"] == family)]
        if scheme == "leave_model_out":
            left = left[left["model"] != model]
        elif scheme == "leave_system_out":
            left = left[left["system"] != system]
        found[row] = "borrowed" if left.empty else "other_model"
        if model in set(left["model"]):
            found[row] = "fitted"
    places = rows[["scheme", *about]].itertuples(index=False, name=None)
    return pd.Series([found[place] for place in places], index=rows.index, dtype=str)


def _only(rows: pd.DataFrame, column: str, known: tuple[str, ...]) -> None:
    strange = rows.loc[~rows[column].isin(known)]
    if len(strange):
        row = strange.iloc[0]
        raise InputError(
            f"run {row['row_id']}: {column} is {row[column]!r}; use {', '.join(known)}"
        )


def cells(rows: pd.DataFrame) -> Cells:
    """Give the quantiles of each regime, pulled to the one above it."""
    found: dict[str, tuple[Array, int, int]] = {POOLED: _cell(rows, None)}
    for depth in range(1, len(LEVELS) + 1):
        for key, part in rows.groupby(list(LEVELS[:depth]), sort=True):
            path = cast("tuple[str, ...]", key)
            above = next(name for name in list(keys_of(path))[1:] if name in found)
            of_a_system = depth == len(LEVELS)
            if len(part) >= LEAST_ROWS and not (of_a_system and _is_strange(path[1], path[-1])):
                found["/".join(path)] = _cell(part, found[above][0])
    return found


def _is_strange(ground: str, place: str) -> bool:
    """Tell whether no run of a system was seen, or its ground is borrowed.

    A forecast there will be one of another engine, or of another family of chips.
    """
    return ground == "borrowed" or place == NEW


def _cell(rows: pd.DataFrame, parent: Array | None) -> tuple[Array, int, int]:
    own = np.quantile(rows["log_ratio"], SHARES, method="weibull")
    groups = rows["group"].nunique()
    if parent is not None:
        own = (groups * own + PULL * parent) / (groups + PULL)
    return np.maximum.accumulate(own), len(rows), groups


def _quantiles(found: Cells, rows: pd.DataFrame) -> Array:
    """Give the quantiles of the most special known regime of each row, shape (rows, 3)."""
    by_path: dict[tuple[str, ...], Array] = {}
    for path in set(rows[list(LEVELS)].itertuples(index=False, name=None)):
        by_path[path] = next(found[key][0] for key in keys_of(path) if key in found)
    paths = rows[list(LEVELS)].itertuples(index=False, name=None)
    return np.array([by_path[path] for path in paths])


def _without(rows: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Give the rows that are left, and those that are forecast without their like."""
    for scheme, column in HELD_OUT.items():
        mine = rows[rows["scheme"] == scheme]
        for value, part in mine.groupby(column, sort=True):
            yield rows[rows[column] != value], part


def check(rows: pd.DataFrame) -> Checked:
    """Fit one quantity, and see how intervals do on rows that they were made without."""
    parts = []
    for kept, out in _without(rows):
        if len(kept) >= LEAST_ROWS:
            quantiles = _quantiles(cells(kept), out)
            parts.append(out.assign(q10=quantiles[:, 0], q50=quantiles[:, 1], q90=quantiles[:, 2]))
    if not parts:
        raise InputError("all rows of the table are of one group: none can be held out")
    seen = pd.concat(parts)
    seen["part"] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    off = seen["log_ratio"] - seen["q50"]
    side = np.where(off > 0, seen["q90"] - seen["q50"], seen["q50"] - seen["q10"])
    seen["score"] = np.abs(off) / np.maximum(side, 1e-9)
    seen["stretch"] = 1.0
    for part in range(len(parts)):
        mine = seen["part"] == part
        factors = _stretches(seen[~mine])
        places = zip(seen.loc[mine, "ground"], seen.loc[mine, "place"], strict=True)
        seen.loc[mine, "stretch"] = [_factor(factors, *place) for place in places]
    seen["inside"] = seen["score"] <= seen["stretch"]
    seen["low"] = seen["q50"] - seen["stretch"] * (seen["q50"] - seen["q10"])
    seen["high"] = seen["q50"] + seen["stretch"] * (seen["q90"] - seen["q50"])
    return Checked(_scatter(rows, seen, _stretches(seen)), seen)


def _stretches(seen: pd.DataFrame) -> Mapping[tuple[str, ...], float]:
    """Give the factors that put four fifths of the figures inside their intervals.

    One for all, for each ground, and for each system on it: each pulled to the one before.
    """
    found: dict[tuple[str, ...], float] = {(): _quantile(seen["score"])}
    for columns in (["ground"], ["ground", "place"]):
        for key, part in seen.groupby(columns, sort=True):
            path = cast("tuple[str, ...]", key)
            of_a_system = len(columns) > 1
            if len(part) >= LEAST_ROWS and not (of_a_system and _is_strange(path[0], path[-1])):
                groups, parent = part["group"].nunique(), _factor(found, *path[:-1])
                own = _quantile(part["score"])
                found[path] = (groups * own + PULL * parent) / (groups + PULL)
    return found


def _quantile(scores: "pd.Series[float]") -> float:
    found = float(np.quantile(scores, AIM, method="weibull"))
    return float(np.clip(found, LEAST_STRETCH, MOST_STRETCH))


def _factor(factors: Mapping[tuple[str, ...], float], *path: str) -> float:
    """Give the factor of the most special known part of the data."""
    return next(factors[path[:n]] for n in range(len(path), -1, -1) if path[:n] in factors)


def _scatter(
    rows: pd.DataFrame, seen: pd.DataFrame, stretch: Mapping[tuple[str, ...], float]
) -> QuantityScatter:
    regimes = {}
    for key, (quantiles, count, groups) in cells(rows).items():
        parts = key.split("/")
        factor = _factor(stretch, *parts[1:2], *parts[3:4])
        middle = quantiles[1]
        low, high = middle + factor * (quantiles[[0, 2]] - middle)
        regimes[key] = Scatter(
            q10=_rounded(low), q50=_rounded(middle), q90=_rounded(high), rows=count, groups=groups
        )
    coverage = {"all": _rounded(float(seen["inside"].mean()))}
    coverage |= {str(name): _rounded(float(part.mean())) for name, part in _by_system(seen)}
    shared = _rounded(shared_fraction(rows))
    return QuantityScatter(regimes=regimes, shared_fraction=shared, coverage=coverage)


def _by_system(seen: pd.DataFrame) -> Iterator[tuple[Hashable, "pd.Series[bool]"]]:
    yield from seen.groupby("system")["inside"]


def _rounded(value: float) -> float:
    return round(float(value), 4)


def shared_fraction(rows: pd.DataFrame) -> float:
    """Give the part of the variance of log ratios that the rows of a group have in common.

    The intraclass correlation of a one-way analysis of variance; log ratios beyond the 2nd and
    98th percentile count as these, lest a few outliers decide.
    """
    z = rows["log_ratio"].clip(*np.quantile(rows["log_ratio"], (0.02, 0.98)))
    grouped = z.groupby(rows["group"])
    sizes, means = grouped.size().to_numpy(float), grouped.mean().to_numpy()
    count, total = len(sizes), float(sizes.sum())
    if count < 2 or total <= count:
        return 0.0
    between = float(np.sum(sizes * (means - float(z.mean())) ** 2)) / (count - 1)
    within = float(((z - grouped.transform("mean")) ** 2).sum()) / (total - count)
    typical = (total - float(np.sum(sizes**2)) / total) / (count - 1)
    variance = max((between - within) / typical, 0.0)
    return variance / (variance + within) if variance + within > 0 else 0.0


def correlation(rows: pd.DataFrame) -> float:
    """Give the rank correlation of the errors of TTFT and TPOT of the same run and scheme."""
    times = rows[rows["quantity"].isin(("tpot", "ttft"))]
    wide = times.pivot_table(index=["row_id", "scheme"], columns="quantity", values="log_ratio")
    if not {"tpot", "ttft"} <= set(wide.columns) or len(wide.dropna()) < LEAST_ROWS:
        return 0.0
    ranks = wide.dropna().rank()
    return _rounded(float(ranks["tpot"].corr(ranks["ttft"])))


def fit(table: pd.DataFrame, source: str) -> tuple[Residuals, pd.DataFrame]:
    """Fit all quantities of a table.

    Returns
    -------
    residuals : Residuals
    rows : DataFrame
        Each row with the interval of its log ratio that was made without it, and ``inside``. No
        part of the fit are those on chips whose kernels were not measured, of scheme ``prior``,
        and, of scheme ``unfit``, those that overheads are not fitted to either
        (`sim.calibration.overhead_fit.UNFIT`) and those whose lengths are assumed: near a system's
        capacity a few percent of them decide, and a scenario states its own.
    """
    everything = prepared(table)
    prior = everything["kernel_spread_fraction"].fillna(0.0) > 0
    unknown = everything["assumed"].str.contains(LENGTHS)
    unfit = (everything["source"].isin(UNFIT) | unknown) & ~prior
    rows = everything[~prior & ~unfit]
    checked: dict[Quantity, Checked] = {
        quantity: check(rows[rows["quantity"] == quantity])
        for quantity in QUANTITIES
        if (rows["quantity"] == quantity).any()
    }
    residuals = Residuals(
        about="How far measured serving runs lie from forecasts: quantiles of log(measured / "
        "forecast) by regime.",
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        method="quantiles of each regime, pulled to the regime above it with the weight of "
        f"{PULL:g} groups, and stretched until {AIM:.0%} of the figures lie inside intervals "
        "made without their group, model or system; coverage is that of such intervals",
        source=source,
        quantities={quantity: each.scatter for quantity, each in checked.items()},
        correlation=correlation(rows),
    )
    seen = pd.concat([each.rows for each in checked.values()])
    strange = (
        strangers(everything[left_out], residuals, scheme)
        for scheme, left_out in (("prior", prior), ("unfit", unfit))
    )
    return residuals, pd.concat([seen, *strange])


def strangers(rows: pd.DataFrame, residuals: Residuals, scheme: str) -> pd.DataFrame:
    """See how intervals do on rows that were no part of the fit.

    On chips whose kernels were not measured, the error is that of borrowed ground, and that of the
    prior of their family on top.
    """
    known = rows[rows["quantity"].isin(residuals.quantities)]
    found = [
        spread_of(
            residuals,
            row["quantity"],
            Regime(
                row["arrivals"],
                row["ground"],
                row["load_ratio"],
                row["system"],
                row["kernel_spread_fraction"],
            ),
        )
        for row in known.to_dict("records")
    ]
    ends = known.assign(
        low=[each.low for each in found], high=[each.high for each in found], scheme=scheme
    )
    return ends.assign(inside=ends["log_ratio"].between(ends["low"], ends["high"]))


def report(seen: pd.DataFrame) -> str:
    """Lay out for people how many figures lie inside intervals made without them."""
    lines = []
    held_out = seen[seen["scheme"].isin(HELD_OUT)]
    for columns in (["quantity"], ["quantity", "scheme"], ["quantity", "system"]):
        rows = seen if "scheme" in columns else held_out
        found = rows.groupby(columns).agg(
            figures=("inside", "size"),
            inside=("inside", "mean"),
            low=("low", "median"),
            high=("high", "median"),
        )
        found[["low", "high"]] = np.exp(found[["low", "high"]])
        lines += [found.round(3).to_string(), ""]
    lines.append(
        "inside: share within an interval made without the figure's group, model or system; "
        "low, high: median ends of these, measured over forecast"
    )
    return "\n".join(lines)


def write(residuals: Residuals, out: Path) -> Path:
    """Write the file of the catalogue."""
    header = (
        "# Residuals of forecasts. Made by: python -m sim.calibration.scatter TABLE\n"
        "# Do not edit by hand: change the data or the fit and make it again.\n"
    )
    body = yaml.safe_dump(residuals.model_dump(mode="json"), sort_keys=False, width=100)
    path = out / "serving.yaml"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(header + body, encoding="utf-8")
    return path


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of forecasts.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def main(
    table: Annotated[Path, typer.Argument(help="Forecasts of held-out runs, CSV or Parquet.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("hardware/residuals"),
) -> None:
    """Fit residuals by regime and print how many figures lie inside their intervals."""
    found = read_table(table)
    runs = found["row_id"].nunique() if "row_id" in found else 0
    schemes = ", ".join(sorted(map(str, found.get("scheme", pd.Series(dtype=str)).unique())))
    residuals, seen = fit(found, f"{runs} measured runs of {table.name}, held out by: {schemes}")
    typer.echo(report(seen))
    typer.echo(str(write(residuals, out)))


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
