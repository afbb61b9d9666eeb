"""The validation report: how far forecasts of measured serving runs are off, held out three ways.

::

    python -m sim.report.validation RUNS.csv --out reports

writes ``validation.md``, ``validation.csv`` (the errors behind its tables) and three charts. With
``--forecasts TABLE.parquet`` the forecasts of all runs, which take most of the time, are kept, or
read again if they are there; those of the runs that ``--every`` leaves out lie beside it, in
``TABLE_others.parquet``.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from sim.calibration import noise
from sim.calibration.holdouts import held_out_forecasts, summary
from sim.calibration.overheads import every, usable
from sim.calibration.responses import responses
from sim.calibration.runs import MeasuredRun, Skipped, read_runs
from sim.calibration.scatter import HELD_OUT
from sim.calibration.scatter import fit as fit_scatter
from sim.calibration.validate import validate_runs
from sim.catalog import Catalog, open_catalog
from sim.errors import InputError, exit_on_error
from sim.report.charts.validation import draw
from sim.report.validation_text import Described, text_of, with_load


def forecasts_of(
    runs_csv: Path, catalog: Catalog, kept: Path | None, jobs: int, stride: int
) -> pd.DataFrame:
    """Forecast runs on measured chips under every scheme, or read what was kept."""
    if kept is not None and kept.exists():
        return _read(kept)
    runs = every(usable(read_runs(runs_csv, catalog), catalog), stride)
    found = list(responses(runs, catalog, jobs))
    table = held_out_forecasts(found, catalog)
    if kept is not None:
        table.to_parquet(kept)
    return table


def _read(kept: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(kept)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{kept}: no table of forecasts in Parquet: {error}; name another file with "
            "--forecasts, which is made where there is none"
        ) from error


def unseen_of(
    runs_csv: Path, catalog: Catalog, kept: Path | None, jobs: int, stride: int
) -> pd.DataFrame | None:
    """Forecast the runs on measured chips that were left out of the fit, or read what was kept.

    As `rackcast validate` does, with intervals; none if every run was fitted.
    """
    if kept is not None and kept.exists():
        return _read(kept)
    if stride == 1:
        return None
    known = usable(read_runs(runs_csv, catalog), catalog)
    fitted = {run.row_id for run in every(known, stride)}
    rows = validate_runs(
        [run for run in known if run.row_id not in fitted], catalog, jobs=jobs
    ).rows
    if kept is not None:
        rows.to_parquet(kept)
    return rows


def described(runs_csv: Path, catalog: Catalog, command: str) -> Described:
    """Read all runs for what needs no forecast; the command is that which makes the report."""
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
    pairs = noise.pairs(run for run in runs if isinstance(run, MeasuredRun))
    return Described(covered, pairs, command, f"{datetime.now(UTC):%Y-%m-%d}")


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
    beside = None if forecasts is None else forecasts.with_stem(f"{forecasts.stem}_others")
    others = unseen_of(runs_csv, catalog, beside, jobs, stride)
    options = f"--forecasts {forecasts.name} " if forecasts else ""
    command = f"python -m sim.report.validation RUNS.csv {options}--every {stride} --out reports"
    told = described(runs_csv, catalog, command)
    text = text_of(table, seen, source or runs_csv.name, told, others)
    (out / "validation.md").write_text(text, encoding="utf-8")
    summary(table, ["system", "preset", "model"]).to_csv(
        out / "validation.csv", index=False, float_format="%.4f"
    )
    for name, image in draw(with_load(table), seen[seen["scheme"].isin(HELD_OUT)]).items():
        (out / f"{name}.png").write_bytes(image)
    typer.echo(str(out / "validation.md"))


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
