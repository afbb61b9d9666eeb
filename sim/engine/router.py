"""Which replica a request goes to."""

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Literal, Protocol

from sim.engine.replica import Replica
from sim.engine.requests import Request

RouterKind = Literal["round_robin", "least_outstanding"]


class Router(Protocol):
    """Chooses a replica for each request, from what can be seen now."""

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the replica that shall serve the request."""
        ...

    def accepted(self, request: Request, replica: Replica) -> None:
        """Hear that a replica has taken a request."""
        ...

    def left(self, replica: Replica) -> None:
        """Hear that a request has left a replica."""
        ...

    def changed(self, replicas: Sequence[Replica]) -> None:
        """Hear that other replicas take requests now."""
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

    def accepted(self, request: Request, replica: Replica) -> None:
        """Take turns whatever comes."""

    def left(self, replica: Replica) -> None:
        """Take turns whatever leaves."""

    def changed(self, replicas: Sequence[Replica]) -> None:
        """Go on with those that are there."""


class LeastOutstanding:
    """The replica with the fewest requests accepted and not done; the first of equals.

    A heap of counts, of which only the lowest of each replica matters: one that turns out too low
    is put right when it comes to the top, one that a departure made too high is undercut at once.
    So a choice costs O(log replicas), and fleets of thousands of replicas can be asked about.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []
        """Counts and places, an order in which equals are told apart by their place."""
        self._lowest: dict[Replica, int] = {}
        self._places: dict[Replica, int] = {}

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the least loaded replica."""
        del request
        if not self._places:
            for place, replica in enumerate(replicas):
                self._places[replica] = place
                self._enter(replica)
        heap = self._heap
        while True:
            count, place = heap[0]
            replica = replicas[place]
            if count == self._lowest[replica]:
                if count == replica.outstanding_requests:
                    return replica
                heappop(heap)
                self._enter(replica)
            else:
                heappop(heap)  # undercut since

    def accepted(self, request: Request, replica: Replica) -> None:
        """Count it when it comes to the top."""

    def changed(self, replicas: Sequence[Replica]) -> None:
        """Begin anew with those that are there."""
        del replicas
        self._heap.clear()
        self._lowest.clear()
        self._places.clear()

    def left(self, replica: Replica) -> None:
        """Undercut the count of a replica that a request has left."""
        if replica in self._lowest and replica.outstanding_requests < self._lowest[replica]:
            self._enter(replica)

    def _enter(self, replica: Replica) -> None:
        self._lowest[replica] = replica.outstanding_requests
        heappush(self._heap, (replica.outstanding_requests, self._places[replica]))


ROUTERS: Mapping[RouterKind, Callable[[], Router]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
}
