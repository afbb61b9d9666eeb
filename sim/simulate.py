"""Run one case: draw its traffic, let the engine serve it, hand back the columns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from sim.catalog import Catalog
from sim.engine.clients import ClosedLoop, OpenLoop, Source
from sim.engine.clock import to_ticks
from sim.engine.cluster import Cluster, LinkPlan, PoolPlan, RunRecord
from sim.engine.requests import Request
from sim.engine.router_choice import router_of
from sim.engine.sessions import Sessions, Together
from sim.errors import InputError
from sim.scenario import Case
from sim.service import Service
from sim.workload.draw import draw, pilot
from sim.workload.kinds import OpenLoopWorkload, Workload
from sim.workload.requests import RequestRow, Traffic

Progress = Callable[[int, int], None]
"""Called with requests that have left and requests in all."""

PILOT_REQUESTS = 16_000
"""Requests of a pilot run at least: with fewer its capacity moves by several percent with the
lengths that happen to be drawn."""
PILOT_ROUNDS = 8
"""Requests per place in the batch that a pilot run serves to find the capacity."""


@dataclass(frozen=True)
class CaseRun:
    """A simulated case."""

    service: Service
    record: RunRecord
    capacity_requests_per_s: float | None = None
    """What the system can do at most, where a pilot run has found it."""
    clients: int = 0
    """Closed-loop clients."""
    tenants: tuple[str, ...] = ("all",)
    """Names of the tenants, by their index."""


def simulate(
    service: Service,
    catalog: Catalog,
    seed: int,
    *,
    every_step: bool = False,
    progress: Progress | None = None,
) -> CaseRun:
    """Simulate one case from the first arrival to the last completion.

    All cases of a scenario draw the same traffic from the same seed, so that they differ by the
    service alone.

    Parameters
    ----------
    service : Service
    catalog : Catalog
        For fitted traffic laws.
    seed : int
    every_step : bool
        Walk every step instead of jumping over stretches: slow, and the same result.
    progress : callable, optional
    """
    case, capacity = service.case, None
    workload = case.workload
    if isinstance(workload, OpenLoopWorkload) and workload.load_fraction is not None:
        capacity = capacity_requests_per_s(service, catalog, seed)
        rate = capacity * workload.load_fraction
        workload = workload.model_copy(update={"rate_requests_per_s": rate, "load_fraction": None})
    traffic = draw_traffic(case, workload, catalog, seed)
    record = serve(service, traffic, seed=seed, every_step=every_step, progress=progress)
    return CaseRun(service, record, capacity, traffic.clients, traffic.tenant_names)


def serve(
    service: Service,
    traffic: Traffic,
    *,
    seed: int = 1,
    every_step: bool = False,
    progress: Progress | None = None,
) -> RunRecord:
    """Let a service serve some traffic to the end."""
    cluster = Cluster(pool_plans(service, seed), every_step=every_step)
    if progress is not None:
        cluster.report_progress(progress, total=traffic.total_requests)
    return cluster.run(_source(traffic, to_ticks(service.frontend_s)))


def _source(traffic: Traffic, answer_ticks: int) -> Source:
    """Turn the columns of a workload into somebody who sends requests."""
    if traffic.arrival_s is None:
        return ClosedLoop(list(_requests(traffic)), traffic.clients, answer_ticks)
    requests = OpenLoop(_requests(traffic))
    if traffic.sessions is None:
        return requests
    return Together(requests, Sessions(traffic.sessions, len(traffic), answer_ticks))


def pool_plans(service: Service, seed: int) -> list[PoolPlan]:
    """Tell the engine what each pool consists of, and how keys and values get to the next."""
    path = service.kv_path
    plans = []
    for pool in service.pools:
        ports = {} if path is None else {"prefill": path.out_port, "decode": path.in_port}
        port = ports.get(pool.role)
        overlaps = pool.role == "prefill" and path is not None
        plans.append(
            PoolPlan(
                role=pool.role,
                replicas=pool.replicas,
                plan=pool.plan_for(seed),
                new_router=partial(router_of, pool.case.router, seed, pool.role),
                port=None if port is None else LinkPlan(port.bytes_per_s, port.latency_s),
                overlap_fraction=path.overlap_fraction if path is not None and overlaps else 0.0,
            )
        )
    return plans


def draw_traffic(case: Case, workload: Workload, catalog: Catalog, seed: int) -> Traffic:
    """Draw the requests of a workload, or read them from its trace.

    Raises
    ------
    InputError
        A trace without a path, or one that cannot be read; it names the case.
    """
    try:
        return draw(workload, catalog, seed)
    except InputError as error:
        if getattr(workload, "path", None) is not None:
            raise  # it names its file
        raise InputError(f"case {case.name!r}: {error}") from None


def capacity_requests_per_s(service: Service, catalog: Catalog, seed: int) -> float:
    """Find the most that a service can do: a closed loop that keeps every place taken.

    The middle half of the completions is counted, when the batch is full and mixed.
    """
    case = service.case
    if not isinstance(case.workload, OpenLoopWorkload):
        raise InputError(f"case {case.name!r}: load_fraction needs an open loop")
    places = service.places
    count = max(PILOT_ROUNDS * places, PILOT_REQUESTS)
    record = serve(service, pilot(case.workload, catalog, seed, count, places), seed=seed)
    done = np.sort(record.requests["done_s"].astype(float))
    done = done[~np.isnan(done)]
    if done.size < PILOT_ROUNDS:
        raise InputError(f"case {case.name!r}: no request of this traffic fits into a replica")
    first, last = done.size // 4, 3 * done.size // 4
    return float((last - first) / (done[last] - done[first]))


def _requests(traffic: Traffic) -> Iterator[Request]:
    """Make the requests of a run, one when it is its turn; of a closed loop at no time yet."""
    for index, row in enumerate(traffic.rows()):
        arrival_s, input_tokens, output_tokens, *rest = row
        request = Request(index, to_ticks(arrival_s), input_tokens, output_tokens)
        if rest != _PLAIN:
            _fill_in(request, row)
        yield request


_PLAIN = [0, 0, 0, -1, 0, None, None, 0]
"""All other columns of a request that needs none of them."""


def _fill_in(request: Request, row: RequestRow) -> None:
    """Tell a request what is special about it."""
    request.max_tokens, request.tenant, request.priority = row.max_tokens, row.tenant, row.priority
    request.session, request.turn = row.session, row.turn
    request.content, request.answer = row.content, row.answer
    request.encode_tokens = row.encode_tokens
