"""Which replica a request goes to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from sim.engine.replica import Replica
from sim.engine.requests import Request

RouterKind = Literal["round_robin", "least_outstanding"]


class Router(Protocol):
    """Chooses a replica for each request, from what can be seen now."""

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the replica that shall serve the request."""
        ...


class RoundRobin:
    """Each replica in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the next replica in turn."""
        del request
        chosen = replicas[self._next % len(replicas)]
        self._next += 1
        return chosen


class LeastOutstanding:
    """The replica with the fewest requests accepted and not done; the first of equals."""

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the least loaded replica."""
        del request
        return min(replicas, key=_outstanding)


def _outstanding(replica: Replica) -> int:
    return replica.outstanding_requests


ROUTERS: Mapping[RouterKind, Callable[[], Router]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
}
