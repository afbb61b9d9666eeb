"""From a scenario to the columns of a run."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.catalog import Catalog, open_catalog
from sim.engine.clients import ClosedLoop, OpenLoop
from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.plan import ReplicaPlan
from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.ticks import ConstantPace
from sim.errors import InputError
from sim.metrics.requests import request_table
from sim.scenario import load_scenario
from sim.service import Service, service_of
from sim.simulate import CaseRun, Traffic, capacity_requests_per_s, draw_traffic, serve, simulate

SYSTEM = """
name: small
question: Does the machinery work?
model: llama_3_1_8b
system: h100_sxm_x8
replicas: 2
precision: {weights: fp8, kv_cache: fp8}
parallelism: {tp: 1}
engine: {max_num_seqs: 8, max_num_batched_tokens: 512}
slo: {ttft_s: 500 ms, tpot_s: 50 ms}
prices: {book: us_2026_11, mode: own}
"""
LENGTHS = """
  lengths: {kind: uniform_range, input_tokens: 2000, output_tokens: 100, low_fraction: 0.1}
  requests: 150
"""
OPEN = f"""
workload:
  kind: open_loop
  arrivals: {{kind: poisson, rate_requests_per_s: 40}}{LENGTHS}
"""
LOADED = f"{OPEN}  load_fraction: 0.8\n"
CLOSED = f"""
workload:
  kind: closed_loop
  concurrency: 10{LENGTHS}
"""
TRACE = """
workload: {kind: trace, path: trace.csv}
"""


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return open_catalog()


def deployed(folder: Path, catalog: Catalog, workload: str) -> Service:
    path = folder / "small.yaml"
    path.write_text(SYSTEM + workload, encoding="utf-8")
    (case,) = load_scenario(path).cases
    return service_of(case, catalog)


def run(folder: Path, catalog: Catalog, workload: str, seed: int = 1) -> CaseRun:
    return simulate(deployed(folder, catalog, workload), catalog, seed)


def digest(record: RunRecord) -> str:
    """Hash of every byte of both tables."""
    found = hashlib.sha256()
    for table in (record.requests, record.stretches):
        for name, column in table.items():
            values = column.astype("U") if column.dtype == object else column
            found.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("workload", [OPEN, LOADED, CLOSED], ids=["open", "loaded", "closed"])
def test_equal_seeds_give_equal_bytes(tmp_path: Path, catalog: Catalog, workload: str) -> None:
    first = digest(run(tmp_path, catalog, workload).record)
    assert digest(run(tmp_path, catalog, workload).record) == first
    assert digest(run(tmp_path, catalog, workload, seed=2).record) != first


SCRIPT = """
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_simulate import OPEN, digest, run
from sim.catalog import open_catalog
print(digest(run(Path(sys.argv[2]), open_catalog(), OPEN).record))
"""


def test_another_process_gives_the_same_bytes(tmp_path: Path, catalog: Catalog) -> None:
    here = digest(run(tmp_path, catalog, OPEN).record)
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "4242"},  # another order in every set of names
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here


def test_a_client_sends_when_it_sees_its_answer(tmp_path: Path, catalog: Catalog) -> None:
    """In the table that people read, a client never has two requests under way."""
    closed = run(tmp_path, catalog, CLOSED)
    seen = request_table(closed.record.requests, closed.service.frontend_s)
    under_way = pd.concat(
        [
            pd.DataFrame({"at_s": seen["done_s"].round(9), "change": -1}),
            pd.DataFrame({"at_s": seen["arrival_s"].round(9), "change": 1}),
        ]
    ).sort_values("at_s", kind="stable")  # rounded: the sum of two floats may miss the third
    assert under_way["change"].cumsum().max() == 10


def same_up_to_the_cuts(fast: RunRecord, slow: RunRecord) -> None:
    """Demand equal requests, in any order of leaving, and equal sums over the stretches."""
    fast_order, slow_order = (np.argsort(run.requests["request_id"]) for run in (fast, slow))
    for name, column in fast.requests.items():
        np.testing.assert_array_equal(column[fast_order], slow.requests[name][slow_order], name)
    for name in ("steps", "decode_context_tokens", "prefill_tokens", "prefill_pairs"):
        assert fast.stretches[name].sum() == slow.stretches[name].sum()


@pytest.mark.parametrize("workload", [OPEN, CLOSED], ids=["open", "closed"])
def test_jumps_equal_steps_with_a_real_model(
    tmp_path: Path, catalog: Catalog, workload: str
) -> None:
    service = deployed(tmp_path, catalog, workload)
    fast, slow = (simulate(service, catalog, 1, every_step=walk) for walk in (False, True))
    same_up_to_the_cuts(fast.record, slow.record)
    assert len(slow.record.stretches["steps"]) > 2 * len(fast.record.stretches["steps"])


def test_all_cases_get_the_same_traffic(tmp_path: Path, catalog: Catalog) -> None:
    service = deployed(tmp_path, catalog, OPEN)
    other = deployed(
        tmp_path, catalog, OPEN.replace("rate_requests_per_s: 40", "rate_requests_per_s: 80")
    )
    slow = draw_traffic(service.case, service.case.workload, catalog, 3)
    fast = draw_traffic(other.case, other.case.workload, catalog, 3)
    assert slow.input_tokens.tolist() == fast.input_tokens.tolist()
    assert slow.output_tokens.tolist() == fast.output_tokens.tolist()
    # the same random numbers at twice the rate
    assert slow.arrival_s is not None
    assert fast.arrival_s is not None
    np.testing.assert_allclose(slow.arrival_s, 2.0 * fast.arrival_s, rtol=1e-12)


def test_requests_arrive_when_they_were_drawn_to(tmp_path: Path, catalog: Catalog) -> None:
    service = deployed(tmp_path, catalog, OPEN)
    traffic = draw_traffic(service.case, service.case.workload, catalog, 1)
    record = simulate(service, catalog, 1).record
    order = np.argsort(record.requests["request_id"])
    assert traffic.arrival_s is not None
    np.testing.assert_allclose(record.requests["arrival_s"][order], traffic.arrival_s, atol=1e-15)
    for name in ("input_tokens", "output_tokens"):
        np.testing.assert_array_equal(record.requests[name][order], getattr(traffic, name))


def test_a_trace_is_replayed_as_it_stands(tmp_path: Path, catalog: Catalog) -> None:
    (tmp_path / "trace.csv").write_text(
        "arrival_s,input_tokens,output_tokens\n0.25,700,20\n0.25,10,1\n3,40,5\n", encoding="utf-8"
    )
    columns = run(tmp_path, catalog, TRACE).record.requests
    order = np.argsort(columns["request_id"])
    assert columns["arrival_s"][order].tolist() == [0.25, 0.25, 3.0]
    assert columns["input_tokens"][order].tolist() == [700, 10, 40]
    assert columns["output_tokens"][order].tolist() == [20, 1, 5]
    assert set(columns["outcome"]) == {"completed"}
    # alone on its replica, the last request is admitted on arrival
    assert columns["admit_s"][order][2] == 3.0


def test_a_trace_has_to_be_named(tmp_path: Path, catalog: Catalog) -> None:
    workload = TRACE.replace(", path: trace.csv", "")
    with pytest.raises(InputError, match=r"workload\.path is not set"):
        run(tmp_path, catalog, workload)


def test_a_request_that_the_model_cannot_hold_is_rejected(tmp_path: Path, catalog: Catalog) -> None:
    # 131,072 positions: the first is one token too long, the second just fits
    (tmp_path / "trace.csv").write_text(
        "arrival_s,input_tokens,output_tokens\n0,131071,2\n0,131070,2\n", encoding="utf-8"
    )
    columns = run(tmp_path, catalog, TRACE).record.requests
    outcomes = dict(zip(columns["request_id"].tolist(), columns["outcome"].tolist(), strict=True))
    assert outcomes == {0: "rejected", 1: "completed"}


def test_load_is_a_fraction_of_what_the_system_can_do(tmp_path: Path, catalog: Catalog) -> None:
    loaded = run(tmp_path, catalog, LOADED)
    assert loaded.capacity_requests_per_s is not None
    arrivals = np.sort(loaded.record.requests["arrival_s"])
    # 149 exponential gaps: their mean is off by more than 3 / sqrt(149) once in 400 times
    rate = 149 / (arrivals[-1] - arrivals[0])
    assert rate == pytest.approx(0.8 * loaded.capacity_requests_per_s, rel=3 / 149**0.5)


def test_the_capacity_is_the_rate_of_a_full_closed_loop(tmp_path: Path, catalog: Catalog) -> None:
    service = deployed(tmp_path, catalog, OPEN)
    capacity = capacity_requests_per_s(service, catalog, 1)
    assert service.places == service.replicas * 8
    places = service.places
    traffic = draw_traffic(service.case, service.case.workload, catalog, 1)
    # a burst of 400 requests keeps all places taken until the last few
    lengths = (np.tile(traffic.input_tokens, 3)[:400], np.tile(traffic.output_tokens, 3)[:400])
    record = serve(service, Traffic(*lengths, np.zeros(400)))
    burst_rate = (400 - places) / np.sort(record.requests["done_s"])[-places - 1]
    assert capacity == pytest.approx(burst_rate, rel=0.15)


def test_progress_is_told_by_the_thousand() -> None:
    cluster = small_cluster()
    told: list[tuple[int, int]] = []
    cluster.report_progress(lambda left, total: told.append((left, total)), total=2500)
    run_open(cluster, [Request(number, number, 1, 1) for number in range(2500)])
    assert told == [(1000, 2500), (2000, 2500)]


def small_cluster(*, kv_blocks: int = 100, max_model_len: int = 50) -> Cluster:
    """One replica with two places, blocks of 16 tokens and steps of ten ticks."""
    plan = ReplicaPlan(
        rules=SchedulerRules(max_num_seqs=2, max_num_batched_tokens=64),
        kv_blocks=kv_blocks,
        block_tokens=16,
        pace=ConstantPace(10),
        max_model_len=max_model_len,
    )
    return Cluster([PoolPlan("serve", 1, plan)])


def run_open(cluster: Cluster, requests: Iterable[Request]) -> RunRecord:
    return cluster.run(OpenLoop(requests))


def run_closed(cluster: Cluster, lengths: Sequence[tuple[int, int]], clients: int) -> RunRecord:
    supply = [Request(number, 0, *pair) for number, pair in enumerate(lengths)]
    return cluster.run(ClosedLoop(supply, clients))


def events(record: RunRecord, name: str) -> dict[int, int]:
    """Ticks of an event of the requests that have it."""
    columns = record.requests
    pairs = zip(columns["request_id"].tolist(), columns[name].tolist(), strict=True)
    return {number: round(at * TICKS_PER_S) for number, at in pairs if not np.isnan(at)}


def outcomes(record: RunRecord) -> list[str]:
    """In the order of the requests."""
    return record.requests["outcome"][np.argsort(record.requests["request_id"])].tolist()


def test_nothing_comes_of_nothing() -> None:
    record = run_open(small_cluster(), iter(()))
    assert {len(column) for column in record.requests.values()} == {0}
    assert {len(column) for column in record.stretches.values()} == {0}
    record = run_closed(small_cluster(), [], clients=3)
    assert {len(column) for column in record.requests.values()} == {0}


def test_clients_send_when_their_answer_is_there() -> None:
    # two clients: 0 and 1 start at 0 and take one and three steps; 2 follows 0, 3 follows 1
    record = run_closed(small_cluster(), [(5, 1), (5, 3), (5, 3), (5, 1)], clients=2)
    assert events(record, "arrival_s") == {0: 0, 1: 0, 2: 10, 3: 30}
    assert events(record, "done_s") == {0: 10, 1: 30, 2: 40, 3: 40}


def test_more_clients_than_requests_all_send_once() -> None:
    record = run_closed(small_cluster(), [(5, 1)] * 3, clients=9)
    assert events(record, "arrival_s") == {0: 0, 1: 0, 2: 0}
    # two places: the third is admitted in the second step
    assert events(record, "done_s") == {0: 10, 1: 10, 2: 20}


def test_a_rejected_request_leaves_at_once_and_disturbs_nobody() -> None:
    lengths = [(20, 3), (49, 2), (20, 3)]
    requests = [Request(number, 5, *pair) for number, pair in enumerate(lengths)]
    record = run_open(small_cluster(), iter(requests))
    assert outcomes(record) == ["completed", "rejected", "completed"]
    assert events(record, "done_s") == {0: 35, 2: 35}
    assert record.requests["preemptions"].tolist() == [0, 0, 0]


def test_what_the_cache_can_never_hold_is_rejected() -> None:
    # two blocks of 16: 32 cached tokens, which leaves out the last of the answer
    cluster = small_cluster(kv_blocks=2)
    rows = [(30, 3), (30, 4), (33, 1), (1, 32)]
    record = run_open(cluster, [Request(number, 0, *row) for number, row in enumerate(rows)])
    assert outcomes(record) == ["completed", "rejected", "rejected", "completed"]


def test_a_client_whose_request_is_rejected_sends_the_next() -> None:
    lengths = [(50, 1), (5, 1), (60, 1), (5, 1)]
    record = run_closed(small_cluster(), lengths, clients=1)
    assert outcomes(record) == ["rejected", "completed", "rejected", "completed"]
    assert events(record, "arrival_s") == {0: 0, 1: 0, 2: 10, 3: 10}


def test_all_requests_of_a_closed_loop_may_be_rejected() -> None:
    record = run_closed(small_cluster(), [(50, 1)] * 4, clients=3)
    assert outcomes(record) == ["rejected"] * 4


def test_rejections_in_a_row_are_no_recursion() -> None:
    record = run_closed(small_cluster(), [(50, 1)] * 5000 + [(5, 1)], clients=1)
    assert outcomes(record) == ["rejected"] * 5000 + ["completed"]
