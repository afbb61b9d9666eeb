"""Contents of prompts from the ids of their blocks.

Equal ids mean equal tokens, so block ``i`` of ``n`` tokens is tokens ``[i n, (i + 1) n)`` of one
stream that all prompts of a trace share; ids that follow each other are one run.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.workload.content import PROMPT_STREAM, TRACE_STREAM, Content, Run
from sim.workload.readers.table import Table

Integers = NDArray[np.int64]


class Ranges(NamedTuple):
    """Ranges of block ids of all rows, in order."""

    row: Integers
    first: Integers
    last: Integers


def ranges_of_text(table: Table, name: str) -> Ranges:
    """Read a column of ids such as ``0-13 27 40-52``: from one id to another, both included."""
    rows: list[int] = []
    firsts: list[int] = []
    lasts: list[int] = []
    column = table.column(name)
    missing = column.isna().to_numpy()
    for row, text in enumerate(column.astype(str).tolist()):
        if missing[row]:
            continue
        for part in text.split():
            first, _, last = part.partition("-")
            if not (first.isdecimal() and (last.isdecimal() or part == first)):
                raise InputError(
                    f"{table.where(row)}: {name}: '{part}': not a block id such as 27, or a range "
                    "of them such as 14-27"
                )
            rows.append(row)
            firsts.append(int(first))
            lasts.append(int(last or first))
    ranges = Ranges(*(np.array(column, dtype=np.int64) for column in (rows, firsts, lasts)))
    backward = np.zeros(len(table.frame), dtype=bool)
    backward[ranges.row[ranges.last < ranges.first]] = True
    table.reject(name, backward, "a range of block ids runs backwards")
    return ranges


def ranges_of_lists(table: Table, name: str) -> Ranges:
    """Read a column of lists of ids, as JSON has them."""
    lists: list[Any] = table.column(name).tolist()
    bad = np.array(
        [
            not isinstance(ids, list) or any(type(i) is not int or i < 0 for i in ids)
            for ids in lists
        ]
    )
    table.reject(name, bad, "not a list of block ids such as [46, 47, 2353]")
    lengths = [len(ids) for ids in lists]
    ids = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=sum(lengths))
    row = np.repeat(np.arange(len(lists)), lengths)
    return Ranges(row, ids, ids)


def contents_of(ranges: Ranges, input_tokens: Integers, block_tokens: int) -> list[Content]:
    """Build what each prompt consists of.

    Parameters
    ----------
    ranges : Ranges
    input_tokens : numpy.ndarray
        Length of each prompt; its last block is cut there. Tokens after the last block are the
        prompt's own.
    block_tokens : int
        Tokens of a block.

    Returns
    -------
    list of Content
        One per row of the trace.
    """
    joins = (ranges.row[1:] == ranges.row[:-1]) & (ranges.first[1:] == ranges.last[:-1] + 1)
    starts = np.flatnonzero(np.append(True, ~joins)) if len(ranges.row) else np.zeros(0, np.int64)
    ends = np.append(starts[1:], len(ranges.row)) - 1
    first, last = ranges.first[starts], ranges.last[ends if len(starts) else starts]
    row = ranges.row[starts]
    begin = (first * block_tokens).tolist()
    tokens = ((last - first + 1) * block_tokens).tolist()
    edges = np.searchsorted(row, np.arange(len(input_tokens) + 1)).tolist()
    runs: list[Run] = [(TRACE_STREAM, at, length) for at, length in zip(begin, tokens, strict=True)]
    return [
        _cut(runs[edges[index] : edges[index + 1]], length, index)
        for index, length in enumerate(input_tokens.tolist())
    ]


def _cut(runs: Sequence[Run], tokens: int, row: int) -> Content:
    """Cut runs after some tokens, or fill up with tokens of the prompt's own."""
    kept: list[Run] = []
    for run in runs:
        if tokens <= 0:
            break
        kept.append(run if run[2] <= tokens else (run[0], run[1], tokens))
        tokens -= run[2]
    if tokens > 0:
        kept.append((PROMPT_STREAM - row, 0, tokens))
    return tuple(kept)
