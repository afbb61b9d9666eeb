"""All pools of one case, and the way of each request through them, run to the end."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import simpy

from sim.engine.clients import Source
from sim.engine.clock import Clock
from sim.engine.door import Door
from sim.engine.links import Link
from sim.engine.plan import ReplicaPlan
from sim.engine.pool import Pool
from sim.engine.prefix import PrefixCache
from sim.engine.records import (
    CALL_COLUMNS,
    PREEMPTION_COLUMNS,
    PROGRAM_COLUMNS,
    Columns,
    Recorder,
    Table,
    Work,
)
from sim.engine.replica import Replica, Surroundings
from sim.engine.requests import Outcome, Request, Turn
from sim.engine.router import RoundRobin, Router
from sim.engine.tiers import Tier, Tiers
from sim.engine.transport import Elsewhere, Handover, Ports, SwapSpace, Transport, release
from sim.pools import Role
from sim.workload.programs import MAIN


@dataclass(frozen=True)
class LinkPlan:
    """A link to be built."""

    bandwidth_bytes_per_s: float
    latency_s: float = 0.0

    def build(self) -> Link:
        """Make a link that nothing has used."""
        return Link(self.bandwidth_bytes_per_s, self.latency_s)


@dataclass(frozen=True)
class TierPlan:
    """A place outside the chips for keys and values, see `sim.engine.tiers.Tier`."""

    name: str
    capacity_blocks: int
    """Of each replica, or of all together."""
    block_bytes: float
    read: LinkPlan
    write: LinkPlan
    shared: bool = False
    """Whether all replicas of the pool use the same one."""
    through: bool = True

    def build(self, block_tokens: int) -> Tier:
        """Make an empty one."""
        cache = PrefixCache(self.capacity_blocks, block_tokens)
        read, write = self.read.build(), self.write.build()
        return Tier(self.name, cache, read, write, self.block_bytes, self.through)


@dataclass(frozen=True)
class PoolPlan:
    """The replicas of one role."""

    role: Role
    replicas: int
    plan: ReplicaPlan
    new_router: Callable[[], Router] = RoundRobin
    port: LinkPlan | None = None
    """How keys and values leave or enter a replica; needed with more than one pool."""
    overlap_fraction: float = 0.0
    """Share of a prompt's keys and values that can be sent while the rest is computed."""
    host_link: LinkPlan | None = None
    """To the host's memory, where preempted sequences are swapped to; none: computed again."""
    swap_tokens: int = 0
    """Room there, in tokens of each replica."""
    tiers: tuple[TierPlan, ...] = ()
    """Where prefixes are kept outside the chips, the nearest first."""
    fetches: bool = False
    """Requests may come with keys and values elsewhere, though no prefill pool sends any."""
    other_model: bool = False
    """It serves another model than the first pools do: that which requests name like its role."""


@dataclass(frozen=True)
class RunRecord:
    """The raw columns of a finished run."""

    requests: Columns
    stretches: Columns
    states: Columns
    transfers: Columns
    losses: Columns
    preemptions: Columns = field(default_factory=lambda: Table(PREEMPTION_COLUMNS).columns())
    programs: Columns = field(default_factory=lambda: Table(PROGRAM_COLUMNS).columns())
    calls: Columns = field(default_factory=lambda: Table(CALL_COLUMNS).columns())


class Companion(Protocol):
    """Something that acts on a cluster while it runs: failures, an autoscaler, patience."""

    def attach(self, cluster: "Cluster") -> None:
        """Begin to act."""
        ...


class Cluster:
    """Pools of replicas on a clock of their own.

    Parameters
    ----------
    plans : sequence of PoolPlan
        One of role ``serve``, or a prefill and a decode pool; perhaps an encode pool before them.
    every_step : bool
        Walk every step instead of jumping over stretches.
    """

    def __init__(self, plans: Sequence[PoolPlan], *, every_step: bool = False) -> None:
        self.env = Clock()
        self.turn = Turn()
        self.recorder = Recorder()
        self.surroundings = Surroundings(self.env, self.turn, self.recorder, every_step)
        self.in_system = 0
        """Requests that were sent and have not left."""
        self.source: Source | None = None
        self.door: Door | None = None
        """Who is let in; none: everybody."""
        self.when_sent: Callable[[Request], None] | None = None
        """Told of every attempt."""
        self.when_left: Callable[[Request], None] | None = None
        """Told of every request that has left for good."""
        self.second_chance: Callable[[Request], bool] | None = None
        """Asked of requests that leave without an answer: whether they will come back."""
        self.when_lost: Callable[[Request], bool] | None = None
        """Asked of requests that a failure broke off: whether they are to be sent again."""
        self._over: simpy.Event | None = None
        """Ends the run although companions may still have something in mind."""
        self.pools: dict[Role, Pool] = {}
        self.replicas: list[Replica] = []
        self._plans = {plan.role: plan for plan in plans}
        self._ports: dict[int, Ports] = {}
        for plan in plans:
            self._add_pool(plan)
        self._first: Role = plans[0].role
        self._serving = self.pools.get("serve")
        self._longest = {plan.role: plan.plan.max_model_len for plan in plans if plan.other_model}
        """Longest prompt and answer of each model."""
        parts = (plan for plan in plans if plan.role != "encode" and not plan.other_model)
        self._longest[MAIN] = min(plan.plan.max_model_len for plan in parts)

    def _add_pool(self, plan: PoolPlan) -> None:
        first = len(self.replicas)
        replicas = [
            Replica(
                first + number,
                plan.plan.new_scheduler,
                plan.plan.replica_pace(number),
                self.surroundings,
            )
            for number in range(plan.replicas)
        ]
        for replica in replicas:
            replica.max_queue_requests = plan.plan.max_queue_requests
        self.replicas += replicas
        self.pools[plan.role] = Pool(plan.role, replicas, plan.new_router(), self.recorder, self)
        size = plan.plan.block_tokens
        shared = {tier.name: tier.build(size) for tier in plan.tiers if tier.shared}
        for replica in replicas:
            tiers = [shared.get(tier.name) or tier.build(size) for tier in plan.tiers]
            self._connect(replica, plan, Tiers(self._now, tiers) if tiers else None)

    def _now(self) -> int:
        return int(self.env.now)

    def _connect(self, replica: Replica, plan: PoolPlan, tiers: Tiers | None) -> None:
        """Lay the links of a replica."""
        swap = None
        if plan.port is not None:
            self._ports[replica.index] = Ports(plan.port.build(), plan.port.build())
        if plan.host_link is not None and plan.swap_tokens:
            swap = SwapSpace(plan.swap_tokens, plan.host_link.build())
        if plan.role == "decode" or swap is not None or tiers is not None or plan.fetches:
            replica.scheduler.transport = Transport(
                self.env,
                replica,
                self.recorder,
                plan.plan.kv_bytes_per_token,
                self._ports,
                swap,
                tiers,
                changes_by_itself=any(tier.shared for tier in plan.tiers),
            )

    # -- the way of a request -----------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether there are requests, or more to come: companions rest when there are none."""
        return self.in_system > 0 or (self.source is not None and not self.source.exhausted)

    def submit(self, request: Request) -> None:
        """Take in a request."""
        self.in_system += 1
        self.send(request)

    def send(self, request: Request) -> None:
        """Send a request on its way, or on its way again."""
        if request.given_up is not None:
            self._turn_away(request, request.given_up)
            return
        if self.when_sent is not None:
            self.when_sent(request)
        if request.input_tokens + request.output_tokens > self._longest[request.model]:
            self._turn_away(request, "rejected")
        elif self.door is not None and not self.door.admits(request, int(self.env.now)):
            self._turn_away(request, "shed")
        elif request.model:
            self.pools[request.model].submit(request)
        elif self._first == "encode" and request.encode_tokens:
            self._begin_stage(request, "encode", request.encode_tokens)
        elif self._serving is not None:
            self._serving.submit(request)
        else:
            self._begin_stage(request, "prefill", request.prefill_tokens)

    def _begin_prompt(self, request: Request) -> None:
        """Have the prompt computed, by whoever answers it or in a pool of its own."""
        if self._serving is not None:
            self._serving.submit(request)
        else:
            self._begin_stage(request, "prefill", request.prefill_tokens)

    def abort(self, request: Request, outcome: Outcome) -> None:
        """Drop a request that nobody waits for any more, wherever it is."""
        part = request.stage or request
        if part is not request:
            request.given_up = outcome  # in case that the part is done before it can be dropped
        part.pool.abort(part, outcome)

    def cancel(self, request: Request) -> None:
        """Drop a request whose answer is not wanted any more, wherever it is."""
        request.given_up = "cancelled"  # whatever else becomes of it before it can be dropped
        if (request.stage or request).pool is not None:  # else it is between two attempts
            self.abort(request, "cancelled")

    def rest(self) -> None:
        """End the run if there is nothing more to come."""
        if self._over is not None and not self.active and not self._over.triggered:
            self._over.succeed()

    def _begin_stage(self, request: Request, role: Role, tokens: int) -> None:
        """Have one part of a request done by a pool of its own."""
        stage = Request(request.request_id, request.arrival_tick, tokens, 1)
        stage.tenant, stage.priority, stage.session = (
            request.tenant,
            request.priority,
            request.session,
        )
        stage.stage_of, request.stage = request, stage
        if role == "prefill":
            stage.content = request.content
            stage.keeps_blocks = request.generated_tokens + 1 < request.output_tokens
            stage.reached_tokens = request.reached_tokens
            stage.remote, request.remote = request.remote, None  # what a store has kept
        self.pools[role].submit(stage)

    def left(self, request: Request) -> None:
        """Send a request on, or let it leave."""
        whole = request.stage_of
        if whole is None and request.outcome == "lost":
            request.outcome = "unfinished"
            self._break_off(request)
        elif whole is None:
            if self.door is not None:
                self.door.left(request)
            self._leave_for_good(request)
        elif request.outcome != "completed" or whole.given_up is not None:
            self._stop_after(request, whole)
        elif request.pool.role == "encode":
            _add_work(whole, request)
            whole.stage = None
            if whole.admit_tick < 0:  # else it is part of what has followed
                whole.encode_ticks += request.done_tick - request.admit_tick
            self._begin_prompt(whole)
        else:
            self._hand_over(request, whole)

    def _stop_after(self, stage: Request, request: Request) -> None:
        """Let a request leave one part of which has failed, or whose client has given it up."""
        if stage.keeps_blocks and stage.outcome == "completed":
            self.replicas[stage.replica].free_kept(stage)
        request.outcome = request.given_up or stage.outcome
        _add_work(request, stage)
        _let_go(stage)
        request.stage = None
        self._finish(request)

    def _hand_over(self, stage: Request, request: Request) -> None:
        """Give a prompt that is computed to the decode pool."""
        _add_work(request, stage)
        request.stage = None
        request.prefill_replica = request.replica = stage.replica
        request.preemptions += stage.preemptions
        request.preempted_ticks += stage.preempted_ticks
        request.computed_tokens = request.reached_tokens = stage.input_tokens
        if request.admit_tick < 0:
            request.admit_tick = stage.admit_tick
        if request.first_token_tick < 0:
            request.first_token_tick = stage.first_token_tick
        if request.generated_tokens == request.output_tokens:
            request.done_tick, request.outcome = stage.done_tick, "completed"
            self._finish(request)
            return
        source = self.replicas[stage.replica]
        overlap = self._plans["prefill"].overlap_fraction
        request.remote = Handover(
            tokens=stage.input_tokens,
            source=source,
            stage=stage,
            since_tick=stage.done_tick,
            hidden_ticks=round(source.last_step_ticks * overlap),
            least_fraction=1.0 - overlap,
        )
        self.pools["decode"].submit(request)

    def lost(self, request: Request) -> None:
        """Try a request again that a failure broke off, or let it leave without an answer."""
        whole = request.stage_of or request
        if request.outcome == "completed":
            if whole.remote is None or whole.outcome != "unfinished":
                return  # it had been fetched already
            whole.pool.abort(whole, "lost")
            return
        if whole is not request:
            _add_work(whole, request)
            _let_go(request)
            whole.stage, whole.computed_tokens = None, request.computed_tokens
            whole.reached_tokens = max(whole.reached_tokens, request.reached_tokens)
        self._break_off(whole)

    def _break_off(self, request: Request) -> None:
        _let_go(request)
        if self.door is not None:
            self.door.left(request)
        wanted = request.given_up != "cancelled"
        if not (wanted and self._comes_back(request, "failure", self.when_lost)):
            self._turn_away(request, "lost")

    def _comes_back(
        self, request: Request, cause: str, chance: Callable[[Request], bool] | None
    ) -> bool:
        """Ask whether a request is sent again, and record what of its work that throws away."""
        if chance is None:
            return False
        replica, had = request.replica, Work.on(request)
        request.pool = None
        if not chance(request):
            return False
        now, kept = self._now(), Work.on(request)
        self.recorder.loss(request.request_id, now, cause, replica, had.beyond(kept))
        return True

    def _turn_away(self, request: Request, outcome: Outcome) -> None:
        request.outcome = outcome
        self._leave_for_good(request)

    def _finish(self, request: Request) -> None:
        """Let a request leave that was let in, unless it comes back."""
        if self.door is not None:
            self.door.left(request)
        self._leave_for_good(request)

    def _leave_for_good(self, request: Request) -> None:
        if request.remote is not None:
            _let_go(request)
        if request.outcome != "completed":
            wanted = request.given_up != "cancelled"
            if not wanted:
                request.outcome = "cancelled"
            cause = "failure" if request.outcome == "lost" else request.outcome
            if wanted and self._comes_back(request, cause, self.second_chance):
                return
            self._record_loss(request, cause)
        self.in_system -= 1
        self.recorder.request(request)
        if self.when_left is not None:
            self.when_left(request)
        if request.on_done is not None:
            request.on_done.request_done(request)
        self.rest()

    def _record_loss(self, request: Request, cause: str) -> None:
        """Record that all work on a request was for nothing."""
        work = Work.on(request)
        self.recorder.loss(request.request_id, self._now(), cause, request.replica, work)

    # -- a run --------------------------------------------------------------------------------

    def report_progress(self, listener: Callable[[int, int], None], total: int) -> None:
        """Tell a listener from time to time how many of the requests have left."""
        self.recorder.listen(lambda left: listener(left, total))

    def run(self, source: Source, companions: Sequence[Companion] = ()) -> RunRecord:
        """Serve what a source sends, until the last request has left."""
        self.source = source
        for companion in companions:
            companion.attach(self)
        source.start(self)
        if companions:
            self._over = self.env.event()
            self._over.callbacks = [simpy.core.StopSimulation.callback]
        with _no_garbage_collection():
            self.env.run_to_the_end()
        self._close()
        record = self.recorder
        return RunRecord(
            record.requests.columns(),
            record.stretches.columns(),
            record.states.columns(),
            record.transfers.columns(),
            record.losses.columns(),
            record.preemptions.columns(),
        )

    def _close(self) -> None:
        """Record what is left: requests that nobody could take, states that last."""
        for pool in self.pools.values():
            while pool.at_door:
                request = pool.at_door.popleft()
                self.in_system -= 1
                whole = request.stage_of or request
                self._record_loss(whole, whole.outcome)
                self.recorder.request(whole)
            for replica in pool.replicas:
                pool.record_state(replica)


def _add_work(request: Request, stage: Request) -> None:
    """Count what has been done for one part of a request."""
    request.pauses += stage.pauses
    if stage.pool.role == "encode":
        request.encoded_tokens += stage.prefilled_tokens
        return
    request.prefilled_tokens += stage.prefilled_tokens
    request.first_tokens += stage.first_tokens
    request.cached_tokens += stage.cached_tokens
    request.generated_tokens += stage.generated_tokens


def _let_go(request: Request) -> None:
    """Free what a request has left elsewhere: it counts as computed until now."""
    if isinstance(request.remote, Elsewhere):
        request.computed_tokens = max(request.computed_tokens, request.remote.tokens)
        release(request.remote)
    request.remote = None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Spare the collector its walks over millions of rows: a run makes no reference cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
