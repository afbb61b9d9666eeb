"""Sessions as sources of requests: each turn waits for the answer before it."""

from collections.abc import Generator
from dataclasses import dataclass

import simpy

from sim.engine.clients import Desk, Source
from sim.engine.clock import to_ticks
from sim.engine.requests import Request
from sim.workload.sessions import SessionPlans


@dataclass
class _Session:
    """One session under way; hears when its requests are answered."""

    source: "Sessions"
    number: int
    turns: int
    turn: int = 0

    def request_done(self, request: Request) -> None:
        """Send the next turn after the user has thought or the tool has run.

        A session ends with a turn that is not answered.
        """
        self.turn += 1
        if request.outcome != "completed":
            self.source.give_up(self.turns - self.turn)
        elif self.turn < self.turns:
            self.source.wait_for(self)


class Sessions:
    """Sends the turns of sessions.

    Parameters
    ----------
    plans : SessionPlans
    first_request_id : int
        The turns are numbered from here, session by session.
    answer_ticks : int
        Time from the end of a request in the engine until its client has seen it.
    priorities : sequence of int
        By tenant; all alike unless given.
    """

    def __init__(
        self,
        plans: SessionPlans,
        first_request_id: int = 0,
        answer_ticks: int = 0,
        priorities: tuple[int, ...] = (),
    ) -> None:
        self.plans = plans
        self._first_request_id = first_request_id
        self._answer_ticks = answer_ticks
        self._priorities = priorities
        self._left = plans.turns

    @property
    def exhausted(self) -> bool:
        """Whether every turn has been sent, or will never be."""
        return self._left == 0

    def start(self, desk: Desk) -> None:
        """Begin to send."""
        self._env, self._submit = desk.env, desk.submit
        self._env.process(self._run())

    def _run(self) -> Generator[simpy.Event, None, None]:
        plans, env = self.plans, self._env
        for number, start_s in enumerate(plans.start_s.tolist()):
            delay = to_ticks(start_s) - int(env.now)
            if delay > 0:
                yield env.timeout(delay)
            first = plans.first_turn
            session = _Session(self, number, int(first[number + 1] - first[number]))
            if session.turns:
                self.wait_for(session, answer_ticks=0)

    def wait_for(self, session: _Session, answer_ticks: int | None = None) -> None:
        """Send the next turn of a session when its time has come."""
        index = int(self.plans.first_turn[session.number]) + session.turn
        seen = self._answer_ticks if answer_ticks is None else answer_ticks
        wait = self._env.timeout(to_ticks(float(self.plans.wait_s[index])) + seen)
        if wait.callbacks is not None:
            wait.callbacks.append(lambda _: self._send(session))

    def give_up(self, turns: int) -> None:
        """Send no more of a session."""
        self._left -= turns

    def _send(self, session: _Session) -> None:
        plan = self.plans.turn(session.number, session.turn)
        index = int(self.plans.first_turn[session.number]) + session.turn
        request = Request(
            self._first_request_id + index,
            int(self._env.now),
            plan.input_tokens,
            plan.output_tokens,
        )
        request.session, request.turn = session.number, session.turn
        request.content, request.answer = plan.content, plan.answer
        request.tenant = self.plans.tenant_of(session.number)
        if self._priorities:
            request.priority = self._priorities[request.tenant]
        request.on_done = session
        self._left -= 1
        self._submit(request)


class Together:
    """Several sources at once.

    Parameters
    ----------
    *sources : Source
    """

    def __init__(self, *sources: Source) -> None:
        self._sources = sources

    @property
    def exhausted(self) -> bool:
        """Whether all of them are."""
        return all(source.exhausted for source in self._sources)

    def start(self, desk: Desk) -> None:
        """Begin to send, in order."""
        for source in self._sources:
            source.start(desk)
