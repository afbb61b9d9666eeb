"""What a run leaves behind: append-only columns of requests and of stretches.

Rows are collected as tuples and turned into NumPy columns a block at a time, so that recording
costs a fraction of a microsecond and memory does not grow with Python objects.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.engine.clock import TICKS_PER_S
from sim.engine.requests import Request

Columns = dict[str, npt.NDArray[Any]]
"""NumPy columns of one table by name, of equal length."""

BLOCK_ROWS = 2_048
"""Few enough to stay in the processor's cache: a block of 65,536 rows took twice as long a row."""
PROGRESS_ROWS = 1_000

REQUEST_COLUMNS: Mapping[str, str] = {
    "request_id": "i8",
    "session": "i8",
    "turn": "i4",
    "tenant": "i2",
    "arrival_s": "f8",
    "admit_s": "f8",
    "first_token_s": "f8",
    "done_s": "f8",
    "input_tokens": "i8",
    "output_tokens": "i8",
    "cached_tokens": "i8",
    "recomputed_tokens": "i8",
    "prefill_replica": "i4",
    "replica": "i4",
    "preemptions": "i4",
    "attempts": "i4",
    "encode_s": "f8",
    "handover_wait_s": "f8",
    "transfer_s": "f8",
    "preempted_s": "f8",
    "outcome": "O",
}
"""Of requests that have left. ``arrival_s`` is when the client sent it first; ``replica`` the one
that was last at work on it."""

STRETCH_COLUMNS: Mapping[str, str] = {
    "replica": "i4",
    "start_s": "f8",
    "end_s": "f8",
    "steps": "i8",
    "decode_sequences": "i4",
    "decode_context_tokens": "f8",
    "decode_window_tokens": "f8",
    "prefill_sequences": "i4",
    "prefill_tokens": "i4",
    "prefill_context_tokens": "i8",
    "prefill_pairs": "f8",
    "prefill_window_pairs": "f8",
    "encode_tokens": "i4",
    "encode_pairs": "f8",
    "first_tokens": "i4",
    "output_tokens": "f8",
    "kv_used_blocks": "i4",
    "waiting_requests": "i4",
}
"""Counts are those of one step; sums of contexts and ``output_tokens`` those of all steps."""

STATE_COLUMNS: Mapping[str, str] = {
    "replica": "i4",
    "state": "O",
    "start_s": "f8",
    "end_s": "f8",
}
"""What replicas were, and from when to when, where they are not up from the start to the end."""

TRANSFER_COLUMNS: Mapping[str, str] = {
    "kind": "O",
    "request_id": "i8",
    "source": "O",
    "replica": "i4",
    "asked_s": "f8",
    "start_s": "f8",
    "end_s": "f8",
    "bytes": "f8",
}
"""Keys and values on their way: asked for, under way (after those before it on the link), there."""

PREEMPTION_COLUMNS: Mapping[str, str] = {
    "replica": "i4",
    "request_id": "i8",
    "start_s": "f8",
    "end_s": "f8",
}
"""Sequences that lost their place because others needed KV blocks, until they were back; those
that never came back are not among them."""

PROGRAM_COLUMNS: Mapping[str, str] = {
    "task": "i8",
    "tenant": "i2",
    "arrival_s": "f8",
    "done_s": "f8",
    "outcome": "O",
    "answer": "i8",
    "calls": "i8",
    "cancelled_calls": "i8",
    "critical_calls": "i8",
    "critical_s": "f8",
}
"""Programs that are over. ``answer`` is its class, 0 the right one, -1 where there is none.
``critical_calls`` are those that waited for one another, ``critical_s`` the time that they took
together; the rest of its time a program waited for tools."""

CALL_COLUMNS: Mapping[str, str] = {
    "request_id": "i8",
    "task": "i8",
    "call": "i4",
    "label": "O",
    "model": "O",
    "after": "i8",
}
"""What the requests of programs are for. ``call`` counts those of a task, ``after`` is the request
upon whose answer it was sent, -1 if upon none."""

TIMES = frozenset(
    {
        *("arrival_s", "admit_s", "first_token_s", "done_s", "transfer_s", "preempted_s"),
        *("encode_s", "handover_wait_s", "asked_s", "start_s", "end_s", "time_s"),
        *("critical_s",),
    }
)
"""Columns that are recorded in ticks."""

LOSS_COLUMNS: Mapping[str, str] = {
    "replica": "i4",
    "time_s": "f8",
    "request_id": "i8",
    "cause": "O",
    "prefilled_tokens": "i8",
    "generated_tokens": "i8",
    "first_tokens": "i8",
    "encoded_tokens": "i8",
}
"""Work that was thrown away with an attempt that ended without an answer: tokens computed in
prefill, tokens of the answer, those of them that came out of prefill, and tokens of images that a
pool of encoders computed."""


class Work(NamedTuple):
    """What has been computed for a request."""

    prefilled_tokens: int
    generated_tokens: int
    first_tokens: int
    encoded_tokens: int

    @classmethod
    def on(cls, request: Request) -> "Work":
        """Count the work on a request so far."""
        return cls(*(getattr(request, name) for name in cls._fields))

    def beyond(self, kept: "Work") -> "Work":
        """Count what of it is not kept."""
        return Work(*(had - has for had, has in zip(self, kept, strict=True)))


_TICKS_OF = {
    name: name.removesuffix("_s") + "_ticks"
    for name in ("encode_s", "handover_wait_s", "transfer_s", "preempted_s")
}
_REQUEST_VALUES = tuple(
    attrgetter(_TICKS_OF.get(name, name.removesuffix("_s") + "_tick") if name in TIMES else name)
    for name in REQUEST_COLUMNS
)
"""What is recorded of a request, in the order of the columns."""


class Table:
    """An append-only table.

    Parameters
    ----------
    columns : mapping
        Name and NumPy type of each column, in order.
    times : set of str
        Those whose values are given in ticks and come out in seconds; what is negative has not
        happened and is no number.
    """

    def __init__(self, columns: Mapping[str, str], times: Collection[str] = ()) -> None:
        self._columns = dict(columns)
        self._times = times
        self._blocks: list[Columns] = []
        self._rows: list[tuple[object, ...]] = []

    def append(self, row: tuple[object, ...]) -> None:
        """Add a row; values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= BLOCK_ROWS:
            self._flush()

    def extend(self, columns: Iterable[Iterable[object]]) -> None:
        """Add many rows, by column."""
        self._blocks.append(
            {
                name: _seconds(values) if name in self._times else np.fromiter(values, kind)
                for (name, kind), values in zip(self._columns.items(), columns, strict=True)
            }
        )

    def columns(self) -> Columns:
        """Return everything recorded so far."""
        self._flush()
        if not self._blocks:
            return {name: np.empty(0, kind) for name, kind in self._columns.items()}
        if len(self._blocks) > 1:  # a column at a time, so that no more than one is there twice
            parts = self._blocks
            self._blocks = [
                {name: np.concatenate([part.pop(name) for part in parts]) for name in self._columns}
            ]
        return dict(self._blocks[0])

    def _flush(self) -> None:
        if not self._rows:
            return
        by_column = zip(*self._rows, strict=True)
        self.extend(by_column)
        self._rows.clear()


def joined_columns(tables: Sequence[Columns]) -> Columns:
    """Put tables of the same columns below each other."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _seconds(ticks: Iterable[Any]) -> npt.NDArray[Any]:
    """Make a column of times."""
    values = np.fromiter(ticks, dtype=float)
    values[values < 0] = np.nan
    return values / TICKS_PER_S


class Recorder:
    """Takes down requests as they leave and stretches as they end."""

    def __init__(self) -> None:
        self._request_table = Table(REQUEST_COLUMNS, TIMES)
        self._requests: list[Request] = []
        """Those that have left since the last rows were made."""
        self.stretches = Table(STRETCH_COLUMNS, TIMES)
        self.states = Table(STATE_COLUMNS, TIMES)
        self.transfers = Table(TRANSFER_COLUMNS, TIMES)
        self.losses = Table(LOSS_COLUMNS, TIMES)
        self.preemptions = Table(PREEMPTION_COLUMNS, TIMES)
        self._left = 0
        self._listener: Callable[[int], None] | None = None

    def listen(self, listener: Callable[[int], None]) -> None:
        """Tell a listener how many requests have left, every thousand of them and at the end."""
        self._listener = listener

    def request(self, request: Request) -> None:
        """Record a request that has left the system."""
        left = self._requests
        left.append(request)
        if len(left) == PROGRESS_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Take down the requests that have left; a column at a time costs half of a row each."""
        left, self._requests = self._requests, []
        if not left:
            return
        self._request_table.extend(map(value_of, left) for value_of in _REQUEST_VALUES)
        for request in left:
            for replica, start, end in request.pauses:
                self.preemptions.append((replica, request.request_id, start, end))
        self._left += len(left)
        if self._listener is not None:
            self._listener(self._left)

    @property
    def requests(self) -> Table:
        """Those that have left."""
        self._flush()
        return self._request_table

    def loss(self, request_id: int, tick: int, cause: str, replica: int, work: Work) -> None:
        """Record work that is thrown away, if there is any."""
        if any(work):
            self.losses.append((replica, tick, request_id, cause, *work))
