"""Recorded traces: arrival times, token lengths and contents of real requests.

`read_trace` returns one row per request with the columns ``arrival_s``, ``input_tokens`` and
``output_tokens``, then those of ``tenant``, ``priority``, ``session``, ``turn``, ``max_tokens``,
``encode_tokens`` and ``content`` that the trace has, then every other column of the file as it
stands. The formats:

``plain``
    CSV: ``input_tokens``, ``output_tokens`` and one of ``arrival_s``, ``t_s`` (seconds) or
    ``t_ms`` (milliseconds), from the start of the trace. Optional: ``tenant``, ``priority``
    (smaller first), ``session``, ``turn`` (from 0), ``max_tokens``, ``encode_tokens`` and
    ``block_ids`` (such as ``0-13 27``, equal ids for equal tokens). Where there are sessions but
    no block ids, each prompt of a session begins with all that was said in it before. A column
    that looks like one of these, misspelt, is an error; others are kept and mean nothing.
``azure``
    The Azure LLM inference traces of 2023 and 2024 as published: ``TIMESTAMP, ContextTokens,
    GeneratedTokens``. The first arrival becomes time 0.
``mooncake``
    The Mooncake traces as published, JSON lines of ``timestamp`` (ms), ``input_length``,
    ``output_length`` and ``hash_ids`` (blocks of 512 tokens); or as CSV with ``t_ms``,
    ``input_tokens``, ``output_tokens`` and ``hash_ids`` such as ``0-13 27``.
``bailian``
    The Qwen-Bailian traces as published, JSON lines of ``timestamp`` (s), ``input_length``,
    ``output_length``, ``chat_id``, ``parent_chat_id``, ``turn`` and ``hash_ids`` (16 tokens).
``burstgpt``
    BurstGPT as published: ``Timestamp`` (s), ``Model`` (the tenant), ``Request tokens``,
    ``Response tokens``, and ``Session ID`` in newer releases. Answers of no tokens are failures.
``servegen``
    CSV as resampled from ServeGen: ``t_s``, ``input_tokens``, ``output_tokens`` and ``client``
    (the tenant).

Nothing is repaired silently. A value that is missing, not a number, negative or not whole is an
error that names its file, line and column; unsorted times and answers without tokens are errors
too, unless `TraceOptions` says what to do with them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.errors import InputError
from sim.schema import StrictModel
from sim.seeds import stream
from sim.units import PositiveInt, Seconds
from sim.workload.readers.formats import (
    OPTIONAL_COLUMNS,
    Recorded,
    TraceKind,
    read_recorded,
)

__all__ = ["READ_COLUMNS", "WHOLE_TRACE", "TraceKind", "TraceOptions", "read_trace"]

Floats = NDArray[np.float64]

READ_COLUMNS = frozenset({"arrival_s", "input_tokens", "output_tokens", *OPTIONAL_COLUMNS})
"""Columns of a trace that mean something; all others are kept as they stand."""

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
    block_tokens: PositiveInt | None = None
    """Tokens per block id; those of the format unless given, and 512 in plain files."""
    spread_s: Seconds = 0.0
    """Spread requests that arrive at the same moment over this time after it, for traces whose
    clock is coarse: Mooncake's ticks every 3 s."""
    spread: Literal["even", "random"] = "even"
    """Spread them at equal distances, or at random, in the order of the file either way."""
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


def read_trace(
    path: Path, kind: TraceKind, options: TraceOptions = WHOLE_TRACE, seed: int = 0
) -> pd.DataFrame:
    r"""Read the requests of a recorded trace.

    Parameters
    ----------
    path : pathlib.Path
        CSV with a header or JSON lines, plain or compressed (CSV: ``.gz``, ``.zip``, ``.xz``,
        ``.zst``; JSON lines: ``.gz``, ``.xz``).
    kind : str
        Format of the file, see the module.
    options : TraceOptions
        Part of the trace to use and treatment of irregular rows.
    seed : int
        For ``spread: random``.

    Returns
    -------
    pandas.DataFrame
        ``arrival_s`` (float64, seconds, rising, >= 0), ``input_tokens`` and ``output_tokens``
        (int64, >= 1), then the other columns, see the module; one row per request. ``content``
        holds one `sim.workload.content.Content` each.

    Raises
    ------
    InputError
        The file is missing, empty or not in that format, or a row is irregular, or nothing is
        left.

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
    recorded = read_recorded(path, kind, options.block_tokens)
    _check(recorded, options)
    trace = _selected(_frame(recorded), options, seed)
    if trace.empty:
        rows = len(recorded.arrival_s)
        raise InputError(f"{path}: no request is left of {rows}; widen the window")
    return trace


def _check(recorded: Recorded, options: TraceOptions) -> None:
    """Refuse irregular rows unless the options say what to do with them."""
    table, answered = recorded.table, recorded.output_tokens > 0
    empty = (recorded.input_tokens < 1) & answered
    table.reject(recorded.input, empty, "a prompt has at least 1 token")
    if options.zero_output == "error":
        table.reject(recorded.output, ~answered, _ZERO_OUTPUT)
    if options.unsorted == "error":
        steps = np.diff(recorded.arrival_s, prepend=recorded.arrival_s[0])
        table.reject(recorded.time, steps < 0, _UNSORTED)


def _frame(recorded: Recorded) -> pd.DataFrame:
    """Put the common columns first, then the others of the file."""
    columns: dict[str, Any] = {
        "arrival_s": recorded.arrival_s,
        "input_tokens": recorded.input_tokens,
        "output_tokens": recorded.output_tokens,
    }
    for name in OPTIONAL_COLUMNS:
        if name in recorded.others:
            values = recorded.others[name]
            columns[name] = _objects(values) if isinstance(values, list) else values
    file = recorded.table.frame
    kept = [name for name in file.columns if name not in {*recorded.taken, *columns}]
    return pd.concat([pd.DataFrame(columns), file[kept]], axis=1)


def _objects(values: list[Any]) -> NDArray[np.object_]:
    """Store texts or tuples as they are; numpy would look inside them."""
    return np.fromiter(values, dtype=np.object_, count=len(values))


def _selected(trace: pd.DataFrame, options: TraceOptions, seed: int) -> pd.DataFrame:
    """Return the part of a trace that the options ask for, on the clock they ask for."""
    trace = trace[trace["output_tokens"] > 0].sort_values("arrival_s", kind="stable")
    if options.spread_s > 0:
        arrival_s = trace["arrival_s"].to_numpy(dtype=np.float64)
        trace = trace.assign(arrival_s=_spread(arrival_s, options, seed))
        trace = trace.sort_values("arrival_s", kind="stable")
    end_s = np.inf if options.end_s is None else options.end_s
    inside = (trace["arrival_s"] >= options.start_s) & (trace["arrival_s"] < end_s)
    trace = trace[inside].iloc[: options.max_requests].reset_index(drop=True)
    return trace.assign(arrival_s=(trace["arrival_s"] - options.start_s) * options.time_scale)


def _spread(arrival_s: Floats, options: TraceOptions, seed: int) -> Floats:
    """Move requests of one moment to different ones; the first of evenly spread ones stays."""
    _, group, counts = np.unique(arrival_s, return_inverse=True, return_counts=True)
    if options.spread == "random":
        parts = stream(seed, "spread").random(len(arrival_s))
        parts = parts[np.lexsort((parts, group))]
    else:
        first = np.append(0, np.cumsum(counts))[:-1]
        parts = (np.arange(len(arrival_s)) - first[group]) / counts[group]
    return np.asarray(arrival_s + options.spread_s * parts)
