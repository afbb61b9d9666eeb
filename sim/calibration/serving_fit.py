"""Fit all that the catalogue takes from measured serving runs.

::

    python -m sim.calibration.serving_fit RUNS.csv --every 7 --jobs 2 --forecasts HELD_OUT.parquet

writes the overheads of every engine, forecasts of the runs held out in three ways, and from these
the residuals that intervals are made of. ``python -m sim.report.validation`` reads the same
forecasts.
"""

from pathlib import Path
from typing import Annotated

import typer

from sim.calibration import scatter
from sim.calibration.holdouts import held_out_forecasts, summary
from sim.calibration.overhead_fit import fitted_count
from sim.calibration.overheads import ROUNDS, calibrated, every, usable, write_overheads
from sim.calibration.runs import read_runs
from sim.catalog import open_catalog
from sim.errors import exit_on_error

_TOLD_RUNS = 25


def _told(done: int, runs: int) -> None:
    if done % _TOLD_RUNS == 0 or done == runs:
        typer.echo(f"{done} of {runs} runs", err=True)


def main(
    runs_csv: Annotated[Path, typer.Argument(help="Measured serving runs.")],
    forecasts: Annotated[Path, typer.Option(help="Parquet of the forecasts to write.")],
    out: Annotated[Path, typer.Option(help="The catalogue to write to.")] = Path("hardware"),
    stride: Annotated[int, typer.Option("--every", min=1, help="Fit to every so many runs.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Times that runs are simulated.")] = ROUNDS,
) -> None:
    """Fit the shipped overheads of every engine from scratch, then residuals of runs held out."""
    catalog = open_catalog()
    runs = every(usable(read_runs(runs_csv, catalog), catalog), stride)
    files, found = calibrated(runs, catalog, jobs, _told, rounds, from_scratch=True)
    made_by = (
        f"python -m sim.calibration.serving_fit {runs_csv.name} --every {stride}, "
        f"{fitted_count(found)} runs"
    )
    for name, overheads in files.items():
        typer.echo(str(write_overheads(name, overheads, out / "overheads", made_by)))
    table = held_out_forecasts(found, catalog)
    table.to_parquet(forecasts)
    typer.echo(summary(table).to_string())
    told = f"{len(found)} measured runs, held out at random, by model and by system"
    residuals, seen = scatter.fit(table, told)
    typer.echo(scatter.report(seen))
    typer.echo(str(scatter.write(residuals, out / "residuals")))


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
