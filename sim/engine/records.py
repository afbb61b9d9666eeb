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

BLOCK_ROWS = 65_536
PROGRESS_ROWS = 1_000

REQUEST_COLUMNS: Mapping[str, str] = {
    "request_id": "i8",
    "arrival_s": "f8",
    "admit_s": "f8",
    "first_token_s": "f8",
    "done_s": "f8",
    "input_tokens": "i8",
    "output_tokens": "i8",
    "replica": "i4",
    "preemptions": "i4",
    "outcome": "O",
}

STRETCH_COLUMNS: Mapping[str, str] = {
    "replica": "i4",
    "start_s": "f8",
    "end_s": "f8",
    "steps": "i8",
    "decode_sequences": "i8",
    "decode_context_tokens": "f8",
    "decode_window_tokens": "f8",
    "prefill_sequences": "i8",
    "prefill_tokens": "i8",
    "prefill_pairs": "f8",
    "prefill_window_pairs": "f8",
    "first_tokens": "i8",
    "kv_used_blocks": "i8",
    "waiting_requests": "i8",
}


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
        return {
            name: np.concatenate([block[name] for block in self._blocks]) for name in self._columns
        }

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
        self.requests.append(
            (
                request.request_id,
                request.arrival_tick / TICKS_PER_S,
                _seconds_or_nan(request.admit_tick),
                _seconds_or_nan(request.first_token_tick),
                _seconds_or_nan(request.done_tick),
                request.input_tokens,
                request.output_tokens,
                request.replica,
                request.preemptions,
                request.outcome,
            )
        )


def _seconds_or_nan(tick: int) -> float:
    """Convert the tick of an event; NaN says that it has not happened."""
    return tick / TICKS_PER_S if tick >= 0 else float("nan")
