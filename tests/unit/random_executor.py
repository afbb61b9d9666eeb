"""Run a program of calls with answers that come in any order."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.workload.programs import Call, Control, Ledger, Parallel, Unanswered


def answered_in_any_order(
    control: Control,
    order: np.random.Generator,
    lost: Callable[[Call], bool] = lambda _: False,
) -> Ledger:
    """Run a program: of all calls under way, a random one is answered next.

    ``lost`` says which calls leave without an answer; a program that cannot go on without one
    has the error as its answer. When enough branches are over the others are cancelled: their
    calls go unanswered and their generators are closed.
    """
    run = _Run(order, lost)
    run.advance(_Frame(control, None, 0), None)
    while run.under_way:
        run.answer_one()
    return run.ledger


@dataclass(eq=False)
class _Group:
    """Branches side by side."""

    frame: "_Frame"
    step: Parallel
    results: list[Any]
    came: list[Any] = field(default_factory=list)
    ended: bool = False


@dataclass(eq=False)
class _Frame:
    """A generator, or a call that is a branch by itself, and where it belongs."""

    control: Control | None
    group: _Group | None
    place: int

    def is_over(self) -> bool:
        group = self.group
        while group is not None:
            if group.ended:
                return True
            group = group.frame.group
        return False


class _Run:
    def __init__(self, order: np.random.Generator, lost: Callable[[Call], bool]) -> None:
        self.order = order
        self.lost = lost
        self.ledger = Ledger()
        self.under_way: list[tuple[_Frame, Call]] = []
        self.open: list[_Frame] = []

    def answer_one(self) -> None:
        frame, call = self.under_way.pop(int(self.order.integers(len(self.under_way))))
        error = Unanswered("lost") if self.lost(call) else None
        if frame.control is not None:
            self.advance(frame, call, error)
        elif error is None:
            self.over(frame, call)
        else:
            self.failed(frame, error)

    def advance(self, frame: _Frame, reply: Any, error: Unanswered | None = None) -> None:
        assert frame.control is not None
        try:
            step = frame.control.throw(error) if error else frame.control.send(reply)
        except StopIteration as stop:
            self.over(frame, stop.value)
            return
        except Unanswered as unanswered:
            self.failed(frame, unanswered)
            return
        if isinstance(step, Call):
            self.send(frame, step)
            return
        group = _Group(frame, step, [None] * len(step.branches))
        for place, branch in enumerate(step.branches):
            if group.ended:
                break
            if isinstance(branch, Call):
                self.send(_Frame(None, group, place), branch)
            else:
                child = _Frame(branch, group, place)
                self.open.append(child)
                self.advance(child, None)
        if not step.branches:
            self.advance(frame, [])

    def send(self, frame: _Frame, call: Call) -> None:
        self.ledger.calls.append(call)
        self.under_way.append((frame, call))

    def over(self, frame: _Frame, result: Any) -> None:
        group = frame.group
        if group is None:
            self.ledger.answer = result
            return
        if frame in self.open:
            self.open.remove(frame)
        group.results[frame.place] = result
        group.came.append(result)
        all_came = len(group.came) == len(group.results)
        if all_came or (group.step.enough is not None and group.step.enough(list(group.came))):
            group.ended = True
            self.cancel_ended()
            self.advance(group.frame, group.results)

    def failed(self, frame: _Frame, error: Unanswered) -> None:
        """Let whoever waits for a branch that cannot go on know."""
        group = frame.group
        if group is None:
            self.ledger.answer = error
            return
        if frame in self.open:
            self.open.remove(frame)
        group.ended = True
        self.cancel_ended()
        self.advance(group.frame, None, error)

    def cancel_ended(self) -> None:
        self.under_way = [(frame, call) for frame, call in self.under_way if not frame.is_over()]
        ended = [frame for frame in self.open if frame.is_over()]
        self.open = [frame for frame in self.open if not frame.is_over()]
        for frame in reversed(ended):
            assert frame.control is not None
            frame.control.close()
