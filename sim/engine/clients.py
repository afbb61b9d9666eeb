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
    """

    def __init__(
        self,
        env: simpy.Environment,
        lengths: Sequence[tuple[int, int]],
        clients: int,
        submit: Submit,
    ) -> None:
        self.env = env
        self.submit = submit
        self._supply = deque(enumerate(lengths))
        self._clients = clients
        env.process(self._start())

    def _start(self) -> Generator[simpy.Event, None, None]:
        yield self.env.timeout(0)
        for _ in range(min(self._clients, len(self._supply))):
            self._send()

    def request_done(self, request: Request) -> None:
        """Send the next request in place of the one that is done."""
        del request
        if self._supply:
            self._send()

    def _send(self) -> None:
        request_id, (input_tokens, output_tokens) = self._supply.popleft()
        request = Request(request_id, int(self.env.now), input_tokens, output_tokens)
        request.on_done = self
        self.submit(request)
