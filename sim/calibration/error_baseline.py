"""The errors of many runs in a table, and beside the medians that somebody committed earlier.

The file of a baseline, as it is written by `Baseline.text`::

    about: Median absolute percentage errors of measured runs, as fractions.
    version: 0.1.0
    date: 2026-11-21
    slack: 0.02
    medians:
      - {quantity: tpot, runs: 24, median_ape: 0.0412}
      - {quantity: tpot, column: hardware, value: "H100-SXM-80GB", runs: 8, median_ape: 0.0533}
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

import pandas as pd
from pydantic import Field, PositiveInt, model_validator

from sim.calibration.runs import QUANTITIES, Quantity
from sim.calibration.verdicts import RunRecord
from sim.errors import InputError
from sim.schema import StrictModel, did_you_mean, load_yaml, problem_line, validate

SLACK = 0.02
"""How much worse a median may be than the baseline's, unless it is said: 10 % after 8 %."""
DIGITS = 4
"""Of the medians in a file."""

Group = tuple[str, str] | None
"""A column and the value that all runs of the group have in it; None: all runs."""


class Errors:
    """Forecasts beside measurements, of any number of runs.

    Parameters
    ----------
    records : iterable of RunRecord
        One per run.
    """

    def __init__(self, records: Iterable[RunRecord]) -> None:
        self.rows = pd.DataFrame([row for record in records for row in _rows(record)])

    def groups(self, columns: Sequence[str]) -> Iterator[tuple[Quantity, Group, pd.DataFrame]]:
        """Yield the runs of each quantity, all together and then by the values of columns."""
        if self.rows.empty:
            return
        for quantity in QUANTITIES:
            rows = self.rows[self.rows["quantity"] == quantity]
            if not rows.empty:
                yield quantity, None, rows
        for column in columns:
            for quantity in QUANTITIES:
                rows = self.rows[self.rows["quantity"] == quantity]
                for value, part in rows.groupby(f"key {column}"):
                    yield quantity, (column, str(value)), part

    def group(self, quantity: Quantity, group: Group) -> pd.DataFrame:
        """Return the runs of one group; none if it has none."""
        if self.rows.empty:
            return self.rows
        rows = self.rows[self.rows["quantity"] == quantity]
        return rows if group is None else rows[rows[f"key {group[0]}"] == group[1]]

    def table(self, columns: Sequence[str]) -> str:
        """Lay the errors out for people.

        ``bias`` is the median of forecast / measured - 1, ``within`` the share of the runs that are
        within their tolerance, of those that are judged.
        """
        tables: dict[str, list[dict[str, object]]] = {}
        for quantity, group, rows in self.groups(columns):
            column, value = group or ("", "")
            row: dict[str, object] = {"quantity": quantity}
            row |= {column: value} if group is not None else {}
            row |= _figures(rows)
            tables.setdefault(column, []).append(row)
        return "\n\n".join(pd.DataFrame(rows).to_string(index=False) for rows in tables.values())


def _rows(record: RunRecord) -> Iterator[dict[str, object]]:
    for quantity, (measured, forecast, tolerance, is_near) in record["figures"].items():
        yield {
            **{f"key {name}": value for name, value in record["keys"].items()},
            "quantity": quantity,
            "error": forecast / measured - 1,
            "ape": abs(forecast / measured - 1),
            "within": None if tolerance is None else is_near,
        }


def _figures(rows: pd.DataFrame) -> dict[str, str | int]:
    judged = rows["within"].dropna()
    return {
        "runs": len(rows),
        "median": f"{rows['ape'].median():.1%}",
        "p90": f"{rows['ape'].quantile(0.9):.1%}",
        "bias": f"{rows['error'].median():+.1%}",
        "within": "not judged" if judged.empty else f"{judged.astype(float).mean():.0%}",
    }


class Median(StrictModel):
    """The median error of one quantity over some runs."""

    quantity: Quantity
    column: str | None = None
    """Key of the runs that the group is formed by; all runs without."""
    value: str | None = None
    """What the runs of the group have there."""
    runs: PositiveInt
    """How many runs the median is of."""
    median_ape: Annotated[float, Field(ge=0)]
    """Median of |forecast / measured - 1|."""

    @model_validator(mode="after")
    def _column_and_value_go_together(self) -> Self:
        if (self.column is None) != (self.value is None):
            raise ValueError("give column and value, or neither")
        return self

    @property
    def group(self) -> Group:
        """Which runs."""
        return None if self.column is None or self.value is None else (self.column, self.value)

    @property
    def name(self) -> str:
        """What messages call it."""
        of = f" of {self.column} {self.value}" if self.column is not None else ""
        return f"{self.quantity}{of}"


class Baseline(StrictModel):
    """Median errors that later forecasts of the same runs may not exceed by more than a slack."""

    about: str
    version: str
    """Release of Rackcast that made the forecasts."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    slack: Annotated[float, Field(ge=0)]
    """How much worse a median may become: a difference of fractions, 0.02 from 8 % to 10 %."""
    medians: Annotated[tuple[Median, ...], Field(min_length=1)]

    @classmethod
    def of(
        cls, errors: Errors, columns: Sequence[str], slack: float, version: str, date: str
    ) -> Self:
        """Take the medians of what was forecast now."""
        medians = [
            Median(
                quantity=quantity,
                column=None if group is None else group[0],
                value=None if group is None else group[1],
                runs=len(rows),
                median_ape=round(float(rows["ape"].median()), DIGITS),
            )
            for quantity, group, rows in errors.groups(columns)
        ]
        about = "Median absolute percentage errors of measured runs, as fractions."
        return cls(about=about, version=version, date=date, slack=slack, medians=tuple(medians))

    def text(self) -> str:
        """Write it as YAML, the same bytes for the same figures."""
        lines = [
            f"about: {json.dumps(self.about)}",
            f"version: {json.dumps(self.version)}",
            f"date: {self.date}",
            f"slack: {self.slack}",
            "medians:",
        ]
        for median in self.medians:
            fields = {name: json.dumps(value) for name, value in median if value is not None}
            cells = ", ".join(f"{name}: {value}" for name, value in fields.items())
            lines.append(f"  - {{{cells}}}")
        return "\n".join(lines) + "\n"

    def worse(self, errors: Errors, slack: float | None = None) -> list[str]:
        """Say which medians are worse than they may be, and where runs are missing.

        Parameters
        ----------
        errors : Errors
            Of all the runs that the baseline was made of.
        slack : float, optional
            In place of that of the file.
        """
        allowed = self.slack if slack is None else slack
        said = (
            _worse(each, errors.group(each.quantity, each.group), allowed) for each in self.medians
        )
        return [line for line in said if line is not None]


def _worse(was: Median, rows: pd.DataFrame, slack: float) -> str | None:
    if len(rows) < was.runs:
        return f"{was.name}: {len(rows)} runs are forecast, {was.runs} in the baseline"
    # The file holds rounded medians: what is written and read back is no worse than itself.
    median = round(float(rows["ape"].median()), DIGITS)
    if median <= round(was.median_ape + slack, DIGITS):
        return None
    return (
        f"{was.name}: median error {median:.1%}, {was.median_ape:.1%} in the baseline, worse by "
        f"more than {slack:.1%}"
    )


def load_baseline(path: Path, columns: Collection[str]) -> Baseline:
    """Read a baseline.

    Parameters
    ----------
    path : Path
    columns : collection of str
        What runs can be grouped by.

    Raises
    ------
    InputError
        The file is wrong, or groups by a column that runs lack.
    """
    located = load_yaml(path)
    baseline = validate(Baseline, located)
    for index, median in enumerate(baseline.medians):
        if median.column is not None and median.column not in columns:
            where = ("medians", index, "column")
            hint = did_you_mean(median.column, columns)
            said = f"runs have no column {median.column!r}{hint}"
            raise InputError(problem_line(located.position(where), where, said))
    return baseline
