"""Run one case: draw its traffic, let the engine serve it, hand back the columns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, starmap

import numpy as np

from sim.catalog import Catalog
from sim.engine.clients import ClosedLoop, OpenLoop, Source
from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.cluster import Cluster, Companion, LinkPlan, PoolPlan, RunRecord
from sim.engine.programs import Programs
from sim.engine.records import joined_columns
from sim.engine.requests import Request
from sim.engine.router_choice import router_of
from sim.engine.sessions import Sessions, Together
from sim.engine.upkeep import Upkeep
from sim.errors import InputError, under
from sim.idle_settings import idle_settings
from sim.kv_places import host_link, swap_tokens, tiers_of
from sim.service import Port, Service
from sim.tenancy import ONE_TENANT, Tenancy, tenancy_of
from sim.upkeep_plans import (
    UpkeepPlans,
    failure_notes,
    scaling_notes,
    spares_aside,
    upkeep_plans,
)
from sim.workload.draw import draw, pilot
from sim.workload.judging import Accuracy, accuracy_of
from sim.workload.kinds import OpenLoopWorkload, ProgramsWorkload, Workload, programs_of
from sim.workload.programs import MAIN, Ledger, answered_at_once
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
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    """Of the strategies of test-time compute, by tenant; of those for which a benchmark says how
    good answers are."""
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
    accuracy = {}
    for key, asked in programs_of(workload).items():
        known = accuracy_of(asked, catalog, seed)
        if known is not None:
            accuracy[key[-1] if key else ONE_TENANT] = known
            said = (f"{case.name}: {asked.benchmark}: {note}." for note in known.notes)
            notes = tuple(dict.fromkeys((*notes, *said)))
    names = traffic.tenant_names
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
    called = frozenset(chain(*(plans.strategy.models for plans in traffic.programs)))
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
    companions: list[Companion] = []
    if upkeep is not None:
        companions.append(upkeep)
    if tenancy is not None:
        cluster.door = tenancy.door()
        patience = tenancy.patience(seed)
        companions += [] if patience is None else [patience]
    priorities = () if tenancy is None else tenancy.priorities
    calls = _Numbers(traffic.total_requests - sum(map(len, traffic.programs)))
    sources = _sources(traffic, to_ticks(service.frontend_s), priorities, calls)
    programs = [source for source in sources if isinstance(source, Programs)]
    if progress is not None:
        bar = _Bar(progress, calls, calls.following, traffic.total_requests)
        cluster.recorder.listen(bar.left)
        for source in programs:
            source.listener = bar.one_over
    record = cluster.run(sources[0] if len(sources) == 1 else Together(*sources), companions)
    if programs:
        told = (joined_columns([getattr(one, name) for one in programs]) for name in _OF_PROGRAMS)
        record = replace(record, **dict(zip(_OF_PROGRAMS, told, strict=True)))
    return record


_OF_PROGRAMS = ("programs", "calls")
"""What programs leave behind, in a record and in each of their sources."""


@dataclass
class _Numbers:
    """Numbers of calls, shared by all programs."""

    following: int

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.following += 1
        return self.following - 1


@dataclass
class _Bar:
    """Tells how far a run is: requests that have left, and of programs the tasks that are over.

    How many calls there will be nobody knows before. Those under way count as if they had left, so
    that some of the other requests are told of late.
    """

    progress: Progress
    calls: _Numbers
    others: int
    """Requests that are no calls."""
    total: int
    _requests: int = 0
    _tasks: int = 0

    def left(self, count: int) -> None:
        """Take note of the requests that have left, calls among them."""
        known = count - (self.calls.following - self.others)
        self._requests = max(self._requests, known)
        self.progress(self._requests + self._tasks, self.total)

    def one_over(self, _: int) -> None:
        """Take note of a task that is over."""
        self._tasks += 1
        self.progress(self._requests + self._tasks, self.total)


Priorities = Sequence[int | None]
"""By tenant; none: that of each request in its trace."""


def _sources(
    traffic: Traffic, answer_ticks: int, priorities: Priorities, calls: Iterator[int]
) -> list[Source]:
    """Turn the columns of a workload into those who send requests."""
    if traffic.arrival_s is None:
        return [ClosedLoop(list(_requests(traffic, priorities)), traffic.clients, answer_ticks)]
    by_tenant = tuple(priority or 0 for priority in priorities) or (0,) * len(traffic.tenant_names)
    sources: list[Source] = []
    if len(traffic) or not traffic.programs:
        sources.append(OpenLoop(_requests(traffic, priorities)))
    sessions = 0
    if traffic.sessions is not None:
        sessions = len(traffic.sessions)
        sources.append(Sessions(traffic.sessions, len(traffic), answer_ticks, by_tenant))
    if traffic.session is not None:
        sessions = max(sessions, int(traffic.session.max(initial=-1)) + 1)
    for plans in traffic.programs:
        priority = by_tenant[plans.tenant]
        sources.append(Programs(plans, calls, answer_ticks, priority, sessions))
    return sources


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


def probed(workload: ProgramsWorkload, catalog: Catalog, seed: int) -> list[Ledger]:
    """Tell what some tasks of a workload ask for, had all calls been answered at once."""
    plans = programs(workload.asked_by(1, PROBED_TASKS), catalog, seed, ("probe",))
    return [answered_at_once(plans.control(number)) for number in range(PROBED_TASKS)]


def _clients_that_fill(
    service: Service, workload: ProgramsWorkload, catalog: Catalog, seed: int
) -> int:
    """Find how many tasks at once fill the batch, or the KV cache if that holds fewer calls."""
    ledgers = probed(workload, catalog, seed)
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
