"""Step times in whole ticks: what the engine asks the cost model, compiled to integers."""

from typing import Protocol, Self

import numpy as np

from sim.cost.table import Array, StepTable
from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.scheduler import Stretch


class Pace(Protocol):
    """What a replica needs to know about time."""

    def line(self, stretch: Stretch) -> tuple[int, int]:
        """Ticks of the steps of a stretch, as a line: step ``i`` takes ``start + i * growth``."""
        ...


class TickTable:
    """The seconds of a `StepTable`, rounded once to whole ticks.

    Parameters
    ----------
    table : StepTable
        In seconds.
    """

    def __init__(self, table: StepTable) -> None:
        self._shares = table.shares
        self._tokens = _ticks(table.by_tokens)
        self._group_tokens = _ticks(table.by_group_tokens)
        self._sequences = _ticks(table.by_sequences)
        self._decode = _ticks(table.by_decode)
        self._context = _ticks(table.per_context)
        self._window = _ticks(table.per_window_context)
        self._prefill = _ticks(table.by_prefill)
        self._pair = to_ticks(table.per_pair)
        self._window_pair = to_ticks(table.per_window_pair)

    def line(self, stretch: Stretch) -> tuple[int, int]:
        """Ticks of the steps of a stretch: a constant, and what the growing contexts add."""
        if not self._shares.whole:
            return self._dealt_line(stretch)
        decoding = stretch.decode_sequences
        context, window = self._context[decoding], self._window[decoding]
        tokens = stretch.prefill_tokens
        start = (
            self._tokens[decoding + tokens]
            + self._sequences[decoding + len(stretch.chunks)]
            + self._decode[decoding]
            + context * stretch.context_tokens
            + window * stretch.window_tokens
        )
        if tokens:
            start += self._prefill[tokens] + self._pair * stretch.prefill_pairs
            start += self._window_pair * stretch.prefill_window_pairs
        return start, context * decoding + window * stretch.window_growing

    def _dealt_line(self, stretch: Stretch) -> tuple[int, int]:
        """Give the line where the chips share the batch: slopes are those of the slowest one.

        A slope depends on the counts of the batch alone, which a stretch does not change, and is
        a whole number of ticks, so that jumps and single steps still agree.
        """
        decoding, tokens = stretch.decode_sequences, stretch.prefill_tokens
        dealt = self._shares.counts(decoding, len(stretch.chunks), tokens)
        runs = dealt.runs
        context = round(runs * self._context[dealt.decode] * dealt.context_share)
        window = round(runs * self._window[dealt.decode] * dealt.window_share)
        stage = (
            self._tokens[dealt.decode + dealt.prefill]
            + self._group_tokens[dealt.group_tokens]
            + self._decode[dealt.decode]
            + self._prefill[dealt.prefill]
        )
        start = runs * stage + dealt.heads * self._sequences[dealt.decode + dealt.prompts]
        start += context * stretch.context_tokens + window * stretch.window_tokens
        if tokens:
            pair = round(runs * self._pair * dealt.pair_share)
            window_pair = round(runs * self._window_pair * dealt.pair_share)
            start += pair * stretch.prefill_pairs + window_pair * stretch.prefill_window_pairs
        return start, context * decoding + window * stretch.window_growing


def _ticks(seconds: Array) -> list[int]:
    """Round durations to whole ticks, as `to_ticks` does."""
    ticks: list[int] = np.rint(seconds * TICKS_PER_S).astype(np.int64).tolist()
    return ticks


class ConstantPace:
    """Every step takes the same time, whatever is in it; makes queueing theory applicable.

    Parameters
    ----------
    step_ticks : int
    """

    def __init__(self, step_ticks: int) -> None:
        self.step_ticks = step_ticks

    @classmethod
    def of_seconds(cls, step_s: float) -> Self:
        """Build it from a step time in seconds."""
        return cls(to_ticks(step_s))

    def line(self, stretch: Stretch) -> tuple[int, int]:
        """Ticks of the steps of a stretch: the same for any batch."""
        del stretch
        return self.step_ticks, 0
