"""The work of ``rackcast import-runs``: result files in, rows of measured runs out."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.calibration.importers.finish import finished, missing, needs, read_settings, wishes
from sim.calibration.importers.power_log import PowerLog, read_power_log
from sim.calibration.importers.registry import AUTO, read_drafts
from sim.calibration.importers.table import as_csv
from sim.calibration.runs import Skipped, read_runs
from sim.catalog import Catalog
from sim.errors import InputError


@dataclass(frozen=True)
class Imported:
    """Rows made of result files."""

    rows: tuple[dict[str, str], ...]
    notes: tuple[str, ...]
    """What is missing, what is doubtful, and what cannot be forecast, a sentence each."""


def import_runs(
    results: Sequence[Path],
    catalog: Catalog,
    *,
    format_name: str = AUTO,
    settings: Sequence[tuple[str, str]] = (),
    power_log: Path | None = None,
) -> Imported:
    """Turn result files into rows of measured runs, one name each.

    Parameters
    ----------
    results : sequence of Path
    catalog : Catalog
        Tells which of the runs can be forecast.
    format_name : str
        Name of the importer, or ``auto``.
    settings : sequence of (str, str)
        Columns that the files do not tell, and their values.
    power_log : Path, optional
        Readings of power during the run.

    Raises
    ------
    InputError
        Something cannot be read or contradicts itself.
    """
    told = read_settings(settings)
    power = None if power_log is None else read_power_log(power_log)
    drafts = [draft for path in results for draft in read_drafts(path, format_name)]
    _check_power(power, [draft.where for draft in drafts if draft.window is None], len(drafts))
    rows: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for draft in drafts:
        row = finished(draft, told, power)
        if row["row_id"] in rows:
            notes.append(f"{row['source']}: is the run of {rows[row['row_id']]['source']} again")
        rows.setdefault(row["row_id"], row)
    notes += [f"{_name(row)}: {needed}" for row in rows.values() if (needed := needs(row))]
    notes += _wishes(list(rows.values()))
    notes += _not_forecast(rows, catalog)
    return Imported(tuple(rows.values()), tuple(notes))


def _check_power(power: PowerLog | None, untimed: Sequence[str], runs: int) -> None:
    """Refuse one log for several runs where a file does not tell when it ran."""
    if power is not None and untimed and runs > 1:
        raise InputError(
            f"{power.path}: {untimed[0]} does not tell when it ran, so its power cannot be found "
            "among that of several runs; import it alone, with the log of its time"
        )


def _not_forecast(rows: dict[str, dict[str, str]], catalog: Catalog) -> list[str]:
    """Say which rows ``rackcast validate`` leaves out though nothing is missing, and why."""
    told = [row for row in rows.values() if not missing(row)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        path.write_text(as_csv(told), encoding="utf-8", newline="")
        try:
            runs = list(read_runs(path, catalog))
        except InputError as error:
            where = ", ".join(dict.fromkeys(row["source"] for row in told))
            raise InputError(str(error).replace(str(path), where)) from None
    return [
        f"{_name(rows[run.row_id])}: rackcast validate leaves it out: {run.reason}"
        for run in runs
        if isinstance(run, Skipped)
    ]


def _wishes(rows: Sequence[dict[str, str]]) -> list[str]:
    """Say what would make rows better: once, where it is the same for all."""
    told = [(row, wish) for row in rows if (wish := wishes(row))]
    if len(told) == len(rows) and len({wish for _, wish in told}) == 1:
        return [f"all rows: {told[0][1]}"]
    return [f"{_name(row)}: {wish}" for row, wish in told]


def _name(row: dict[str, str]) -> str:
    return f"{row['row_id']} ({row['source']})"
