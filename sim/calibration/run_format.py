"""The format of measured serving runs: one row per run, a column per figure.

A file of measured runs is a CSV with these columns. ``rackcast validate`` reads it, and
`sim.calibration.importers` writes it from the result files of benchmark tools. A cell that is
empty was not told; no figure is ever 0 for want of a better one.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType
from typing import Literal

from sim.errors import InputError
from sim.schema import did_you_mean

Kind = Literal["text", "name", "count", "figure"]
"""What a cell holds: free text, one of a few names, a number of things that is at least 1, or a
positive number."""

Group = Literal["source", "machine", "model and engine", "load", "throughput", "times", "record"]


@dataclass(frozen=True)
class Column:
    """One column of a file of measured runs."""

    name: str
    group: Group
    kind: Kind
    unit: str
    """Unit of the number; empty for text."""
    meaning: str
    names: tuple[str, ...] = ()
    """What a cell of kind ``name`` may hold."""

    def read(self, text: str) -> str:
        """Check a value as a user writes it, and return it without the blanks around it.

        Raises
        ------
        InputError
            It is none; the message names the column and the value.

        Examples
        --------
        >>> COLUMNS["tp"].read(" 8 ")
        '8'
        >>> COLUMNS["tp"].read("eight")
        Traceback (most recent call last):
        sim.errors.InputError: tp: 'eight' is not a number of ranks; write a whole number such as 8
        """
        value = text.strip()
        if self.kind == "text":
            return value
        if self.kind == "name":
            if value not in self.names:
                hint = did_you_mean(value, self.names)
                raise InputError(f"{self.name}: {value!r}{hint}; use {', '.join(self.names)}")
            return value
        self._check_number(value)
        return value

    def _check_number(self, value: str) -> None:
        example = "a whole number such as 8" if self.kind == "count" else "a number such as 12.5"
        try:
            number = float(value)
        except ValueError:
            what = f"a number of {self.unit}" if self.kind == "count" else "a number"
            raise InputError(f"{self.name}: {value!r} is not {what}; write {example}") from None
        least = 1.0 if self.kind == "count" else 0.0
        if not isfinite(number) or number < least or number == 0:
            bound = "at least 1" if self.kind == "count" else "greater than 0"
            raise InputError(f"{self.name}: {value} must be {bound}; write {example}")
        if self.kind == "count" and number != int(number):
            raise InputError(f"{self.name}: {value} is not whole; write {example}")


SCENARIOS: Mapping[str, str] = MappingProxyType(
    {
        "offline": "everything queued at once, or one static batch",
        "server": "open loop at `request_rate_qps`",
        "interactive": "the same, under MLPerf's tighter limits",
        "concurrency": "closed loop with `concurrency` clients",
        "singlestream": "one request after the other",
    }
)
"""Kinds of load, and what each means."""

QUALITIES: Mapping[str, str] = MappingProxyType(
    {
        "A": "audited or fully specified",
        "B": "usable, some setting is not told",
        "C": "incomplete, overloaded, speculative decoding, or prefill and decode apart",
        "D": "kept for the record, not for fitting",
    }
)
"""How far a run can be trusted, best first."""

SPLITS: Mapping[str, str] = MappingProxyType(
    {
        "calibration": "may be fitted to and scored against",
        "context": "for reading alone: quality C or D, or not fully described",
    }
)
"""What a run may be used for."""


def _text(name: str, group: Group, meaning: str) -> Column:
    return Column(name, group, "text", "", meaning)


def _named(name: str, group: Group, names: Mapping[str, str], meaning: str) -> Column:
    return Column(name, group, "name", "", meaning, tuple(names))


def _count(name: str, group: Group, unit: str, meaning: str) -> Column:
    return Column(name, group, "count", unit, meaning)


def _figure(name: str, group: Group, unit: str, meaning: str) -> Column:
    return Column(name, group, "figure", unit, meaning)


def _times(quantity: str, what: str) -> Iterator[Column]:
    """List the columns of a time with its median, 99th percentile and mean."""
    for key, name in (("p50", "median"), ("p99", "99th percentile"), ("mean", "mean")):
        yield _figure(f"{quantity}_{key}_ms", "times", "ms", f"{what}, {name} over requests")


_FORMATS = "bf16, fp16, fp8, fp4, nvfp4, mxfp4, int8 or int4"
_ALL = (
    _text("source", "source", "File, page or publication the run is from"),
    _text("source_date", "source", "Day of the run, such as 2026-03-18"),
    _text("hardware", "machine", "Name of the accelerator, with its memory"),
    _count("num_chips", "machine", "accelerators", "Accelerators that serve the load"),
    _count("tp", "machine", "ranks", "Tensor-parallel ranks of one replica"),
    _count("pp", "machine", "stages", "Pipeline stages of one replica"),
    _count("ep", "machine", "ranks", "Ranks the experts are dealt to"),
    _count("dp", "machine", "ranks", "Replicas, or ranks of attention DP"),
    _text("model", "model and engine", "Name of the model"),
    _text("weight_dtype", "model and engine", f"Number format of the weights: {_FORMATS}"),
    _text("kv_dtype", "model and engine", "Number format of the KV cache, likewise"),
    _text("engine", "model and engine", "Serving engine and its release"),
    _named("scenario", "load", SCENARIOS, "Kind of load"),
    _figure("isl", "load", "tokens", "Mean input tokens of a request"),
    _figure("osl", "load", "tokens", "Mean output tokens of a request"),
    _figure("request_rate_qps", "load", "requests/s", "Rate at which requests arrive"),
    _count(
        "concurrency",
        "load",
        "requests",
        "Requests in the system at once: the clients of a closed loop",
    ),
    _figure("output_tokens_per_s", "throughput", "tokens/s", "Output tokens of the whole system"),
    _figure(
        "total_tokens_per_s",
        "throughput",
        "tokens/s",
        "Input and output tokens of the whole system",
    ),
    _figure("requests_per_s", "throughput", "requests/s", "Requests completed"),
    *_times("ttft", "Time to first token, from sending the request"),
    *_times("tpot", "Time per output token after the first"),
    _figure("e2e_mean_ms", "times", "ms", "Whole request, mean over requests"),
    _figure(
        "power_w",
        "throughput",
        "W",
        "Mean power during the run, of all accelerators unless the notes say otherwise",
    ),
    _text("notes", "record", "Whatever else is known: settings, origins"),
    _text("row_id", "record", "Name of the row, unique in its file"),
    _text("source_key", "record", "Short name of the source, to group by"),
    _named("split", "record", SPLITS, "What the run may be used for"),
    _named("quality", "record", QUALITIES, "How far it can be trusted"),
)
COLUMNS: Mapping[str, Column] = MappingProxyType({each.name: each for each in _ALL})
"""All columns by name, in the order in which files list them."""


def column(name: str) -> Column:
    """Return a column by its name.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name not in COLUMNS:
        hint = did_you_mean(name, tuple(COLUMNS))
        raise InputError(f"measured runs have no column {name!r}{hint}; see 'Measured runs'")
    return COLUMNS[name]


_NONE_AS_0 = frozenset({"ep", "dp"})
"""Columns in which 0 says that there is no such cut, as an empty cell does."""
_NEAR = 0.75
"""How alike the name of an unknown column and that of a known one are at least, of 1, so that one
may have been meant by the other."""


def checked(cells: Mapping[str, str]) -> dict[str, str]:
    """Check the names and counts of a row, and return all cells without the blanks around them.

    Figures are checked where they are used.

    Raises
    ------
    InputError
        A cell holds what its column cannot; the message names both and what it may hold.

    >>> checked({"tp": " 8", "ep": "0", "remarks": "ours"})
    {'tp': '8', 'ep': '0', 'remarks': 'ours'}
    >>> checked({"quality": "Z"})
    Traceback (most recent call last):
    sim.errors.InputError: quality: 'Z'; use A, B, C, D
    """
    return {name: _checked(name, text.strip()) for name, text in cells.items()}


def _checked(name: str, value: str) -> str:
    known = COLUMNS.get(name)
    if known is None or known.kind not in ("name", "count"):
        return value
    is_none = not value or (value == "0" and name in _NONE_AS_0)
    return value if is_none else known.read(value)


def near_misses(header: Iterable[str]) -> dict[str, str]:
    """Give the columns that nothing is read from but whose names look like a known one's.

    No name is taken for that of a 99th percentile, which no forecast is compared with.

    >>> near_misses(["row_id", "tpot_ms", "operator"])
    {'tpot_ms': 'tpot_p50_ms'}
    """
    names = [name.strip() for name in header]
    left = [name for name in COLUMNS if name not in names and "p99" not in name]
    found: dict[str, str] = {}
    for name in names:
        nearest = max(left, key=lambda known: _likeness(name, known), default="")
        if name not in COLUMNS and _likeness(name, nearest) >= _NEAR:
            found[name] = nearest
    return found


def _likeness(name: str, known: str) -> float:
    """Compare names of columns by their letters alone: 1 if they are the same."""
    first, second = (re.sub(r"[^a-z0-9]", "", each.lower()) for each in (name, known))
    return difflib.SequenceMatcher(None, first, second).ratio() if first and second else 0.0
