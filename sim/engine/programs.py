"""Programs as sources of requests: calls that wait for others, race them, and are cancelled.

A program is the generator of a strategy (`sim.workload.programs`). Here its calls become requests,
and it goes on when its client has seen their answers. Whatever the order in which answers come,
calls are sent in the order in which the strategy names them.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import simpy

from sim.engine.clients import Desk
from sim.engine.clock import Alarm, to_ticks
from sim.engine.records import CALL_COLUMNS, PROGRAM_COLUMNS, TIMES, Columns, Table
from sim.engine.requests import Outcome, Request
from sim.workload.content import tokens_of
from sim.workload.programs import Call, Control, Parallel, ProgramPlans, Unanswered

NOBODY = -1
"""Number of the call after which a program's first calls come."""


@dataclass(eq=False, slots=True)
class _Branch:
    """A generator under way."""

    program: "_Program"
    control: Control
    group: "_Group | None" = None
    """The branches among which it is; none: it is the whole program."""
    place: int = 0
    waits_for: "_Sent | _Group | None" = None


@dataclass(eq=False, slots=True)
class _Group:
    """Branches side by side."""

    owner: _Branch
    step: Parallel
    live: "dict[int, _Branch | _Sent]" = field(default_factory=dict)
    """Those under way, by their place."""
    results: list[Any] = field(default_factory=list)
    came: list[Any] = field(default_factory=list)


@dataclass(eq=False, slots=True)
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
        self.request = None
        if not self.cancelled:
            self.program.source.tell(self, request)

    def told(self, request: Request) -> None:
        """Let the program go on."""
        if not self.cancelled:
            self.program.source.go_on(self, request)


class _Only:
    """A program of one call, which nothing follows and nobody cancels."""

    __slots__ = ("answer", "number", "source")

    def __init__(self, source: "Programs", number: int, answer: int | None) -> None:
        self.source = source
        self.number = number
        self.answer = answer

    def request_done(self, request: Request) -> None:
        """Let the program be over when its client has seen the answer."""
        self.source.tell(self, request)

    def told(self, request: Request) -> None:
        """Let the program be over."""
        answer = self.answer if request.outcome == "completed" else None
        self.source.over(self.number, request.arrival_tick, request.outcome, answer, None)


class _Program:
    """One question that is being worked on."""

    __slots__ = ("arrival_tick", "calls", "cancelled_calls", "last", "number", "source")

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
    numbers : iterator of int
        Of calls, in the order in which strategies name them; several sources share one.
    answer_ticks : int
        Time from the end of a request in the engine until its client has seen it.
    priority : int
        Of all calls.
    first_session : int
        Calls of a task are those of a session; sessions of others have the numbers before.
    """

    def __init__(
        self,
        plans: ProgramPlans,
        numbers: Iterator[int] | None = None,
        answer_ticks: int = 0,
        priority: int = 0,
        first_session: int = 0,
    ) -> None:
        self._plans = plans
        self._first_session = first_session + plans.first_number
        self._answer_ticks = answer_ticks
        self._priority = priority
        self._left = len(plans)
        self.listener: Callable[[int], None] | None = None
        """Told how many programs are over, whenever one is."""
        self._numbers = count() if numbers is None else numbers
        self._answers: deque[tuple[_Sent | _Only, Request]] = deque()
        """On their way to the client, all for the same time: the first comes first."""
        self._failures: deque[tuple[_Sent | _Only, Request]] = deque()
        """Requests that have left without an answer, until the client hears of it."""
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
        self._only_calls = self._plans.only_calls()
        # alarms that are set again and again cost a fraction of an event each
        env, normal = desk.env, simpy.events.NORMAL
        self._answered = Alarm(env, normal, self._hear_answer)
        self._unanswered = Alarm(env, normal, self._hear_failure)
        self._vacancy = Alarm(env, normal, self._begin_next)
        self._arrival = Alarm(env, normal, self._arrive)
        self._next = None
        if self._plans.clients:
            for _ in range(min(self._plans.clients, len(self._plans))):
                self._vacancy.set(0)
        else:
            self._next = next(self._upcoming, None)
            Alarm(env, simpy.events.URGENT, self._arrive).set(0)

    def _arrive(self, _alarm: simpy.Event) -> None:
        """Ask what is asked now, and what is asked before anything else happens."""
        clock, upcoming, following = self._env, self._upcoming, self._next
        while following is not None:
            number, start_s = following
            tick = to_ticks(start_s)
            if tick > clock.tick and not clock.skip_to(tick):
                self._arrival.set(tick - clock.tick)
                break
            self._begin(number)
            following = next(upcoming, None)
        self._next = following

    def _begin_next(self, _alarm: simpy.Event) -> None:
        """Let a client of a closed loop ask its next question, if there is one."""
        following = next(self._upcoming, None)
        if following is not None:
            self._begin(following[0])

    def _begin(self, number: int) -> None:
        if self._only_calls is not None:
            call, answer = next(self._only_calls)
            request = self._request(self._numbered(number, 0, call, NOBODY), number, 0, call)
            request.on_done = _Only(self, number, answer)
            self._desk.submit(request)
            return
        program = _Program(self, number, self._env.tick)
        self._advance(_Branch(program, self._plans.control(number)), None, NOBODY)

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
        counts = (program.calls, program.cancelled_calls, path_calls, path_ticks)
        self.over(program.number, program.arrival_tick, outcome, answer, counts)

    def over(
        self,
        number: int,
        arrival_tick: int,
        outcome: Outcome,
        answer: Any,
        counts: tuple[int, int, int, int] | None,
    ) -> None:
        """Take note that a program is over.

        Counts are those of its calls, as they are recorded; none: it was a single one.
        """
        plans, now = self._plans, self._env.tick
        counts = counts or (1, 0, 1, now - arrival_tick)
        known = -1 if answer is None else int(answer)
        task = plans.first_number + number
        self._programs.append((task, plans.tenant, arrival_tick, now, outcome, known, *counts))
        self._left -= 1
        if self.listener is not None:
            self.listener(len(self._plans) - self._left)
        if self._plans.clients:
            self._vacancy.set(0)
        self._desk.rest()

    # -- calls --------------------------------------------------------------------------------

    def _sent(
        self, program: _Program, call: Call, owner: _Branch | _Group, place: int, after: int
    ) -> _Sent:
        """Take note of a call that is to be sent."""
        index = program.calls
        number = self._numbered(program.number, index, call, after)
        program.calls = index + 1
        return _Sent(program, call, owner, place, number, index, after)

    def _numbered(self, task: int, index: int, call: Call, after: int) -> int:
        """Give a call its number."""
        number = next(self._numbers)
        task += self._plans.first_number
        self._calls.append((number, task, index, call.label, call.model, after))
        return number

    def _send(self, sent: _Sent) -> None:
        if sent.call.wait_s:
            wait = self._env.timeout(to_ticks(sent.call.wait_s))
            if wait.callbacks is not None:
                wait.callbacks.append(lambda _: self._submit(sent))
        else:
            self._submit(sent)

    def _submit(self, sent: _Sent) -> None:
        if sent.cancelled:
            return
        request = self._request(sent.number, sent.program.number, sent.index, sent.call)
        request.on_done = sent
        sent.request = request
        self._desk.submit(request)

    def _request(self, number: int, task: int, index: int, call: Call) -> Request:
        """Make the request of a call."""
        prompt = call.prompt
        request = Request(number, self._env.tick, tokens_of(prompt), call.output_tokens)
        request.session, request.turn = self._first_session + task, index
        request.tenant, request.priority = self._plans.tenant, self._priority
        request.content, request.answer = prompt, (call.answer_stream, 0)
        request.model, request.reuse = call.model, call.reuse
        return request

    def drop(self, sent: _Sent) -> None:
        """Cancel a call, wherever it is."""
        if sent.request is not None:
            self._desk.cancel(sent.request)

    def tell(self, sent: _Sent | _Only, request: Request) -> None:
        """Tell a client of a request that has left, when the answer has come to it."""
        if request.outcome == "completed":
            self._answers.append((sent, request))
            self._answered.set(self._answer_ticks)
        else:
            self._failures.append((sent, request))
            self._unanswered.set(0)

    def _hear_answer(self, _alarm: simpy.Event) -> None:
        sent, request = self._answers.popleft()
        sent.told(request)

    def _hear_failure(self, _alarm: simpy.Event) -> None:
        sent, request = self._failures.popleft()
        sent.told(request)

    def go_on(self, sent: _Sent, request: Request) -> None:
        """Let a program go on whose call is answered, or will never be."""
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
