"""Step times in whole ticks: what the engine asks the cost model, compiled to integers."""

from typing import Protocol, Self

from sim.cost.timer import StepTable
from sim.engine.clock import to_ticks
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
        self._tokens = [to_ticks(s) for s in table.by_tokens.tolist()]
        self._sequences = [to_ticks(s) for s in table.by_sequences.tolist()]
        self._decode = [to_ticks(s) for s in table.by_decode.tolist()]
        self._context = [to_ticks(s) for s in table.per_context.tolist()]
        self._window = [to_ticks(s) for s in table.per_window_context.tolist()]
        self._prefill = [to_ticks(s) for s in table.by_prefill.tolist()]
        self._pair = to_ticks(table.per_pair)
        self._window_pair = to_ticks(table.per_window_pair)

    def line(self, stretch: Stretch) -> tuple[int, int]:
        """Ticks of the steps of a stretch: a constant, and what the growing contexts add."""
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
