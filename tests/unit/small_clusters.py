"""Schedulers and clusters small enough to work out by hand what they do.

Unless a test says otherwise: eight places, steps of at most a hundred tokens that take ten ticks,
and a thousand blocks of 16 tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.engine.clients import OpenLoop
from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, Companion, LinkPlan, PoolPlan, RunRecord
from sim.engine.plan import ReplicaPlan
from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.scheduler import Scheduler
from sim.engine.stretch import Stretch
from sim.engine.ticks import ConstantPace, Pace
from sim.errors import InternalError
from sim.pools import Role
from sim.workload.content import Content

STEP = 10
"""Ticks of a step."""


def replica_plan(
    *,
    seqs: int = 8,
    budget: int = 100,
    blocks: int = 1000,
    block_tokens: int = 16,
    pace: Pace | None = None,
    max_model_len: int = 100_000,
    rules: dict[str, Any] | None = None,
    **more: Any,
) -> ReplicaPlan:
    """Plan a replica; ``rules`` are those of the scheduler, ``more`` the rest of the plan."""
    return ReplicaPlan(
        rules=SchedulerRules(seqs, budget, **(rules or {})),
        kv_blocks=blocks,
        block_tokens=block_tokens,
        pace=pace or ConstantPace(STEP),
        max_model_len=max_model_len,
        **more,
    )


def scheduler_of(**plan: Any) -> Scheduler:
    """Make a scheduler from the arguments of `replica_plan`."""
    return replica_plan(**plan).new_scheduler()


def cluster_of(*, replicas: int = 1, every_step: bool = False, **plan: Any) -> Cluster:
    """Make equal replicas that serve in turn, from the arguments of `replica_plan`."""
    return Cluster([PoolPlan("serve", replicas, replica_plan(**plan))], every_step=every_step)


def port_of(bytes_per_tick: float, latency_ticks: int = 0) -> LinkPlan:
    """Plan a link in ticks."""
    return LinkPlan(bytes_per_tick * TICKS_PER_S, latency_ticks / TICKS_PER_S)


def chain_of(
    *roles: tuple[Role, int], port: LinkPlan, overlap: float = 0.0, **plan: Any
) -> Cluster:
    """Make pools (role and replicas) that hand over; a token of context is a byte."""
    plans = [
        PoolPlan(
            role,
            replicas,
            replica_plan(kv_bytes_per_token=1.0, **plan),
            port=port,
            overlap_fraction=overlap,
        )
        for role, replicas in roles
    ]
    return Cluster(plans)


def requests_of(*rows: tuple[int, int, int]) -> list[Request]:
    """Requests of given arrival tick, input and output tokens."""
    return [Request(number, *row) for number, row in enumerate(rows)]


def with_requests(scheduler: Scheduler, *lengths: tuple[int, int]) -> list[Request]:
    """Put requests of given input and output tokens in line."""
    requests = [Request(number, 0, *pair) for number, pair in enumerate(lengths)]
    for request in requests:
        scheduler.add(request, 0)
    return requests


def sharing(request_id: int, content: Content, outputs: int) -> Request:
    """A request whose prompt others may share."""
    inputs = sum(tokens for _, _, tokens in content)
    request = Request(request_id, 0, inputs, outputs)
    request.content = content
    return request


def planned(scheduler: Scheduler, tick: int, known_tick: int | None = None) -> Stretch:
    """Plan a step that has something in it."""
    stretch = scheduler.plan(tick, known_tick)
    if stretch is None:
        raise InternalError("nothing can run")
    return stretch


def pass_step(scheduler: Scheduler, tick: int) -> Stretch:
    """Plan and finish one step of one tick."""
    stretch = planned(scheduler, tick)
    scheduler.finish(stretch, 1, tick + 1)
    return stretch


def chunks(stretch: Stretch) -> list[tuple[int, int]]:
    """Prompts in a step and how many of their tokens."""
    return [(request.request_id, tokens) for request, tokens in stretch.chunks]


def run_open(
    cluster: Cluster, requests: Iterable[Request], companions: Sequence[Companion] = ()
) -> RunRecord:
    """Serve requests that arrive by the clock."""
    return cluster.run(OpenLoop(requests), companions)


def served(requests: list[Request], **plan: Any) -> tuple[list[Request], RunRecord]:
    """Serve requests on the cluster of these arguments."""
    return requests, run_open(cluster_of(**plan), requests)


def ticks_of(seconds: float) -> int:
    """Whole ticks behind recorded seconds; -1 where nothing happened."""
    return -1 if np.isnan(seconds) else round(seconds * TICKS_PER_S)


def events(record: RunRecord, name: str) -> dict[int, int]:
    """Ticks of an event of the requests that have it."""
    columns = record.requests
    pairs = zip(columns["request_id"].tolist(), columns[name].tolist(), strict=True)
    return {number: ticks_of(at) for number, at in pairs if not np.isnan(at)}


def outcomes(record: RunRecord) -> list[str]:
    """In the order of the requests."""
    found: list[str] = record.requests["outcome"][
        np.argsort(record.requests["request_id"])
    ].tolist()
    return found


@dataclass
class At:
    """Does something to a cluster at given ticks, before all step boundaries of those ticks."""

    actions: Mapping[int, Callable[[Cluster], object]]

    def attach(self, cluster: Cluster) -> None:
        for tick, action in self.actions.items():
            alarm = cluster.env.timeout(tick)
            assert alarm.callbacks is not None
            alarm.callbacks.append(lambda _, act=action: act(cluster))  # type: ignore[misc]


def come_back(cluster: Cluster, index: int) -> None:
    """Bring a replica up that was not, and let those at the door in."""
    cluster.replicas[index].set_state("up")
    for pool in cluster.pools.values():
        pool.came_up()
