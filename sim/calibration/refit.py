"""``rackcast calibrate``: refit kernels and engine overheads to one's own measurements."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sim.calibration.fit import fit_file
from sim.calibration.holdouts import held_out_forecasts, summary
from sim.calibration.overheads import calibrated, known_laws, usable, write_overheads
from sim.calibration.responses import responses
from sim.calibration.runs import MeasuredRun, read_runs
from sim.calibration.subjects import read_subjects, shipped_subjects
from sim.catalog import Catalog
from sim.efficiency import Calibration
from sim.errors import InputError
from sim.simulate import Progress

FEWEST = 5
"""Fewer runs leave nothing to hold out."""


SUBJECTS = "subjects.yaml"
"""What ``rackcast measure`` says of the chip that it measured, beside the rows."""


def refit_kernels(
    data_dir: Path, accelerator: str | None, catalog: Catalog, out: Path
) -> tuple[Path, Calibration]:
    """Fit the laws of a chip's kernels and collectives, and write them to a catalogue.

    Parameters
    ----------
    data_dir : Path
        Folder with ``comms.csv`` and ``kernels/*.csv``; the ``subjects.yaml`` that it may have says
        what the chip is called in them, else the shipped table does.
    accelerator : str, optional
        Id of the chip.
    catalog : Catalog
    out : Path
        Folder of a catalogue.

    Raises
    ------
    InputError
        No chip is named, or it has no measurements there.
    """
    own = data_dir / SUBJECTS
    table = read_subjects(own) if own.exists() else shipped_subjects()
    if accelerator is None:
        raise InputError(
            f"--kernels {data_dir}: which chip was measured? Say --accelerator ID: "
            f"{', '.join(sorted(table.subjects))}"
        )
    return fit_file(data_dir, accelerator, catalog, table, out / "hardware" / "calibrations")


def own_runs(files: Sequence[Path], catalog: Catalog, system: str | None) -> list[MeasuredRun]:
    """Read the runs of some files that a fit can use, of one system if asked.

    Raises
    ------
    InputError
        There are too few.
    """
    read = [run for path in files for run in read_runs(path, catalog)]
    runs = [run for run in usable(read, catalog) if system is None or run.case.system == system]
    if len(runs) < FEWEST:
        where = "" if system is None else f" on {system}"
        raise InputError(
            f"{files[0]}: {len(runs)} of {len(read)} runs can be fitted to{where}, and at least "
            f"{FEWEST} are needed: of quality A or B, with a figure, on a chip whose kernels were "
            "measured; `rackcast validate` says why others are left out"
        )
    return runs


def refit(
    runs: Sequence[MeasuredRun],
    catalog: Catalog,
    out: Path,
    jobs: int,
    progress: Progress | None = None,
) -> tuple[list[Path], pd.DataFrame]:
    """Fit, write the files, and forecast each run without having fitted to it.

    Returns
    -------
    paths : list of Path
    errors : DataFrame
        As shipped, fitted, and of random fifths held out.
    """
    shipped = pd.DataFrame(
        {
            "scheme": "as shipped",
            "quantity": quantity,
            "measured": measured,
            "forecast": response.forecasts[quantity],
        }
        for response in responses(runs, catalog, jobs, progress)
        for quantity, measured in response.run.measured.items()
    )
    files, found = calibrated(runs, catalog, jobs, progress)
    tried = held_out_forecasts(found, catalog, ("fitted", "random"), known_laws(catalog))
    folder = out / "hardware" / "overheads"
    paths = [write_overheads(name, each, folder) for name, each in files.items()]
    return paths, summary(pd.concat([shipped, tried], ignore_index=True))


def report(paths: Sequence[Path], errors: pd.DataFrame, runs: int) -> str:
    """Lay the result out for people."""
    table = errors.copy()
    table[["median_ape", "p90_ape", "bias"]] = table[["median_ape", "p90_ape", "bias"]].map(
        "{:+.1%}".format
    )
    lines = [f"{runs} runs; errors as shipped, fitted, and of random fifths held out:", ""]
    lines += [table.to_string(index=False), ""]
    lines += [f"wrote {path}" for path in paths]
    lines.append("use it with --catalog, and compare: rackcast validate RUNS.csv --catalog OUT")
    return "\n".join(lines)
