"""How fast the engine is: figures to read, and counts to hold on to.

``make bench`` prints the figures; they go into the benchmark's ``extra_info`` too. What is asserted
is counted and not timed (stretches, steps, calls of Python functions, bytes), so that a busy
machine cannot fail it.
"""

import cProfile
import math
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import simpy
from loads import (
    CONVERSATIONS,
    calls_per_request,
    conversations,
    fastest,
    fixed,
    full_batches,
    service,
    timed,
)
from pytest_benchmark.fixture import BenchmarkFixture

from sim.service import Service
from sim.simulate import serve

pytestmark = pytest.mark.bench

REQUESTS = 4_000
TIMED_REQUESTS = 20_000
"""Of figures that are only printed: enough to fill 256 places and to keep them filled."""
WALKED_REQUESTS = 400
"""Served step by step too."""
TIMEOUTS = 40_000
CALLS_PER_REQUEST = 70
"""Calls of Python functions that a request of 512 tokens in and 256 out may take."""
CALLS_PER_DOUBLING = 4.0
"""Calls of a request that may come on top with twice the requests, replicas or places."""


@pytest.fixture(scope="module")
def alone() -> Service:
    """One replica."""
    return service()


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
        sys.stdout.write(f"\n{name:40s} {value:14,.2f}")


def split_of_time(service: Service, requests: int) -> dict[str, float]:
    """Share of the time that a profiler sees in each module, in percent, the largest first."""
    traffic, profile = fixed(service, requests), cProfile.Profile()
    profile.enable()
    serve(service, traffic)
    profile.disable()
    spent: Counter[str] = Counter()
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, _), (_, _, own_s, _, _) in found.items():
        path = Path(file)
        name = f"simpy.{path.stem}" if "simpy" in path.parts else path.stem
        spent["C functions" if file == "~" else name] += own_s
    total = sum(spent.values())
    return {f"percent_in_{name}": 100 * own_s / total for name, own_s in spent.most_common(14)}


@pytest.mark.parametrize(("load", "fewer"), [(1.0, 1.0), (0.5, 2.0), (0.1, 3.0)])
def test_jumps_over_stretches(
    benchmark: BenchmarkFixture, alone: Service, load: float, fewer: float
) -> None:
    """Same requests, same times, fewer stretches: at the full load nearly every step begins or
    ends a request, below it most of them can be jumped over.
    """
    traffic = fixed(alone, WALKED_REQUESTS, load)
    jumped = benchmark.pedantic(timed, (alone, traffic), rounds=3, warmup_rounds=1)
    walked = timed(alone, traffic, every_step=True)
    tell(
        benchmark,
        {
            "load": load,
            "stretches_per_request": jumped.stretches / WALKED_REQUESTS,
            "steps_per_request": jumped.steps / WALKED_REQUESTS,
            "steps_per_stretch": jumped.steps / jumped.stretches,
            "cpu_walked_over_jumped": walked.cpu_s / jumped.cpu_s,
        },
    )
    for column in ("request_id", "arrival_s", "admit_s", "first_token_s", "done_s", "replica"):
        ours, theirs = (run.record.requests[column] for run in (jumped, walked))
        np.testing.assert_array_equal(ours, theirs)
    assert walked.stretches == walked.steps == jumped.steps
    assert jumped.stretches * fewer < walked.stretches


@pytest.mark.parametrize(("places", "load"), [(256, 1.0), (1024, 1.17)])
def test_cost_of_a_request_beside_simpy(
    benchmark: BenchmarkFixture, places: int, load: float
) -> None:
    """A request of 768 tokens takes some dozens of Python calls, at 96 % of what a replica can do.

    With 1,024 places (the default of vLLM) steps are longer and serve several requests each; the
    replica can do 32.2 requests/s instead of 27.6.
    """
    requests, alone = TIMED_REQUESTS if benchmark.enabled else REQUESTS, service(places=places)
    traffic = fixed(alone, requests, load)
    benchmark.pedantic(timed, (alone, traffic), rounds=1)
    best = fastest(5 if benchmark.enabled else 1, alone, traffic)
    bare = best_of(5, simpy_timeouts_per_cpu_s)
    calls = calls_per_request(alone, fixed(alone, REQUESTS, load))
    tell(
        benchmark,
        {
            "requests_per_cpu_s": best.requests_per_cpu_s,
            "cpu_us_per_stretch": best.cpu_s / best.stretches * 1e6,
            "cpu_us_per_step": best.cpu_s / best.steps * 1e6,
            "stretches_per_request": best.stretches / best.requests,
            "steps_per_request": best.steps / best.requests,
            "python_calls_per_request": calls,
            "record_bytes_per_request": best.record_bytes / best.requests,
            "simpy_timeouts_per_cpu_s": bare,
            "simpy_timeouts_per_request": bare / best.requests_per_cpu_s,
            **(split_of_time(alone, REQUESTS) if benchmark.enabled else {}),
        },
    )
    assert best.requests == requests
    assert calls < CALLS_PER_REQUEST


def test_conversations_on_eight_replicas(benchmark: BenchmarkFixture) -> None:
    """Prompts and answers of all lengths, on as many replicas as a router has work with."""
    if not CONVERSATIONS.exists():
        pytest.skip(f"{CONVERSATIONS} is not there")
    eight = service(replicas=8)
    traffic = conversations(eight, 2 * TIMED_REQUESTS if benchmark.enabled else REQUESTS, 0.96)
    benchmark.pedantic(timed, (eight, traffic), rounds=1)
    best = fastest(3 if benchmark.enabled else 1, eight, traffic)
    tell(
        benchmark,
        {
            "requests_per_cpu_s": best.requests_per_cpu_s,
            "cpu_us_per_stretch": best.cpu_s / best.stretches * 1e6,
            "stretches_per_request": best.stretches / best.requests,
            "steps_per_request": best.steps / best.requests,
        },
    )
    assert set(best.record.requests["replica"].tolist()) == set(range(8))
    assert best.stretches < 2 * best.requests


def test_a_million_requests_fit_into_memory(alone: Service) -> None:
    """Columns take less than 320 bytes a request, so a million less than a third of a gigabyte."""
    run = timed(alone, fixed(alone, REQUESTS))
    assert run.record_bytes < 320 * run.requests


def grows_slowly(calls: dict[int, float]) -> None:
    """Assert that each doubling adds no more than a fixed number of calls to a request."""
    for (few, before), (many, after) in pairwise(calls.items()):
        assert after - before <= CALLS_PER_DOUBLING * math.log2(many / few), calls


def test_work_does_not_grow_with_the_requests(alone: Service) -> None:
    grows_slowly({n: calls_per_request(alone, fixed(alone, n)) for n in (1_000, 4_000, 16_000)})


def test_work_grows_slowly_with_the_replicas() -> None:
    """From two on: with one there is nothing to choose. Each replica gets equally many requests."""
    found = {}
    for replicas in (2, 8, 32):
        several = service(replicas)
        found[replicas] = calls_per_request(several, fixed(several, REQUESTS // 8 * replicas))
    grows_slowly(found)


def test_work_does_not_grow_with_the_batch() -> None:
    found = {}
    for places in (1, 4, 16, 64, 256):
        replica = service(places=places)
        found[places] = calls_per_request(replica, full_batches(replica, REQUESTS, places))
    grows_slowly(found)
