"""Loads that the benchmarks serve, and the work that serving them takes."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from sim.catalog import open_catalog
from sim.engine.cluster import RunRecord
from sim.scenario import load_scenario
from sim.service import Service, service_of
from sim.simulate import draw_traffic, serve
from sim.workload.kinds import OpenLoopWorkload
from sim.workload.requests import Traffic

SCENARIO = "bench/fixed_512_256"
CONVERSATIONS = Path(__file__).parents[3] / "shared/traces/azure_2023_conv.csv"
"""The conversations of the Azure LLM inference dataset of 2023, where the checkout has them:
columns ``t_s``, ``input_tokens`` and ``output_tokens``."""


@dataclass(frozen=True)
class Timed:
    """A served run and the CPU time that it took."""

    record: RunRecord
    cpu_s: float

    @property
    def requests(self) -> int:
        return len(self.record.requests["request_id"])

    @property
    def stretches(self) -> int:
        return len(self.record.stretches["steps"])

    @property
    def steps(self) -> int:
        return int(self.record.stretches["steps"].sum())

    @property
    def requests_per_cpu_s(self) -> float:
        return self.requests / self.cpu_s

    @property
    def record_bytes(self) -> int:
        """Of the columns of requests and stretches."""
        tables = (self.record.requests, self.record.stretches)
        return sum(column.nbytes for table in tables for column in table.values())


def service(replicas: int = 1, places: int = 256) -> Service:
    """Build the service of the scenario with so many replicas and places in each batch."""
    catalog = open_catalog()
    (case,) = load_scenario(catalog.path("scenarios", SCENARIO)).cases
    engine = case.engine.model_copy(update={"max_num_seqs": places})
    case = case.model_copy(update={"replicas": replicas, "systems": replicas, "engine": engine})
    found = service_of(case, catalog)
    _ = found.pools[0].plan  # compiled once, before any clock starts
    return found


def fixed(service: Service, requests: int, load: float = 1.0) -> Traffic:
    """Draw Poisson arrivals of 512 tokens in and 256 out.

    At a load of 1 each replica gets the scenario's rate.
    """
    workload = service.case.workload
    assert isinstance(workload, OpenLoopWorkload)
    given = getattr(workload.arrivals, "rate_requests_per_s", None)
    assert given is not None
    rate = load * given * service.replicas
    asked = workload.model_copy(update={"requests": requests, "rate_requests_per_s": rate})
    return draw_traffic(asked, open_catalog(), seed=1)


def full_batches(service: Service, requests: int, places: int) -> Traffic:
    """Give a closed loop that keeps every place of every replica taken."""
    prompts, answers = np.full(requests, 512, np.int32), np.full(requests, 256, np.int32)
    return Traffic(prompts, answers, clients=places * service.replicas)


def conversations(service: Service, requests: int, load: float) -> Traffic:
    """Repeat the conversations, sped up to a fraction of what the service can do at most."""
    arrival_s, prompts, answers = np.loadtxt(CONVERSATIONS, delimiter=",", skiprows=1).T
    row = np.arange(requests) % len(arrival_s)
    lengths = prompts[row].astype(np.int32), answers[row].astype(np.int32)
    pilot = serve(service, Traffic(*lengths, clients=256 * service.replicas))
    done_s = np.sort(pilot.requests["done_s"])
    first, last = requests // 4, 3 * requests // 4  # the middle half: batches are full and mixed
    capacity = (last - first) / (done_s[last] - done_s[first])
    lasts_s = arrival_s[-1] * (1 + 1 / len(arrival_s))
    times_s = arrival_s[row] + np.arange(requests) // len(arrival_s) * lasts_s
    return Traffic(*lengths, arrival_s=times_s * (requests / times_s[-1] / (load * capacity)))


def timed(service: Service, traffic: Traffic, *, every_step: bool = False) -> Timed:
    """Serve some traffic."""
    started = time.process_time()
    record = serve(service, traffic, every_step=every_step)
    return Timed(record, time.process_time() - started)


def fastest(times: int, service: Service, traffic: Traffic) -> Timed:
    """Take the best of several: whatever else the machine does only slows things down."""
    return min((timed(service, traffic) for _ in range(times)), key=lambda run: run.cpu_s)


def calls_per_request(service: Service, traffic: Traffic) -> float:
    """Count the calls of Python functions while requests are served: work without a clock."""
    count = 0

    def called(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(called)
    try:
        serve(service, traffic)
    finally:
        sys.setprofile(None)
    return count / len(traffic)
