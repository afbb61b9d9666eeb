"""Jumping over the steps of a stretch, and cutting it short for a newcomer."""

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from small_clusters import (
    At,
    chain_of,
    cluster_of,
    come_back,
    events,
    outcomes,
    port_of,
    replica_plan,
    requests_of,
    run_open,
    ticks_of,
)

from sim.engine.cluster import Cluster, RunRecord
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
    replica._line = (start, growth, None)
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


both_ways = pytest.mark.parametrize("every_step", [False, True])


def stretches_of(record: RunRecord) -> list[tuple[int, int]]:
    """Steps and ticks of each stretch."""
    columns = record.stretches
    spans = zip(columns["start_s"].tolist(), columns["end_s"].tolist(), strict=True)
    ticks = [ticks_of(end) - ticks_of(start) for start, end in spans]
    return list(zip(columns["steps"].tolist(), ticks, strict=True))


class TestFailure:
    """The replica breaks down at once, in steps of ten ticks."""

    @both_ways
    def test_steps_that_are_over_count_and_the_broken_one_is_lost(self, every_step: bool) -> None:
        # prompt to 10, decode steps to 20 and 30; the one of 30 is broken off
        cluster = cluster_of(every_step=every_step)
        requests = requests_of((0, 5, 10))
        record = run_open(cluster, requests, [At({35: lambda c: c.replicas[0].fail()})])
        assert outcomes(record) == ["lost"]
        assert record.stretches["steps"].sum() == 3
        assert ticks_of(record.stretches["end_s"].max()) == 30
        losses = {name: column.tolist() for name, column in record.losses.items()}
        assert losses["cause"] == ["failure"]
        # a prompt of five gave the first token, two steps two more
        assert (losses["prefilled_tokens"], losses["generated_tokens"]) == ([5], [3])
        assert losses["first_tokens"] == [1]
        assert [ticks_of(second) for second in losses["time_s"]] == [35]
        assert events(record, "first_token_s") == {0: 10}
        assert events(record, "done_s") == {}

    @both_ways
    def test_a_step_that_would_end_just_then_is_broken_too(self, every_step: bool) -> None:
        cluster = cluster_of(every_step=every_step)
        record = run_open(
            cluster, requests_of((0, 5, 10)), [At({30: lambda c: c.replicas[0].fail()})]
        )
        assert record.stretches["steps"].sum() == 2
        assert record.losses["generated_tokens"].tolist() == [2]

    def test_everybody_is_told_of(self) -> None:
        # one decodes, one is in the middle of its prompt (28 of 60 tokens), one waits
        cluster = cluster_of(seqs=2, budget=30)
        rows = [(0, 2, 9), (0, 60, 9), (0, 5, 9)]
        record = run_open(cluster, requests_of(*rows), [At({15: lambda c: c.replicas[0].fail()})])
        assert outcomes(record) == ["lost"] * 3
        assert sorted(
            zip(
                record.losses["request_id"].tolist(),
                record.losses["prefilled_tokens"].tolist(),
                strict=True,
            )
        ) == [(0, 2), (1, 28)]  # who waits loses nothing but the place
        assert cluster.in_system == 0

    def test_who_has_been_given_up_before_is_not_lost(self) -> None:
        cluster = cluster_of()
        requests = requests_of((0, 5, 10), (0, 5, 10))
        actions = {
            32: lambda c: c.abort(requests[1], "timed_out"),
            35: lambda c: c.replicas[0].fail(),
        }
        record = run_open(cluster, requests, [At(actions)])
        assert outcomes(record) == ["lost", "timed_out"]
        causes = zip(record.losses["request_id"].tolist(), record.losses["cause"], strict=True)
        assert sorted(causes) == [(0, "failure"), (1, "timed_out")]

    @both_ways
    def test_it_comes_back_empty(self, every_step: bool) -> None:
        cluster = cluster_of(blocks=6, every_step=every_step)
        actions = {35: lambda c: c.replicas[0].fail(), 60: lambda c: come_back(c, 0)}
        rows = [(0, 60, 30), (61, 80, 2)]  # the second needs six blocks
        record = run_open(cluster, requests_of(*rows), [At(actions)])
        assert outcomes(record) == ["lost", "completed"]
        assert events(record, "done_s") == {1: 81}
        states = zip(
            record.states["state"].tolist(),
            [ticks_of(second) for second in record.states["start_s"]],
            [ticks_of(second) for second in record.states["end_s"]],
            strict=True,
        )
        assert list(states) == [("up", 0, 35), ("down", 35, 60), ("up", 60, 81)]


class TestDraining:
    def test_what_was_accepted_is_served_and_nothing_else(self) -> None:
        # one place: at 15 one decodes and one waits; the third finds nobody who takes it
        cluster = cluster_of(seqs=1)
        actions = {15: lambda c: c.replicas[0].drain(), 200: lambda c: come_back(c, 0)}
        rows = [(0, 5, 4), (0, 5, 4), (16, 5, 1)]
        record = run_open(cluster, requests_of(*rows), [At(actions)])
        assert events(record, "done_s") == {0: 40, 1: 80, 2: 210}
        states = zip(
            record.states["state"].tolist(),
            [ticks_of(second) for second in record.states["start_s"]],
            strict=True,
        )
        assert list(states) == [("up", 0), ("draining", 15), ("off", 80), ("up", 200)]

    def test_an_idle_one_is_off_at_once(self) -> None:
        cluster = cluster_of()
        cluster.replicas[0].drain()
        assert cluster.replicas[0].state == "off"
        assert not cluster.replicas[0].accepts

    def test_it_waits_for_those_who_fetch_what_it_has(self) -> None:
        # the prompt is done at 10, and on its way until 30
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        seen: dict[int, str] = {}

        def look(cluster: Cluster) -> None:
            seen[int(cluster.env.now)] = cluster.replicas[0].state

        actions = {5: lambda c: c.replicas[0].drain(), 20: look, 31: look}
        record = run_open(cluster, requests_of((0, 20, 3)), [At(actions)])
        assert outcomes(record) == ["completed"]
        assert seen == {20: "draining", 31: "off"}


class TestPace:
    @both_ways
    def test_another_pace_holds_from_the_next_step_on(self, every_step: bool) -> None:
        # three tokens at 30, and seven more in steps of 20
        cluster = cluster_of(every_step=every_step)
        actions = {25: lambda c: c.replicas[0].keep_pace(ConstantPace(20))}
        record = run_open(cluster, requests_of((0, 5, 10)), [At(actions)])
        assert events(record, "done_s") == {0: 30 + 7 * 20}
        if not every_step:
            assert stretches_of(record) == [(1, 10), (2, 20), (7, 140)]

    def test_an_idle_replica_keeps_it_for_later(self) -> None:
        actions = {25: lambda c: c.replicas[0].keep_pace(ConstantPace(20))}
        record = run_open(cluster_of(), requests_of((0, 5, 1), (50, 5, 2)), [At(actions)])
        assert events(record, "done_s") == {0: 10, 1: 90}

    @both_ways
    def test_a_line_that_does_not_hold_to_the_end_is_asked_for_again(
        self, every_step: bool
    ) -> None:
        class Slowing:
            """Steps of 10 ticks; from the fifth that the replica takes on, of 30."""

            def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
                del stretch
                return (10, 0, 4 - steps_before) if steps_before < 4 else (30, 0, None)

        record = run_open(cluster_of(pace=Slowing(), every_step=every_step), requests_of((0, 5, 9)))
        assert events(record, "done_s") == {0: 4 * 10 + 5 * 30}
        if not every_step:
            assert stretches_of(record) == [(1, 10), (3, 30), (5, 150)]


class TestAbort:
    @both_ways
    def test_who_runs_leaves_at_the_end_of_the_step(self, every_step: bool) -> None:
        cluster = cluster_of(seqs=1, every_step=every_step)
        requests = requests_of((0, 5, 10), (0, 5, 1))
        actions = {33: lambda c: c.abort(requests[0], "timed_out")}
        record = run_open(cluster, requests, [At(actions)])
        assert outcomes(record) == ["timed_out", "completed"]
        assert record.requests["request_id"].tolist() == [0, 1]
        assert events(record, "admit_s") == {0: 0, 1: 40}
        assert record.stretches["steps"].sum() == 4 + 1

    def test_who_waits_leaves_at_once(self) -> None:
        cluster = cluster_of(seqs=1)
        requests = requests_of((0, 5, 10), (0, 5, 1), (0, 5, 1))
        left: list[int] = []

        def abort(cluster: Cluster) -> None:
            cluster.abort(requests[1], "timed_out")
            left.append(cluster.in_system)

        record = run_open(cluster, requests, [At({33: abort})])
        assert left == [2]
        assert outcomes(record) == ["completed", "timed_out", "completed"]
        assert events(record, "admit_s") == {0: 0, 2: 100}

    def test_who_is_done_at_the_end_of_the_step_has_its_answer(self) -> None:
        requests = requests_of((0, 5, 4))
        actions = {33: lambda c: c.abort(requests[0], "timed_out")}
        record = run_open(cluster_of(), requests, [At(actions)])
        assert outcomes(record) == ["completed"]
        assert events(record, "done_s") == {0: 40}

    def test_who_is_fetching_leaves_and_the_other_side_is_free(self) -> None:
        # 20 bytes are on their way from 10 to 30
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        requests = requests_of((0, 20, 3), (100, 20, 3))
        used: list[list[int]] = []

        def look(cluster: Cluster) -> None:
            used.append([each.scheduler.pool.used_blocks for each in cluster.replicas])

        actions = {20: lambda c: c.abort(requests[0], "timed_out"), 21: look, 99: look}
        record = run_open(cluster, requests, [At(actions)])
        assert outcomes(record) == ["timed_out", "completed"]
        assert used[1] == [0, 0]
        assert events(record, "done_s") == {1: 100 + 10 + 20 + 20}


class TestWhatOthersSee:
    @both_ways
    def test_the_cache_as_of_now(self, every_step: bool) -> None:
        """A hundred blocks of a token: five of the prompt, and one in each step from its start."""
        cluster = cluster_of(blocks=100, block_tokens=1, every_step=every_step)
        seen: dict[int, float] = {}

        def look(cluster: Cluster) -> None:
            seen[int(cluster.env.now)] = cluster.replicas[0].kv_used_fraction()

        ticks = (5, 15, 30, 35, 95, 105)
        record = run_open(
            cluster, requests_of((0, 5, 10), (120, 1, 1)), [At(dict.fromkeys(ticks, look))]
        )
        # at 30 the step that ends then is still in progress
        assert seen == {5: 0.05, 15: 0.06, 30: 0.07, 35: 0.08, 95: 0.14, 105: 0.0}
        assert events(record, "done_s")[0] == 100

    def test_requests_and_tokens_without_foreknowledge(self) -> None:
        cluster = cluster_of(seqs=1)
        requests = requests_of((0, 5, 10), (0, 7, 1))
        requests[1].max_tokens = 50
        seen: list[tuple[int, int, int]] = []

        def look(cluster: Cluster) -> None:
            replica = cluster.replicas[0]
            seen.append(
                (
                    replica.outstanding_requests,
                    replica.waiting_requests,
                    replica.outstanding_tokens,
                )
            )

        run_open(cluster, requests, [At({35: look, 105: look})])
        assert seen == [(2, 1, 15 + 57), (1, 0, 57)]
