"""From a scenario to the columns of a run."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.catalog import Catalog, open_catalog
from sim.engine.cluster import RunRecord
from sim.errors import InputError
from sim.metrics.requests import request_table
from sim.scenario import load_scenario
from sim.service import Service, service_of
from sim.simulate import CaseRun, capacity_requests_per_s, draw_traffic, serve, simulate
from sim.workload.requests import Traffic

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
    slow = draw_traffic(service.case.workload, catalog, 3)
    fast = draw_traffic(other.case.workload, catalog, 3)
    assert slow.input_tokens.tolist() == fast.input_tokens.tolist()
    assert slow.output_tokens.tolist() == fast.output_tokens.tolist()
    # the same random numbers at twice the rate
    assert slow.arrival_s is not None
    assert fast.arrival_s is not None
    np.testing.assert_allclose(slow.arrival_s, 2.0 * fast.arrival_s, rtol=1e-12)


def test_requests_arrive_when_they_were_drawn_to(tmp_path: Path, catalog: Catalog) -> None:
    service = deployed(tmp_path, catalog, OPEN)
    traffic = draw_traffic(service.case.workload, catalog, 1)
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
    traffic = draw_traffic(service.case.workload, catalog, 1)
    # a burst of 400 requests keeps all places taken until the last few
    lengths = (np.tile(traffic.input_tokens, 3)[:400], np.tile(traffic.output_tokens, 3)[:400])
    record = serve(service, Traffic(*lengths, np.zeros(400)))
    burst_rate = (400 - places) / np.sort(record.requests["done_s"])[-places - 1]
    assert capacity == pytest.approx(burst_rate, rel=0.15)
