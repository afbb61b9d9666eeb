"""Where requests come from: a timetable of arrivals, or clients that wait for their answers."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

import simpy

from sim.engine.requests import Request

Submit = Callable[[Request], None]


class OpenLoop:
    """Sends requests at their arrival times, whatever the system's state.

    Parameters
    ----------
    env : simpy.Environment
    requests : iterator of Request
        In order of arrival.
    submit : callable
        Takes each request at its arrival tick.
    """

    def __init__(self, env: simpy.Environment, requests: Iterator[Request], submit: Submit) -> None:
        self.env = env
        self.requests = requests
        self.submit = submit
        env.process(self._run())

    def _run(self) -> Generator[simpy.Event, None, None]:
        env, submit = self.env, self.submit
        for request in self.requests:
            delay = request.arrival_tick - env.now
            if delay > 0:
                yield env.timeout(delay)
            submit(request)


class ClosedLoop:
    """A fixed number of clients, each of which sends its next request when the last is done.

    Parameters
    ----------
    env : simpy.Environment
    lengths : sequence of (int, int)
        Input and output tokens of each request, in the order in which they are sent.
    clients : int
        Requests in the system at any time, until the supply ends.
    submit : callable
    answer_ticks : int
        Time from the end of a request in the engine until its client has seen it.
    """

    def __init__(
        self,
        env: simpy.Environment,
        lengths: Sequence[tuple[int, int]],
        clients: int,
        submit: Submit,
        answer_ticks: int = 0,
    ) -> None:
        self.env = env
        self.submit = submit
        self._answer_ticks = answer_ticks
        self._supply = deque(enumerate(lengths))
        self._vacancies = min(clients, len(self._supply))
        self._sending = False
        env.process(self._start())

    def _start(self) -> Generator[simpy.Event, None, None]:
        yield self.env.timeout(0)
        self._fill(-1)

    def request_done(self, request: Request) -> None:
        """Send the next request in place of the one that is done."""
        if self._answer_ticks and request.outcome == "completed":
            seen = self.env.timeout(self._answer_ticks)
            if seen.callbacks is not None:
                seen.callbacks.append(self._answer_seen)
            return
        self._vacancies += 1
        self._fill(request.replica)

    def _answer_seen(self, event: simpy.Event) -> None:
        del event
        self._vacancies += 1
        self._fill(-1)

    def _fill(self, boundary_of: int) -> None:
        """Send requests as long as clients are free.

        A request that is rejected frees its client at once, from within `_send`; it is this loop
        and not a deeper call that sends the next one.
        """
        if self._sending:
            return
        self._sending = True
        while self._vacancies and self._supply:
            self._vacancies -= 1
            self._send(boundary_of)
        self._sending = False

    def _send(self, boundary_of: int) -> None:
        request_id, (input_tokens, output_tokens) = self._supply.popleft()
        request = Request(request_id, int(self.env.now), input_tokens, output_tokens)
        request.on_done = self
        request.sent_at_boundary_of = boundary_of
        self.submit(request)
