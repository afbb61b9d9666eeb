"""Which replicas of a pool serve: booting, draining, spares, and the controller that scales it.

Failures, maintenance and the autoscaler never touch a replica's state by themselves. They say how
many replicas shall serve, and which ones cannot; the `ReplicaSet` of the pool boots, drains and
stops replicas so that it becomes true. All of it happens by the clock: what answers to the end of a
step waits one tick, so that it finds all boundaries of that tick over.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import simpy

from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.requests import Request
from sim.reliability import Autoscaling, BootTime, SpareKind

State = Literal["off", "booting", "up", "draining", "down"]
Active = Callable[[], bool]
"""Tells whether any request has not left yet, those to come included."""

SERVING: tuple[State, ...] = ("booting", "up")
NEXT_TICK = 1


class Unit(Protocol):
    """What a replica offers to those who switch it on and off."""

    index: int
    state: State

    @property
    def outstanding_requests(self) -> int:
        """Accepted and not done."""
        ...

    @property
    def waiting_requests(self) -> int:
        """Accepted and not admitted."""
        ...

    def kv_used_fraction(self) -> float:
        """Share of the KV blocks in use, as of now."""
        ...

    def set_state(self, state: State) -> None:
        """Come into a state at once; it must hold no request unless that is up."""
        ...

    def drain(self) -> None:
        """From up to draining: it accepts nothing more, and is off as soon as it is empty."""
        ...

    def fail(self) -> None:
        """To down, at once; what it holds is lost, the step in progress too."""
        ...


@dataclass(frozen=True)
class BootTicks:
    """How long replicas take to come up, in ticks."""

    cold: int
    """From nothing."""
    restart: int
    """On a host that is there: after a repair or maintenance."""
    spare: int
    """Of a spare that was prepared."""

    @classmethod
    def of(cls, boot: BootTime, spare: SpareKind) -> Self:
        """Take the parts of a boot that each kind of replica has before it.

        >>> boot = BootTime(100.0, 30.0, 20.0, {"store": 30.0}, ())
        >>> [BootTicks.of(boot, kind).spare // TICKS_PER_S for kind in ("hot", "warm", "cold")]
        [0, 50, 150]
        """
        left_s = {"hot": 0.0, "warm": boot.restart_s, "cold": boot.total_s}
        return cls(to_ticks(boot.total_s), to_ticks(boot.restart_s), to_ticks(left_s[spare]))


class ReplicaSet:
    """The replicas of one pool, of which a wanted number shall serve.

    Parameters
    ----------
    env : simpy.Environment
        Its clock counts ticks.
    replicas : sequence of Unit
        All that could ever serve, spares included; up at the start. Those beyond ``wanted`` are
        switched off at once.
    wanted : int
        How many shall serve.
    times : BootTicks
    spares : int
        How many of those that are off are kept prepared for a failure.
    came_up : callable, optional
        Told when a replica has come up: the pool hands out what waits at its door.
    """

    def __init__(
        self,
        env: simpy.Environment,
        replicas: Sequence[Unit],
        wanted: int,
        times: BootTicks,
        *,
        spares: int = 0,
        came_up: Callable[[], object] | None = None,
    ) -> None:
        self.env = env
        self.replicas = replicas
        self._came_up = came_up
        self.wanted = wanted
        self._times = times
        self._spares = spares
        self._out: dict[int, int] = {}
        """How many reasons keep a replica from serving: failed parts, maintenance."""
        self._boots: dict[int, int] = {}
        """Number of the boot that is under way, by replica."""
        self._boot_count = 0
        self._hosted: set[int] = set()
        """Replicas that are out, or come back now, whose hosts were not given away meanwhile."""
        self._prepared: dict[int, int] = {}
        """Tick from which a spare is prepared."""
        self._waiters: list[tuple[Unit, tuple[State, ...], simpy.Event]] = []
        for replica in replicas[wanted:]:
            replica.set_state("off")
        for replica in replicas[wanted : wanted + spares]:
            self._prepared[replica.index] = 0

    @property
    def serving(self) -> list[Unit]:
        """Replicas that are up or will be, draining ones not counted."""
        return [replica for replica in self.replicas if replica.state in SERVING]

    @property
    def booting(self) -> int:
        """Replicas that are on their way up."""
        return len(self._boots)

    def want(self, replicas: int) -> None:
        """Let so many serve from now on."""
        self.wanted = replicas
        self.settle()

    def fail(self, replica: Unit) -> None:
        """Take a replica down, for one more reason; what it holds is lost."""
        self._take_out(replica)
        if replica.state != "off":
            self._boots.pop(replica.index, None)
            if replica.state != "down":
                replica.fail()
        self.settle()

    def hold(self, replica: Unit) -> None:
        """Let a replica finish its requests and stay off, for one more reason."""
        self._take_out(replica)
        self._retire(replica)
        self.settle()

    def release(self, replica: Unit) -> None:
        """Take back one reason; with the last one the replica may serve again."""
        left = self._out[replica.index] - 1
        if left:
            self._out[replica.index] = left
            return
        del self._out[replica.index]
        self.settle()
        if replica.state == "down":
            replica.set_state("off")
        self._hosted.discard(replica.index)
        self._prepare_spares()

    def break_off(self, replica: Unit) -> None:
        """End the draining of a replica at once; what it still holds is lost."""
        if replica.state == "draining":
            replica.fail()

    def until(self, replica: Unit, *states: State) -> simpy.Event:
        """Return an event for the tick after the replica has come into one of the states."""
        event = self.env.event()
        if replica.state in states:
            event.succeed()
        else:
            self._waiters.append((replica, states, event))
        return event

    def changed(self, replica: Unit, state: State) -> None:
        """Hear that a replica comes into another state; the pool tells of every change."""
        ready = [waiter for waiter in self._waiters if waiter[0] is replica]
        for waiter in ready:
            if state in waiter[1]:
                self._waiters.remove(waiter)
                self._next_tick(waiter[2].succeed)
        if state == "off":
            self._next_tick(self.settle)

    def settle(self) -> None:
        """Boot or retire replicas until as many serve as are wanted."""
        serving = self.serving
        missing = self.wanted - len(serving)
        if missing > 0:
            free = [replica for replica in self.replicas if self._can_start(replica)]
            free.sort(key=lambda replica: (self._delay(replica), replica.index))
            for replica in free[:missing]:
                self._boot(replica)
        elif missing < 0:
            serving.sort(key=_retirement_order)
            for replica in serving[:-missing]:
                self._retire(replica)
        self._prepare_spares()

    def _take_out(self, replica: Unit) -> None:
        self._out[replica.index] = self._out.get(replica.index, 0) + 1
        if replica.state != "off":
            self._hosted.add(replica.index)
        self._prepared.pop(replica.index, None)

    def _can_start(self, replica: Unit) -> bool:
        return replica.state in ("off", "down") and replica.index not in self._out

    def _delay(self, replica: Unit) -> int:
        """Ticks that the replica takes to come up, if it starts now."""
        if replica.index in self._hosted:
            return self._times.restart
        if replica.index in self._prepared:
            left = max(0, self._prepared[replica.index] - int(self.env.now))
            return left + self._times.spare
        return self._times.cold

    def _boot(self, replica: Unit) -> None:
        delay = self._delay(replica)
        self._prepared.pop(replica.index, None)
        self._boot_count += 1
        number = self._boots[replica.index] = self._boot_count
        replica.set_state("booting")
        if delay:
            timer = self.env.timeout(delay)
            _on(timer, lambda: self._start(replica, number))
        else:
            self._start(replica, number)

    def _start(self, replica: Unit, number: int) -> None:
        if self._boots.get(replica.index) == number:  # neither failed nor stopped since
            del self._boots[replica.index]
            replica.set_state("up")
            if self._came_up is not None:
                self._came_up()

    def _retire(self, replica: Unit) -> None:
        if replica.state == "booting":
            del self._boots[replica.index]
            replica.set_state("off")
        elif replica.state == "up":
            replica.drain()

    def _prepare_spares(self) -> None:
        """Keep as many idle replicas prepared as there shall be spares."""
        if len(self._prepared) >= self._spares:
            return
        ready = int(self.env.now) + self._times.cold - self._times.spare
        for replica in self.replicas:
            idle = replica.state == "off" and replica.index not in self._out
            if idle and replica.index not in self._prepared:
                self._prepared[replica.index] = ready
                if len(self._prepared) == self._spares:
                    return

    def _next_tick(self, action: Callable[[], object]) -> None:
        _on(self.env.timeout(NEXT_TICK), action)


def _retirement_order(replica: Unit) -> tuple[bool, int, int]:
    """Put first what is not up yet, then what has least to finish, the last of equals."""
    return replica.state != "booting", replica.outstanding_requests, -replica.index


def _on(event: simpy.Event, action: Callable[[], object]) -> None:
    def act(_: simpy.Event) -> None:
        action()

    if event.callbacks is not None:
        event.callbacks.append(act)


class ServiceLevel(Protocol):
    """What a request must meet to count as served well."""

    @property
    def ttft_s(self) -> float:
        """Arrival to first token."""
        ...

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first."""
        ...


@dataclass
class Seen:
    """What an autoscaler has seen in all its looks."""

    highest_ratio: float = 0.0
    """Of the signal over its target."""
    waiting: int = 0
    """Most requests that waited at a look when a replica could have been added."""
    running: int = 0
    """Requests that ran then."""


class Autoscaler:
    """Keeps a signal of one pool near its target.

    Parameters
    ----------
    env : simpy.Environment
    replica_set : ReplicaSet
    rules : Autoscaling
    waiting_at_door : callable
        Requests that no replica accepts for now.
    active : Active
    slo : ServiceLevel, optional
        What ``slo_attainment`` counts.
    """

    def __init__(
        self,
        env: simpy.Environment,
        replica_set: ReplicaSet,
        rules: Autoscaling,
        *,
        waiting_at_door: Callable[[], int],
        active: Active,
        slo: ServiceLevel | None = None,
    ) -> None:
        self.env = env
        self.replica_set = replica_set
        self.rules = rules
        self.slo = slo
        self._waiting_at_door = waiting_at_door
        self._active = active
        self._left: deque[tuple[int, float, bool]] = deque()
        """Tick, seconds to first token and whether the service level was met, of requests."""
        self._wishes: deque[tuple[int, int]] = deque()
        """Tick and number of replicas that each look came to."""
        self._last_scale_out = -to_ticks(rules.scale_out_cooldown_s)
        self.seen = Seen()
        env.process(self._run())

    def request_left(self, request: Request) -> None:
        """Hear of a request that has left.

        One that no replica could ever hold, or whose answer was not wanted any more, says nothing.
        """
        if request.outcome in ("rejected", "cancelled"):
            return
        now = int(self.env.now)
        if request.first_token_tick < 0:
            self._left.append((now, math.inf, False))
            return
        ttft_s = (request.first_token_tick - request.arrival_tick) / TICKS_PER_S
        met = request.outcome == "completed"
        if met and self.slo is not None:
            more = max(1, request.output_tokens - 1)
            tpot_s = (request.done_tick - request.first_token_tick) / TICKS_PER_S / more
            met = ttft_s <= self.slo.ttft_s and tpot_s <= self.slo.tpot_s
        self._left.append((now, ttft_s, met))

    def look(self) -> None:
        """Compare the signal with its target and scale."""
        now = int(self.env.now)
        ratio = self._ratio()
        self._watch(ratio)
        wanted = self._clipped(self._wish(ratio))
        self._wishes.append((now, wanted))
        self._forget(self._wishes, now - to_ticks(self.rules.scale_in_cooldown_s))
        current = self.replica_set.wanted
        if wanted > current:
            if now - self._last_scale_out >= to_ticks(self.rules.scale_out_cooldown_s):
                self._last_scale_out = now
                self.replica_set.want(
                    min(wanted, current + (self.rules.max_step_replicas or wanted))
                )
        elif wanted < current and now >= to_ticks(self.rules.scale_in_cooldown_s):
            highest = max(wish for _, wish in self._wishes)
            if highest < current:
                self.replica_set.want(highest)

    def _run(self) -> Generator[simpy.Event, None, None]:
        while self._active():
            yield self.env.timeout(to_ticks(self.rules.interval_s))
            if self._active():
                self.look()

    def _watch(self, ratio: float | None) -> None:
        """Take note of how far the signal went, and of the longest queue."""
        replicas, seen = self.replica_set.replicas, self.seen
        if ratio is not None:
            seen.highest_ratio = max(seen.highest_ratio, ratio)
        waiting = sum(replica.waiting_requests for replica in replicas)
        running = sum(replica.outstanding_requests for replica in replicas) - waiting
        waiting += self._waiting_at_door()
        could_add = self.replica_set.wanted < self.rules.max_replicas
        if could_add and waiting > seen.waiting:
            seen.waiting, seen.running = waiting, running

    def _wish(self, ratio: float | None) -> int:
        """Replicas that would bring the signal to its target, before any limit."""
        current = self.replica_set.wanted
        if ratio is None or abs(ratio - 1) <= self.rules.tolerance:
            return current
        if math.isinf(ratio):
            return self.rules.max_replicas
        # rounding must not make four replicas of 3 x (4 / 3) five
        return math.ceil(round(current * ratio, 9))

    def _ratio(self) -> float | None:
        """Signal over target; none where there is nothing to go by."""
        rules, replica_set = self.rules, self.replica_set
        if rules.signal in ("ttft_p95_s", "slo_attainment"):
            return self._level_ratio()
        up = [replica for replica in replica_set.replicas if replica.state == "up"]
        total: float
        if rules.signal == "kv_used_fraction":
            total = sum(replica.kv_used_fraction() for replica in up)
        else:
            total = self._waiting_at_door()
            for replica in replica_set.replicas:
                waiting = rules.signal == "waiting_requests"
                total += replica.waiting_requests if waiting else replica.outstanding_requests
        return total / (rules.target * replica_set.wanted)

    def _level_ratio(self) -> float | None:
        """Do the same with what clients see, which lags behind by the time that answers take."""
        self._forget(self._left, int(self.env.now) - to_ticks(self.rules.window_s))
        if not self._left or self.replica_set.booting:
            return None
        if self.rules.signal == "slo_attainment":
            missed = sum(not met for _, _, met in self._left) / len(self._left)
            return missed / (1 - self.rules.target)
        by_ttft = sorted(ttft_s for _, ttft_s, _ in self._left)
        return by_ttft[math.ceil(0.95 * len(by_ttft)) - 1] / self.rules.target

    def _clipped(self, wish: int) -> int:
        return min(self.rules.max_replicas, max(self.rules.min_replicas, wish))

    @staticmethod
    def _forget(rows: "deque[tuple[int, float, bool]] | deque[tuple[int, int]]", tick: int) -> None:
        """Drop what is older than a tick."""
        while rows and rows[0][0] < tick:
            rows.popleft()
