"""Failures, maintenance, and what becomes of the requests that they hit."""

from typing import Any

import numpy as np
import pytest
import simpy
from fake_replicas import FakeReplica, join
from hypothesis import given
from hypothesis import strategies as st
from small_clusters import cluster_of

from sim.engine.clients import OpenLoop
from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.elasticity import BootTicks, ReplicaSet
from sim.engine.faults import (
    Breakdowns,
    Failure,
    LostWork,
    MaintenanceRounds,
    Part,
    Placement,
    Recovery,
    StoredKv,
)
from sim.engine.links import Link
from sim.engine.requests import NEVER, Request
from sim.engine.ticks import ConstantPace
from sim.engine.upkeep import Upkeep, UpkeepPlan
from sim.errors import InputError
from sim.reliability import Faults, Maintenance, PartFaults, PartKind, PartLaw
from sim.units import DAY_S, HOUR_S

S = TICKS_PER_S
NO_BOOT = BootTicks(0, 0, 0)
OWN = PartFaults(mtbf_s=1.0, repair_s=1.0)


def set_of(
    count: int, wanted: int | None = None, times: BootTicks = NO_BOOT
) -> tuple[simpy.Environment, list[FakeReplica], ReplicaSet]:
    env = simpy.Environment()
    replicas = [FakeReplica(env, index) for index in range(count)]
    replica_set = ReplicaSet(env, replicas, count if wanted is None else wanted, times)
    join(replicas, replica_set)
    return env, replicas, replica_set


# --- Placement.


def test_a_replica_over_several_hosts_has_them_to_itself() -> None:
    """12 chips on hosts of eight: two hosts each, three to a rack."""
    placement = Placement(3, chips_per_replica=12, chips_per_host=8, hosts_per_rack=3)
    assert [part.replicas[0] for part in placement.parts("host")] == [0, 0, 1, 1, 2, 2]
    assert [part.replicas for part in placement.parts("rack")] == [(0, 1), (1, 2)]
    assert len(placement.parts("chip")) == 36


def test_small_replicas_share_a_host_and_a_rack() -> None:
    placement = Placement(10, chips_per_replica=2, chips_per_host=8, hosts_per_rack=2)
    assert [part.replicas for part in placement.parts("host")] == [
        (0, 1, 2, 3),
        (4, 5, 6, 7),
        (8, 9),
    ]
    assert [part.replicas for part in placement.parts("rack")] == [tuple(range(8)), (8, 9)]
    assert [part.replicas for part in placement.parts("engine")] == [(r,) for r in range(10)]


def test_racks_need_a_size() -> None:
    with pytest.raises(InputError, match="hosts_per_rack"):
        Placement(1, 8, 8).parts("rack")


@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 16), st.integers(1, 5))
def test_every_replica_stands_on_all_its_chips_and_enough_hosts(
    replicas: int, chips: int, per_host: int, per_rack: int
) -> None:
    placement = Placement(replicas, chips, per_host, per_rack)
    hosts, racks = placement.parts("host"), placement.parts("rack")
    for replica in range(replicas):
        on = [part for part in placement.parts("chip") if replica in part.replicas]
        assert len(on) == chips and all(part.replicas == (replica,) for part in on)
        assert sum(replica in host.replicas for host in hosts) == -(-chips // per_host)
        assert any(replica in rack.replicas for rack in racks)
    assert all(len(host.replicas) * chips <= max(per_host, chips) for host in hosts)
    number_of_racks = {host.number // per_rack for host in hosts}
    assert {rack.number for rack in racks} == number_of_racks


# --- Failures.


LAWS: dict[PartKind, PartLaw] = {
    "chip": PartLaw(40 * HOUR_S, 2 * HOUR_S, shape=0.8),
    "host": PartLaw(90 * HOUR_S, 1 * HOUR_S, repair="fixed"),
}


def failures_of(
    replicas: int,
    until_s: float,
    *,
    seed: int = 5,
    laws: dict[PartKind, PartLaw] | None = None,
    busy: bool = False,
) -> list[Failure]:
    env, fakes, replica_set = set_of(replicas, times=BootTicks(7 * S, 7 * S, 7 * S))
    parts = Placement(replicas, 4, 8).failing(LAWS if laws is None else laws)
    breakdowns = Breakdowns(env, replica_set, parts, streams=(seed, "serve"), active=lambda: True)
    if busy:  # traffic of its own, at odd moments

        def clients() -> Any:
            for job in range(5000):
                yield env.timeout(13 * S + job)
                up = [fake for fake in fakes if fake.state == "up"]
                if up:
                    up[job % len(up)].work(job, 29 * S)

        env.process(clients())
    env.run(until=to_ticks(until_s))
    return breakdowns.failures


def test_equal_seeds_give_equal_failures_whatever_the_traffic() -> None:
    quiet, busy = failures_of(4, 20 * DAY_S), failures_of(4, 20 * DAY_S, busy=True)
    assert quiet == busy
    assert len(quiet) > 100
    assert failures_of(4, 20 * DAY_S, seed=6) != quiet


def test_more_parts_do_not_move_the_failures_of_others() -> None:
    few = failures_of(2, 20 * DAY_S)
    many = [failure for failure in failures_of(6, 20 * DAY_S) if max(failure.part.replicas) < 2]
    assert few == many


def test_a_kind_that_fails_too_does_not_move_the_others() -> None:
    chips = failures_of(4, 20 * DAY_S, laws={"chip": LAWS["chip"]})
    assert [row for row in failures_of(4, 20 * DAY_S) if row.part.kind == "chip"] == chips


def test_a_host_takes_all_its_replicas_down_and_requests_with_them() -> None:
    env, fakes, replica_set = set_of(3)
    for fake in fakes:
        fake.work(fake.index, 10**6 * S)
    law = PartLaw(100.0, 30.0, repair="fixed")
    parts = [(part, law) for part in Placement(3, 4, 8).parts("host")[:1]]
    breakdowns = Breakdowns(env, replica_set, parts, streams=(1, "serve"), active=lambda: True)
    while not breakdowns.failures:
        env.step()
    assert [fake.state for fake in fakes] == ["down", "down", "up"]
    assert [fake.lost for fake in fakes] == [[0], [1], []]
    at = breakdowns.failures[0].start_tick
    env.run(until=at + 30 * S + 1)
    assert fakes[0].history[-1] == fakes[1].history[-1] == (at + 30 * S, "up")
    assert breakdowns.failures[0].end_tick == at + 30 * S


def test_failed_links_only_slow_down_until_the_last_is_mended() -> None:
    env, fakes, replica_set = set_of(1)
    pace: list[tuple[int, bool]] = []
    law = PartLaw(100.0, 60.0, repair="fixed")
    breakdowns = Breakdowns(
        env,
        replica_set,
        Placement(1, 4, 8).failing({"link": law}),
        streams=(3, "serve"),
        active=lambda: True,
        slow_down=lambda _, slow: pace.append((int(env.now), slow)),
    )
    env.run(until=2000 * S)
    assert fakes[0].history == [(0, "up")]
    assert any(
        first.start_tick < second.start_tick < first.end_tick
        for first in breakdowns.failures
        for second in breakdowns.failures
    )  # several at once did occur
    for tick, slow in pace:
        open_links = sum(
            failure.start_tick <= tick and not NEVER < failure.end_tick <= tick
            for failure in breakdowns.failures
        )
        assert slow == (open_links > 0)
    assert {slow for _, slow in pace} == {True, False}


def test_over_a_slow_link_each_replica_has_the_pace_of_its_number() -> None:
    """Steps take 10 ticks, and over the link of the second replica 1000 x 7 + 1; the seed is 7."""
    at_once, for_good = 1e-12, 1e6
    plan = UpkeepPlan(
        wanted=2,
        times=NO_BOOT,
        parts=[(Part("link", 0, (1,)), PartLaw(at_once, for_good))],
        slow_paces=lambda seed: lambda number: ConstantPace(1000 * seed + number),
    )
    cluster = cluster_of(replicas=2)
    requests = [Request(number, S, 8, 2) for number in range(2)]  # each replica in turn
    record = cluster.run(OpenLoop(iter(requests)), [Upkeep({"serve": plan}, seed=7)])
    stretches = record.stretches
    ticks = np.rint((stretches["end_s"] - stretches["start_s"]) * S).astype(int)
    assert set(ticks[stretches["replica"] == 0]) == {10}
    assert set(ticks[stretches["replica"] == 1]) == {7001}


def test_failed_links_without_a_slower_pace_take_the_replica_down() -> None:
    env, fakes, replica_set = set_of(1)
    parts = Placement(1, 4, 8).failing({"link": PartLaw(100.0, 60.0)})
    Breakdowns(env, replica_set, parts, streams=(3, "serve"), active=lambda: True)
    env.run(until=2000 * S)
    assert fakes[0].ticks_in("down", 2000 * S) > 0


def test_failures_end_with_the_traffic() -> None:
    env, fakes, replica_set = set_of(2)
    parts = Placement(2, 4, 8).failing({"chip": PartLaw(50.0, 5.0)})
    end = 1000 * S
    breakdowns = Breakdowns(
        env, replica_set, parts, streams=(1, "serve"), active=lambda: env.now < end
    )
    env.run()  # it comes to an end
    assert breakdowns.failures
    assert all(failure.start_tick < end for failure in breakdowns.failures)
    assert all(failure.end_tick > failure.start_tick for failure in breakdowns.failures)
    assert [fake.state for fake in fakes] == ["up", "up"]  # all repaired


# --- Maintenance.


def maintain(
    fakes_and: tuple[simpy.Environment, list[FakeReplica], ReplicaSet],
    active_s: float = 1e9,
    **plan: Any,
) -> list[FakeReplica]:
    env, fakes, replica_set = fakes_and
    end = to_ticks(active_s)
    MaintenanceRounds(env, replica_set, Maintenance(**plan), active=lambda: env.now < end)
    return fakes


def test_replicas_take_their_turns() -> None:
    """Each is empty at once, 60 s under work and 10 s booting: one after the other."""
    made = set_of(3, times=BootTicks(0, 10 * S, 0))
    fakes = maintain(made, start_s=100.0, duration_s=60.0)
    made[0].run()
    for turn, fake in enumerate(fakes):
        ((start, end),) = fake.spans("off", 10**6 * S)
        assert abs(start - (100 + 70 * turn) * S) <= 3
        assert abs(end - start - 60 * S) <= 3
        assert fake.state == "up"


def test_no_more_than_allowed_are_out_at_once() -> None:
    made = set_of(5, times=BootTicks(0, 10 * S, 0))
    fakes = maintain(made, start_s=0.0, duration_s=60.0, max_unavailable=2)
    for fake in fakes:
        fake.work(fake.index, 17 * S * (fake.index + 1))
    made[0].run()
    moments = sorted({tick for fake in fakes for tick, _ in fake.history})
    out = [
        sum(
            start <= moment < end
            for fake in fakes
            for state in ("draining", "off", "booting")
            for start, end in fake.spans(state, 10**6 * S)
        )
        for moment in moments
    ]
    assert max(out) == 2
    assert all(not fake.lost and fake.spans("off", 10**6 * S) for fake in fakes)


def test_patience_ends() -> None:
    made = set_of(1)
    fakes = maintain(made, start_s=10.0, duration_s=60.0, drain_s=30.0)
    fakes[0].work(1, 25 * S)  # done in time
    fakes[0].work(2, 500 * S)
    made[0].run()
    assert fakes[0].lost == [2]
    assert fakes[0].history == [
        (0, "up"),
        (10 * S, "draining"),
        (40 * S, "down"),
        (100 * S, "booting"),
        (100 * S, "up"),
    ]


def test_a_replica_that_is_empty_early_is_not_waited_for() -> None:
    made = set_of(1)
    fakes = maintain(made, start_s=10.0, duration_s=60.0, drain_s=30.0)
    fakes[0].work(1, 25 * S)
    made[0].run()
    assert not fakes[0].lost
    # empty at the boundary of second 25; the crew begins a tick later
    assert fakes[0].history[-1] == (85 * S + 1, "up")


def test_a_spare_stands_in_and_the_other_becomes_the_spare() -> None:
    made = set_of(2, wanted=1)
    fakes = maintain(made, start_s=10.0, duration_s=60.0)
    env = made[0]
    env.run(until=50 * S)
    assert [fake.state for fake in fakes] == ["off", "up"]
    env.run()
    assert sorted(fake.state for fake in fakes) == ["off", "up"]
    assert sum(fake.ticks_in("up", 1000 * S) for fake in fakes) >= 1000 * S - 5


def test_rounds_repeat_until_the_traffic_ends() -> None:
    made = set_of(1)
    fakes = maintain(made, active_s=650.0, start_s=100.0, duration_s=50.0, period_s=200.0)
    made[0].run()
    assert [start // S for start, _ in fakes[0].spans("off", 10**6 * S)] == [100, 300, 500]


def test_a_round_that_takes_too_long_skips_the_next() -> None:
    made = set_of(1)
    fakes = maintain(made, active_s=650.0, start_s=100.0, duration_s=250.0, period_s=200.0)
    made[0].run()
    assert [start // S for start, _ in fakes[0].spans("off", 10**6 * S)] == [100, 500]


# --- Requests.


class Door:
    """What stands behind a recovery."""

    def __init__(self, **rules: Any) -> None:
        self.env = simpy.Environment()
        self.again: list[tuple[int, Request]] = []
        self.gone: list[Request] = []
        self.store = Link(1e9)
        self.recovery = Recovery(
            self.env,
            Faults(chip=OWN, **rules),
            resubmit=lambda request: self.again.append((int(self.env.now), request)),
            block_tokens=16,
            kv_store=self.store,
        )

    def lose(self, request: Request) -> LostWork:
        if not self.recovery.lost(request):
            self.gone.append(request)
        self.env.run()
        return self.recovery.losses[-1]


def decoding() -> Request:
    """1000 tokens of prompt and 41 of an answer of 200: 1040 in the cache."""
    request = Request(3, 0, input_tokens=1000, output_tokens=200)
    request.replica = 2
    request.computed_tokens, request.generated_tokens = 1040, 41
    request.first_token_tick = 77
    request.reserved_blocks, request.finish_step = 9, 500
    return request


def test_retry_from_nothing_throws_prompt_and_answer_away() -> None:
    door, request = Door(retry_keeps="nothing"), decoding()
    lost = door.lose(request)
    assert (lost.context_tokens, lost.answer_tokens, lost.kept_tokens) == (1040, 41, 0)
    assert (request.generated_tokens, request.computed_tokens, request.attempts) == (0, 0, 2)
    assert request.first_token_tick == NEVER
    assert request.prefill_tokens == 1000
    assert (request.reserved_blocks, request.finish_step) == (0, -1)


def test_retry_with_the_answer_prefills_both() -> None:
    door, request = Door(retry_keeps="answer"), decoding()
    lost = door.lose(request)
    assert (lost.context_tokens, lost.answer_tokens, lost.kept_tokens) == (1040, 0, 0)
    assert request.prefill_tokens == 1041
    assert request.first_token_tick == 77
    assert request.remote is None


def test_retry_with_the_cache_loads_full_blocks() -> None:
    """1040 tokens are 65 blocks of 16; one more token has to be computed anyway."""
    door, request = Door(retry_keeps="kv"), decoding()
    lost = door.lose(request)
    assert (lost.context_tokens, lost.answer_tokens, lost.kept_tokens) == (0, 0, 1040)
    assert request.remote == StoredKv(1040, door.store, 0)
    request = decoding()
    request.computed_tokens = 1047
    lost = door.lose(request)
    assert (lost.context_tokens, lost.kept_tokens) == (7, 1040)


def test_a_whole_context_is_never_loaded() -> None:
    request = Request(0, 0, input_tokens=32, output_tokens=5)
    request.computed_tokens = 32
    assert Door(retry_keeps="kv").lose(request).kept_tokens == 16


def test_a_waiting_request_loses_only_its_place() -> None:
    door, request = Door(retry_keeps="kv"), Request(0, 0, 100, 5)
    lost = door.lose(request)
    assert (lost.context_tokens, lost.answer_tokens, lost.kept_tokens) == (0, 0, 0)
    assert request.remote is None
    assert door.again == [(0, request)]


def test_a_failure_is_noticed_after_a_while() -> None:
    door, request = Door(detection_s=2.5), decoding()
    door.lose(request)
    assert door.again == [(to_ticks(2.5), request)]


def test_attempts_end() -> None:
    door, request = Door(max_attempts=2), decoding()
    assert door.lose(request).retried
    request.computed_tokens = 500
    lost = door.lose(request)
    assert not lost.retried
    assert (lost.context_tokens, lost.answer_tokens) == (500, 41)
    assert door.gone == [request]
    assert len(door.again) == 1


def test_without_retries_all_is_lost() -> None:
    door, request = Door(lost="fail"), decoding()
    lost = door.lose(request)
    assert (lost.context_tokens, lost.answer_tokens, lost.retried) == (1040, 41, False)
    assert door.gone == [request] and not door.again


def test_keeping_the_cache_needs_a_store() -> None:
    with pytest.raises(InputError, match="no remote store"):
        Recovery(
            simpy.Environment(),
            Faults(chip=OWN, retry_keeps="kv"),
            resubmit=lambda _: None,
            block_tokens=16,
        )


@given(
    st.integers(1, 3000),
    st.integers(0, 300),
    st.integers(0, 3000),
    st.sampled_from(["nothing", "answer", "kv"]),
)
def test_what_was_computed_is_lost_or_kept(
    prompt: int, answer: int, computed: int, keeps: Any
) -> None:
    request = Request(0, 0, prompt, 400)
    request.generated_tokens = answer
    request.computed_tokens = computed = min(computed, prompt + max(answer - 1, 0))
    lost = Door(retry_keeps=keeps).lose(request)
    assert lost.context_tokens + lost.kept_tokens == computed
    assert lost.answer_tokens + request.generated_tokens == answer
    left_to_compute = request.prefill_tokens - lost.kept_tokens
    assert 1 <= left_to_compute <= request.prefill_tokens
