"""Files of measured runs, one by one or by the folder."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.calibration.runs import MeasuredRun, Skipped, read_runs
from sim.calibration.tolerances import keys_of
from sim.catalog import Catalog
from sim.errors import InputError
from sim.schema import did_you_mean

SUFFIX = ".csv"
_TELLS = "row_id"
"""Column by which a file of measured runs is told from other tables in the same folder."""


@dataclass(frozen=True)
class MeasuredFiles:
    """What some files hold."""

    runs: Mapping[Path, Sequence[MeasuredRun | Skipped]]
    other: Sequence[Path]
    """Tables in the folders that are no measured runs."""

    @property
    def count(self) -> int:
        """How many runs there are."""
        return sum(len(each) for each in self.runs.values())

    @property
    def forecastable(self) -> list[MeasuredRun]:
        """All runs that were not skipped when they were read."""
        every = (run for runs in self.runs.values() for run in runs)
        return [run for run in every if isinstance(run, MeasuredRun)]

    @property
    def columns(self) -> tuple[str, ...]:
        """What the runs can be selected and grouped by; nothing if none can be forecast."""
        return next((tuple(keys_of(run)) for run in self.forecastable), ())

    def check_columns(self, columns: Sequence[str]) -> None:
        """Check that runs can be grouped by some columns.

        Raises
        ------
        InputError
            They have no such column.
        """
        known = self.columns
        for column in columns if known else ():
            if column not in known:
                hint = did_you_mean(column, known)
                raise InputError(f"runs have no column {column!r}{hint}; use {', '.join(known)}")

    def summary(self) -> list[str]:
        """Say in a line or two what there is."""
        skipped = self.count - len(self.forecastable)
        lines = [f"measured runs: {self.count} in {len(self.runs)} files, {skipped} to be skipped"]
        if self.other:
            names = ", ".join(path.name for path in self.other)
            lines.append(f"no measured runs (no column {_TELLS}): {names}")
        return lines


def read_files(paths: Sequence[Path], catalog: Catalog) -> MeasuredFiles:
    """Read measured runs.

    Parameters
    ----------
    paths : sequence of Path
        Files, or folders whose ``.csv`` files are read, those of folders inside included.
    catalog : Catalog

    Raises
    ------
    InputError
        A path is not there, a folder holds no measured runs, a file is wrong, or two runs of a
        file have the same name.
    """
    runs: dict[Path, Sequence[MeasuredRun | Skipped]] = {}
    other: list[Path] = []
    for path in paths:
        found = list(_tables(path))
        mine = [file for file in found if file == path or _is_of_runs(file)]
        if not mine:
            raise InputError(f"{path}: no {SUFFIX} file in this folder has a column {_TELLS}")
        other += [file for file in found if file not in mine]
        for file in mine:
            runs[file] = list(read_runs(file, catalog))
    return MeasuredFiles(runs, other)


def _tables(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(path.rglob(f"*{SUFFIX}"))
    elif path.is_file():
        yield path
    else:
        raise InputError(f"{path}: there is no such file or folder of measured runs")


def _is_of_runs(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        return _TELLS in next(csv.reader(lines), [])
