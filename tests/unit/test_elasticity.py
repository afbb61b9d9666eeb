"""Who serves: booting, draining and spares of a replica_set, and the rule that scales it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import simpy
from fake_replicas import FakeReplica, join
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.clock import TICKS_PER_S
from sim.engine.elasticity import Autoscaler, BootTicks, ReplicaSet
from sim.engine.requests import Outcome, Request
from sim.reliability import Autoscaling

TIMES = BootTicks(cold=100, restart=40, spare=15)
S = TICKS_PER_S


def set_of(
    count: int, wanted: int, spares: int = 0, times: BootTicks = TIMES
) -> tuple[simpy.Environment, list[FakeReplica], ReplicaSet]:
    env = simpy.Environment()
    replicas = [FakeReplica(env, index) for index in range(count)]
    replica_set = ReplicaSet(env, replicas, wanted, times, spares=spares)
    join(replicas, replica_set)
    return env, replicas, replica_set


def states(replicas: Sequence[FakeReplica]) -> list[str]:
    return [replica.state for replica in replicas]


# --- The replica_set.


def test_those_beyond_the_wanted_number_are_off_from_the_start() -> None:
    _, replicas, _ = set_of(3, wanted=1)
    assert states(replicas) == ["up", "off", "off"]


def test_a_new_replica_comes_up_after_its_boot() -> None:
    env, replicas, replica_set = set_of(3, wanted=1)
    env.run(until=7)
    replica_set.want(2)
    assert states(replicas) == ["up", "booting", "off"]
    env.run()
    assert replicas[1].history[-2:] == [(7, "booting"), (107, "up")]


def test_the_door_hears_of_a_replica_once_it_accepts() -> None:
    env = simpy.Environment()
    replicas = [FakeReplica(env, index) for index in range(2)]
    heard: list[tuple[int, str]] = []
    replica_set = ReplicaSet(
        env, replicas, 1, TIMES, came_up=lambda: heard.append((int(env.now), replicas[1].state))
    )
    replica_set.want(2)
    env.run()
    assert heard == [(100, "up")]


def test_scale_in_drains_the_replica_with_least_to_do() -> None:
    env, replicas, replica_set = set_of(3, wanted=3)
    for replica, jobs in zip(replicas, (2, 1, 2), strict=True):
        for job in range(jobs):
            replica.work(job, 50)
    replica_set.want(2)
    assert states(replicas) == ["up", "draining", "up"]
    env.run()
    assert replicas[1].history[-1] == (50, "off")  # it finished what it had
    assert all(not replica.lost for replica in replicas)


def test_scale_in_first_stops_what_is_not_up_yet() -> None:
    env, replicas, replica_set = set_of(3, wanted=1)
    replica_set.want(3)
    env.run(until=60)
    replica_set.want(2)
    assert states(replicas) == ["up", "booting", "off"]
    env.run()
    assert states(replicas) == ["up", "up", "off"]  # the boot that was stopped did not end


def test_a_draining_replica_is_not_asked_back_and_another_is_started() -> None:
    env, replicas, replica_set = set_of(3, wanted=2)
    replicas[0].work(0, 1000)
    replicas[0].work(1, 1000)
    replicas[1].work(2, 1000)
    replica_set.want(1)
    assert states(replicas) == ["up", "draining", "off"]
    replica_set.want(2)
    assert states(replicas) == ["up", "draining", "booting"]
    env.run()
    assert states(replicas) == ["up", "off", "up"]


def test_a_fleet_without_a_free_replica_starts_the_one_that_has_drained() -> None:
    env, replicas, replica_set = set_of(2, wanted=2)
    replicas[0].work(0, 30)
    replicas[0].work(1, 30)
    replicas[1].work(2, 30)
    replica_set.want(1)
    replica_set.want(2)
    env.run()
    # empty at the boundary of tick 30, started a tick later
    assert replicas[1].history[-3:] == [(30, "off"), (31, "booting"), (131, "up")]


def test_a_failed_replica_restarts_on_its_host_after_the_repair() -> None:
    env, replicas, replica_set = set_of(1, wanted=1)
    replicas[0].work(7, 1000)
    env.run(until=10)
    replica_set.fail(replicas[0])
    assert replicas[0].lost == [7]
    env.run(until=20)
    replica_set.release(replicas[0])
    env.run()
    assert replicas[0].history == [(0, "up"), (10, "down"), (20, "booting"), (60, "up")]


def test_two_reasons_must_both_be_gone() -> None:
    env, replicas, replica_set = set_of(1, wanted=1)
    replica_set.fail(replicas[0])
    replica_set.fail(replicas[0])
    replica_set.release(replicas[0])
    assert states(replicas) == ["down"]
    replica_set.release(replicas[0])
    assert states(replicas) == ["booting"]
    env.run()
    assert replicas[0].state == "up"


@pytest.mark.parametrize("takes_over_in", [0, 15, 100])
def test_a_spare_takes_over_and_the_repaired_one_becomes_the_spare(takes_over_in: int) -> None:
    """A hot, a warm and a cold spare."""
    times = BootTicks(cold=100, restart=40, spare=takes_over_in)
    env, replicas, replica_set = set_of(2, wanted=1, spares=1, times=times)
    env.run(until=1000)
    replica_set.fail(replicas[0])
    env.run(until=2000)
    replica_set.release(replicas[0])
    env.run(until=3000)
    assert replicas[1].history[-1] == (1000 + takes_over_in, "up")
    assert replicas[0].history[-1] == (2000, "off")


def test_a_spare_is_not_ready_before_it_is_prepared() -> None:
    """It becomes the spare at 200, is prepared by 200 + 85, and is needed at 210."""
    env, replicas, replica_set = set_of(2, wanted=1, spares=1)
    replica_set.fail(replicas[0])
    env.run(until=200)
    replica_set.release(replicas[0])
    env.run(until=210)
    replica_set.fail(replicas[1])
    env.run()
    assert replicas[0].history[-2:] == [(210, "booting"), (200 + 100 - 15 + 15, "up")]


def test_a_failure_during_the_boot_begins_it_again() -> None:
    env, replicas, replica_set = set_of(2, wanted=1)
    replica_set.want(2)
    env.run(until=90)
    replica_set.fail(replicas[1])
    replica_set.release(replicas[1])
    env.run()
    assert replicas[1].history[-2:] == [(90, "booting"), (130, "up")]


def test_a_failure_of_one_that_is_off_keeps_it_from_starting() -> None:
    env, replicas, replica_set = set_of(2, wanted=1)
    replica_set.fail(replicas[1])
    replica_set.want(2)
    assert states(replicas) == ["up", "off"]
    env.run(until=50)
    replica_set.release(replicas[1])
    env.run()
    assert replicas[1].history[-2:] == [(50, "booting"), (150, "up")]  # its host was given back


@given(st.lists(st.tuples(st.sampled_from("wfrt"), st.integers(0, 4)), max_size=40))
def test_the_fleet_always_comes_to_what_is_wanted(script: list[tuple[str, int]]) -> None:
    env, replicas, replica_set = set_of(5, wanted=2, spares=1)
    reasons = [0] * 5
    for what, number in script:
        if what == "w":
            replica_set.want(number)
        elif what == "f":
            reasons[number] += 1
            replica_set.fail(replicas[number])
        elif what == "r" and reasons[number]:
            reasons[number] -= 1
            replica_set.release(replicas[number])
        elif what == "t":
            env.run(until=env.now + 1 + 20 * number)
        able = sum(not reason for reason in reasons)
        assert len(replica_set.serving) == min(replica_set.wanted, able)
        assert all(not reasons[replica.index] for replica in replica_set.serving)
    env.run()
    assert states(replicas).count("up") == min(replica_set.wanted, sum(not why for why in reasons))
    assert replica_set.booting == 0


# --- The controller.


@dataclass
class Level:
    ttft_s: float = 1.0
    tpot_s: float = 0.1


class Scaled:
    """Replicas under a controller that looks when told to, with a door that the test fills."""

    def __init__(self, count: int = 10, wanted: int = 2, **rules: Any) -> None:
        self.env, self.replicas, self.replica_set = set_of(count, wanted)
        self.door = 0
        self.going = True
        settings = {"max_replicas": count, "scale_in_cooldown_s": 0.0, "interval_s": 1e6, **rules}
        self.scaler = Autoscaler(
            self.env,
            self.replica_set,
            Autoscaling(**settings),
            waiting_at_door=lambda: self.door,
            active=lambda: self.going,
            slo=Level(),
        )

    def look(self) -> int:
        self.scaler.look()
        return self.replica_set.wanted


def test_waiting_requests_are_shared_out_to_the_target() -> None:
    """17 waiting at 4 for each replica want 5, wherever they wait."""
    case = Scaled(signal="waiting_requests", target=4.0)
    case.door = 7
    case.replicas[0].waiting_requests = 10
    assert case.look() == 5


def test_the_rule_is_that_of_kubernetes() -> None:
    """50 replicas at 90 % of a target of 75 % want 60, the example of its documentation."""
    case = Scaled(count=80, wanted=50, signal="kv_used_fraction", target=0.75)
    for replica in case.replicas:
        replica.used = 0.9
    assert case.look() == 60


@pytest.mark.parametrize(("used", "wanted"), [(0.54, 10), (0.55, 10), (0.56, 12), (0.46, 10)])
def test_small_deviations_are_let_pass(used: float, wanted: int) -> None:
    case = Scaled(count=20, wanted=10, signal="kv_used_fraction", target=0.5, tolerance=0.1)
    for replica in case.replicas:
        replica.used = used
    assert case.look() == wanted


def test_booting_replicas_count_as_empty_ones() -> None:
    case = Scaled(signal="kv_used_fraction", target=0.5)
    for replica in case.replicas[:2]:
        replica.used = 0.9
    assert case.look() == 4
    assert case.look() == 4  # 1.8 / 4 replicas is below the target: nothing is ordered twice


def test_limits_hold() -> None:
    case = Scaled(count=6, signal="outstanding_requests", target=1.0, min_replicas=2)
    case.door = 100
    assert case.look() == 6
    case.door = 0
    case.env.run(until=1 * S)
    assert case.look() == 2


def test_a_look_adds_a_limited_number() -> None:
    case = Scaled(signal="waiting_requests", target=1.0, max_step_replicas=3)
    case.door = 100
    assert [case.look(), case.look()] == [5, 8]


def test_a_scale_out_waits_for_the_one_before() -> None:
    case = Scaled(signal="waiting_requests", target=1.0, scale_out_cooldown_s=30.0)
    case.door = 4
    assert case.look() == 4
    case.door = 8
    case.env.run(until=29 * S)
    assert case.look() == 4
    case.env.run(until=30 * S)
    assert case.look() == 8


def test_scale_in_goes_to_the_most_that_was_wanted_lately() -> None:
    case = Scaled(wanted=8, signal="waiting_requests", target=1.0, scale_in_cooldown_s=60.0)
    wanted = []
    for second, waiting in ((60, 8), (80, 5), (100, 3), (120, 4), (121, 2), (150, 2)):
        case.env.run(until=second * S)
        case.door = waiting
        wanted.append(case.look())
    # at 121 the eight of second 60 are forgotten, at 150 the five of 80 are too
    assert wanted == [8, 8, 8, 8, 5, 4]


def left(case: Scaled, ttft_s: float, tpot_s: float = 0.05, outcome: Any = "completed") -> None:
    now = int(case.env.now)
    request = Request(0, now - int(ttft_s * S) - int(tpot_s * 10 * S), 5, 11)
    request.first_token_tick = request.arrival_tick + int(ttft_s * S)
    request.done_tick = now
    request.outcome = outcome
    case.scaler.request_left(request)


def test_the_tail_of_the_first_token_scales() -> None:
    """Of 20 requests the 19th is the 95th percentile: 3 s, three times the target."""
    case = Scaled(signal="ttft_p95_s", target=1.0)
    assert case.look() == 2  # nothing to go by
    case.env.run(until=100 * S)
    for number in range(20):
        left(case, 3.0 if number == 18 else 5.0 if number == 19 else 0.5)
    assert case.look() == 6
    assert case.look() == 6  # it waits until the new ones are up
    case.env.run(until=161 * S)
    assert case.look() == 6  # the requests are out of the window


def test_misses_of_the_service_level_scale() -> None:
    """3 of 20 miss where 1 of 20 may: three times as many replicas."""
    case = Scaled(signal="slo_attainment", target=0.95)
    case.env.run(until=100 * S)
    for _ in range(17):
        left(case, 0.9, 0.09)
    left(case, 1.1, 0.09)
    left(case, 0.9, 0.11)
    left(case, 0.9, 0.09, "timed_out")
    assert case.look() == 6


def test_a_request_without_a_first_token_has_waited_for_ever() -> None:
    case = Scaled(signal="ttft_p95_s", target=1.0)
    case.scaler.request_left(Request(0, 0, 5, 5))
    assert case.look() == 10


@pytest.mark.parametrize("outcome", ["rejected", "cancelled"])
def test_a_rejected_or_unwanted_request_does_not_scale(outcome: Outcome) -> None:
    case = Scaled(signal="slo_attainment", target=0.5)
    request = Request(0, 0, 5, 5)
    request.outcome = outcome
    case.scaler.request_left(request)
    assert case.look() == 2


def test_the_controller_ends_with_the_traffic() -> None:
    case = Scaled(signal="waiting_requests", target=1.0, interval_s=10.0)
    case.door = 3
    case.env.run(until=35 * S)
    assert case.replica_set.wanted == 3
    case.going, case.door = False, 9
    case.env.run()  # it comes to an end
    assert case.env.now == 40 * S
    assert case.replica_set.wanted == 3
