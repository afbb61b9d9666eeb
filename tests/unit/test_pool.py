"""The replicas of a role, and the door where requests wait for one that takes them."""

import pytest
from small_clusters import (
    At,
    cluster_of,
    come_back,
    events,
    outcomes,
    replica_plan,
    requests_of,
    run_open,
    ticks_of,
)

from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.replica import Replica, State


def states(record: RunRecord) -> list[tuple[int, str, int, int]]:
    columns = [record.states[name].tolist() for name in ("replica", "state", "start_s", "end_s")]
    rows = zip(*columns, strict=True)
    return sorted(
        (index, state, ticks_of(start), ticks_of(end)) for index, state, start, end in rows
    )


def fail(cluster: Cluster, index: int = 0) -> None:
    cluster.replicas[index].fail()


class TestDoor:
    @pytest.mark.parametrize("every_step", [False, True])
    def test_requests_wait_until_a_replica_comes_up(self, every_step: bool) -> None:
        cluster = cluster_of(seqs=1, every_step=every_step)
        waiting: list[int] = []
        actions = {
            5: fail,
            30: lambda c: waiting.append(c.pools["serve"].waiting_requests),
            50: lambda c: come_back(c, 0),
        }
        record = run_open(cluster, requests_of((10, 5, 2), (20, 5, 1), (60, 5, 1)), [At(actions)])
        assert waiting == [2]
        # in the order of arrival: 50 to 70, 70 to 80, 80 to 90
        assert events(record, "admit_s") == {0: 50, 1: 70, 2: 80}
        assert events(record, "arrival_s") == {0: 10, 1: 20, 2: 60}

    def test_who_waits_there_may_leave(self) -> None:
        cluster = cluster_of()
        requests = requests_of((10, 5, 2), (20, 5, 1))
        actions = {
            5: fail,
            30: lambda c: c.abort(requests[0], "timed_out"),
            50: lambda c: come_back(c, 0),
        }
        record = run_open(cluster, requests, [At(actions)])
        assert outcomes(record) == ["timed_out", "completed"]
        assert events(record, "admit_s") == {1: 50}

    def test_if_none_ever_comes_up_they_are_left_over(self) -> None:
        record = run_open(cluster_of(), requests_of((0, 5, 1), (15, 5, 1)), [At({12: fail})])
        assert outcomes(record) == ["completed", "unfinished"]

    def test_so_they_are_without_companions(self) -> None:
        cluster = cluster_of()
        cluster.replicas[0].set_state("down")
        record = run_open(cluster, requests_of((0, 5, 1)))
        assert outcomes(record) == ["unfinished"]


class TestRouting:
    def test_only_those_that_are_up_take_turns(self) -> None:
        cluster = cluster_of(replicas=3)
        actions = {5: lambda c: fail(c, 1), 55: lambda c: come_back(c, 1)}
        rows = [(at, 5, 1) for at in (0, 10, 20, 30, 60, 70, 80)]
        requests = requests_of(*rows)
        run_open(cluster, requests, [At(actions)])
        # the count goes on: second, third and fourth turn among two, then 4, 5, 6 among three
        assert [request.replica for request in requests] == [0, 2, 0, 2, 1, 2, 0]

    def test_the_one_that_is_draining_gets_nothing(self) -> None:
        cluster = cluster_of(replicas=2)
        requests = requests_of((0, 5, 9), *[(at, 5, 1) for at in (10, 20, 30)])
        run_open(cluster, requests, [At({5: lambda c: c.replicas[0].drain()})])
        assert [request.replica for request in requests] == [0, 1, 1, 1]
        assert cluster.replicas[0].state == "off"

    def test_a_lost_request_goes_to_another_replica(self) -> None:
        cluster = cluster_of(replicas=2)

        def send_again(request: object) -> bool:
            assert request is requests[0]
            requests[0].attempts += 1
            requests[0].generated_tokens = requests[0].computed_tokens = 0
            cluster.send(requests[0])
            return True

        cluster.when_lost = send_again
        requests = requests_of((0, 5, 9))
        record = run_open(cluster, requests, [At({35: fail})])
        assert (requests[0].replica, requests[0].attempts) == (1, 2)
        assert events(record, "done_s") == {0: 35 + 90}
        # the first token is that of the first attempt, unless whoever sends it again says otherwise
        assert events(record, "first_token_s") == {0: 10}


class TestStates:
    def test_replicas_that_are_always_up(self) -> None:
        record = run_open(cluster_of(replicas=2), requests_of((3, 5, 2)))
        assert states(record) == [(0, "up", 0, 23), (1, "up", 0, 23)]

    def test_each_state_from_when_to_when(self) -> None:
        cluster = cluster_of(replicas=2)
        actions = {
            5: lambda c: c.replicas[1].set_state("off"),
            20: lambda c: c.replicas[1].set_state("booting"),
            40: lambda c: come_back(c, 1),
        }
        record = run_open(cluster, requests_of((3, 5, 9)), [At(actions)])
        assert states(record) == [
            (0, "up", 0, 93),
            (1, "booting", 20, 40),
            (1, "off", 5, 20),
            (1, "up", 0, 5),
            (1, "up", 40, 93),
        ]

    def test_changes_are_told_before_they_are_made(self) -> None:
        told: list[tuple[int, State, State]] = []

        def note(replica: Replica, state: State) -> None:
            told.append((replica.index, replica.state, state))

        cluster = cluster_of(replicas=2)
        cluster.pools["serve"].when_changed = note
        cluster.replicas[1].drain()
        cluster.replicas[1].set_state("up")
        cluster.replicas[1].set_state("up")  # no change
        assert told == [(1, "up", "draining"), (1, "draining", "off"), (1, "off", "up")]

    def test_replicas_by_state(self) -> None:
        cluster = cluster_of(replicas=3)
        cluster.replicas[1].set_state("down")
        pool = cluster.pools["serve"]
        assert [replica.index for replica in pool.in_state("up")] == [0, 2]
        assert [replica.index for replica in pool.in_state("down", "off")] == [1]


def test_indices_count_through_all_pools() -> None:
    plan = replica_plan()
    cluster = Cluster([PoolPlan("prefill", 2, plan), PoolPlan("decode", 3, plan)])
    assert [replica.index for replica in cluster.pools["decode"].replicas] == [2, 3, 4]
    (request,) = requests_of((0, 5, 5))
    request.replica = 3
    assert cluster.pools["decode"].replica_of(request) is cluster.replicas[3]
