"""The replicas of one role behind their router."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from sim.engine.records import Recorder
from sim.engine.replica import Replica, State
from sim.engine.requests import Outcome, Request
from sim.engine.router import Router


class PoolListener(Protocol):
    """Who stands behind a pool: the cluster."""

    def left(self, request: Request) -> None:
        """Take note that a request has left the pool, whatever its outcome."""
        ...

    def lost(self, request: Request) -> None:
        """Take note that a failure broke a request off."""
        ...


class Pool:
    """Equal replicas behind a router.

    Parameters
    ----------
    role : str
    replicas : sequence of Replica
    router : Router
    recorder : Recorder
    listener : PoolListener
    """

    def __init__(
        self,
        role: str,
        replicas: Sequence[Replica],
        router: Router,
        recorder: Recorder,
        listener: PoolListener,
    ) -> None:
        self.role = role
        self.replicas = list(replicas)
        self.router = router
        self.at_door: deque[Request] = deque()
        """Requests that came while no replica took any."""
        self.when_changed: Callable[[Replica, State], None] | None = None
        """Told of every change of a replica's state."""
        self._accepting = [replica for replica in self.replicas if replica.accepts]
        self._recorder = recorder
        self._listener = listener
        self._alone = self.replicas[0] if len(self.replicas) == 1 else None
        """The only replica there is: then there is nothing to choose, and no router to ask."""
        self._since: dict[Replica, int] = {}
        """When each replica that was not always up came into its present state."""
        for replica in self.replicas:
            replica.listener = self

    @property
    def waiting_requests(self) -> int:
        """Accepted and not admitted, by any replica, or at the door."""
        return len(self.at_door) + sum(replica.waiting_requests for replica in self.replicas)

    def submit(self, request: Request) -> None:
        """Hand a request to the replica that the router chooses; it waits if none is up."""
        request.pool = self
        accepting = self._accepting
        if not accepting:
            self.at_door.append(request)
            return
        if self._alone is not None:
            self._alone.submit(request)
            return
        self.router.choose(request, accepting).submit(request)

    def abort(self, request: Request, outcome: Outcome) -> None:
        """Drop a request that nobody waits for any more."""
        if request in self.at_door:
            self.at_door.remove(request)
            request.outcome = outcome
            self._listener.left(request)
        else:
            self.replica_of(request).abort(request, outcome)

    def replica_of(self, request: Request) -> Replica:
        """Give the replica that has a request."""
        return self.replicas[request.replica - self.replicas[0].index]

    def in_state(self, *states: State) -> Iterator[Replica]:
        """Give the replicas that are in one of some states."""
        return (replica for replica in self.replicas if replica.state in states)

    # -- what replicas tell -----------------------------------------------------------------

    def left(self, replica: Replica, request: Request) -> None:
        """Pass on that a request has left."""
        if self._alone is None:
            self.router.left(request, replica)
        self._listener.left(request)

    def lost(self, replica: Replica, request: Request) -> None:
        """Pass on that a request was broken off, or that what it left behind is gone."""
        if request.outcome == "unfinished" and self._alone is None:
            self.router.left(request, replica)
        self._listener.lost(request)

    def changed(self, replica: Replica, state: State) -> None:
        """Record the state that a replica leaves, and let the router know who takes requests."""
        self.record_state(replica)
        self._since[replica] = int(replica.env.now)
        accepts = state == "up"
        if accepts != replica.accepts:
            self._accepting = [
                other for other in self.replicas if (accepts if other is replica else other.accepts)
            ]
            self.router.changed(self._accepting)
        if self.when_changed is not None:
            self.when_changed(replica, state)

    def came_up(self) -> None:
        """Hand out the requests that wait at the door."""
        while self.at_door and self._accepting:
            self.submit(self.at_door.popleft())

    def record_state(self, replica: Replica) -> None:
        """Record the state of a replica from when it came into it until now."""
        since, now = self._since.get(replica, 0), int(replica.env.now)
        if now > since:
            row = (replica.index, replica.state, since, now)
            self._recorder.states.append(row)
