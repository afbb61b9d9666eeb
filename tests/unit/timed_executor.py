"""Run a program of calls that each take a time, with as many side by side as it sends."""

import heapq
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

    @property
    def end(self) -> float:
        return max(self.answered)


class _TimedRun(_Run):
    def __init__(self, duration: Callable[[Call], float]) -> None:
        super().__init__(np.random.default_rng(0), lambda _: False)
        self.duration = duration
        self.now = 0.0
        self.sent: list[float] = []
        self.answered: list[float] = []
        self.heap: list[tuple[float, int, _Frame]] = []

    def send(self, frame: _Frame, call: Call) -> None:
        end = self.now + self.duration(call)
        heapq.heappush(self.heap, (end, len(self.sent), frame))
        self.ledger.calls.append(call)
        self.sent.append(self.now)
        self.answered.append(end)

    def answer_next(self) -> None:
        self.now, number, frame = heapq.heappop(self.heap)
        call = self.ledger.calls[number]
        if frame.control is None:
            self.over(frame, call)
        else:
            self.advance(frame, call)


def timed(control: Control, duration: Callable[[Call], float] = lambda _: 1.0) -> Timed:
    """Run a program; ``end`` is its critical path in calls unless they are told to take longer."""
    run = _TimedRun(duration)
    run.advance(_Frame(control, None, 0), None)
    while run.heap:
        run.answer_next()
    return Timed(run.ledger.calls, run.sent, run.answered, run.ledger.answer)
