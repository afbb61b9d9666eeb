"""Tables of measured kernels and collectives: CSV files whose cells are checked as columns.

Whatever a fit uses of a file passes here, so that a wrong cell is told with its line and does not
end up in a law.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from sim.errors import InputError
from sim.schema import did_you_mean

FIRST_LINE = 2
"""Line of the first row; the header is line 1."""
TEXT = (
    *("hardware", "framework", "version", "kernel_source", "distribution"),
    *("gemm_dtype", "moe_dtype", "attn_dtype", "mla_dtype", "kv_cache_dtype", "dtype", "kv_dtype"),
    *("op", "kind", "shape", "model", "layer", "implementation", "notes"),
)
"""Columns that stay text even where all of it looks like numbers, such as version 1.0."""

_REPAIR = "correct the row or take it out"


@dataclass(frozen=True)
class Table:
    """Rows of one file, each under the number of its line."""

    path: Path
    frame: pd.DataFrame

    def where(self, chosen: "pd.Series[bool]") -> Self:
        """Keep some of the rows."""
        return type(self)(self.path, self.frame[chosen])

    def checked(
        self,
        *,
        texts: Sequence[str] = (),
        amounts: Sequence[str] = (),
        counts: Sequence[str] = (),
    ) -> Self:
        """Check columns, and turn those of numbers into numbers.

        Parameters
        ----------
        texts
            Columns in which something stands.
        amounts
            Columns of finite numbers greater than 0, such as times.
        counts
            Columns of finite numbers that may be 0.

        Raises
        ------
        InputError
            A column is missing or a cell is wrong; the message names the first one.
        """
        self.need(*texts, *amounts, *counts)
        for name in texts:
            self.refuse(name, self.frame[name].isna(), "must hold a name")
        numbers = {name: self._numbers(name) for name in (*amounts, *counts)}
        for name in amounts:
            self.refuse(name, numbers[name] <= 0, "must be greater than 0")
        for name in counts:
            self.refuse(name, numbers[name] < 0, "must not be negative")
        return type(self)(self.path, self.frame.assign(**numbers))

    def refuse(self, column: str, wrong: "pd.Series[bool]", why: str) -> None:
        """Raise `InputError` for the first wrong cell of a column, if there is one."""
        if not wrong.any():
            return
        row = int(wrong.to_numpy().argmax())
        line, value = self.frame.index[row], self.frame[column].iloc[row]
        text = f"{value:.12g}" if isinstance(value, float) else str(value)
        shown = "the cell is empty; it" if pd.isna(value) else repr(text)
        more = f" ({wrong.sum()} such rows)" if wrong.sum() > 1 else ""
        raise InputError(f"{self.path}:{line}: {column}: {shown} {why}{more}; {_REPAIR}")

    def need(self, *columns: str) -> None:
        """Raise `InputError` if a column is missing."""
        header = [str(name) for name in self.frame.columns]
        missing = [name for name in columns if name not in header]
        if missing:
            hint = did_you_mean(missing[0], header)
            raise InputError(
                f"{self.path}:1: no column {', '.join(missing)}{hint} (the header has "
                f"{', '.join(header)}); rename one or add what was measured"
            )

    def _numbers(self, column: str) -> "pd.Series[Any]":
        cells = self.frame[column]
        text = cells.astype(str) if cells.dtype == bool else cells
        numbers = pd.to_numeric(text, errors="coerce")
        self.refuse(column, cells.isna(), "must be a number")
        self.refuse(column, ~np.isfinite(numbers), "is not a finite number")
        return numbers


def read_table(path: Path, holds: str) -> Table:
    """Read a file whose cells are not checked yet; blank lines do not count.

    Parameters
    ----------
    path
        The file.
    holds
        What its rows are, for messages.

    Raises
    ------
    InputError
        There is no such file, it is empty, or it is no CSV file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                path,
                dtype=dict.fromkeys(TEXT, str),
                encoding="utf-8-sig",
                index_col=False,
                low_memory=False,
                skip_blank_lines=False,
            )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it needs a header and {holds}") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}:1: is empty; it needs a header and {holds}") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as CSV: {str(error).strip()}") from error
    frame.index = pd.RangeIndex(FIRST_LINE, FIRST_LINE + len(frame))
    return Table(path, frame.dropna(how="all"))
