"""Where requests come from: a timetable of arrivals, or clients that wait for their answers."""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

import simpy

from sim.engine.clock import Alarm, Clock
from sim.engine.requests import Request


class Desk(Protocol):
    """What the senders of requests need of a cluster."""

    env: Clock

    def submit(self, request: Request) -> None:
        """Take in a request."""
        ...

    def cancel(self, request: Request) -> None:
        """Drop a request whose answer is not wanted any more."""
        ...

    def rest(self) -> None:
        """Take note that a source has come to its end without a request that leaves."""
        ...


class Source(Protocol):
    """Sends requests."""

    @property
    def exhausted(self) -> bool:
        """Whether it will send no more, whatever happens."""
        ...

    def start(self, desk: Desk) -> None:
        """Begin to send."""
        ...


class OpenLoop:
    """Sends requests at their arrival times, whatever the system's state.

    Parameters
    ----------
    requests : iterable of Request
        In order of arrival.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self.requests = requests
        self.exhausted = False

    def start(self, desk: Desk) -> None:
        """Begin to send."""
        env = desk.env
        self._env, self._submit = env, desk.submit
        self._upcoming = iter(self.requests)
        self._next = next(self._upcoming, None)
        self.exhausted = self._next is None
        # an alarm of its own, set again and again, costs a third of a process that waits
        self._alarm = Alarm(env, simpy.events.NORMAL, self._arrive)
        if self._next is not None:
            self._alarm.set(max(0, self._next.arrival_tick - env.tick))

    def _arrive(self, _alarm: simpy.Event) -> None:
        """Send the requests of this tick, and those that come before anything else happens."""
        clock, submit, upcoming = self._env, self._submit, self._upcoming
        now, request = clock.tick, self._next
        while request is not None:
            tick = request.arrival_tick
            if tick > now:
                if not clock.skip_to(tick):
                    self._next = request
                    self._alarm.set(tick - now)
                    return
                now = tick
            following = next(upcoming, None)
            self.exhausted = following is None  # known to whoever hears of the last one's fate
            submit(request)
            request = following


class ClosedLoop:
    """A fixed number of clients, each of which sends its next request when the last is done.

    Parameters
    ----------
    supply : sequence of Request
        In the order in which they are sent; the clock gives their arrival ticks.
    clients : int
        Requests in the system at any time, until the supply ends.
    answer_ticks : int
        Time from the end of a request in the engine until its client has seen it.
    """

    def __init__(self, supply: Sequence[Request], clients: int, answer_ticks: int = 0) -> None:
        self._answer_ticks = answer_ticks
        self._supply = deque(supply)
        self._vacancies = min(clients, len(self._supply))
        self._sending = False

    @property
    def exhausted(self) -> bool:
        """Whether the supply has ended."""
        return not self._supply

    def start(self, desk: Desk) -> None:
        """Begin to send."""
        self._env, self._submit = desk.env, desk.submit
        self._env.process(self._start())

    def _start(self) -> Generator[simpy.Event, None, None]:
        yield self._env.timeout(0)
        self._fill()

    def request_done(self, request: Request) -> None:
        """Send the next request in place of the one that is done."""
        if self._answer_ticks and request.outcome == "completed":
            seen = self._env.timeout(self._answer_ticks)
            if seen.callbacks is not None:
                seen.callbacks.append(self._answer_seen)
            return
        self._vacancies += 1
        self._fill()

    def _answer_seen(self, event: simpy.Event) -> None:
        del event
        self._vacancies += 1
        self._fill()

    def _fill(self) -> None:
        """Send requests as long as clients are free.

        A request that is rejected frees its client at once, from within the call that sends it;
        it is this loop and not a deeper call that sends the next one.
        """
        if self._sending:
            return
        self._sending = True
        while self._vacancies and self._supply:
            self._vacancies -= 1
            request = self._supply.popleft()
            request.arrival_tick = int(self._env.now)
            request.on_done = self
            self._submit(request)
        self._sending = False
