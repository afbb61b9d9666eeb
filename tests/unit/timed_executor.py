"""Run a program of calls that each take a time, with as many side by side as it sends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from random_executor import _Frame, _Run

from sim.workload.programs import Call, Control


@dataclass
class Timed:
    """When calls of a program were sent and answered, in the order in which they were sent."""

    calls: list[Call]
    sent: list[float]
    answered: list[float]
    answer: Any
    end: float
    """When the program was over; calls that were cancelled would have taken longer."""


class _TimedRun(_Run):
    """Of all calls under way, the one that is over first is answered next."""

    def __init__(self, duration: Callable[[Call], float]) -> None:
        super().__init__(np.random.default_rng(0), lambda _: False)
        self.duration = duration
        self.now = 0.0
        self.sent: dict[int, float] = {}
        self.answered: dict[int, float] = {}
        """By the stream of the answer."""

    def send(self, frame: _Frame, call: Call) -> None:
        super().send(frame, call)
        self.sent[call.answer_stream] = self.now
        self.answered[call.answer_stream] = self.now + self.duration(call)

    def answer_next(self) -> None:
        first = min(self.under_way, key=lambda each: self.answered[each[1].answer_stream])
        self.under_way.remove(first)
        frame, call = first
        self.now = self.answered[call.answer_stream]
        if frame.control is None:
            self.over(frame, call)
        else:
            self.advance(frame, call)


def timed(control: Control, duration: Callable[[Call], float] = lambda _: 1.0) -> Timed:
    """Run a program; ``end`` is its critical path in calls unless they are told to take longer."""
    run = _TimedRun(duration)
    run.advance(_Frame(control, None, 0), None)
    while run.under_way:
        run.answer_next()
    calls = run.ledger.calls
    sent = [run.sent[call.answer_stream] for call in calls]
    answered = [run.answered[call.answer_stream] for call in calls]
    return Timed(calls, sent, answered, run.ledger.answer, run.now)
