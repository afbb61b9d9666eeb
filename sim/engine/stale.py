"""Routers that see the replicas as they were some time ago."""

from collections.abc import Sequence
from typing import Any, cast

from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.engine.router import Router
from sim.workload.content import Content

TURNED_AWAY = ("rejected", "shed")
"""Outcomes that a replica gives at once, as its answer to being sent a request."""


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

    def sent(self, request: Request, sign: int = 1) -> None:
        """Count a request that the router itself has sent, or take it back."""
        self.outstanding_requests += sign
        self.outstanding_tokens += sign * request.longest_tokens


class Stale:
    """Lets a router see the replicas only from time to time.

    Its view is renewed by the first request that comes ``stale_ticks`` after the last renewal, all
    replicas at once. In between it knows what it has sent itself, and that a request which was
    turned away at once, or which comes again, is there no more; not what else has left. Which
    replicas take requests it always knows; one that comes anew is seen as it is then.

    Parameters
    ----------
    router : Router
    stale_ticks : int
    """

    def __init__(self, router: Router, stale_ticks: int) -> None:
        self._router = router
        self._stale_ticks = stale_ticks
        self._views: dict[Replica, View] = {}
        self._seen: list[View] = []
        """Those that take requests."""
        self._unheard: dict[Request, View] = {}
        """Where requests have been that have left since it looked, in the order of leaving."""
        self._next_tick = 0

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Return the replica that the router chooses by what it knows."""
        if request in self._unheard:
            self._strike_off(request, self._unheard.pop(request))
        now = int(replicas[0].env.now)
        if now >= self._next_tick:
            self._look(replicas, replicas)
            self._next_tick = now + self._stale_ticks
        view = cast("View", self._router.choose(request, cast("Any", self._seen)))
        view.sent(request)
        return view.replica

    def left(self, request: Request, replica: Replica) -> None:
        """Hear it with the next renewal, unless the request was turned away."""
        view = self._views[replica]
        if request.outcome in TURNED_AWAY:
            self._strike_off(request, view)
        else:
            self._unheard[request] = view

    def changed(self, replicas: Sequence[Replica]) -> None:
        """Look at those that have come, and no more at those that have gone."""
        if self._views:
            known = {view.replica for view in self._seen}
            self._look(replicas, [replica for replica in replicas if replica not in known])

    def _look(self, replicas: Sequence[Replica], at: Sequence[Replica]) -> None:
        """See some of the replicas as they are, and all that take requests from now on."""
        for replica in at:
            if replica not in self._views:
                self._views[replica] = View(replica)
        self._seen = [self._views[replica] for replica in replicas]
        self._router.changed(cast("Any", self._seen))
        looked_at = {self._views[replica] for replica in at}
        for view in looked_at:
            view.renew()
        heard = [request for request, view in self._unheard.items() if view in looked_at]
        for request in heard:
            self._router.left(request, cast("Any", self._unheard.pop(request)))

    def _strike_off(self, request: Request, view: View) -> None:
        """Know that a request is not there any more."""
        view.sent(request, -1)
        self._router.left(request, cast("Any", view))
