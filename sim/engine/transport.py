"""Moves keys and values: from the replica that computed them, or back from where they were put."""

from collections.abc import Callable
from dataclasses import dataclass, field

import simpy

from sim.engine.clock import TICKS_PER_S
from sim.engine.links import Link, reserve_path
from sim.engine.prefix import PrefixCache
from sim.engine.records import Recorder
from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.engine.tiers import Tiers
from sim.errors import InternalError


@dataclass
class Handover:
    """Keys and values of a prompt that another replica has computed."""

    tokens: int
    source: Replica
    stage: Request
    """The request that computed them; its blocks stay in use until they are fetched."""
    since_tick: int
    """When they were ready."""
    hidden_ticks: int = 0
    """Sending time that has passed while the prompt was being computed."""
    least_fraction: float = 1.0
    """Of the bytes: what can only be sent afterwards."""
    released: bool = False
    kind: str = "handover"


@dataclass
class Swapped:
    """Keys and values of a preempted sequence, in the memory of the host."""

    tokens: int
    store: "SwapSpace"
    since_tick: int
    released: bool = False
    kind: str = "swap"

    @property
    def link(self) -> Link:
        """The way back."""
        return self.store.link


@dataclass
class StoredKv:
    """Keys and values of a request in a store that outlives its replica."""

    tokens: int
    link: Link
    since_tick: int
    released: bool = False
    kind: str = "kv store"


@dataclass
class SwapSpace:
    """Room in the memory of the host for sequences that were preempted."""

    capacity_tokens: int
    link: Link
    used_tokens: int = 0

    def take(self, tokens: int) -> bool:
        """Set room aside, if there is enough."""
        if self.used_tokens + tokens > self.capacity_tokens:
            return False
        self.used_tokens += tokens
        return True


Elsewhere = Handover | Swapped | StoredKv
"""Keys and values that a request has somewhere else."""


@dataclass
class Ports:
    """Where keys and values leave and enter a replica."""

    egress: Link
    ingress: Link


@dataclass
class Transport:
    """Fetches keys and values for one replica, one after the other on each link.

    Parameters
    ----------
    env : simpy.Environment
    replica : Replica
    recorder : Recorder
    bytes_per_token : float
        Of keys and values.
    ports : mapping
        Links of each replica, by its index.
    swap : SwapSpace, optional
    """

    env: simpy.Environment
    replica: Replica
    recorder: Recorder
    bytes_per_token: float
    ports: dict[int, Ports] = field(default_factory=dict)
    swap: SwapSpace | None = None
    tiers: Tiers | None = None
    changes_by_itself: bool = False
    """Whether other replicas use some of the tiers too."""

    def follow(self, cache: PrefixCache) -> None:
        """Hear what the prefix cache of the replica computes and forgets."""
        if self.tiers is not None:
            cache.on_release, cache.on_evict = self.tiers.computed, self.tiers.dropped

    def remote_tokens(self, request: Request, cached_tokens: int) -> int:
        """Count the tokens from the start that could be fetched, or are here already."""
        if request.remote is not None:
            return max(cached_tokens, request.remote.tokens)
        if self.tiers is None or request.content is None:
            return cached_tokens
        limit = request.input_tokens + request.generated_tokens - 1
        return max(cached_tokens, self.tiers.tokens(request.context, limit))

    def fetch(self, request: Request, cached_tokens: int, tokens: int) -> None:
        """Fetch what is not here, and tell the replica when it has come."""
        if request.remote is None:
            self._load(request, cached_tokens, tokens)
            return
        remote = _elsewhere(request)
        size = (tokens - cached_tokens) * self.bytes_per_token
        now = int(self.env.now)
        if isinstance(remote, Handover):
            path = [self.ports[remote.source.index].egress, self.ports[self.replica.index].ingress]
            sent = remote.hidden_ticks * min(link.bandwidth_bytes_per_s for link in path)
            rest = max(size - sent / TICKS_PER_S, size * remote.least_fraction)
            start, end = reserve_path(path, now, rest)
        else:
            start, end = remote.link.reserve(now, size)
        self._at(end, self._arrival(request, (now, start, end), size))

    def _load(self, request: Request, cached_tokens: int, tokens: int) -> None:
        """Load what slower tiers hold of a prompt; all of them at the same time."""
        if self.tiers is None:
            raise InternalError(f"{request} has nothing elsewhere to be fetched")
        now, scheduler = int(self.env.now), self.replica.scheduler
        loads = self.tiers.load(request.context, cached_tokens, tokens)
        end, attempt = max(load.end_tick for load in loads), request.attempts

        def arrive() -> None:
            if self.replica.scheduler is not scheduler or request.attempts != attempt:
                return
            if request in scheduler.fetching:
                request.transfer_ticks += end - now
                self.replica.fetched(request)

        for load in loads:
            ticks = (now, load.start_tick, load.end_tick)
            self._write(("load", load.tier), request, ticks, load.size_bytes)
        self._at(end, arrive)

    def let_go(self, request: Request) -> None:
        """Free what lies elsewhere of a request that needs it no more."""
        remote, request.remote = _elsewhere(request), None
        release(remote)

    def swap_out(self, request: Request, tokens: int) -> bool:
        """Write a preempted sequence to the memory of the host, if it has room."""
        swap = self.swap
        if swap is None or not tokens or not swap.take(tokens):
            return False
        now = int(self.env.now)
        size = tokens * self.bytes_per_token
        start, end = swap.link.reserve(now, size)
        request.remote = Swapped(tokens, swap, now)
        self._record("swap out", (request, request.remote), (now, start, end), size)
        return True

    def _arrival(
        self, request: Request, ticks: tuple[int, int, int], size: float
    ) -> Callable[[], None]:
        """Give what happens when keys and values come in."""
        remote, scheduler, attempt = _elsewhere(request), self.replica.scheduler, request.attempts

        def arrive() -> None:
            self._record(remote.kind, (request, remote), ticks, size)
            release(remote)
            if self.replica.scheduler is not scheduler or request not in scheduler.fetching:
                return  # the replica has failed since, or the client has gone
            if request.attempts != attempt:
                return  # the client has come again meanwhile
            request.remote = None
            if isinstance(remote, Handover):
                request.handover_wait_ticks += ticks[0] - remote.since_tick
                request.transfer_ticks += ticks[2] - ticks[0]
            elif isinstance(remote, StoredKv):
                request.transfer_ticks += ticks[2] - ticks[0]
            self.replica.fetched(request)

        return arrive

    def _at(self, tick: int, action: Callable[[], None]) -> None:
        timeout = self.env.timeout(tick - int(self.env.now))
        if timeout.callbacks is not None:
            timeout.callbacks.append(lambda _: action())

    def _record(
        self,
        kind: str,
        what: tuple[Request, Elsewhere],
        ticks: tuple[int, int, int],
        size: float,
    ) -> None:
        request, remote = what
        source = "host"
        if isinstance(remote, Handover):
            source = str(remote.source.index)
        elif isinstance(remote, StoredKv):
            source = "store"
        self._write((kind, source), request, ticks, size)

    def _write(
        self, what: tuple[str, str], request: Request, ticks: tuple[int, int, int], size: float
    ) -> None:
        kind, source = what
        row = (kind, request.request_id, source, self.replica.index, *ticks, size)
        self.recorder.transfers.append(row)


def _elsewhere(request: Request) -> Elsewhere:
    """Give what a request has elsewhere as what it is: requests know of a protocol alone."""
    if not isinstance(request.remote, Elsewhere):
        raise InternalError(f"{request} has no keys and values elsewhere: {request.remote!r}")
    return request.remote


def release(remote: Elsewhere) -> None:
    """Free what keys and values occupied where they lay, once."""
    if remote.released:
        return
    remote.released = True
    if isinstance(remote, Handover):
        if remote.stage in remote.source.scheduler.kept:
            remote.source.free_kept(remote.stage)
    elif isinstance(remote, Swapped):
        remote.store.used_tokens -= remote.tokens
