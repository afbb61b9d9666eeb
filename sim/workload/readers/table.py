"""Tables of recorded requests, and the checks that name the line and column of a bad value."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.errors import InputError
from sim.units import MILLISECOND_S

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FIRST_ROW_OF_CSV = 2
"""The header is line 1."""
LARGEST_COUNT = 2.0**53
"""Above this a float no longer tells neighbouring whole numbers apart."""


@dataclass(frozen=True)
class Table:
    """The rows of a file, and the checks that name its lines."""

    path: Path
    frame: pd.DataFrame
    first_line: int = FIRST_ROW_OF_CSV
    """Line of the first row."""

    def has(self, name: str) -> bool:
        """Tell whether there is a column."""
        return name in self.frame.columns

    def column(self, name: str) -> "pd.Series[Any]":
        """Return a column that must be there."""
        if name not in self.frame.columns:
            present = ", ".join(map(str, self.frame.columns))
            what = "header" if self.first_line == FIRST_ROW_OF_CSV else "first line"
            raise InputError(f"{self.path}:1: no column {name!r}; the {what} has: {present}")
        return self.frame[name]

    def numbers(self, name: str) -> Floats:
        """Return a column of finite numbers."""
        column = self.column(name)
        # A column of "True" and "False" alone is read as truth values, which count as 1 and 0.
        text = column.astype(str) if column.dtype == bool else column
        numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
        self.reject(name, ~np.isfinite(numbers), "not a finite number")
        return numbers

    def whole(self, name: str, what: str) -> Integers:
        """Return a column of whole numbers of any sign."""
        numbers = self.numbers(name)
        whole = (numbers == np.floor(numbers)) & (np.abs(numbers) <= LARGEST_COUNT)
        self.reject(name, ~whole, f"{what} must be whole, and below 2^53")
        return numbers.astype(np.int64)

    def counts(self, name: str) -> Integers:
        """Return a column of whole numbers that are not negative."""
        numbers = self.numbers(name)
        self.reject(name, numbers < 0, "a number of tokens cannot be negative")
        return self.whole(name, "a number of tokens")

    def times(self, name: str, unit_s: float = 1.0) -> Floats:
        """Return a column of times from the start of the trace, in seconds."""
        numbers = self.numbers(name)
        self.reject(name, numbers < 0, "times count from the start of the trace, at 0 or later")
        # Milliseconds are divided by 1,000, which rounds once; 0.001 itself is rounded already.
        return numbers / (1 / MILLISECOND_S) if unit_s == MILLISECOND_S else numbers * unit_s

    def timestamps(self, name: str) -> Floats:
        """Return a column of dates and times of day as seconds from the earliest."""
        text = self.column(name).astype(str)
        moments = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
        self.reject(name, moments.isna().to_numpy(), "not a time such as 2023-11-16 18:15:46.68059")
        return np.asarray((moments - moments.min()).dt.total_seconds(), dtype=np.float64)

    def texts(self, name: str) -> list[str]:
        """Return a column as text that is there in every row."""
        column = self.column(name)
        self.reject(name, column.isna().to_numpy(), "a name is missing")
        return [str(value) for value in column.tolist()]

    def reject(self, name: str, bad: NDArray[np.bool_], why: str) -> None:
        """Raise `InputError` naming the first bad row of a column, if there is one."""
        if not bad.any():
            return
        row = int(np.argmax(bad))
        more = f" ({int(bad.sum())} such rows)" if bad.sum() > 1 else ""
        value = self.frame[name].iloc[row]
        shown = "nothing" if not isinstance(value, list) and pd.isna(value) else f"'{value}'"
        raise InputError(f"{self.where(row)}: {name}: {shown}: {why}{more}")

    def where(self, row: int) -> str:
        """Say where a row stands: its file and line."""
        return f"{self.path}:{row + self.first_line}"


def read_csv(path: Path, text_columns: tuple[str, ...] = ()) -> Table:
    """Return the rows of a CSV file, row i on line i + 2; blank lines at the end do not count.

    Parameters
    ----------
    path : pathlib.Path
    text_columns : tuple of str
        Columns to keep as text, such as a list of ids, even where all look like numbers.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a CSV file in it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                path,
                skip_blank_lines=False,
                index_col=False,
                low_memory=False,
                encoding="utf-8-sig",
                dtype=dict.fromkeys(text_columns, str),
            )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: is empty; it needs a header and one row per request") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as CSV: {str(error).strip()}") from error
    last = frame.last_valid_index()
    if last is None:
        raise InputError(f"{path}: has a header but no rows; it needs one row per request")
    return Table(path, frame.loc[:last])
