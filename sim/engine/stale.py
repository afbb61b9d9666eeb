"""Routers that see the replicas as they were some time ago."""

from collections.abc import Sequence
from typing import Any, cast

from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.engine.router import Router
from sim.workload.content import Content


class View:
    """A replica as a router last saw it, and what that router has sent it since."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.index = replica.index
        self.renew()

    def renew(self) -> None:
        """See the replica as it is."""
        replica = self.replica
        self.outstanding_requests = replica.outstanding_requests
        self.outstanding_tokens = replica.outstanding_tokens
        self.used_blocks = replica.used_blocks

    @property
    def accepts(self) -> bool:
        """Whether it takes requests: this much is known at once."""
        return self.replica.accepts

    @property
    def block_tokens(self) -> int:
        """Tokens that a KV block holds."""
        return self.replica.block_tokens

    def cached_tokens(self, content: Content) -> int:
        """Tokens of a prompt in the prefix cache, which routers follow by events of their own."""
        return self.replica.cached_tokens(content)

    def sent(self, request: Request) -> None:
        """Count a request that the router itself has sent."""
        self.outstanding_requests += 1
        self.outstanding_tokens += request.longest_tokens


class Stale:
    """Lets a router see the replicas only from time to time.

    Its view is renewed by the first request that comes ``stale_ticks`` after the last renewal, all
    replicas at once. In between it knows what it has sent itself, but not what has left.

    Parameters
    ----------
    router : Router
    stale_ticks : int
    """

    def __init__(self, router: Router, stale_ticks: int) -> None:
        self._router = router
        self._stale_ticks = stale_ticks
        self._views: dict[Replica, View] = {}
        self._seen: Sequence[View] = ()
        self._next_tick = 0

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the replica that the router chooses by what it knows."""
        now = int(replicas[0].env.now)
        if now >= self._next_tick or not self._seen:
            self._renew(replicas)
            self._next_tick = now + self._stale_ticks
        view = cast("Any", self._router.choose(request, cast("Any", self._seen)))
        chosen: Replica = view.replica
        return chosen

    def accepted(self, request: Request, replica: Replica) -> None:
        """Count what was sent."""
        view = self._views[replica]
        if request.outcome == "unfinished":
            view.sent(request)
        self._router.accepted(request, cast("Any", view))

    def left(self, request: Request, replica: Replica) -> None:
        """Take no note: that is what it does not know."""

    def changed(self, replicas: Sequence[Replica]) -> None:
        """See which replicas take requests, with the next one that comes."""
        self._seen = ()
        self._router.changed(replicas)

    def _renew(self, replicas: Sequence[Replica]) -> None:
        for replica in replicas:
            if replica in self._views:
                self._views[replica].renew()
            else:
                self._views[replica] = View(replica)
        self._seen = [self._views[replica] for replica in replicas]
        self._router.changed(cast("Any", self._seen))
