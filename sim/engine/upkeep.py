"""Puts failures, maintenance and autoscaling to work on the pools of a cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster
from sim.engine.elasticity import Autoscaler, BootTicks, ReplicaSet, ServiceLevel, Unit
from sim.engine.faults import Breakdowns, LostWork, MaintenanceRounds, Part, Recovery
from sim.engine.links import Link
from sim.engine.pool import Pool
from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.engine.ticks import Pace
from sim.pools import Pools, Role
from sim.reliability import Autoscaling, Faults, Maintenance, PartLaw

PaceOf = Callable[[int], Pace]
"""Gives the pace of a replica, counted from 0 in its pool."""


@dataclass(frozen=True)
class UpkeepPlan:
    """What happens to the replicas of one pool beside their work."""

    wanted: int
    """Replicas that serve at the start; the others of the pool are off."""
    times: BootTicks
    spares: int = 0
    autoscaling: Autoscaling | None = None
    parts: Sequence[tuple[Part, PartLaw]] = ()
    """What fails."""
    slow_paces: Callable[[int], PaceOf] | None = None
    """Steps while a link is broken, in a run with a seed; none: the replica is down meanwhile."""
    maintenance: Sequence[Maintenance] = ()


class Upkeep:
    """Failures, maintenance and autoscaling of a cluster.

    Parameters
    ----------
    plans : mapping
        Of the pools that are not simply there, by role.
    seed : int
        Of the run.
    faults : Faults, optional
        What becomes of the requests that a failure hits; needed where parts fail or maintenance
        may lose its patience.
    block_tokens : int
        Tokens of a KV block.
    slo : ServiceLevel, optional
    kv_store : Link, optional
        Of the store that keeps keys and values over a failure.
    """

    def __init__(
        self,
        plans: Mapping[Role, UpkeepPlan],
        seed: int,
        *,
        faults: Faults | None = None,
        block_tokens: int = 1,
        slo: ServiceLevel | None = None,
        kv_store: Link | None = None,
    ) -> None:
        self.replica_sets: dict[Role, ReplicaSet] = {}
        self.breakdowns: dict[Role, Breakdowns] = {}
        self.recovery: Recovery | None = None
        self._plans = plans
        self._seed = seed
        self._faults = faults
        self._block_tokens = block_tokens
        self._slo = slo
        self._kv_store = kv_store
        self.scalers: dict[Role, Autoscaler] = {}

    def attach(self, cluster: Cluster) -> None:
        """Begin to act."""
        if self._faults is not None:
            self.recovery = Recovery(
                cluster.env,
                self._faults,
                resubmit=cluster.send,
                block_tokens=self._block_tokens,
                kv_store=self._kv_store,
            )
            cluster.when_lost = self.recovery.lost
        for role, plan in self._plans.items():
            self._attach_to(cluster, role, plan)
        if self.scalers:
            cluster.when_left = self._left

    def _attach_to(self, cluster: Cluster, role: Role, plan: UpkeepPlan) -> None:
        pool, env = cluster.pools[role], cluster.env
        replica_set = ReplicaSet(
            env, pool.replicas, plan.wanted, plan.times, spares=plan.spares, came_up=pool.came_up
        )
        pool.when_changed = replica_set.changed
        self.replica_sets[role] = replica_set
        if plan.autoscaling is not None:
            self.scalers[role] = Autoscaler(
                env,
                replica_set,
                plan.autoscaling,
                waiting_at_door=lambda: len(pool.at_door),
                active=lambda: cluster.active,
                slo=self._slo,
            )
        if plan.parts:
            slow = None if plan.slow_paces is None else _Paces(pool, plan.slow_paces(self._seed))
            self.breakdowns[role] = Breakdowns(
                env,
                replica_set,
                plan.parts,
                streams=(self._seed, role),
                active=lambda: cluster.active,
                slow_down=None if slow is None else slow.set,
            )
        for rounds in plan.maintenance:
            MaintenanceRounds(env, replica_set, rounds, active=lambda: cluster.active)

    def _left(self, request: Request) -> None:
        for role, scaler in self.scalers.items():
            if role == request.model or (not request.model and role in Pools.model_fields):
                scaler.request_left(request)

    @property
    def losses(self) -> list[LostWork]:
        """What failures have thrown away."""
        return [] if self.recovery is None else self.recovery.losses

    def failure_rows(self) -> list[tuple[object, ...]]:
        """Rows of `sim.engine.faults.FAILURE_COLUMNS`, in the order of the pools and failures."""
        return [
            (
                failure.part.kind,
                failure.part.number,
                len(failure.part.replicas),
                failure.start_tick / TICKS_PER_S,
                failure.end_tick / TICKS_PER_S if failure.end_tick >= 0 else float("nan"),
            )
            for breakdowns in self.breakdowns.values()
            for failure in breakdowns.failures
        ]


class _Paces:
    """The two paces of each replica of a pool."""

    def __init__(self, pool: Pool, slow: PaceOf) -> None:
        self._replicas: dict[int, Replica] = {replica.index: replica for replica in pool.replicas}
        self._numbers = {replica.index: number for number, replica in enumerate(pool.replicas)}
        self._usual = {replica.index: replica.pace for replica in pool.replicas}
        self._slow_of = slow
        self._slow: dict[int, Pace] = {}
        """Of the replicas that have been slow; those of others are never made."""

    def set(self, unit: Unit, slow: bool) -> None:  # noqa: FBT001 - it is a state, not a mode
        """Let a replica go on at one of them."""
        pace = self._slow_pace(unit.index) if slow else self._usual[unit.index]
        self._replicas[unit.index].keep_pace(pace)

    def _slow_pace(self, index: int) -> Pace:
        if index not in self._slow:
            self._slow[index] = self._slow_of(self._numbers[index])
        return self._slow[index]
