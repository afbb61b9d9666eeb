"""What a run leaves behind: append-only columns of requests and of stretches.

Rows are collected as tuples and turned into NumPy columns a block at a time, so that recording
costs a fraction of a microsecond and memory does not grow with Python objects.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.engine.clock import TICKS_PER_S
from sim.engine.requests import Request

Columns = dict[str, npt.NDArray[Any]]
"""NumPy columns of one table by name, of equal length."""

BLOCK_ROWS = 2_048
"""Few enough to stay in the processor's cache: a block of 65,536 rows took twice as long a row."""
PROGRESS_ROWS = 1_000
NAN = float("nan")
"""Time of what has not happened."""

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
    "prefill_replica": "i4",
    "replica": "i4",
    "preemptions": "i4",
    "attempts": "i4",
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

LOSS_COLUMNS: Mapping[str, str] = {
    "replica": "i4",
    "time_s": "f8",
    "request_id": "i8",
    "cause": "O",
    "computed_tokens": "i8",
    "generated_tokens": "i8",
}
"""Work that was thrown away: tokens in the cache, and of the answer, when it was."""


class Table:
    """An append-only table.

    Parameters
    ----------
    columns : mapping
        Name and NumPy type of each column, in order.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = dict(columns)
        self._blocks: list[Columns] = []
        self._rows: list[tuple[object, ...]] = []

    def append(self, row: tuple[object, ...]) -> None:
        """Add a row; values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) == BLOCK_ROWS:
            self._flush()

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
        self._blocks.append(
            {
                name: np.array(values, dtype=kind)
                for (name, kind), values in zip(self._columns.items(), by_column, strict=True)
            }
        )
        self._rows.clear()


class Recorder:
    """Takes down requests as they leave and stretches as they end."""

    def __init__(self) -> None:
        self.requests = Table(REQUEST_COLUMNS)
        self.stretches = Table(STRETCH_COLUMNS)
        self.states = Table(STATE_COLUMNS)
        self.transfers = Table(TRANSFER_COLUMNS)
        self.losses = Table(LOSS_COLUMNS)
        self._left = 0
        self._listener: Callable[[int], None] | None = None

    def listen(self, listener: Callable[[int], None]) -> None:
        """Tell a listener how many requests have left, every thousand of them."""
        self._listener = listener

    def request(self, request: Request) -> None:
        """Record a request that has left the system."""
        self._left += 1
        if self._listener is not None and self._left % PROGRESS_ROWS == 0:
            self._listener(self._left)
        admit, first_token = request.admit_tick, request.first_token_tick
        done, moved, preempted = request.done_tick, request.transfer_ticks, request.preempted_ticks
        self.requests.append(
            (
                request.request_id,
                request.session,
                request.turn,
                request.tenant,
                request.arrival_tick / TICKS_PER_S,
                admit / TICKS_PER_S if admit >= 0 else NAN,
                first_token / TICKS_PER_S if first_token >= 0 else NAN,
                done / TICKS_PER_S if done >= 0 else NAN,
                request.input_tokens,
                request.output_tokens,
                request.cached_tokens,
                request.prefill_replica,
                request.replica,
                request.preemptions,
                request.attempts,
                moved / TICKS_PER_S if moved else 0.0,
                preempted / TICKS_PER_S if preempted else 0.0,
                request.outcome,
            )
        )

    def loss(self, request: Request, tick: int, cause: str, computed_tokens: int) -> None:
        """Record work that is thrown away."""
        self.losses.append(
            (
                request.replica,
                tick / TICKS_PER_S,
                request.request_id,
                cause,
                computed_tokens,
                request.generated_tokens,
            )
        )
