"""The published formats of traces: which column means what.

Every format becomes the same columns: ``arrival_s``, ``input_tokens`` and ``output_tokens``, then
of `OPTIONAL_COLUMNS` those that the format knows, then all other columns of the file as they are.
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.errors import InputError
from sim.units import MILLISECOND_S
from sim.workload.content import Content
from sim.workload.readers.blocks import (
    Ranges,
    contents_of,
    ranges_of_lists,
    ranges_of_text,
)
from sim.workload.readers.records import is_json_lines, read_json_lines
from sim.workload.readers.table import Table, read_csv

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
TraceKind = Literal["plain", "azure", "mooncake", "bailian", "burstgpt", "servegen"]

OPTIONAL_COLUMNS = (
    "tenant",
    "priority",
    "session",
    "turn",
    "max_tokens",
    "encode_tokens",
    "content",
)
MOONCAKE_BLOCK_TOKENS = 512
"""Tokens of a block of the Mooncake traces (FAST'25 release, README)."""
BAILIAN_BLOCK_TOKENS = 16
"""Tokens of a block of the Qwen-Bailian traces (README, "Data Specification of the Traces")."""

_PLAIN_COLUMNS = (
    "input_tokens",
    "output_tokens",
    *(name for name in OPTIONAL_COLUMNS if name != "content"),
    "block_ids",
)
"""All that a plain file may have, beside its time."""

_MISSPELT = 0.8
"""Likeness, as `difflib` measures it, from which on a column is taken to be a misspelt one:
``tennant`` and ``block_id`` are (0.92, 0.94), ``total_tokens`` (0.73, of ``max_tokens``) is not."""
_TIME_UNITS_S = {"arrival_s": 1.0, "t_s": 1.0, "t_ms": MILLISECOND_S}


class Recorded(NamedTuple):
    """A trace as recorded, before any choice among its rows."""

    table: Table
    time: str
    """Name of the column of times in the file, for messages."""
    input: str
    output: str
    arrival_s: Floats
    input_tokens: Integers
    output_tokens: Integers
    others: Mapping[str, Any]
    """Optional columns, by their common name."""
    taken: frozenset[str]
    """Columns of the file that have become one of the common ones."""


def read_recorded(path: Path, kind: TraceKind, block_tokens: int | None) -> Recorded:
    """Read all rows of a trace.

    Parameters
    ----------
    path : pathlib.Path
    kind : str
        One of `TraceKind`.
    block_tokens : int or None
        Tokens per block id; those of the format unless given.

    Raises
    ------
    InputError
        With the line and column of the first bad value.
    """
    return _READERS[kind](path, block_tokens)


def _plain(path: Path, block_tokens: int | None) -> Recorded:
    table = read_csv(path, text_columns=("tenant", "session", "block_ids"))
    time = _time_column(table)
    _refuse_misspelt(table, time)
    recorded = _recorded(table, (time, "input_tokens", "output_tokens"), _TIME_UNITS_S[time])
    others = _plain_columns(table, recorded.output_tokens)
    if table.has("block_ids"):
        ranges = ranges_of_text(table, "block_ids")
        tokens = block_tokens or MOONCAKE_BLOCK_TOKENS
        others["content"] = _contents(table, "block_ids", ranges, recorded, tokens)
    elif "session" in others:
        others["content"] = _growing(others["session"], recorded.input_tokens)
    taken = frozenset({*recorded.taken, *others, "block_ids"})
    return recorded._replace(others=others, taken=taken)


def _refuse_misspelt(table: Table, time: str) -> None:
    """Refuse columns that look like one that means something and that the file does not have."""
    missing = [name for name in _PLAIN_COLUMNS if not table.has(name)]
    for name in map(str, table.frame.columns):
        written = "_".join(name.lower().replace("-", "_").split())
        near = difflib.get_close_matches(written, missing, n=1, cutoff=_MISSPELT)
        if near and name not in {*_PLAIN_COLUMNS, time}:
            raise InputError(
                f"{table.path}:1: unknown column {name!r}; did you mean {near[0]}? Rename it, or "
                "leave it out if it means something else"
            )


def _contents(
    table: Table, name: str, ranges: Ranges, recorded: Recorded, block_tokens: int
) -> list[Content]:
    """Build the contents of prompts from block ids, none of which lies beyond its prompt."""
    counts = np.bincount(
        ranges.row,
        weights=ranges.last - ranges.first + 1,
        minlength=len(recorded.input_tokens),
    ).astype(np.int64)
    inputs = recorded.input_tokens
    bad = (inputs > 0) & (recorded.output_tokens > 0) & ((counts - 1) * block_tokens >= inputs)
    if bad.any():
        row = int(np.argmax(bad))
        count, tokens = int(counts[row]), int(inputs[row])
        most = int(((inputs[bad] - 1) // (counts[bad] - 1)).min())
        size = (
            f"set options.block_tokens to the size of its blocks, {most} at most, or "
            if most
            else ""
        )
        table.reject(
            name,
            bad,
            f"{count} blocks of {block_tokens} tokens for a prompt of {tokens}, which has "
            f"{-(-tokens // block_tokens)} at most: {size}correct {recorded.input} or {name}",
        )
    return contents_of(ranges, inputs, block_tokens)


def _plain_columns(table: Table, output_tokens: Integers) -> dict[str, Any]:
    """Read the optional columns of a plain file that are not contents."""
    readers: Mapping[str, Callable[[str], Any]] = {
        "tenant": table.texts,
        "session": table.texts,
        "priority": lambda name: table.whole(name, "a priority"),
        "turn": lambda name: table.whole(name, "the place of a turn"),
        "max_tokens": table.counts,
        "encode_tokens": table.counts,
    }
    others = {name: read(name) for name, read in readers.items() if table.has(name)}
    if "max_tokens" in others:
        short = others["max_tokens"] < output_tokens
        table.reject("max_tokens", short, "the answer is longer than that")
    return others


def _growing(sessions: list[str], input_tokens: Integers) -> list[Content]:
    """Let each prompt of a session begin with all that was said in it before."""
    numbers, _ = pd.factorize(np.array(sessions, dtype=object))
    pairs = zip(numbers.tolist(), input_tokens.tolist(), strict=True)
    return [((number, 0, tokens),) for number, tokens in pairs]


def _azure(path: Path, block_tokens: int | None) -> Recorded:
    del block_tokens
    table = read_csv(path)
    names = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    arrival_s = table.timestamps(names[0])
    return _recorded(table, names, arrival_s=arrival_s)


def _mooncake(path: Path, block_tokens: int | None) -> Recorded:
    tokens = block_tokens or MOONCAKE_BLOCK_TOKENS
    if is_json_lines(path):
        table = read_json_lines(path)
        names = ("timestamp", "input_length", "output_length")
        recorded = _recorded(table, names, MILLISECOND_S)
        ranges = ranges_of_lists(table, "hash_ids")
    else:
        table = read_csv(path, text_columns=("hash_ids",))
        time = _time_column(table)
        recorded = _recorded(table, (time, "input_tokens", "output_tokens"), _TIME_UNITS_S[time])
        ranges = ranges_of_text(table, "hash_ids")
    content = _contents(table, "hash_ids", ranges, recorded, tokens)
    taken = frozenset({*recorded.taken, "hash_ids"})
    return recorded._replace(others={"content": content}, taken=taken)


def _bailian(path: Path, block_tokens: int | None) -> Recorded:
    table = read_json_lines(path)
    recorded = _recorded(table, ("timestamp", "input_length", "output_length"))
    tokens = block_tokens or BAILIAN_BLOCK_TOKENS
    ranges = ranges_of_lists(table, "hash_ids")
    content = _contents(table, "hash_ids", ranges, recorded, tokens)
    chats = table.whole("chat_id", "a chat").tolist()
    parents = table.whole("parent_chat_id", "a chat").tolist()
    root_of: dict[int, int] = {}
    for chat, parent in zip(chats, parents, strict=True):
        root_of[chat] = root_of.get(parent, parent if parent >= 0 else chat)
    others = {
        "session": [str(root_of[chat]) for chat in chats],
        "turn": table.whole("turn", "the place of a turn") - 1,
        "content": content,
    }
    taken = frozenset({*recorded.taken, "hash_ids", "turn"})
    return recorded._replace(others=others, taken=taken)


def _burstgpt(path: Path, block_tokens: int | None) -> Recorded:
    del block_tokens
    table = read_csv(path, text_columns=("Session ID",))
    recorded = _recorded(table, ("Timestamp", "Request tokens", "Response tokens"))
    others: dict[str, Any] = {"tenant": table.texts("Model")}
    taken = {*recorded.taken, "Model"}
    if table.has("Session ID"):
        # Only conversations have one.
        others["session"] = ["" if pd.isna(one) else one for one in table.column("Session ID")]
        taken.add("Session ID")
    return recorded._replace(others=others, taken=frozenset(taken))


def _servegen(path: Path, block_tokens: int | None) -> Recorded:
    del block_tokens
    table = read_csv(path, text_columns=("client",))
    time = _time_column(table)
    recorded = _recorded(table, (time, "input_tokens", "output_tokens"), _TIME_UNITS_S[time])
    others = {"tenant": table.texts("client")}
    return recorded._replace(others=others, taken=frozenset({*recorded.taken, "client"}))


_READERS: Mapping[TraceKind, Callable[[Path, int | None], Recorded]] = {
    "plain": _plain,
    "azure": _azure,
    "mooncake": _mooncake,
    "bailian": _bailian,
    "burstgpt": _burstgpt,
    "servegen": _servegen,
}


def _recorded(
    table: Table,
    names: tuple[str, str, str],
    unit_s: float = 1.0,
    *,
    arrival_s: Floats | None = None,
) -> Recorded:
    time, prompt, answer = names
    return Recorded(
        table=table,
        time=time,
        input=prompt,
        output=answer,
        arrival_s=table.times(time, unit_s) if arrival_s is None else arrival_s,
        input_tokens=table.counts(prompt),
        output_tokens=table.counts(answer),
        others={},
        taken=frozenset(names),
    )


def _time_column(table: Table) -> str:
    """Return the name of the only time column."""
    times = [name for name in _TIME_UNITS_S if table.has(name)]
    if len(times) != 1:
        found = " and ".join(times) or "none"
        expected = ", ".join(_TIME_UNITS_S)
        present = ", ".join(map(str, table.frame.columns))
        raise InputError(
            f"{table.path}:1: needs exactly one time column of {expected}; found {found}."
            f" The header has: {present}"
        )
    return times[0]
