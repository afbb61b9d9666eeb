"""Where a replica puts keys and values outside its chips: the host's memory, and other tiers."""

from itertools import pairwise

from sim.deployment import Deployment
from sim.engine.cluster import LinkPlan, TierPlan
from sim.errors import InputError
from sim.replica_plan import tier_plans


def host_link(pool: Deployment) -> LinkPlan | None:
    """Find the link over which preempted sequences are swapped; none where they are not.

    Raises
    ------
    InputError
        Nothing is known of it.
    """
    engine, memory = pool.case.engine, pool.system.host_memory
    if engine.preemption != "swap":
        return None
    if engine.swap_bytes_per_s is not None:
        return LinkPlan(engine.swap_bytes_per_s)
    if memory is None:
        raise InputError(
            f"engine.preemption is swap, and nothing is known of the link from {pool.case.system} "
            "to the memory of its hosts: give engine.swap_bytes_per_s, or set preemption: "
            "recompute",
            key="engine.preemption",
        )
    return LinkPlan(memory.bandwidth_bytes_per_s.value * pool.chips_per_replica)


def swap_tokens(pool: Deployment) -> int:
    """Tokens of context that the host's memory has room for, for each replica."""
    engine = pool.case.engine
    if engine.preemption != "swap":
        return 0
    return int(engine.swap_bytes // pool.kv_bytes_per_token)


def tiers_of(pool: Deployment) -> tuple[TierPlan, ...]:
    """Give the tiers in which a replica keeps prefixes.

    Raises
    ------
    InputError
        There is no prefix cache above them, one of them holds no block, or one that all replicas
        share would have to tell a single one what it drops.
    """
    case = pool.case
    if case.engine.kv_tiers and not pool.finds_prefixes:
        raise InputError(
            f"engine.kv_tiers needs a prefix cache, which is not modelled for {case.model} (layers "
            "with a window or a state): leave kv_tiers out",
            key="engine.kv_tiers",
        )
    plans = tier_plans(case.engine, pool.kv_bytes_per_token)
    for index, (upper, lower) in enumerate(pairwise(plans)):
        if upper.shared and not lower.through:
            raise InputError(
                f"{lower.name} would be written with what {upper.name} drops, which all replicas "
                f"share: put {upper.name} after it, or give {lower.name} write: through",
                key=("engine", "kv_tiers", index + 1),
            )
    for index, plan in enumerate(plans):
        if not plan.capacity_blocks:
            raise InputError(
                f"{case.engine.kv_tiers[index].capacity_bytes:.0f} bytes of {plan.name} are less "
                f"than one KV block ({plan.block_bytes:.0f} bytes): raise capacity_bytes",
                key=("engine", "kv_tiers", index, "capacity_bytes"),
            )
    return plans
