"""Failures, maintenance and autoscaling hit jumps and single steps alike, to the tick."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest

from sim.engine.clients import OpenLoop
from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.elasticity import BootTicks
from sim.engine.faults import Placement
from sim.engine.plan import ReplicaPlan
from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.stretch import Stretch
from sim.engine.upkeep import Upkeep, UpkeepPlan
from sim.reliability import Autoscaling, Faults, Maintenance, PartFaults, PartLaw, Signal

TICK_S = 1 / TICKS_PER_S
"""Steps last some thousand ticks here, and everything else accordingly."""

SEEDS = range(300)


@dataclass(frozen=True)
class CrookedPace:
    """Steps whose lengths hardly ever meet, several times as long where a link is broken."""

    factor: int

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> tuple[int, int, None]:
        del steps_before
        sequences, tokens = stretch.decode_sequences, stretch.prefill_tokens
        start = self.factor * (1000 + 37 * sequences + 3 * tokens) + stretch.context_tokens
        return start, stretch.context_growing, None


@dataclass(frozen=True)
class Level:
    ttft_s: float = 20_000 * TICK_S
    tpot_s: float = 2_000 * TICK_S


def arrivals(draw: Random) -> list[Request]:
    requests, tick = [], 0
    for number in range(60):
        tick += draw.choice([0, 1, 500, 5_000, 40_000])
        requests.append(Request(number, tick, draw.randint(1, 60), draw.randint(1, 80)))
    return requests


TARGETS: dict[Signal, float] = {
    "waiting_requests": 0.5,
    "outstanding_requests": 2.0,
    "kv_used_fraction": 0.3,
    "ttft_p95_s": 20_000 * TICK_S,
    "slo_attainment": 0.8,
}


def autoscaling(draw: Random, most: int) -> Autoscaling | None:
    signal, target = draw.choice([*TARGETS.items()])
    if draw.random() < 0.4:
        return None
    return Autoscaling(
        signal=signal,
        target=target,
        max_replicas=most,
        interval_s=draw.choice([7_000, 20_000]) * TICK_S,
        window_s=100_000 * TICK_S,
        scale_in_cooldown_s=30_000 * TICK_S,
    )


def maintenance(draw: Random) -> tuple[Maintenance, ...]:
    if draw.random() < 0.4:
        return ()
    rounds = Maintenance(
        start_s=20_000 * TICK_S,
        duration_s=10_000 * TICK_S,
        period_s=200_000 * TICK_S,
        drain_s=draw.choice([0, 10_000, 1_000_000]) * TICK_S,
        max_unavailable=draw.randint(1, 2),
    )
    return (rounds,)


def run(seed: int, *, every_step: bool) -> tuple[Sequence[Request], RunRecord, Upkeep]:
    """Serve one random traffic on one random fleet in which a lot goes wrong."""
    draw = Random(seed)  # noqa: S311 - it draws a test case
    requests = arrivals(draw)
    wanted, spares = draw.randint(1, 4), draw.randint(0, 2)
    repair_s = 20_000 * TICK_S
    breaks = PartLaw(draw.choice([300_000, 3_000_000]) * TICK_S, repair_s)
    links = PartLaw(200_000 * TICK_S, 50_000 * TICK_S)
    placement = Placement(wanted + spares, chips_per_replica=2, chips_per_host=4)
    faults = Faults(
        chip=PartFaults(mtbf_s=breaks.mtbf_s, repair_s=repair_s),
        lost=draw.choice(["retry", "retry", "fail"]),
        retry_keeps=draw.choice(["nothing", "answer"]),
        detection_s=draw.choice([0, 3_000]) * TICK_S,
        max_attempts=5,
    )
    pool = UpkeepPlan(
        wanted=wanted,
        times=BootTicks(cold=20_000, restart=9_000, spare=draw.choice([0, 9_000])),
        spares=spares,
        autoscaling=autoscaling(draw, wanted),
        parts=placement.failing({"chip": breaks, "host": breaks, "link": links}),
        slow_paces=draw.choice([None, lambda _seed: lambda _number: CrookedPace(3)]),
        maintenance=maintenance(draw),
    )
    upkeep = Upkeep({"serve": pool}, seed, faults=faults, block_tokens=4, slo=Level())
    plan = ReplicaPlan(
        rules=SchedulerRules(max_num_seqs=4, max_num_batched_tokens=64),
        kv_blocks=60,
        block_tokens=4,
        pace=CrookedPace(1),
        max_model_len=10**6,
    )
    cluster = Cluster([PoolPlan("serve", wanted + spares, plan)], every_step=every_step)
    record = cluster.run(OpenLoop(iter(requests)), [upkeep])
    return requests, record, upkeep


def history(requests: Sequence[Request], upkeep: Upkeep) -> list[object]:
    rows: list[object] = [
        (
            request.request_id,
            request.admit_tick,
            request.first_token_tick,
            request.done_tick,
            request.replica,
            request.attempts,
            request.preemptions,
            request.outcome,
        )
        for request in requests
    ]
    return [*rows, *upkeep.losses, *upkeep.failure_rows()]


@pytest.mark.parametrize("first", SEEDS[::50])
def test_jumps_equal_steps_whatever_goes_wrong(first: int) -> None:
    lost = 0
    for seed in range(first, first + 50):
        jumps, steps = run(seed, every_step=False), run(seed, every_step=True)
        np.testing.assert_equal(history(jumps[0], jumps[2]), history(steps[0], steps[2]))
        for name, column in jumps[1].states.items():
            np.testing.assert_array_equal(column, steps[1].states[name])
        lost += len(jumps[2].losses)
    assert lost > 50  # failures did hit requests


@pytest.mark.parametrize("seed", SEEDS[:60])
def test_every_request_is_answered_or_given_up_once(seed: int) -> None:
    requests, record, upkeep = run(seed, every_step=False)
    left = record.requests
    assert sorted(left["request_id"]) == [request.request_id for request in requests]
    given_up = [work.request_id for work in upkeep.losses if not work.retried]
    assert sorted(left["request_id"][left["outcome"] == "lost"]) == sorted(given_up)
    assert set(left["outcome"]) <= {"completed", "lost"}
    for request in requests:
        if request.outcome == "completed":
            assert request.generated_tokens == request.output_tokens
