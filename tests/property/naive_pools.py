"""The oracle of what surrounds replicas: routers, hand-over, clients that give up, failures.

Written from ``docs/explanation/routing-and-admission.md``, ``elasticity-and-faults.md`` and ADRs 9
and 10, and shares no code with `sim`. What happens by the clock comes before the boundaries of the
same tick, which come in the order of the replicas.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from naive_engine import StepTicks
from naive_rules import Arrival, Job, NaiveServer, Rules


@dataclass(frozen=True)
class PatienceRule:
    """How long clients wait, and how often they try."""

    ticks: int
    until: str = "first_token"
    retries: int = 0
    backoff: int = 1


@dataclass(frozen=True)
class Failure:
    """One replica breaks, comes back, and what it had is sent again or not."""

    replica: int
    tick: int
    down_ticks: int
    retry: bool
    detection: int = 1
    """Before requests are sent again; and a tick more for each number, so that they queue by it."""


@dataclass
class NaivePool:
    """Equal replicas, dealt to in turn."""

    servers: list[NaiveServer]
    turns: int = 0
    door: list[Job] = field(default_factory=list)
    """Requests that came while no replica was up."""


@dataclass
class NaiveCluster:
    """One pool that does everything, or a prefill and a decode pool."""

    pools: Sequence[tuple[Rules, int]]
    step_ticks: StepTicks
    transfer_ticks: int = 1
    patience: PatienceRule | None = None
    failures: Sequence[Failure] = ()
    jobs: list[Job] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    agenda: list[tuple[int, int, Callable[[int], None]]] = field(default_factory=list)
    """What happens when, in the order in which it was noted down."""
    noted: int = 0
    failing: Failure | None = None
    """The last failure, which tells what becomes of those that it broke off."""

    def __post_init__(self) -> None:
        self.servers: list[NaiveServer] = []
        self.groups: list[NaivePool] = []
        for rules, replicas in self.pools:
            first = len(self.servers)
            servers = [
                NaiveServer(index, rules, self.step_ticks, self.seen, self.at, self.transfer_ticks)
                for index in range(first, first + replicas)
            ]
            for server in servers:
                server.is_behind = first > 0
            self.servers += servers
            self.groups.append(NaivePool(servers))

    # -- the clock ------------------------------------------------------------------------------

    def at(self, tick: int, action: Callable[[int], None]) -> None:
        self.noted += 1
        self.agenda.append((tick, self.noted, action))

    def serve(self, arrivals: Sequence[Arrival]) -> "NaiveCluster":
        """Serve them all."""
        for failure in self.failures:
            self.at(failure.tick, lambda now, failure=failure: self.fail(failure, now))  # type: ignore[misc]
        self.jobs = [Job(number, arrival) for number, arrival in enumerate(arrivals)]
        self.arrive(list(self.jobs), arrivals[0].tick)
        rounds = 0
        while True:
            boundaries = [s.boundary for s in self.servers if s.boundary is not None]
            ticks = [*boundaries, *(entry[0] for entry in self.agenda)]
            if not ticks or (not boundaries and self.is_over()):
                return self
            now = min(ticks)
            rounds += 1
            assert rounds < 100_000, "requests push each other out for ever"
            while due := [entry for entry in self.agenda if entry[0] == now]:
                first = min(due, key=lambda entry: entry[1])
                self.agenda.remove(first)
                first[2](now)
            while waiting := [server for server in self.servers if server.boundary == now]:
                self.pass_boundary(waiting[0], now)

    def is_over(self) -> bool:
        return all(job.outcome not in ("unfinished", "comes back") for job in self.jobs)

    def arrive(self, coming: list[Job], tick: int) -> None:
        """Note the next arrivals down: all of one tick, and then those after them."""

        def send_all(now: int) -> None:
            while coming and coming[0].sent.tick == now:
                self.send(coming.pop(0), now)
            if coming:
                self.arrive(coming, coming[0].sent.tick)

        self.at(tick, send_all)

    def pass_boundary(self, server: NaiveServer, now: int) -> None:
        """End the step of a replica, tell everybody, and begin the next one."""
        ended = bool(server.scheduled)
        known = server.began if ended and server.rules.steps_ahead else now
        for job in server.end_step(now):
            self.done(job, server, now)
        dropped, server.dropped = server.dropped, []
        for job, outcome in dropped:
            if job.outcome == "unfinished" and job.server is server:
                self.drop(job, server, outcome, now)
        server.begin_step(now, known, ended=ended)

    # -- the way of a request -------------------------------------------------------------------

    def send(self, job: Job, now: int) -> None:
        job.outcome = "unfinished"
        if self.patience is not None:
            attempt, patience = job.attempts, self.patience
            self.at(now + patience.ticks, lambda then: self.look(job, attempt, then))
        if job.sent.inputs + job.sent.outputs > min(rules.max_model_len for rules, _ in self.pools):
            self.leave(job, "rejected", now)
        elif len(self.groups) == 1:
            self.offer(self.groups[0], job, now)
        else:
            part = Job(job.number, replace(job.sent, outputs=1, asked=1))
            part.whole, job.part = job, part
            self.offer(self.groups[0], part, now)

    def offer(self, pool: NaivePool, job: Job, now: int) -> None:
        up = [server for server in pool.servers if server.up]
        job.server = None
        if not up:
            self.seen["waited at the door"] += 1
            pool.door.append(job)
            return
        server = up[pool.turns % len(up)]
        pool.turns += 1
        job.server, job.replica = server, server.index
        if server.can_ever_run(job):
            server.accept(job, now)
            return
        self.seen["rejected"] += 1
        self.end(job, "rejected", now)

    def done(self, job: Job, server: NaiveServer, now: int) -> None:
        """Let a request leave, or send it on to the decode pool."""
        whole = job.whole
        if whole is None:
            self.leave(job, "completed", now)
        elif whole.given_up is not None:
            server.free_kept(job, now)
            self.end(job, whole.given_up, now)
        else:
            whole.part = None
            whole.prefill_replica = whole.replica = server.index
            whole.answered = 1
            whole.preemptions += job.preemptions
            whole.cached, whole.admitted = job.cached, job.admitted
            whole.reached = job.sent.inputs
            whole.first_token = job.first_token
            if whole.sent.outputs == 1:
                whole.done = job.done
                self.leave(whole, "completed", now)
                return
            self.seen["handed over"] += 1
            whole.stored, whole.source = job.sent.inputs, (server, job)
            self.offer(self.groups[1], whole, now)

    def end(self, job: Job, outcome: str, now: int) -> None:
        """Let a request leave that is over, or one of whose parts is."""
        whole = job.whole or job
        whole.part = None
        if job is not whole:
            whole.cached += job.cached
        self.leave(whole, whole.given_up or outcome, now)

    def leave(self, job: Job, outcome: str, now: int) -> None:
        job.outcome = outcome
        self.seen[outcome] += 1
        if job.stored:
            assert job.server is not None or job.source is not None
            (job.server or job.source[0]).release_stored(job, now)  # type: ignore[index]
        patience = self.patience
        if outcome in ("completed", "rejected") or patience is None:
            return
        if job.attempts <= patience.retries:
            self.seen["tried again"] += 1
            self.begin_again(job)
            self.at(now + patience.backoff, lambda then: self.send(job, then))

    def begin_again(self, job: Job) -> None:
        """Forget all of an attempt but what it has been through."""
        job.outcome = "comes back"
        job.attempts += 1
        job.answered = job.computed = job.cached = job.reached = 0
        job.decoding = False
        job.admitted = job.first_token = job.replica = -1
        job.part = job.server = job.given_up = None

    # -- clients that give up -------------------------------------------------------------------

    def look(self, job: Job, attempt: int, now: int) -> None:
        """Give up an attempt that has not come as far as its client expected."""
        assert self.patience is not None
        if job.outcome != "unfinished" or job.attempts != attempt:
            return
        if self.patience.until == "first_token" and job.first_token >= 0:
            return
        self.give_up(job, "timed_out", now)

    def give_up(self, job: Job, outcome: str, now: int) -> None:
        now_at = job.part or job
        if now_at is not job:
            job.given_up = outcome
        for pool in self.groups:
            if now_at in pool.door:
                pool.door.remove(now_at)
                self.seen["given up at the door"] += 1
                self.stop(now_at, outcome, now)
                return
        server = now_at.server
        assert server is not None
        if now_at in server.line.jobs:
            self.seen["given up while waiting"] += 1
            server.line.jobs.remove(now_at)
            self.stop(now_at, outcome, now)
        else:
            self.seen["given up while running"] += 1
            server.dropped.append((now_at, outcome))
        server.look(now)

    def drop(self, job: Job, server: NaiveServer, outcome: str, now: int) -> None:
        """Take a request out at the end of a step."""
        if job in server.line.jobs:
            server.line.jobs.remove(job)
        else:
            for jobs in (server.running, server.fetching, server.ready):
                if job in jobs:
                    jobs.remove(job)
            server.free_blocks(job)
        self.stop(job, outcome, now)

    def stop(self, job: Job, outcome: str, now: int) -> None:
        """Let a request leave that was given up, or that has lost what it was to fetch."""
        if outcome == "lost":
            job.outcome = "lost"
            self.lost(job, now)
        else:
            self.end(job, outcome, now)

    # -- failures -------------------------------------------------------------------------------

    def fail(self, failure: Failure, now: int) -> None:
        """Break a replica down; the step in progress is lost too."""
        if self.is_over():
            return
        server = self.servers[failure.replica % len(self.servers)]
        if not server.up:
            return
        self.seen["failed"] += 1
        prompts = [job for job, _ in server.scheduled if not job.decoding]
        running = sorted(server.running, key=lambda job: job not in prompts)
        waiting = sorted(server.line.jobs, key=lambda job: job.rank)
        here = [*running, *server.ready, *server.fetching, *waiting]
        kept, dropped = list(server.kept), dict(server.dropped)
        server.clear()
        server.up = False
        server.life += 1
        self.at(now + failure.down_ticks, lambda then: self.mend(server, then))
        self.failing = failure
        for job in here:
            if job in dropped:
                self.end(job, dropped[job], now)
            else:
                self.lost(job, now)
        for part in kept:
            whole = part.whole
            if whole is not None and whole.source is not None and whole.source[1] is part:
                self.seen["lost before it was fetched"] += 1
                whole.stored, whole.source = 0, None
                self.give_up(whole, "lost", now)

    def lost(self, job: Job, now: int) -> None:
        """Send a request again that a failure broke off, or let it leave."""
        whole = job.whole or job
        if job is not whole:
            whole.cached += job.cached
        if whole.stored:
            assert whole.server is not None
            whole.server.release_stored(whole, now)
        self.seen["broken off"] += 1
        assert self.failing is not None
        if not self.failing.retry:
            whole.part = None
            self.leave(whole, "lost", now)
            return
        self.begin_again(whole)
        again = now + self.failing.detection + whole.number
        self.at(again, lambda then: self.send(whole, then))

    def mend(self, server: NaiveServer, now: int) -> None:
        server.up = True
        pool = next(pool for pool in self.groups if server in pool.servers)
        while pool.door:
            self.offer(pool, pool.door.pop(0), now)
