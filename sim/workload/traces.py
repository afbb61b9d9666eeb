"""Recorded traces: arrival times and token lengths of real requests, read from CSV files.

`read_trace` returns one row per request with the columns ``arrival_s``, ``input_tokens`` and
``output_tokens``, then every other column of the file as it stands. Two formats are read:

``plain``
    ``input_tokens``, ``output_tokens`` and one of ``arrival_s``, ``t_s`` (seconds) or ``t_ms``
    (milliseconds), from the start of the trace.
``azure``
    The Azure LLM inference traces of 2023 and 2024 as published: ``TIMESTAMP, ContextTokens,
    GeneratedTokens``. The first arrival becomes time 0.

Nothing is repaired silently. A value that is missing, not a number, negative or not whole is an
error that names its file, line and column; unsorted times and answers without tokens are errors
too, unless `TraceOptions` says what to do with them.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.errors import InputError
from sim.schema import StrictModel
from sim.units import MILLISECOND_S, PositiveInt, Seconds

Floats = NDArray[np.float64]
TraceKind = Literal["plain", "azure"]

_TICKS_PER_S = {"arrival_s": 1.0, "t_s": 1.0, "t_ms": 1 / MILLISECOND_S}
_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
_LARGEST_COUNT = 2.0**53
"""Above this a float no longer tells neighbouring whole numbers apart."""
_FIRST_ROW_LINE = 2
"""The header is line 1."""
_ZERO_OUTPUT = (
    "an answer has at least 1 token; leave failed and cancelled requests out of the file,"
    " or set zero_output: drop"
)
_UNSORTED = "earlier than the row before it; sort the file by time, or set unsorted: sort"


class TraceOptions(StrictModel):
    """Which part of a trace to use, and what to do with its irregular rows.

    The options apply in the order of the fields; the window is in the trace's own time, and its
    start becomes time 0.
    """

    zero_output: Literal["error", "drop"] = "error"
    """Answers of no tokens, such as failed requests: refuse the trace, or leave the rows out."""
    unsorted: Literal["error", "sort"] = "error"
    """Arrivals that go back in time: refuse the trace, or sort it (ties keep their order)."""
    start_s: Seconds = 0.0
    """Leave out earlier arrivals, in seconds of the trace; the window starts the new clock."""
    end_s: Seconds | None = None
    """Leave out arrivals at or after this time, in seconds of the trace; null keeps all."""
    max_requests: PositiveInt | None = None
    """Keep at most this many requests, the earliest; null keeps all."""
    time_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on every arrival time: 0.5 halves the gaps and so doubles the rate."""

    @model_validator(mode="after")
    def _window_is_not_empty(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            msg = f"end_s {self.end_s} must be after start_s {self.start_s}"
            raise ValueError(msg)
        return self


WHOLE_TRACE = TraceOptions()
"""Every row, in the file's own time and order."""


def read_trace(path: Path, kind: TraceKind, options: TraceOptions = WHOLE_TRACE) -> pd.DataFrame:
    r"""Read the requests of a recorded trace.

    Parameters
    ----------
    path : pathlib.Path
        CSV file with a header, plain or compressed (``.gz``, ``.zip``, ``.xz``, ``.zst``).
    kind : {"plain", "azure"}
        Format of the file, see the module.
    options : TraceOptions
        Part of the trace to use and treatment of irregular rows.

    Returns
    -------
    pandas.DataFrame
        ``arrival_s`` (float64, seconds, rising, >= 0), ``input_tokens`` and ``output_tokens``
        (int64, >= 1), then the file's other columns; one row per request.

    Raises
    ------
    InputError
        The file is missing, empty or not such a CSV, or a row is irregular, or nothing is left.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "trace.csv"
    ...     _ = path.write_text("t_ms,input_tokens,output_tokens\n0,10,3\n1500,20,4\n")
    ...     trace = read_trace(path, "plain", TraceOptions(time_scale=2.0))
    >>> trace.arrival_s.tolist(), trace.output_tokens.tolist()
    ([0.0, 3.0], [3, 4])
    """
    table = _Table(path, _read_csv(path))
    time_column, input_column, output_column = _column_names(table, kind)
    arrival_s = table.timestamps(time_column) if kind == "azure" else table.times(time_column)
    input_tokens = table.counts(input_column)
    output_tokens = table.counts(output_column)
    table.reject(input_column, input_tokens < 1, "a prompt has at least 1 token")
    if options.zero_output == "error":
        table.reject(output_column, output_tokens < 1, _ZERO_OUTPUT)
    if options.unsorted == "error":
        table.reject(time_column, np.diff(arrival_s, prepend=arrival_s[0]) < 0, _UNSORTED)
    named = dict(zip(_COLUMNS, (arrival_s, input_tokens, output_tokens), strict=True))
    taken = {time_column, input_column, output_column, *_COLUMNS}
    others = table.frame[[name for name in table.frame.columns if name not in taken]]
    trace = _selected(pd.concat([pd.DataFrame(named), others], axis=1), options)
    if trace.empty:
        raise InputError(f"{path}: no request is left of {len(table.frame)}; widen the window")
    return trace


def _selected(trace: pd.DataFrame, options: TraceOptions) -> pd.DataFrame:
    """Return the part of a trace that the options ask for, on the clock they ask for."""
    trace = trace[trace["output_tokens"] > 0].sort_values("arrival_s", kind="stable")
    end_s = np.inf if options.end_s is None else options.end_s
    inside = (trace["arrival_s"] >= options.start_s) & (trace["arrival_s"] < end_s)
    trace = trace[inside].iloc[: options.max_requests].reset_index(drop=True)
    return trace.assign(arrival_s=(trace["arrival_s"] - options.start_s) * options.time_scale)


@dataclass(frozen=True)
class _Table:
    """A CSV file's rows, and the checks that name its lines."""

    path: Path
    frame: pd.DataFrame

    def column(self, name: str) -> "pd.Series[Any]":
        """Return a column that must be there."""
        if name not in self.frame.columns:
            present = ", ".join(map(str, self.frame.columns))
            raise InputError(f"{self.path}:1: no column {name!r}; the header has: {present}")
        return self.frame[name]

    def numbers(self, name: str) -> Floats:
        """Return a column of finite numbers."""
        column = self.column(name)
        # A column of "True" and "False" alone is read as truth values, which count as 1 and 0.
        text = column.astype(str) if column.dtype == bool else column
        numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
        self.reject(name, ~np.isfinite(numbers), "not a finite number")
        return numbers

    def counts(self, name: str) -> NDArray[np.int64]:
        """Return a column of whole numbers that are not negative."""
        numbers = self.numbers(name)
        self.reject(name, numbers < 0, "a number of tokens cannot be negative")
        whole = (numbers == np.floor(numbers)) & (numbers <= _LARGEST_COUNT)
        self.reject(name, ~whole, "a number of tokens must be whole, and below 2^53")
        return numbers.astype(np.int64)

    def times(self, name: str) -> Floats:
        """Return a column of times in seconds from the start of the trace."""
        numbers = self.numbers(name)
        self.reject(name, numbers < 0, "times count from the start of the trace, at 0 or later")
        return numbers / _TICKS_PER_S[name]

    def timestamps(self, name: str) -> Floats:
        """Return a column of dates and times of day as seconds from the earliest."""
        text = self.column(name).astype(str)
        moments = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
        self.reject(name, moments.isna().to_numpy(), "not a time such as 2023-11-16 18:15:46.68059")
        return np.asarray((moments - moments.min()).dt.total_seconds(), dtype=np.float64)

    def reject(self, name: str, bad: NDArray[np.bool_], why: str) -> None:
        """Raise `InputError` naming the first bad row of a column, if there is one."""
        if not bad.any():
            return
        row = int(np.argmax(bad))
        more = f" ({int(bad.sum())} such rows)" if bad.sum() > 1 else ""
        where = f"{self.path}:{row + _FIRST_ROW_LINE}: {name}"
        value = self.frame[name].iloc[row]
        shown = "nothing" if pd.isna(value) else f"'{value}'"
        raise InputError(f"{where}: {shown}: {why}{more}")


def _column_names(table: _Table, kind: TraceKind) -> tuple[str, str, str]:
    """Return the names of the time, input and output columns."""
    if kind == "azure":
        return "TIMESTAMP", "ContextTokens", "GeneratedTokens"
    times = [name for name in _TICKS_PER_S if name in table.frame.columns]
    if len(times) != 1:
        found = " and ".join(times) or "none"
        expected = ", ".join(_TICKS_PER_S)
        present = ", ".join(map(str, table.frame.columns))
        raise InputError(
            f"{table.path}:1: needs exactly one time column of {expected}; found {found}."
            f" The header has: {present}"
        )
    return times[0], "input_tokens", "output_tokens"


def _read_csv(path: Path) -> pd.DataFrame:
    """Return the rows of a CSV file, row i on line i + 2; blank lines at the end do not count."""
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
    return frame.loc[:last]
