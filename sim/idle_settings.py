"""Settings of a case that change nothing in its run, told to whoever wrote them."""

from collections.abc import Iterator

import numpy as np

from sim.deployment import Deployment
from sim.scenario import Case
from sim.service import Service
from sim.workload.requests import Traffic

FOLLOWS_PREFIXES = frozenset({"kv_aware", "prefix_aware"})
"""Routers that look at what the caches of the replicas hold."""


def idle_settings(service: Service, traffic: Traffic) -> Iterator[str]:
    """Name the settings of a case without effect, each with what it would need.

    Parameters
    ----------
    service : Service
    traffic : Traffic
        Its requests: some settings need sessions, priorities or prompts that begin alike.
    """
    case = service.case
    said = [*_order(service, traffic), *_pools(service), *_memory(service)]
    yield from (f"{case.name}: {words}." for words in said)
    for pool in service.pools:
        yield from (f"{pool.case.name}: {words}." for words in _router(pool, traffic))


def _order(service: Service, traffic: Traffic) -> Iterator[str]:
    """Compare who is next in the line with what tells requests apart."""
    case = service.case
    orders = {pool.case.engine.order for pool in service.pools}
    ranked = [name for name, tenant in case.tenants.items() if tenant.priority]
    in_trace = traffic.priority is not None and np.unique(traffic.priority).size > 1
    if "priority" not in orders:
        if ranked:
            yield f"tenants.{ranked[0]}.priority changes nothing without engine.order: priority"
        if in_trace:
            yield "the priorities of the trace change nothing without engine.order: priority"
    elif not ranked and not in_trace:
        yield (
            "engine.order: priority changes nothing, as all requests have the same: give tenants "
            "a priority, or a trace its column"
        )
    weighed = [name for name, tenant in case.tenants.items() if tenant.weight != 1.0]
    if weighed and "fair" not in orders:
        yield f"tenants.{weighed[0]}.weight changes nothing without engine.order: fair"
    if "fair" in orders and len(traffic.tenant_names) == 1:
        yield "engine.order: fair changes nothing, as all requests are of one tenant"


def _pools(service: Service) -> Iterator[str]:
    """Find what only several pools need, and what all pools say for themselves."""
    case = service.case
    if "kv_transfer" in case.model_fields_set and service.kv_path is None:
        yield "kv_transfer changes nothing without a prefill and a decode pool"
    if case.pools is not None and case.replicas is not None:
        own = [pool.replicas for pool in case.pools.by_role().values()]
        if case.replicas not in own:  # a pool without its own has got that of the case
            yield f"replicas: {case.replicas} changes nothing, as each pool gives its own"


def _memory(service: Service) -> Iterator[str]:
    asked = _engines_with_swap_space(service.case)
    if asked and all(pool.case.engine.preemption != "swap" for pool in service.pools):
        yield "engine.swap_bytes changes nothing without engine.preemption: swap"


def _engines_with_swap_space(case: Case) -> bool:
    parts = (case.of_pool(role) for role in case.roles)
    return any(part.engine.swap_bytes for part in parts)


def _router(pool: Deployment, traffic: Traffic) -> Iterator[str]:
    """Find what a router goes by and does not get."""
    kind = pool.case.router.kind
    if kind == "session_sticky" and not _has_sessions(traffic):
        yield (
            "router: session_sticky goes by load alone, as no request is of a session: take a "
            "workload of sessions, or a trace that names them"
        )
    if kind not in FOLLOWS_PREFIXES or pool.role == "encode":
        return
    if traffic.contents is None and traffic.sessions is None and not traffic.programs:
        yield (
            f"router: {kind} goes by load alone, as no two prompts are known to begin alike: give "
            "sharing, sessions or a trace with block ids"
        )
    elif not pool.finds_prefixes:
        yield f"router: {kind} goes by load alone, as its replicas find no prefix in their caches"


def _has_sessions(traffic: Traffic) -> bool:
    recorded = traffic.session is not None and bool((traffic.session >= 0).any())
    return recorded or traffic.sessions is not None or bool(traffic.programs)
