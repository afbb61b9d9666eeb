"""The validation report: how far forecasts of measured serving runs are off, held out three ways.

::

    python -m sim.report.validation RUNS.csv --out reports

writes ``validation.md``, ``validation.csv`` (the errors behind its tables) and three charts. With
``--forecasts TABLE.parquet`` the forecasts of all runs, which take most of the time, are kept, or
read again if they are there.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import typer

from sim.calibration import noise
from sim.calibration.holdouts import SCHEMES, held_out_forecasts, summary
from sim.calibration.overhead_fit import UNFIT
from sim.calibration.overheads import every, usable
from sim.calibration.report import markdown_table
from sim.calibration.responses import responses
from sim.calibration.runs import MeasuredRun, Skipped, read_runs
from sim.calibration.scatter import HELD_OUT
from sim.calibration.scatter import fit as fit_scatter
from sim.catalog import Catalog, open_catalog
from sim.errors import exit_on_error
from sim.report.charts.validation import draw


class Target(NamedTuple):
    """Median errors that a way of holding out is meant to stay below."""

    tpot: float
    ttft: float
    throughput: float


TARGETS: Mapping[str, Target] = {
    "random": Target(0.07, 0.15, 0.08),
    "leave_model_out": Target(0.12, 0.20, 0.12),
    "leave_system_out": Target(0.15, 0.25, 0.15),
}
SCHEME_NAMES: Mapping[str, str] = {
    "fitted": "none (in-sample)",
    "random": "random fifths of the rows",
    "leave_model_out": "one model at a time",
    "leave_system_out": "one system at a time",
}
PEERS: tuple[tuple[str, str, str, str], ...] = (
    (
        "aiconfigurator 0.12, on its own 5,221 public runs, of which it answers about half",
        "TPOT about 16 %",
        "TTFT about 47 %",
        "its kernels and constants were made for these runs",
    ),
    (
        "BLIS (inference-sim), 36 held-out vLLM runs",
        "ITL 7.1 %",
        "TTFT 17.6 %",
        "end to end 6.7 %; errors as published, means",
    ),
)
"""What others say of themselves, or were seen to do: no common set of runs lies behind it."""


def forecasts_of(
    runs_csv: Path, catalog: Catalog, kept: Path | None, jobs: int, stride: int
) -> pd.DataFrame:
    """Forecast runs on measured chips under every scheme, or read what was kept."""
    if kept is not None and kept.exists():
        return pd.read_parquet(kept)
    runs = every(usable(read_runs(runs_csv, catalog), catalog), stride)
    found = list(responses(runs, catalog, jobs))
    table = held_out_forecasts(found, catalog)
    if kept is not None:
        table.to_parquet(kept)
    return table


class Described(NamedTuple):
    """What the file of runs tells by itself."""

    covered: str
    """How many runs can be forecast, and why others cannot."""
    noise: pd.DataFrame
    """From `sim.calibration.noise.pairs`, of runs of quality A or B."""


def described(runs_csv: Path, catalog: Catalog) -> Described:
    """Read all runs for what needs no forecast."""
    quality = pd.read_csv(runs_csv, usecols=["row_id", "quality"], dtype=str)
    wanted = set(quality.loc[quality["quality"].isin(("A", "B")), "row_id"])
    runs = [run for run in read_runs(runs_csv, catalog) if run.row_id in wanted]
    reasons = [run.reason for run in runs if isinstance(run, Skipped)]
    why = pd.Series(reasons, dtype=str).value_counts()
    told = "; ".join(f"{count} x {reason}" for reason, count in why.items())
    share = 1 - len(reasons) / max(len(wanted), 1)
    covered = (
        f"{len(wanted):,} runs are of quality A or B; {share:.1%} of them can be forecast ({told})."
    )
    return Described(covered, noise.pairs(run for run in runs if isinstance(run, MeasuredRun)))


def _noise_rows(found: pd.DataFrame) -> Iterator[Sequence[object]]:
    table = noise.floors(found, ["engine"])
    for row in table.to_dict("records"):
        yield (
            row["quantity"],
            row["engine"],
            row["kind"],
            row["pairs"],
            _percent(row["median_fraction"]),
            _percent(row["p90_fraction"]),
            _percent(row["floor_fraction"]),
        )


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _scheme_rows(table: pd.DataFrame) -> Iterator[Sequence[object]]:
    order = {name: place for place, name in enumerate((*SCHEMES, "tpot", "ttft", "throughput"))}
    found = summary(table).to_dict("records")
    for row in sorted(found, key=lambda row: (order[row["scheme"]], order[row["quantity"]])):
        target = TARGETS.get(row["scheme"])
        wanted = None if target is None else float(getattr(target, row["quantity"]))
        yield (
            SCHEME_NAMES[row["scheme"]],
            row["quantity"],
            row["runs"],
            _percent(row["median_ape"]),
            _percent(row["p90_ape"]),
            f"{row['bias']:+.1%}",
            "" if wanted is None else _percent(wanted),
            "" if wanted is None else _met(row["median_ape"], wanted),
        )


def _well_told(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out what tells little of a forecaster that knows its case.

    Runs of a source that nothing is fitted to, runs whose lengths are guesses, and engines met on
    one system only where that system is left out: they then take the law of other releases.
    """
    unseen = table["source"].isin(UNFIT) | table["assumed"].str.contains("lengths")
    systems = table.groupby("overheads")["system"].transform("nunique")
    alone = (table["scheme"] == "leave_system_out") & (systems == 1)
    return table[~unseen & ~alone]


def _met(error: float, target: float) -> str:
    return "yes" if error <= target else "no"


def _by(table: pd.DataFrame, column: str) -> str:
    found = summary(table[table["scheme"] == "random"], [column]).to_dict("records")
    cells: dict[str, dict[str, str]] = {}
    for row in found:
        told = f"{row['median_ape']:.1%}, p90 {row['p90_ape']:.0%} ({row['runs']})"
        cells.setdefault(str(row[column]), {})[row["quantity"]] = told
    heading = (column, "TPOT", "TTFT", "throughput")
    return markdown_table(
        heading,
        [
            [key, *(cells[key].get(quantity, "") for quantity in ("tpot", "ttft", "throughput"))]
            for key in sorted(cells)
        ],
    )


def _interval_rows(seen: pd.DataFrame) -> Iterator[Sequence[object]]:
    for quantity, part in seen.groupby("quantity"):
        fitted = part[part["scheme"].isin(HELD_OUT)]
        yield quantity, "all", len(fitted), _percent(float(fitted["inside"].mean()))
        for system, mine in fitted.groupby("system"):
            yield quantity, system, len(mine), _percent(float(mine["inside"].mean()))
        unfit = part[part["scheme"] == "unfit"]
        if len(unfit):
            inside = _percent(float(unfit["inside"].mean()))
            yield quantity, "runs no interval is fitted to", len(unfit), inside


def _unfit() -> Iterator[str]:
    """Say which runs are no part of the fit of intervals, and why."""
    for source, reason in UNFIT.items():
        yield (
            f"Nothing is fitted to runs of {source}: {reason}. The first table counts them, the "
            "second does not."
        )
    yield (
        "Nor are intervals fitted to runs whose lengths had to be assumed, as those of MLPerf: "
        "near a system's capacity a few percent of them decide, and a scenario states its own."
    )


def text_of(table: pd.DataFrame, seen: pd.DataFrame, source: str, told: Described) -> str:
    """Write the report.

    Parameters
    ----------
    table : DataFrame
        From `sim.calibration.holdouts.held_out_forecasts`.
    seen : DataFrame
        From `sim.calibration.scatter.fit`: intervals, and whether they held.
    source : str
        Of the runs.
    told : Described
        From `described`.
    """
    runs = table["row_id"].nunique()
    scheme_heading = ["held out", "figure", "runs", "median", "p90", "bias", "target", "met"]
    sections = [
        "# Validation",
        f"Made by `python -m sim.report.validation RUNS.csv --out reports`, Rackcast "
        f"{version('rackcast')}, from {source}: {runs} measured runs of quality A or B on chips "
        "whose kernels were measured. Each was simulated as it was done. Errors are |forecast / "
        "measured - 1|; the kernels were fitted to kernel measurements alone and are the same in "
        "every row of the table. What is fitted to serving runs, seven numbers per engine and chip "
        "family, is fitted anew each time without what is held out, and the forecast follows to "
        "first order; runs were simulated in full at the fitted laws of all runs. What the client "
        "of InferenceX adds was fitted once for all engines and chips, and not anew.",
        told.covered,
        markdown_table(scheme_heading, _scheme_rows(table)),
        "The same without the source that nothing is fitted to and without runs whose lengths are "
        "guesses (both are named under *80 % intervals*); with one system at a time left out also "
        "without engines that were measured on that system only, such as vLLM of 2024: no run "
        "elsewhere tells how fast they are, and releases differ as the section on measurements "
        "says.",
        markdown_table(scheme_heading, _scheme_rows(_well_told(table))),
        "![Forecast against measured](validation_forecasts.png)",
        "## By system, random fifths held out",
        "Median, 90th percentile and number of figures.",
        _by(table, "system"),
        "## By engine and version",
        _by(table, "preset"),
        "## By model",
        _by(table, "model"),
        "## By source",
        _by(table, "source"),
        "![Errors by regime](validation_regimes.png)",
        "## What measurements differ by among themselves",
        "Pairs of runs that nothing tells apart but chance, or the release of the engine, and by "
        "how much the larger exceeds the smaller. One law per engine cannot tell releases apart: "
        "its best answer to such a pair is off by the last column in the median.",
        markdown_table(
            ["figure", "engine", "pairs of", "pairs", "median", "p90", "best single answer"],
            _noise_rows(told.noise),
        ),
        "## 80 % intervals",
        "Each interval was made without the figure's group, model or system; 80 % should lie "
        "inside.",
        *_unfit(),
        markdown_table(["figure", "system", "figures", "inside"], _interval_rows(seen)),
        "![Calibration of the intervals](validation_intervals.png)",
        "## Beside peers",
        "No common set of runs lies behind these figures; they are what others publish of "
        "themselves or were seen to do.",
        markdown_table(["who", "per token", "first token", "note"], PEERS),
    ]
    return "\n\n".join(sections) + "\n"


def main(
    runs_csv: Annotated[Path, typer.Argument(help="Measured serving runs.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("reports"),
    forecasts: Annotated[
        Path | None, typer.Option(help="Parquet of all forecasts, kept or read again.")
    ] = None,
    stride: Annotated[int, typer.Option("--every", min=1, help="Take every so many runs.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    source: Annotated[str, typer.Option(help="What the runs are.")] = "",
) -> None:
    """Write the report, its figures and its charts."""
    catalog = open_catalog()
    table = forecasts_of(runs_csv, catalog, forecasts, jobs, stride)
    _, seen = fit_scatter(table, source or runs_csv.name)
    out.mkdir(parents=True, exist_ok=True)
    text = text_of(table, seen, source or runs_csv.name, described(runs_csv, catalog))
    (out / "validation.md").write_text(text, encoding="utf-8")
    summary(table, ["system", "preset", "model"]).to_csv(
        out / "validation.csv", index=False, float_format="%.4f"
    )
    for name, image in draw(table, seen[seen["scheme"].isin(HELD_OUT)]).items():
        (out / f"{name}.png").write_bytes(image)
    typer.echo(str(out / "validation.md"))


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
