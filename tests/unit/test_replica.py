"""Jumping over the steps of a stretch, and cutting it short for a newcomer."""

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from small_clusters import At, cluster_of, events, outcomes, replica_plan, requests_of, run_open

from sim.engine.cluster import Cluster
from sim.engine.records import Recorder
from sim.engine.replica import Replica, Surroundings
from sim.engine.requests import Request, Turn
from sim.engine.stretch import Stretch
from sim.engine.ticks import ConstantPace, Line, Pace


class GrowingPace:
    """Steps of 100 ticks, and one more for every cached token of the decoding sequences."""

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        del steps_before
        return 100 + stretch.context_tokens, stretch.decode_sequences, None


def run(pace: Pace, *rows: tuple[int, int, int]) -> tuple[list[Request], list[int]]:
    """Serve (arrival, inputs, outputs) on one replica; also the steps of each stretch."""
    requests = requests_of(*rows)
    record = run_open(cluster_of(pace=pace), requests)
    return requests, record.stretches["steps"].tolist()


def test_a_lone_request_takes_two_stretches() -> None:
    # the prompt's step of 100 ticks, then nine steps of 100 + 5 + i: 9 * 105 + 45
    (request,), steps = run(GrowingPace(), (7, 5, 10))
    assert steps == [1, 9]
    assert (request.admit_tick, request.first_token_tick) == (7, 107)
    assert request.done_tick == 107 + 9 * 105 + 45


def test_a_newcomer_ends_the_stretch_with_the_step_in_progress() -> None:
    # Prompt to 100; decode steps of 106, 107, 108: to 206, 313, 421. The newcomer of tick 250
    # is admitted at 313, in a step that also decodes (7 cached tokens and the new one: 108).
    (first, second), steps = run(GrowingPace(), (0, 5, 10), (250, 5, 1))
    assert steps == [1, 2, 1, 6]
    assert (second.admit_tick, second.done_tick) == (313, 421)
    # three of nine decode steps are over; six more of 100 + 8 + i
    assert first.done_tick == 421 + 6 * 108 + 21


def test_an_arrival_at_a_boundary_does_not_wait_for_the_next() -> None:
    (_, second), steps = run(GrowingPace(), (0, 5, 10), (313, 5, 1))
    assert (steps, second.admit_tick) == ([1, 2, 1, 6], 313)


def test_two_newcomers_in_one_step_are_admitted_together() -> None:
    (_, second, third), steps = run(GrowingPace(), (0, 5, 10), (250, 5, 1), (312, 5, 1))
    assert (steps, second.admit_tick, third.admit_tick) == ([1, 2, 1, 6], 313, 313)


def test_a_newcomer_in_the_last_step_changes_nothing() -> None:
    (first, second), steps = run(ConstantPace(10), (0, 5, 4), (35, 5, 2))
    assert steps == [1, 3, 1, 1]
    assert (first.done_tick, second.admit_tick, second.done_tick) == (40, 40, 60)


def test_requests_of_one_tick_share_the_first_step() -> None:
    requests, steps = run(ConstantPace(10), (3, 5, 2), (3, 5, 2))
    assert steps == [1, 1]
    assert [request.done_tick for request in requests] == [23, 23]


def test_an_idle_replica_starts_at_the_tick_of_the_arrival() -> None:
    requests, _ = run(ConstantPace(10), (3, 5, 2), (100, 5, 2))
    assert [request.admit_tick for request in requests] == [3, 100]


def replica_in_a_stretch(start: int, growth: int) -> Replica:
    surroundings = Surroundings(simpy.Environment(), Turn(), Recorder())
    replica = Replica(0, replica_plan().new_scheduler, ConstantPace(1), surroundings)
    replica._line = (start, growth)
    return replica


MS = 10**12
"""Ticks of a millisecond: the order of a real step, where floats no longer hold all digits."""


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(
    start=st.integers(1, 50) | st.integers(MS, 100 * MS),
    growth=st.integers(0, 5) | st.integers(0, MS),
    steps=st.integers(1, 30) | st.integers(1, 100_000),
    late=st.sampled_from([-1, 0, 1]),
)
def test_the_step_in_progress_is_found_exactly(
    start: int, growth: int, steps: int, late: int
) -> None:
    """Just before, at and just after the end of some step."""
    replica = replica_in_a_stretch(start, growth)
    end = start * steps + growth * steps * (steps + 1) // 2
    found = replica._steps_until(end + late)
    expected = steps + 1 if late == 1 else steps
    if late == -1 and steps > 1 and start + growth * steps == 1:
        expected = steps - 1  # a step of one tick: the tick before is the end of another
    assert found == expected


@pytest.mark.parametrize("elapsed", [0, 1])
def test_at_least_one_step_is_taken(elapsed: int) -> None:
    assert replica_in_a_stretch(10, 1)._steps_until(elapsed) == 1
