"""Little's law, ``L = lambda W``, on every kind of result; in whole ticks, so exactly.

``L`` comes from what the replicas recorded step by step, ``lambda W`` from what the requests
recorded about themselves. The system is empty at both ends of a run, so no correction is due.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from sim.engine.clients import ClosedLoop, OpenLoop
from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.plan import ReplicaPlan
from sim.engine.requests import Request
from sim.engine.router import LeastOutstanding
from sim.engine.rules import SchedulerRules
from sim.engine.stretch import Stretch
from sim.engine.ticks import Line

PLENTY = 10**6


@dataclass(frozen=True)
class Setting:
    """A cluster of replicas with blocks of 16 tokens, and how crowded it is."""

    gap_ticks: float
    replicas: int = 1
    max_num_seqs: int = 16
    budget: int = 64
    kv_blocks: int = PLENTY
    window: int | None = None


class AffinePace:
    """Steps that depend on tokens and contexts: a few thousand ticks."""

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        del steps_before
        tokens = stretch.decode_sequences + stretch.prefill_tokens
        start = 1000 + 17 * tokens + 3 * stretch.context_tokens + stretch.prefill_pairs
        return start, 3 * stretch.decode_sequences, None


SETTINGS = [
    Setting(gap_ticks=5_000),
    Setting(gap_ticks=30_000),
    Setting(gap_ticks=200_000, max_num_seqs=1),
    Setting(gap_ticks=8_000, replicas=3, max_num_seqs=4),
    Setting(gap_ticks=8_000, window=50),
]
CROWDED = [Setting(gap_ticks=8_000, kv_blocks=30), Setting(2_000, replicas=2, kv_blocks=40)]


def cluster_of(setting: Setting) -> Cluster:
    plan = ReplicaPlan(
        rules=SchedulerRules(setting.max_num_seqs, setting.budget, window_tokens=setting.window),
        kv_blocks=setting.kv_blocks,
        block_tokens=16,
        pace=AffinePace(),
        max_model_len=PLENTY,
    )
    return Cluster([PoolPlan("serve", setting.replicas, plan, LeastOutstanding)])


def lengths(count: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(5)
    pairs = zip(rng.integers(1, 150, count), rng.integers(1, 60, count), strict=True)
    return [(int(inputs), int(outputs)) for inputs, outputs in pairs]


def open_run(setting: Setting, count: int = 400) -> tuple[list[Request], RunRecord]:
    rng = np.random.default_rng(6)
    arrivals = np.cumsum(rng.exponential(setting.gap_ticks, count)).astype(int).tolist()
    rows = enumerate(zip(arrivals, lengths(count), strict=True))
    requests = [Request(number, arrival, *pair) for number, (arrival, pair) in rows]
    return requests, cluster_of(setting).run(OpenLoop(requests))


def running_ticks(record: RunRecord) -> int:
    """Running sequences, integrated over the time of all stretches."""
    stretches = record.stretches
    running = (stretches["decode_sequences"] + stretches["prefill_sequences"]).tolist()
    edges = zip(stretches["start_s"].tolist(), stretches["end_s"].tolist(), strict=True)
    spans = (round(end * TICKS_PER_S) - round(start * TICKS_PER_S) for start, end in edges)
    return sum(n * span for n, span in zip(running, spans, strict=True))


def area(begins: list[int], ends: list[int]) -> int:
    """Integral of the number of those who have begun and not ended, by a sweep over events."""
    events = sorted([(tick, 1) for tick in begins] + [(tick, -1) for tick in ends])
    number = total = 0
    for (tick, change), (following, _) in pairwise(events):
        number += change
        total += number * (following - tick)
    return total


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_running_requests_obey_littles_law(setting: Setting) -> None:
    requests, record = open_run(setting)
    assert not any(request.preemptions for request in requests)
    served = [request.done_tick - request.admit_tick for request in requests]
    assert running_ticks(record) == sum(served)
    # and in the words of the law, in floats
    duration = max(request.done_tick for request in requests)
    arrivals_per_tick = len(requests) / duration
    mean_running = running_ticks(record) / duration
    assert mean_running == pytest.approx(arrivals_per_tick * np.mean(served), rel=1e-9, abs=0)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_waiting_and_running_add_up_to_the_system(setting: Setting) -> None:
    requests, record = open_run(setting)
    arrivals = [request.arrival_tick for request in requests]
    admissions = [request.admit_tick for request in requests]
    waiting = area(arrivals, admissions)
    assert waiting > 0
    times_in_system = sum(request.done_tick - request.arrival_tick for request in requests)
    assert waiting + running_ticks(record) == times_in_system
    assert area(arrivals, [request.done_tick for request in requests]) == times_in_system


@pytest.mark.parametrize("setting", CROWDED, ids=str)
def test_preempted_requests_are_in_the_system_but_do_not_run(setting: Setting) -> None:
    requests, record = open_run(setting)
    assert sum(request.preemptions for request in requests) > 20
    assert sum(request.preemptions == 0 for request in requests) > 20
    admitted = sum(request.done_tick - request.admit_tick for request in requests)
    in_line_again = admitted - running_ticks(record)
    assert in_line_again > 0
    # only those who were preempted can have waited again
    preempted = [request for request in requests if request.preemptions]
    assert in_line_again < sum(request.done_tick - request.admit_tick for request in preempted)


@pytest.mark.parametrize("clients", [1, 7, 40])
@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[3], CROWDED[0]], ids=str)
def test_a_closed_loop_always_holds_its_clients(setting: Setting, clients: int) -> None:
    """Until the supply ends, ``L`` is the number of clients: ``lambda W = clients``."""
    supply = [Request(number, 0, *pair) for number, pair in enumerate(lengths(300))]
    columns = cluster_of(setting).run(ClosedLoop(supply, clients)).requests
    arrivals, ends = (
        [round(second * TICKS_PER_S) for second in columns[name].tolist()]
        for name in ("arrival_s", "done_s")
    )
    last_sent = max(arrivals)
    assert last_sent > 0
    before = [min(end, last_sent) for end in ends]
    assert area(arrivals, before) == clients * last_sent
    residence = sum(end - arrival for arrival, end in zip(arrivals, before, strict=True))
    assert residence == clients * last_sent
