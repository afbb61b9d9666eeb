"""Replicas that hold jobs of known length on a real clock, for tests of who switches them."""

from collections.abc import Sequence

import simpy

from sim.engine.elasticity import ReplicaSet, State

BOUNDARY = 2
"""Priority of step boundaries: after all that the clock does at a tick."""


class FakeReplica:
    """Does what a replica promises to those who switch it on and off, and remembers when."""

    def __init__(self, env: simpy.Environment, index: int) -> None:
        self.env = env
        self.index = index
        self.state: State = "up"
        self.history: list[tuple[int, State]] = [(0, "up")]
        self.replica_set: ReplicaSet | None = None
        self.jobs: set[int] = set()
        self.lost: list[int] = []
        self.waiting_requests = 0
        self.used = 0.0

    @property
    def outstanding_requests(self) -> int:
        return len(self.jobs)

    def kv_used_fraction(self) -> float:
        return self.used

    def set_state(self, state: State) -> None:
        assert state == "up" or not self.jobs
        self._change(state)

    def drain(self) -> None:
        assert self.state == "up"
        self._change("draining")
        self._off_when_empty()

    def fail(self) -> None:
        assert self.state in ("up", "booting", "draining")
        self.lost += sorted(self.jobs)
        self.jobs.clear()
        self._change("down")

    def work(self, job: int, ticks: int) -> None:
        """Take a job that ends at a boundary, after all that the clock does at that tick."""
        assert self.state == "up"
        self.jobs.add(job)
        end = simpy.Event(self.env)
        end._ok, end._value = True, None
        assert end.callbacks is not None
        end.callbacks.append(lambda _: self._done(job))
        self.env.schedule(end, BOUNDARY + self.index, ticks)  # type: ignore[arg-type]

    def spans(self, state: State, until: int) -> list[tuple[int, int]]:
        """From when to when it was in a state."""
        ends = [tick for tick, _ in self.history[1:]] + [until]
        rows = zip(self.history, ends, strict=True)
        return [(start, end) for (start, now), end in rows if now == state and end > start]

    def ticks_in(self, state: State, until: int) -> int:
        """Total time in a state."""
        return sum(end - start for start, end in self.spans(state, until))

    def _done(self, job: int) -> None:
        if job in self.jobs:
            self.jobs.remove(job)
            self._off_when_empty()

    def _off_when_empty(self) -> None:
        if self.state == "draining" and not self.jobs:
            self._change("off")

    def _change(self, state: State) -> None:
        if state == self.state:
            return
        if self.replica_set is not None:
            self.replica_set.changed(self, state)  # as the pool does: told before it is so
        self.state = state
        self.history.append((int(self.env.now), state))


def join(replicas: Sequence[FakeReplica], replica_set: ReplicaSet) -> None:
    """Let the replica_set hear of every change."""
    for replica in replicas:
        replica.replica_set = replica_set
