"""Run one case: draw its traffic, let the engine serve it, hand back the columns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.catalog import Catalog
from sim.engine.clients import ClosedLoop, OpenLoop
from sim.engine.clock import to_ticks
from sim.engine.cluster import Cluster, LinkPlan, PoolPlan, RunRecord
from sim.engine.requests import Request
from sim.engine.router import ROUTERS
from sim.errors import InputError
from sim.scenario import Case, ClosedLoopWorkload, OpenLoopWorkload, TraceWorkload
from sim.schema import validate
from sim.seeds import stream
from sim.service import Service
from sim.workload.arrivals import ArrivalLaw, BurstArrivals, ModulatedArrivals
from sim.workload.lengths import LengthLaw
from sim.workload.traces import read_trace
from sim.workload.traffic import TrafficLaw

Progress = Callable[[int, int], None]
"""Called with requests that have left and requests in all."""

PILOT_REQUESTS = 16_000
"""Requests of a pilot run at least: with fewer its capacity moves by several percent with the
lengths that happen to be drawn."""
PILOT_ROUNDS = 8
"""Requests per place in the batch that a pilot run serves to find the capacity."""


@dataclass(frozen=True)
class Traffic:
    """The requests of a run; arrivals are absent in a closed loop."""

    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    arrival_s: npt.NDArray[np.float64] | None
    clients: int = 0
    """Closed-loop clients."""


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
    record = serve(service, traffic, every_step=every_step, progress=progress)
    return CaseRun(service, record, capacity, traffic.clients)


def serve(
    service: Service,
    traffic: Traffic,
    *,
    every_step: bool = False,
    progress: Progress | None = None,
) -> RunRecord:
    """Let a service serve some traffic to the end."""
    cluster = Cluster(pool_plans(service), every_step=every_step)
    if progress is not None:
        cluster.report_progress(progress, total=len(traffic.input_tokens))
    requests = _requests(traffic)
    if traffic.arrival_s is None:
        answer_ticks = to_ticks(service.frontend_s)
        return cluster.run(ClosedLoop(list(requests), traffic.clients, answer_ticks))
    return cluster.run(OpenLoop(requests))


def pool_plans(service: Service) -> list[PoolPlan]:
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
                plan=pool.plan,
                new_router=ROUTERS[pool.case.router],
                port=None if port is None else LinkPlan(port.bytes_per_s, port.latency_s),
                overlap_fraction=path.overlap_fraction if path is not None and overlaps else 0.0,
            )
        )
    return plans


def draw_traffic(
    case: Case,
    workload: OpenLoopWorkload | ClosedLoopWorkload | TraceWorkload,
    catalog: Catalog,
    seed: int,
) -> Traffic:
    """Draw the requests of a workload, or read them from its trace.

    Raises
    ------
    InputError
        A trace without a path, or one that cannot be read.
    """
    if isinstance(workload, TraceWorkload):
        if workload.path is None:
            raise InputError(
                f"case {case.name!r}: workload.path is not set: give the trace with "
                "--set workload.path=FILE"
            )
        frame = read_trace(workload.path, workload.format, workload.options)
        return Traffic(
            frame["input_tokens"].to_numpy(np.int64),
            frame["output_tokens"].to_numpy(np.int64),
            frame["arrival_s"].to_numpy(np.float64),
        )
    lengths, arrivals = _laws(workload, catalog)
    if isinstance(workload, ClosedLoopWorkload):
        tokens = lengths.sample(stream(seed, "lengths"), workload.requests)
        return Traffic(tokens.input_tokens, tokens.output_tokens, None, workload.concurrency)
    times = _arrival_times(arrivals, workload, seed)
    if not times.size:
        raise InputError(
            f"case {case.name!r}: no request arrives in {workload.duration_s} s; give a longer "
            "duration_s or a higher rate"
        )
    tokens = lengths.sample(stream(seed, "lengths"), times.size)
    return Traffic(tokens.input_tokens, tokens.output_tokens, times)


def capacity_requests_per_s(service: Service, catalog: Catalog, seed: int) -> float:
    """Find the most that a service can do: a closed loop that keeps every place taken.

    The middle half of the completions is counted, when the batch is full and mixed.
    """
    case = service.case
    if not isinstance(case.workload, OpenLoopWorkload):
        raise InputError(f"case {case.name!r}: load_fraction needs an open loop")
    places = service.places
    lengths, _ = _laws(case.workload, catalog)
    count = max(PILOT_ROUNDS * places, PILOT_REQUESTS)
    tokens = lengths.sample(stream(seed, "pilot"), count)
    record = serve(
        service, Traffic(tokens.input_tokens, tokens.output_tokens, None, clients=places)
    )
    done = np.sort(record.requests["done_s"].astype(float))
    done = done[~np.isnan(done)]
    if done.size < PILOT_ROUNDS:
        raise InputError(f"case {case.name!r}: no request of this traffic fits into a replica")
    first, last = done.size // 4, 3 * done.size // 4
    return float((last - first) / (done[last] - done[first]))


def _laws(
    workload: OpenLoopWorkload | ClosedLoopWorkload, catalog: Catalog
) -> tuple[LengthLaw, ArrivalLaw | None]:
    """Give the laws of a workload, from the fitted traffic that it names or from itself."""
    lengths = workload.lengths
    arrivals = workload.arrivals if isinstance(workload, OpenLoopWorkload) else None
    if workload.traffic is not None:
        traffic = validate(TrafficLaw, catalog.located("lengths", workload.traffic))
        lengths = lengths or traffic.lengths
        arrivals = arrivals or traffic.arrivals
    if lengths is None:
        raise InputError("the workload names no traffic and gives no lengths")
    return lengths, arrivals


def _arrival_times(
    arrivals: ArrivalLaw | None, workload: OpenLoopWorkload, seed: int
) -> npt.NDArray[np.float64]:
    """Draw arrival times at the wanted rate, for a number of requests or a stretch of time.

    The rate profile of a fitted traffic law is spread over the whole run, whatever its length; a
    profile that the scenario itself gives keeps its period.
    """
    if arrivals is None:
        raise InputError("the workload names no traffic and gives no arrivals")
    rng = stream(seed, "arrivals")
    if isinstance(arrivals, BurstArrivals):
        if workload.requests is None or workload.rate_requests_per_s is not None:
            raise InputError("burst arrivals have no rate: give requests, and no rate or duration")
        return arrivals.sample_count(rng, workload.requests)
    if workload.rate_requests_per_s is not None:
        arrivals = arrivals.at_rate(workload.rate_requests_per_s)
    if isinstance(arrivals, ModulatedArrivals) and workload.arrivals is None:
        count = workload.requests or 0
        arrivals = arrivals.stretched_to(
            workload.duration_s or count / arrivals.rate_requests_per_s
        )
    if workload.duration_s is not None:
        return arrivals.sample_duration(rng, workload.duration_s)[: workload.requests]
    return arrivals.sample_count(rng, workload.requests or 0)


def _requests(traffic: Traffic) -> Iterator[Request]:
    """Make the requests of a run, one when it is its turn; of a closed loop at no time yet."""
    inputs, outputs = traffic.input_tokens.tolist(), traffic.output_tokens.tolist()
    arrival_s = [0.0] * len(inputs) if traffic.arrival_s is None else traffic.arrival_s.tolist()
    rows = zip(arrival_s, inputs, outputs, strict=True)
    for index, (time_s, input_tokens, output_tokens) in enumerate(rows):
        yield Request(index, to_ticks(time_s), input_tokens, output_tokens)
