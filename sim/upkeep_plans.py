"""From a scenario's failures, maintenance and scaling to what acts on the pools of a run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from sim.catalog import Catalog
from sim.cost.comms import Left
from sim.deployment import Deployment
from sim.engine.cluster import LinkPlan
from sim.engine.elasticity import BootTicks
from sim.engine.faults import Part, Placement
from sim.engine.upkeep import PaceOf, Upkeep, UpkeepPlan
from sim.errors import InputError, under
from sim.pools import Role
from sim.reliability import (
    MAX_HOST_CHIPS,
    BootFacts,
    BootTime,
    FaultLaws,
    Faults,
    PartLaw,
    SpareKind,
    boot_time,
    chips_per_host,
    degraded,
    fault_laws,
)
from sim.service import Service

_AFTER_A_LOSS = ("lost", "retry_keeps", "max_attempts", "detection_s")
"""Keys of ``faults`` that say what becomes of a request, whichever pool broke it off."""
COLD: SpareKind = "cold"
_ALWAYS_UP = BootTicks(0, 0, 0)


@dataclass(frozen=True)
class UpkeepPlans:
    """What acts on the pools of a service beside their requests."""

    pools: Mapping[Role, UpkeepPlan]
    """Of the pools that are not always the same."""
    rules: Faults | None
    """What becomes of requests that are broken off."""
    service: Service
    kv_store: LinkPlan | None
    """To the store from which retried requests get their keys and values."""
    notes: tuple[str, ...]

    def companion(self, seed: int) -> Upkeep | None:
        """Make what acts on one run; none where all pools are always the same."""
        if not self.pools:
            return None
        return Upkeep(
            self.pools,
            seed,
            faults=self.rules,
            block_tokens=self.service.answer_pool.case.engine.block_tokens,
            slo=self.service.case.slo,
            kv_store=None if self.kv_store is None else self.kv_store.build(),
        )


def spares_aside(service: Service) -> Upkeep | None:
    """Make what keeps spares switched off in a run in which nothing fails and nothing is scaled."""
    plans = {
        pool.role: UpkeepPlan(pool.replicas - pool.case.spares, _ALWAYS_UP)
        for pool in service.pools
        if pool.case.spares
    }
    return Upkeep(plans, seed=0) if plans else None


def upkeep_plans(service: Service, catalog: Catalog) -> UpkeepPlans:
    """Resolve what happens to the replicas of all pools of a service.

    Raises
    ------
    InputError
        A name that no catalogue knows, a time or a rate that is known from nowhere, or pools that
        treat the requests of a failure differently.
    """
    plans: dict[Role, UpkeepPlan] = {}
    notes: list[str] = []
    for pool in service.pools:
        if not pool.case.changes:
            continue
        with under(*service.case.place_of(pool.role)):
            plans[pool.role], said = _pool_plan(pool, catalog)
        notes += [f"{pool.case.name}: {note}" for note in said]
    rules = _rules(service) if plans else None
    return UpkeepPlans(plans, rules, service, _kv_store(service, rules), tuple(notes))


def _pool_plan(pool: Deployment, catalog: Catalog) -> tuple[UpkeepPlan, list[str]]:
    """Resolve what happens to one pool, and say what a reader must know of it."""
    case = pool.case
    wanted = _wanted(pool)
    boot = _boot(pool, catalog)
    notes = [_boot_in_words(boot), *boot.notes]
    if case.faults is None and pool.system.chips > MAX_HOST_CHIPS:
        notes.append(f"{_chips_per_host(pool)} chips of {case.system} are taken to share a host.")
    parts: tuple[tuple[Part, PartLaw], ...] = ()
    slow_paces, kind = None, COLD
    if case.faults is not None:
        faults = case.faults
        kind = faults.spare
        rates = None if faults.rates is None else catalog.reliability(faults.rates)
        laws = fault_laws(faults, rates)
        notes += laws.notes
        parts = tuple(_placement(pool, faults).failing(laws.laws))
        slow_paces = _slow_paces(pool, faults, laws)
    plan = UpkeepPlan(
        wanted=wanted,
        times=BootTicks.of(boot, kind),
        spares=case.spares,
        autoscaling=case.autoscaling,
        parts=parts,
        slow_paces=slow_paces,
        maintenance=case.maintenance,
    )
    return plan, notes


def _wanted(pool: Deployment) -> int:
    """Count the replicas that serve at the start."""
    case, most = pool.case, pool.replicas - pool.case.spares
    if most < 1:
        raise InputError(
            f"faults.spares is {case.spares}, and only {pool.replicas} replicas fit: give more "
            "systems or fewer spares",
            key="faults.spares",
        )
    scaling = case.autoscaling
    if scaling is None:
        return most
    start = scaling.min_replicas if case.replicas is None else case.replicas
    if not scaling.min_replicas <= start <= scaling.max_replicas:
        raise InputError(
            f"replicas is {start}, outside min_replicas to max_replicas of autoscaling "
            f"({scaling.min_replicas} to {scaling.max_replicas}): start inside",
            key="replicas",
        )
    return start


def _boot(pool: Deployment, catalog: Catalog) -> BootTime:
    """Find how long a replica takes to come up."""
    boot = pool.case.boot
    if boot is None:
        raise InputError(
            "its replicas come and go, and nothing says how long one takes to come up: give boot, "
            "such as boot: {rates: vllm_cloud_boot}",
            key=["boot", "faults", "autoscaling", "maintenance"],
        )
    rates = None if boot.rates is None else catalog.reliability(boot.rates)
    facts = BootFacts(
        weights_bytes_per_chip=pool.memory.weights_bytes,
        chips_per_replica=pool.chips_per_replica,
        chips_per_host=_chips_per_host(pool),
        system=pool.system,
    )
    return boot_time(boot, facts, rates)


def _boot_in_words(boot: BootTime) -> str:
    return (
        f"a replica takes {boot.total_s:.0f} s to come up: {boot.provisioning_s:.0f} s for its "
        f"host, {boot.load_s:.0f} s for the weights ({boot.slowest_leg}), {boot.warm_up_s:.0f} s "
        "to warm up."
    )


def _chips_per_host(pool: Deployment) -> int:
    if pool.case.faults is not None:
        return chips_per_host(pool.case.faults, pool.system)
    return min(pool.system.chips, max(pool.chips_per_replica, MAX_HOST_CHIPS))


def _placement(pool: Deployment, faults: Faults) -> Placement:
    host = chips_per_host(faults, pool.system)
    return Placement(pool.replicas, pool.chips_per_replica, host, faults.hosts_per_rack)


def _slow_paces(
    pool: Deployment, faults: Faults, laws: FaultLaws
) -> Callable[[int], PaceOf] | None:
    """Price steps over the links that a failure leaves; none where it stops the replica.

    Experts have the load that they would have had over sound links.
    """
    if "link" not in laws.laws or faults.link_effect == "down":
        return None
    degraded(pool.system, faults)  # says so where there is no such network
    left = Left()._replace(**{faults.link_network: faults.link_bandwidth_fraction})
    network = pool.timer.network.degraded(left)
    encoder = None if pool.encoder is None else pool.encoder.with_network(network)
    slow = replace(pool, timer=pool.timer.with_network(network), encoder=encoder)
    return lambda seed: slow.plan_for(seed).replica_pace


def _rules(service: Service) -> Faults:
    """Find what becomes of requests that are broken off, in whichever pool."""
    pools = [pool for pool in service.pools if pool.case.faults is not None]
    given = [pool.case.faults for pool in pools if pool.case.faults is not None]
    if not given:  # maintenance may lose its patience: then the defaults hold
        return Faults.model_construct()
    for key in _AFTER_A_LOSS:
        if len({getattr(faults, key) for faults in given}) > 1:
            raise InputError(
                f"the pools differ in faults.{key}, but a request that is broken off is treated "
                "alike wherever that happens: give it in the case",
                key=[(*service.case.place_of(pool.role), "faults", key) for pool in pools],
            )
    return given[0]


def _kv_store(service: Service, rules: Faults | None) -> LinkPlan | None:
    """Find the store that keeps keys and values over a failure: the shared tier of the engine."""
    if rules is None or rules.lost != "retry" or rules.retry_keeps != "kv":
        return None
    tiers = service.answer_pool.case.engine.kv_tiers
    shared = next((tier for tier in tiers if tier.shared), None)
    if shared is None:
        raise InputError(
            "faults.retry_keeps is kv, but no store outlives a replica: give engine.kv_tiers one "
            "that is shared, or set retry_keeps: answer",
            key=[
                (*service.case.place_of(pool.role), "faults", "retry_keeps")
                for pool in reversed(service.pools)
            ],
        )
    return LinkPlan(shared.read_bytes_per_s, shared.latency_s)


def failure_notes(upkeep: Upkeep, case_name: str) -> Iterator[str]:
    """Say what failures a run has seen, and what they threw away."""
    failures = [failure for each in upkeep.breakdowns.values() for failure in each.failures]
    if upkeep.breakdowns:
        by_kind: dict[str, int] = {}
        for failure in failures:
            by_kind[failure.part.kind] = by_kind.get(failure.part.kind, 0) + 1
        seen = ", ".join(f"{kind} {count}" for kind, count in by_kind.items()) or "none"
        yield f"{case_name}: failures in the run: {seen}."
    losses = upkeep.losses
    if losses:
        again = sum(loss.retried for loss in losses)
        context = sum(loss.context_tokens for loss in losses)
        answers = sum(loss.answer_tokens for loss in losses)
        kept = sum(loss.kept_tokens for loss in losses)
        yield (
            f"{case_name}: requests were broken off {_times(len(losses))}, and tried again "
            f"{_times(again)}; keys and values of {context} tokens were lost, {answers} tokens of "
            f"answers thrown away, and those of {kept} tokens loaded from a store."
        )


def scaling_notes(upkeep: Upkeep, service: Service) -> Iterator[str]:
    """Say which autoscalers stood by while more requests waited than ran.

    A signal that never comes to its target while a queue grows does not see what is short: of KV
    blocks, for example, there may be plenty when places in the batch are not.
    """
    for pool in service.pools:
        scaler = upkeep.scalers.get(pool.role)
        if scaler is None or scaler.rules.signal == "slo_attainment":
            continue
        rules, seen = scaler.rules, scaler.seen
        if seen.highest_ratio > 1 + rules.tolerance or seen.waiting <= seen.running:
            continue
        yield (
            f"{pool.case.name}: the autoscaler never added a replica: {rules.signal} reached "
            f"{seen.highest_ratio * rules.target:.3g} at most, with a target of {rules.target:g}, "
            f"while {seen.waiting} requests waited and {seen.running} ran: lower the target, or "
            "take another signal."
        )


def _times(count: int) -> str:
    """Say how often something happened.

    >>> [_times(count) for count in (0, 1, 2)]
    ['never', 'once', '2 times']
    """
    return {0: "never", 1: "once"}.get(count, f"{count} times")
