"""Programs as sources of requests: calls that wait for others, race them, and are cancelled.

A program is the generator of a strategy (`sim.workload.programs`). Here its calls become requests,
and it goes on when its client has seen their answers. Whatever the order in which answers come,
calls are sent in the order in which the strategy names them.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from sim.engine.clients import Desk
from sim.engine.clock import to_ticks
from sim.engine.records import CALL_COLUMNS, PROGRAM_COLUMNS, TIMES, Columns, Table
from sim.engine.requests import Outcome, Request
from sim.workload.programs import Call, Control, Parallel, ProgramPlans, Unanswered

NOBODY = -1
"""Number of the call after which a program's first calls come."""


@dataclass(eq=False)
class _Branch:
    """A generator under way."""

    program: "_Program"
    control: Control
    group: "_Group | None" = None
    """The branches among which it is; none: it is the whole program."""
    place: int = 0
    waits_for: "_Sent | _Group | None" = None


@dataclass(eq=False)
class _Group:
    """Branches side by side."""

    owner: _Branch
    step: Parallel
    live: "dict[int, _Branch | _Sent]" = field(default_factory=dict)
    """Those under way, by their place."""
    results: list[Any] = field(default_factory=list)
    came: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class _Sent:
    """A call under way; hears when its request has left."""

    program: "_Program"
    call: Call
    owner: "_Branch | _Group"
    place: int
    number: int
    """Of the request, among all requests."""
    index: int
    """Among the calls of the program."""
    after: int
    """Number of the call whose answer it was sent upon."""
    request: Request | None = None
    """None while a tool runs before it is sent, and when it has left: the two must not keep each
    other alive, for the collector of such cycles rests during a run."""
    cancelled: bool = False

    def request_done(self, request: Request) -> None:
        """Let the program go on when its client has seen the answer."""
        self.program.source.heard(self, request)


class _Program:
    """One question that is being worked on."""

    def __init__(self, source: "Programs", number: int, arrival: int) -> None:
        self.source = source
        self.number = number
        self.arrival_tick = arrival
        self.calls = 0
        self.cancelled_calls = 0
        self.last: dict[int, tuple[int, int]] = {}
        """Of calls that were answered: the one before it, and how many ticks it took."""

    def cancel(self, part: "_Branch | _Group | _Sent | None") -> None:
        """Cancel whatever a part of the program waits for."""
        if isinstance(part, _Sent):
            if not part.cancelled:
                part.cancelled = True
                self.cancelled_calls += 1
                self.source.drop(part)
        elif isinstance(part, _Group):
            for branch in list(part.live.values()):
                self.cancel(branch)
            part.live.clear()
        elif part is not None:
            self.cancel(part.waits_for)
            part.waits_for = None
            part.control.close()


class Programs:
    """Runs the programs of a workload.

    Parameters
    ----------
    plans : ProgramPlans
        What is asked, and when.
    first_request_id : int
        Calls are numbered from here, in the order in which strategies name them.
    answer_ticks : int
        Time from the end of a request in the engine until its client has seen it.
    priority : int
        Of all calls.
    """

    def __init__(
        self,
        plans: ProgramPlans,
        first_request_id: int = 0,
        answer_ticks: int = 0,
        priority: int = 0,
    ) -> None:
        self._plans = plans
        self._answer_ticks = answer_ticks
        self._priority = priority
        self._left = len(plans)
        self.listener: Callable[[int], None] | None = None
        """Told how many programs are over, whenever one is."""
        self._next_id = first_request_id
        self._programs = Table(PROGRAM_COLUMNS, TIMES)
        self._calls = Table(CALL_COLUMNS)

    @property
    def exhausted(self) -> bool:
        """Whether all programs are over."""
        return not self._left

    @property
    def programs(self) -> Columns:
        """What has become of the programs."""
        return self._programs.columns()

    @property
    def calls(self) -> Columns:
        """What the requests were for."""
        return self._calls.columns()

    def start(self, desk: Desk) -> None:
        """Begin to ask."""
        self._desk, self._env = desk, desk.env
        self._upcoming = enumerate(self._plans.starts())
        if self._plans.clients:
            for _ in range(min(self._plans.clients, len(self._plans))):
                self._after(0, self._begin_next)
        else:
            self._env.process(self._arrivals())

    def _arrivals(self) -> Generator[simpy.Event, None, None]:
        for number, start_s in self._upcoming:
            delay = to_ticks(start_s) - self._env.tick
            if delay > 0:
                yield self._env.timeout(delay)
            self._begin(number)

    def _begin_next(self) -> None:
        """Let a client of a closed loop ask its next question, if there is one."""
        following = next(self._upcoming, None)
        if following is not None:
            self._begin(following[0])

    def _begin(self, number: int) -> None:
        program = _Program(self, number, self._env.tick)
        self._advance(_Branch(program, self._plans.control(number)), None, NOBODY)

    def _after(self, ticks: int, then: Callable[[], None]) -> None:
        wait = self._env.timeout(ticks)
        if wait.callbacks is not None:
            wait.callbacks.append(lambda _: then())

    # -- going on -----------------------------------------------------------------------------

    def _advance(
        self, branch: _Branch, reply: Any, after: int, failure: Unanswered | None = None
    ) -> None:
        """Let a generator take its next step."""
        branch.waits_for = None
        try:
            step = branch.control.send(reply) if failure is None else branch.control.throw(failure)
        except StopIteration as stop:
            self._over(branch, stop.value, after)
        except Unanswered as unanswered:
            # a traceback holds the frames in which it is held: nobody collects such cycles in a run
            self._failed(branch, unanswered.with_traceback(None), after)
        else:
            if isinstance(step, Call):
                branch.waits_for = sent = self._sent(branch.program, step, branch, 0, after)
                self._send(sent)
            else:
                self._part(branch, step, after)

    def _part(self, owner: _Branch, step: Parallel, after: int) -> None:
        """Begin branches, in their order."""
        group = _Group(owner, step, results=[None] * len(step.branches))
        owner.waits_for = group
        if not step.branches:
            self._advance(owner, [], after)
            return
        begun: list[_Sent | _Branch] = []
        for place, each in enumerate(step.branches):
            branch: _Sent | _Branch
            if isinstance(each, Call):
                branch = self._sent(owner.program, each, group, place, after)
            else:
                branch = _Branch(owner.program, each, group, place)
            group.live[place] = branch
            begun.append(branch)
        for branch in begun:
            if group.live.get(branch.place) is not branch:
                continue  # enough of those before it were over at once
            if isinstance(branch, _Sent):
                self._send(branch)
            else:
                self._advance(branch, None, after)

    def _over(self, branch: _Branch, result: Any, after: int) -> None:
        if branch.group is None:
            self._finish(branch.program, "completed", result, after)
        else:
            self._arrived(branch.group, branch.place, result, after)

    def _arrived(self, group: _Group, place: int, result: Any, after: int) -> None:
        """Take in the result of one branch; go on if it was the last, or one enough."""
        del group.live[place]
        group.results[place] = result
        group.came.append(result)
        enough = group.step.enough
        if group.live and (enough is None or not enough(group.came)):
            return
        group.owner.program.cancel(group)
        self._advance(group.owner, group.results, after)

    def _failed(self, branch: _Branch, unanswered: Unanswered, after: int) -> None:
        """Pass on that a branch cannot go on; without an owner that knows better all is over."""
        group = branch.group
        if group is None:
            self._finish(branch.program, unanswered.args[0], None, after)
            return
        del group.live[branch.place]
        group.owner.program.cancel(group)
        self._advance(group.owner, None, after, unanswered)

    def _finish(self, program: _Program, outcome: Outcome, answer: Any, after: int) -> None:
        """Take down what has become of a program."""
        path_ticks = path_calls = 0
        while after != NOBODY:
            after, ticks = program.last[after]
            path_ticks += ticks
            path_calls += 1
        self._programs.append(
            (
                program.number,
                program.arrival_tick,
                self._env.tick,
                outcome,
                -1 if answer is None else int(answer),
                program.calls,
                program.cancelled_calls,
                path_calls,
                path_ticks,
            )
        )
        self._left -= 1
        if self.listener is not None:
            self.listener(len(self._plans) - self._left)
        if self._plans.clients:
            self._after(0, self._begin_next)
        self._desk.rest()

    # -- calls --------------------------------------------------------------------------------

    def _sent(
        self, program: _Program, call: Call, owner: _Branch | _Group, place: int, after: int
    ) -> _Sent:
        """Give a call its number."""
        sent = _Sent(program, call, owner, place, self._next_id, program.calls, after)
        self._next_id += 1
        program.calls += 1
        row = (sent.number, program.number, sent.index, call.label, call.model, after)
        self._calls.append(row)
        return sent

    def _send(self, sent: _Sent) -> None:
        if sent.call.wait_s:
            self._after(to_ticks(sent.call.wait_s), lambda: self._submit(sent))
        else:
            self._submit(sent)

    def _submit(self, sent: _Sent) -> None:
        if sent.cancelled:
            return
        call, program = sent.call, sent.program
        request = Request(sent.number, self._env.tick, call.input_tokens, call.output_tokens)
        request.session, request.turn = program.number, sent.index
        request.content, request.answer = call.prompt, (call.answer_stream, 0)
        request.model, request.priority = call.model, self._priority
        request.on_done = sent
        sent.request = request
        self._desk.submit(request)

    def drop(self, sent: _Sent) -> None:
        """Cancel a call, wherever it is."""
        if sent.request is not None:
            self._desk.cancel(sent.request)

    def heard(self, sent: _Sent, request: Request) -> None:
        """Take note that a request has left."""
        sent.request = None
        if not sent.cancelled:
            seen = self._answer_ticks if request.outcome == "completed" else 0
            self._after(seen, lambda: self._go_on(sent, request))

    def _go_on(self, sent: _Sent, request: Request) -> None:
        if sent.cancelled:
            return
        program, owner = sent.program, sent.owner
        program.last[sent.number] = sent.after, self._env.tick - request.arrival_tick
        if request.outcome == "completed":
            if isinstance(owner, _Group):
                self._arrived(owner, sent.place, sent.call, sent.number)
            else:
                self._advance(owner, sent.call, sent.number)
            return
        unanswered = Unanswered(request.outcome)
        if isinstance(owner, _Group):
            del owner.live[sent.place]
            program.cancel(owner)
            owner = owner.owner
        self._advance(owner, None, sent.number, unanswered)
