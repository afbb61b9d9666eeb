"""Failures of parts, planned maintenance, and what becomes of the requests that they hit.

Every part lives and is repaired by a random stream of its own, named after it. So equal seeds give
equal failures whatever the traffic, and one part more moves no other. All processes end with the
traffic: they ask ``active`` before they touch anything, and a run that stops with its last request
leaves their timers behind.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

import simpy

from sim.engine.clock import to_ticks
from sim.engine.elasticity import Active, ReplicaSet, Unit
from sim.engine.links import Link
from sim.engine.requests import NEVER, Request
from sim.engine.transport import StoredKv
from sim.errors import InputError
from sim.reliability import Faults, Maintenance, PartKind, PartLaw
from sim.seeds import stream

# --- Where things stand.


@dataclass(frozen=True)
class Part:
    """One thing that can fail, and the replicas that go down with it."""

    kind: PartKind
    number: int
    replicas: tuple[int, ...]
    """Places in the pool."""


@dataclass(frozen=True)
class Placement:
    """On which chips, hosts and racks the replicas of a pool stand.

    A host holds as many whole replicas as fit; a larger replica has hosts of its own.
    """

    replicas: int
    chips_per_replica: int
    chips_per_host: int
    hosts_per_rack: int | None = None

    def parts(self, kind: PartKind) -> list[Part]:
        """All parts of a kind that a replica stands on.

        Replicas of three chips on hosts of eight: two on the first, one on the second.

        >>> Placement(3, 3, 8).parts("host")
        [Part(kind='host', number=0, replicas=(0, 1)), Part(kind='host', number=1, replicas=(2,))]
        >>> [part.replicas for part in Placement(3, 3, 8).parts("chip")]
        [(0,), (0,), (0,), (1,), (1,), (1,), (2,), (2,), (2,)]
        """
        standing: dict[int, list[int]] = {}
        for replica in range(self.replicas):
            for number in self._numbers(kind, replica):
                standing.setdefault(number, []).append(replica)
        return [Part(kind, number, tuple(on)) for number, on in sorted(standing.items())]

    def failing(self, laws: Mapping[PartKind, PartLaw]) -> list[tuple[Part, PartLaw]]:
        """All parts of the kinds that have a law, with their laws."""
        return [(part, law) for kind, law in laws.items() for part in self.parts(kind)]

    def _numbers(self, kind: PartKind, replica: int) -> Iterator[int]:
        """Numbers of the parts of a kind that one replica stands on."""
        chips, host = self.chips_per_replica, self.chips_per_host
        if kind == "engine":
            yield replica
        elif kind in ("chip", "link"):
            yield from range(replica * chips, (replica + 1) * chips)
        elif kind == "host":
            together = host // chips
            if together:
                yield replica // together
            else:
                hosts = -(-chips // host)
                yield from range(replica * hosts, (replica + 1) * hosts)
        else:
            if self.hosts_per_rack is None:
                raise InputError(
                    "racks fail, but faults.hosts_per_rack is not given: give it",
                    key="faults.hosts_per_rack",
                )
            hosts_of = self._numbers("host", replica)
            yield from sorted({number // self.hosts_per_rack for number in hosts_of})


# --- Failures.


FAILURE_COLUMNS: Mapping[str, str] = {
    "part": "O",
    "number": "i8",
    "replicas": "i4",
    "start_s": "f8",
    "end_s": "f8",
}
"""Of every failure: the kind of part and its number, the replicas it hit, until it was repaired
(NaN: not before the end)."""


@dataclass
class Failure:
    """One failure of one part."""

    part: Part
    start_tick: int
    end_tick: int = NEVER
    """When it was repaired."""


class Breakdowns:
    """Lets the parts of one pool fail and come back.

    Parameters
    ----------
    env : simpy.Environment
    replica_set : ReplicaSet
    parts : iterable of (Part, PartLaw)
        What fails, and when.
    streams : tuple
        Seed of the run and names of the pool: what the random streams derive from.
    active : Active
    slow_down : callable, optional
        Sets the pace of a replica with a failed link (True) or with none (False); without it a
        failed link takes its replica down.
    """

    def __init__(
        self,
        env: simpy.Environment,
        replica_set: ReplicaSet,
        parts: Iterable[tuple[Part, PartLaw]],
        *,
        streams: tuple[int, str],
        active: Active,
        slow_down: Callable[[Unit, bool], None] | None = None,
    ) -> None:
        self.env = env
        self.replica_set = replica_set
        self.failures: list[Failure] = []
        self._active = active
        self._slow_down = slow_down
        self._slow_links: dict[int, int] = {}
        self._streams = streams
        for part, law in parts:
            env.process(self._live(part, law))

    def _live(self, part: Part, law: PartLaw) -> Generator[simpy.Event, None, None]:
        seed, pool = self._streams
        rng = stream(seed, "faults", pool, part.kind, part.number)
        while self._active():
            yield self.env.timeout(to_ticks(law.draw_life_s(rng)))
            if not self._active():
                return
            failure = Failure(part, int(self.env.now))
            self.failures.append(failure)
            self._break(part)
            yield self.env.timeout(to_ticks(law.draw_repair_s(rng)))
            failure.end_tick = int(self.env.now)
            self._mend(part)

    def _break(self, part: Part) -> None:
        for place in part.replicas:
            replica = self.replica_set.replicas[place]
            if not self._only_slows(part):
                self.replica_set.fail(replica)
            else:
                self._slow_links[place] = self._slow_links.get(place, 0) + 1
                self._set_pace(replica, place)

    def _mend(self, part: Part) -> None:
        for place in part.replicas:
            replica = self.replica_set.replicas[place]
            if not self._only_slows(part):
                self.replica_set.release(replica)
            else:
                self._slow_links[place] -= 1
                self._set_pace(replica, place)

    def _only_slows(self, part: Part) -> bool:
        return part.kind == "link" and self._slow_down is not None

    def _set_pace(self, replica: Unit, place: int) -> None:
        """Slow a replica down with its first failed link, and let it go on with the last mended."""
        if self._slow_down is not None:
            self._slow_down(replica, self._slow_links[place] > 0)


# --- Maintenance.


class MaintenanceRounds:
    """Takes the replicas of a pool out of service in turn, for planned work.

    As many crews as replicas may be missing each take the next replica: they wait until it has
    finished its requests, or until their patience ends, do their work, and see it come up again.

    Parameters
    ----------
    env : simpy.Environment
    replica_set : ReplicaSet
    plan : Maintenance
    active : Active
    """

    def __init__(
        self, env: simpy.Environment, replica_set: ReplicaSet, plan: Maintenance, active: Active
    ) -> None:
        self.env = env
        self.replica_set = replica_set
        self.plan = plan
        self._active = active
        env.process(self._run())

    def _run(self) -> Generator[simpy.Event, None, None]:
        start = to_ticks(self.plan.start_s)
        while True:
            yield self.env.timeout(start - int(self.env.now))
            if not self._active():
                return
            due = deque(self.replica_set.replicas)
            crews = range(self.plan.max_unavailable)
            yield self.env.all_of([self.env.process(self._crew(due)) for _ in crews])
            if self.plan.period_s is None:
                return
            while start <= int(self.env.now):  # a round that takes too long skips the next
                start += to_ticks(self.plan.period_s)

    def _crew(self, due: deque[Unit]) -> Generator[simpy.Event, None, None]:
        while due and self._active():
            yield from self._service(due.popleft())

    def _service(self, replica: Unit) -> Generator[simpy.Event, None, None]:
        replica_set = self.replica_set
        replica_set.hold(replica)
        if replica.state == "draining":
            patience = self.env.timeout(to_ticks(self.plan.drain_s))
            yield replica_set.until(replica, "off", "down") | patience
            replica_set.break_off(replica)
        yield self.env.timeout(to_ticks(self.plan.duration_s))
        replica_set.release(replica)
        if replica.state == "booting":
            yield replica_set.until(replica, "up", "off", "down")


# --- Requests.


@dataclass(frozen=True)
class LostWork:
    """What a failure has thrown away of one request."""

    request_id: int
    replica: int
    tick: int
    retried: bool
    context_tokens: int
    """Tokens whose keys and values are gone and were not stored."""
    answer_tokens: int
    """Of the answer, that nobody will use."""
    kept_tokens: int
    """Tokens whose keys and values are loaded instead of computed again."""


class Recovery:
    """Decides what becomes of the requests of a replica that failed.

    Parameters
    ----------
    env : simpy.Environment
    rules : Faults
    resubmit : callable
        Takes a request that is tried again, as the pools' door does.
    block_tokens : int
        Tokens of a KV block: only full ones are in a store.
    kv_store : Link, optional
        The store's link; needed where retries keep the keys and values.
    """

    def __init__(
        self,
        env: simpy.Environment,
        rules: Faults,
        *,
        resubmit: Callable[[Request], None],
        block_tokens: int,
        kv_store: Link | None = None,
    ) -> None:
        if rules.lost == "retry" and rules.retry_keeps == "kv" and kv_store is None:
            raise InputError(
                "faults.retry_keeps is kv, but there is no remote store of keys and values; add "
                "one, or set retry_keeps: answer"
            )
        self.env = env
        self.rules = rules
        self.losses: list[LostWork] = []
        self._resubmit = resubmit
        self._block_tokens = block_tokens
        self._kv_store = kv_store

    def lost(self, request: Request) -> bool:
        """Take a request that was broken off, and tell whether it is tried again.

        Its ``computed_tokens`` were in the cache; one that waited has lost nothing but its place.
        """
        retried = self.rules.lost == "retry" and request.attempts < self.rules.max_attempts
        keeps = self.rules.retry_keeps if retried else "nothing"
        stored = self._stored_tokens(request) if keeps == "kv" else 0
        self.losses.append(
            LostWork(
                request_id=request.request_id,
                replica=request.replica,
                tick=int(self.env.now),
                retried=retried,
                context_tokens=request.computed_tokens - stored,
                answer_tokens=request.generated_tokens if keeps == "nothing" else 0,
                kept_tokens=stored,
            )
        )
        if not retried:
            return False
        self._reset(request, stored)
        # even with no delay after whatever else fails at this moment
        again = self.env.timeout(to_ticks(self.rules.detection_s))
        if again.callbacks is not None:
            again.callbacks.append(lambda _: self._resubmit(request))
        return True

    def _stored_tokens(self, request: Request) -> int:
        """Tokens of the context in full blocks; one is always computed, to get a next token."""
        last = min(request.computed_tokens, request.prefill_tokens - 1)
        return last - last % self._block_tokens

    def _reset(self, request: Request, stored: int) -> None:
        """Make a request one that has not been admitted yet."""
        request.attempts += 1
        request.reached_tokens = max(request.reached_tokens, request.computed_tokens)
        request.computed_tokens = 0
        request.reserved_blocks = 0
        request.holding = None
        request.finish_step = -1
        request.remote = None
        if self.rules.retry_keeps == "nothing":
            request.forget_work()  # the client sees the answer begin again
        if stored and self._kv_store is not None:
            request.remote = StoredKv(stored, self._kv_store, int(self.env.now))
