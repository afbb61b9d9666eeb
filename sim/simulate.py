"""Run one case: draw its traffic, let the engine serve it, hand back the columns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap

import numpy as np

from sim.catalog import Catalog
from sim.engine.clients import ClosedLoop, OpenLoop, Source
from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.cluster import Cluster, Companion, LinkPlan, PoolPlan, RunRecord
from sim.engine.programs import Programs
from sim.engine.requests import Request
from sim.engine.router_choice import router_of
from sim.engine.sessions import Sessions, Together
from sim.engine.upkeep import Upkeep
from sim.errors import InputError, under
from sim.idle_settings import idle_settings
from sim.kv_places import host_link, swap_tokens, tiers_of
from sim.service import Port, Service
from sim.tenancy import Tenancy, tenancy_of
from sim.upkeep_plans import (
    UpkeepPlans,
    failure_notes,
    scaling_notes,
    spares_aside,
    upkeep_plans,
)
from sim.workload.draw import draw, pilot
from sim.workload.judging import Accuracy, accuracy_of
from sim.workload.kinds import OpenLoopWorkload, ProgramsWorkload, Workload
from sim.workload.programs import MAIN, answered_at_once
from sim.workload.requests import RequestRow, Traffic
from sim.workload.tasks import programs

Progress = Callable[[int, int], None]
"""Called with requests that have left and requests in all."""

PILOT_REQUESTS = 16_000
"""Requests of a pilot run at least: with fewer its capacity moves by several percent with the
lengths that happen to be drawn."""
PILOT_TASKS = 6
"""Tasks of each client of a pilot run of programs."""
PROBED_TASKS = 50
"""Tasks from which the calls of one are estimated."""
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
    accuracy: Accuracy | None = None
    """Of a strategy of test-time compute, where a benchmark says how good answers are."""
    notes: tuple[str, ...] = ()
    """What a reader must know of this run."""


@dataclass(frozen=True)
class Circumstances:
    """What a run meets with beside its requests."""

    tenancy: Tenancy
    """How tenants are treated, and how their clients behave."""
    upkeep: Upkeep | None
    """Failures, maintenance and scaling; none: all replicas are up."""


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
        rate = capacity * workload.load_fraction / workload.samples
        workload = workload.model_copy(update={"rate_requests_per_s": rate, "load_fraction": None})
    if isinstance(workload, ProgramsWorkload) and workload.load_fraction is not None:
        capacity = capacity_tasks_per_s(service, workload, catalog, seed)
        workload = workload.at_rate(capacity * workload.load_fraction)
    traffic = draw_traffic(workload, catalog, seed)
    plans = upkeep_plans(service, catalog)
    upkeep = plans.companion(seed)
    record = serve(
        service,
        traffic,
        seed=seed,
        every_step=every_step,
        progress=progress,
        circumstances=Circumstances(tenancy_of(case, traffic.tenant_names), upkeep),
    )
    notes = tuple(_run_notes(service, traffic, plans, upkeep))
    names, accuracy = traffic.tenant_names, None
    if isinstance(workload, ProgramsWorkload):
        accuracy = accuracy_of(workload, catalog, seed)
        said = () if accuracy is None else accuracy.notes
        notes += tuple(f"{case.name}: {workload.benchmark}: {note}." for note in said)
    return CaseRun(service, record, capacity, traffic.clients, names, accuracy, notes)


def _run_notes(
    service: Service, traffic: Traffic, plans: UpkeepPlans, upkeep: Upkeep | None
) -> Iterator[str]:
    yield from (f"{service.case.name}: {note}" for note in traffic.notes)
    yield from idle_settings(service, traffic)
    yield from plans.notes
    if upkeep is not None:
        yield from failure_notes(upkeep, service.case.name)
        yield from scaling_notes(upkeep, service)
    alike = traffic.contents is not None or traffic.sessions is not None
    for pool in service.pools:
        if alike and pool.case.engine.prefix_caching and not pool.finds_prefixes:
            yield (
                f"{pool.case.name}: no prefix is found again: caching blocks of layers with a "
                "window or a state is not modelled."
            )
    if traffic.encode_tokens is not None:
        yield from _image_notes(service)
    called = frozenset() if traffic.programs is None else traffic.programs.strategy.models
    for name in sorted(set(service.case.other_models) - called):
        yield f"{service.case.name}: nobody calls the other model {name!r}, which is paid for."


def _image_notes(service: Service) -> Iterator[str]:
    """Say where the work of the image encoder is."""
    name = service.case.name
    if service.pools[0].role == "encode":
        return
    if service.prompt_pool.encoder is None:
        yield (
            f"{name}: images count as tokens of their prompts; the time of their encoder is not "
            f"in: the file of {service.prompt_pool.model.name} has none."
        )


def serve(
    service: Service,
    traffic: Traffic,
    *,
    seed: int = 1,
    every_step: bool = False,
    progress: Progress | None = None,
    circumstances: Circumstances | None = None,
) -> RunRecord:
    """Let a service serve some traffic to the end.

    Parameters
    ----------
    service : Service
    traffic : Traffic
    seed : int
    every_step : bool
    progress : callable, optional
    circumstances : Circumstances, optional
        Without them all replicas but the spares serve whatever comes: what a service can do.
    """
    tenancy = None if circumstances is None else circumstances.tenancy
    upkeep = spares_aside(service) if circumstances is None else circumstances.upkeep
    cluster = Cluster(pool_plans(service, seed, tenancy), every_step=every_step)
    if progress is not None and traffic.programs is None:
        cluster.report_progress(progress, total=traffic.total_requests)
    companions: list[Companion] = []
    if upkeep is not None:
        companions.append(upkeep)
    if tenancy is not None:
        cluster.door = tenancy.door()
        patience = tenancy.patience(seed)
        companions += [] if patience is None else [patience]
    priorities = () if tenancy is None else tenancy.priorities
    source = _source(traffic, to_ticks(service.frontend_s), priorities)
    if progress is not None and isinstance(source, Programs):
        source.listener = partial(_told, progress, traffic.total_requests)
    record = cluster.run(source, companions)
    if isinstance(source, Programs):
        record = replace(record, programs=source.programs, calls=source.calls)
    return record


def _told(progress: Progress, total: int, done: int) -> None:
    """Tell of so many tasks that are over, of all."""
    progress(done, total)


Priorities = Sequence[int | None]
"""By tenant; none: that of each request in its trace."""


def _source(traffic: Traffic, answer_ticks: int, priorities: Priorities) -> Source:
    """Turn the columns of a workload into somebody who sends requests."""
    if traffic.arrival_s is None:
        return ClosedLoop(list(_requests(traffic, priorities)), traffic.clients, answer_ticks)
    requests = OpenLoop(_requests(traffic, priorities))
    if traffic.programs is not None:
        return Programs(
            traffic.programs, 0, answer_ticks, (priorities[0] if priorities else 0) or 0
        )
    if traffic.sessions is None:
        return requests
    of_sessions = tuple(priority or 0 for priority in priorities)
    return Together(requests, Sessions(traffic.sessions, len(traffic), answer_ticks, of_sessions))


def pool_plans(service: Service, seed: int, tenancy: Tenancy | None = None) -> list[PoolPlan]:
    """Tell the engine what each pool consists of, and how keys and values get to the next."""
    path = service.kv_path
    faults = [pool.case.faults for pool in service.pools if pool.case.faults is not None]
    fetches = any(each.lost == "retry" and each.retry_keeps == "kv" for each in faults)
    plans = []
    for pool in service.pools:
        ports = {} if path is None else {"prefill": path.out_port, "decode": path.in_port}
        overlaps = pool.role == "prefill" and path is not None
        engine, plan = pool.case.engine, pool.plan_for(seed)
        if tenancy is not None:
            plan = replace(
                plan,
                new_line=tenancy.new_line(engine.order),
                max_queue_requests=engine.max_queue_requests,
            )
        plans.append(
            PoolPlan(
                role=pool.role,
                replicas=pool.replicas,
                plan=plan,
                new_router=partial(router_of, pool.case.router, seed, pool.role),
                port=_link(ports.get(pool.role)),
                overlap_fraction=path.overlap_fraction if path is not None and overlaps else 0.0,
                host_link=host_link(pool),
                swap_tokens=swap_tokens(pool),
                tiers=tiers_of(pool),
                fetches=fetches,
                other_model=pool.role in service.case.other_models,
            )
        )
    return plans


def _link(port: Port | None) -> LinkPlan | None:
    return None if port is None else LinkPlan(port.bytes_per_s, port.latency_s)


def draw_traffic(workload: Workload, catalog: Catalog, seed: int) -> Traffic:
    """Draw the requests of a workload, or read them from its trace.

    Raises
    ------
    InputError
        A trace without a path, or one that cannot be read.
    """
    with under("workload"):
        return draw(workload, catalog, seed)


def capacity_requests_per_s(service: Service, catalog: Catalog, seed: int) -> float:
    """Find the most that a service can do: a closed loop that keeps every place taken.

    The middle half of the completions is counted, when the batch is full and mixed.
    """
    case = service.case
    if not isinstance(case.workload, OpenLoopWorkload):
        raise InputError(
            f"load_fraction needs an open loop, not {case.workload.kind}",
            key=["workload.load_fraction", "workload.kind"],
        )
    places = service.places
    count = max(PILOT_ROUNDS * places, PILOT_REQUESTS)
    record = serve(service, pilot(case.workload, catalog, seed, count, places), seed=seed)
    done = np.sort(record.requests["done_s"].astype(float))
    done = done[~np.isnan(done)]
    if done.size < PILOT_ROUNDS:
        longest = service.answer_pool.max_model_len
        raise InputError(
            f"no request of this traffic fits into a replica, which takes {longest} tokens at "
            "most, prompt and answer: give shorter requests, or raise engine.max_model_len or the "
            "memory for its KV cache",
            key=["workload.load_fraction", "workload"],
        )
    first, last = done.size // 4, 3 * done.size // 4
    return float((last - first) / (done[last] - done[first]))


def capacity_tasks_per_s(
    service: Service, workload: ProgramsWorkload, catalog: Catalog, seed: int
) -> float:
    """Find the most tasks that a service can do: a closed loop that keeps it full and no fuller.

    With more calls than fit into the KV cache sequences push each other out, and a service does
    less. The middle half of the completions is counted, when the batch is full and mixed.
    """
    clients = _clients_that_fill(service, workload, catalog, seed)
    asked = workload.asked_by(clients, max(PILOT_TASKS * clients, PILOT_ROUNDS))
    record = serve(service, draw(asked, catalog, seed, "pilot"), seed=seed)
    done = np.sort(record.programs["done_s"][record.programs["outcome"] == "completed"])
    first, last = done.size // 4, 3 * done.size // 4
    if last == first or done[last] <= done[first]:
        raise InputError(
            "no task of this workload is ever finished: its calls are longer than a replica takes",
            key=["workload.load_fraction", "workload"],
        )
    return float((last - first) / (done[last] - done[first]))


def _clients_that_fill(
    service: Service, workload: ProgramsWorkload, catalog: Catalog, seed: int
) -> int:
    """Find how many tasks at once fill the batch, or the KV cache if that holds fewer calls."""
    plans = programs(workload.asked_by(1, PROBED_TASKS), catalog, seed, ("probe",))
    ledgers = [answered_at_once(plans.control(number)) for number in range(PROBED_TASKS)]
    calls = [call for ledger in ledgers for call in ledger.calls if call.model == MAIN]
    if not calls:
        return service.places
    # a sequence holds its prompt, and half of its answer on average
    held = np.array([call.input_tokens + call.output_tokens / 2 for call in calls])
    pool = service.answer_pool
    room = pool.replicas * pool.kv_tokens / float(held.mean())
    waves = sum(max(ledger.critical_calls, 1) for ledger in ledgers)
    at_once = sum(len(ledger.calls) for ledger in ledgers) / waves
    # Calls side by side wait for the slowest: places stay empty unless there are tasks to spare.
    # Calls in a row do not, and tasks to spare would push what they go on from out of the cache.
    spare = min(max(at_once, 1.0), 2.0)
    return max(round(min(spare * service.places, room) / at_once), pool.replicas)


def _requests(traffic: Traffic, priorities: Priorities = ()) -> Iterator[Request]:
    """Make the requests of a run, one when it is its turn; of a closed loop at no time yet."""
    ranked = any(priority is not None for priority in priorities)
    if traffic.is_plain and not ranked:
        yield from starmap(Request, traffic.plain_rows(TICKS_PER_S))
        return
    for index, row in enumerate(traffic.rows()):
        arrival_s, input_tokens, output_tokens, *rest = row
        request = Request(index, to_ticks(arrival_s), input_tokens, output_tokens)
        if rest != _PLAIN:
            _fill_in(request, row)
        if ranked:
            own = priorities[request.tenant]
            request.priority = request.priority if own is None else own
        yield request


_PLAIN = [0, 0, 0, -1, 0, None, None, 0]
"""All other columns of a request that needs none of them."""


def _fill_in(request: Request, row: RequestRow) -> None:
    """Tell a request what is special about it."""
    request.max_tokens, request.tenant, request.priority = row.max_tokens, row.tenant, row.priority
    request.session, request.turn = row.session, row.turn
    request.content, request.answer = row.content, row.answer
    request.encode_tokens = row.encode_tokens
