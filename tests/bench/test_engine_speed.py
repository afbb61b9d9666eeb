"""How fast the engine is: figures to read, and counts to hold on to.

``make bench`` prints the figures; they go into the benchmark's ``extra_info`` too. What is asserted
is counted and not timed (stretches, steps, calls of Python functions), so that a busy machine
cannot fail it.
"""

import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import FrameType

import numpy as np
import pytest
import simpy
from pytest_benchmark.fixture import BenchmarkFixture

from sim.catalog import open_catalog
from sim.engine.cluster import RunRecord
from sim.scenario import OpenLoopWorkload, load_scenario
from sim.service import Service, service_of
from sim.simulate import Traffic, draw_traffic, serve
from sim.workload.arrivals import BurstArrivals

pytestmark = pytest.mark.bench

SCENARIO = "bench/fixed_512_256"
REQUESTS = 4_000
WALKED_REQUESTS = 400
"""Served step by step too."""
TIMEOUTS = 40_000
OUTPUT_TOKENS = 256


@dataclass(frozen=True)
class Timed:
    """A served run and the CPU time that it took."""

    record: RunRecord
    cpu_s: float

    @property
    def requests(self) -> int:
        return len(self.record.requests["request_id"])

    @property
    def stretches_per_request(self) -> float:
        return len(self.record.stretches["steps"]) / self.requests

    @property
    def steps_per_request(self) -> float:
        return float(self.record.stretches["steps"].sum()) / self.requests

    @property
    def requests_per_cpu_s(self) -> float:
        return self.requests / self.cpu_s


@pytest.fixture(scope="module")
def service() -> Service:
    catalog = open_catalog()
    (case,) = load_scenario(catalog.path("scenarios", SCENARIO)).cases
    found = service_of(case, catalog)
    _ = found.pools[0].plan  # compiled once, before any clock starts
    return found


def traffic(service: Service, requests: int, load: float) -> Traffic:
    case = service.case
    workload = case.workload
    assert isinstance(workload, OpenLoopWorkload)
    assert workload.arrivals is not None
    assert not isinstance(workload.arrivals, BurstArrivals)
    rate = load * workload.arrivals.rate_requests_per_s
    asked = workload.model_copy(update={"requests": requests, "rate_requests_per_s": rate})
    return draw_traffic(case, asked, open_catalog(), seed=1)


def timed(service: Service, requests: int, load: float = 1.0, *, every_step: bool = False) -> Timed:
    """Serve requests at a fraction of the scenario's rate."""
    drawn = traffic(service, requests, load)
    started = time.process_time()
    record = serve(service, drawn, every_step=every_step)
    return Timed(record, time.process_time() - started)


def calls_per_request(service: Service, requests: int) -> float:
    """Count the calls of Python functions while requests are served: work without a clock."""
    drawn, count = traffic(service, requests, 1.0), 0

    def called(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(called)
    try:
        serve(service, drawn)
    finally:
        sys.setprofile(None)
    return count / requests


def simpy_timeouts_per_cpu_s() -> float:
    """Rate of the barest simulation that simpy can do: one process that only waits."""

    def waiting(env: simpy.Environment) -> Generator[simpy.Event, None, None]:
        for _ in range(TIMEOUTS):
            yield env.timeout(1)

    env = simpy.Environment()
    env.process(waiting(env))
    started = time.process_time()
    env.run()
    return TIMEOUTS / (time.process_time() - started)


def best_of(times: int, measure: Callable[[], float]) -> float:
    """Take the best rate of several: whatever else the machine does only slows things down."""
    return max(measure() for _ in range(times))


def tell(benchmark: BenchmarkFixture, figures: dict[str, float]) -> None:
    """Print figures and keep them with the benchmark."""
    benchmark.extra_info.update({name: round(value, 3) for name, value in figures.items()})
    for name, value in figures.items():
        sys.stdout.write(f"\n{name:32s} {value:14,.2f}")


@pytest.mark.parametrize(("load", "fewer"), [(1.0, 1.0), (0.5, 2.0), (0.1, 3.0)])
def test_jumps_over_stretches(
    benchmark: BenchmarkFixture, service: Service, load: float, fewer: float
) -> None:
    """Same requests, same times, fewer stretches: at the full load nearly every step begins or
    ends a request, below it most of them can be jumped over.
    """
    arguments = (service, WALKED_REQUESTS, load)
    jumped = benchmark.pedantic(timed, arguments, rounds=3, warmup_rounds=1)
    walked = timed(*arguments, every_step=True)
    tell(
        benchmark,
        {
            "load": load,
            "stretches_per_request": jumped.stretches_per_request,
            "steps_per_request": jumped.steps_per_request,
            "steps_per_stretch": jumped.steps_per_request / jumped.stretches_per_request,
            "cpu_walked_over_jumped": walked.cpu_s / jumped.cpu_s,
        },
    )
    for column in ("request_id", "arrival_s", "admit_s", "first_token_s", "done_s", "replica"):
        ours, theirs = (run.record.requests[column] for run in (jumped, walked))
        np.testing.assert_array_equal(ours, theirs)
    assert walked.stretches_per_request == walked.steps_per_request == jumped.steps_per_request
    assert jumped.stretches_per_request * fewer < walked.stretches_per_request


def test_cost_of_a_request_beside_simpy(benchmark: BenchmarkFixture, service: Service) -> None:
    """A request of 256 output tokens takes fewer than one Python call for two of its tokens."""
    found = benchmark.pedantic(timed, (service, REQUESTS), rounds=3, warmup_rounds=1)
    rate = best_of(3, lambda: timed(service, REQUESTS).requests_per_cpu_s)
    bare = best_of(3, simpy_timeouts_per_cpu_s)
    tell(
        benchmark,
        {
            "requests_per_cpu_s": rate,
            "output_tokens_per_cpu_s": rate * OUTPUT_TOKENS,
            "stretches_per_cpu_s": rate * found.stretches_per_request,
            "stretches_per_request": found.stretches_per_request,
            "steps_per_request": found.steps_per_request,
            "simpy_timeouts_per_cpu_s": bare,
            "timeouts_per_request": bare / rate,
        },
    )
    assert found.requests == REQUESTS
    assert calls_per_request(service, REQUESTS) < OUTPUT_TOKENS / 2


def test_cost_does_not_grow_with_the_run(benchmark: BenchmarkFixture, service: Service) -> None:
    """Eight times the requests take eight times the work."""
    short = best_of(3, lambda: timed(service, REQUESTS // 2).requests_per_cpu_s)
    long = benchmark.pedantic(timed, (service, 4 * REQUESTS), rounds=1).requests_per_cpu_s
    tell(benchmark, {"requests_per_cpu_s": long, "long_over_short": long / short})
    few, many = (calls_per_request(service, n) for n in (REQUESTS // 2, 4 * REQUESTS))
    assert many == pytest.approx(few, rel=0.2)
