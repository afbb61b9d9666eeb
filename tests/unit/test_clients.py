"""Clients that wait for their answers, and timetables that do not."""

from collections.abc import Sequence

from small_clusters import STEP, cluster_of, events, outcomes, requests_of, run_open

from sim.engine.clients import ClosedLoop, OpenLoop
from sim.engine.cluster import Cluster, RunRecord
from sim.engine.requests import Request


def small_cluster(*, kv_blocks: int = 100, max_model_len: int = 50) -> Cluster:
    """One replica with two places, blocks of 16 tokens and steps of ten ticks."""
    return cluster_of(seqs=2, budget=64, blocks=kv_blocks, max_model_len=max_model_len)


def run_closed(lengths: Sequence[tuple[int, int]], clients: int) -> RunRecord:
    supply = [Request(number, 0, *pair) for number, pair in enumerate(lengths)]
    return small_cluster().run(ClosedLoop(supply, clients))


def test_clients_send_when_their_answer_is_there() -> None:
    # two clients: 0 and 1 start at 0 and take one and three steps; 2 follows 0, 3 follows 1
    record = run_closed([(5, 1), (5, 3), (5, 3), (5, 1)], clients=2)
    assert events(record, "arrival_s") == {0: 0, 1: 0, 2: 10, 3: 30}
    assert events(record, "done_s") == {0: 10, 1: 30, 2: 40, 3: 40}


def test_more_clients_than_requests_all_send_once() -> None:
    record = run_closed([(5, 1)] * 3, clients=9)
    assert events(record, "arrival_s") == {0: 0, 1: 0, 2: 0}
    # two places: the third is admitted in the second step
    assert events(record, "done_s") == {0: 10, 1: 10, 2: 20}


def test_a_client_whose_request_is_rejected_sends_the_next() -> None:
    lengths = [(50, 1), (5, 1), (60, 1), (5, 1)]
    record = run_closed(lengths, clients=1)
    assert outcomes(record) == ["rejected", "completed", "rejected", "completed"]
    assert events(record, "arrival_s") == {0: 0, 1: 0, 2: 10, 3: 10}


def test_all_requests_of_a_closed_loop_may_be_rejected() -> None:
    record = run_closed([(50, 1)] * 4, clients=3)
    assert outcomes(record) == ["rejected"] * 4


def test_rejections_in_a_row_are_no_recursion() -> None:
    record = run_closed([(50, 1)] * 5000 + [(5, 1)], clients=1)
    assert outcomes(record) == ["rejected"] * 5000 + ["completed"]


def test_nobody_sends_nothing() -> None:
    record = run_closed([], clients=3)
    assert {len(column) for column in record.requests.values()} == {0}


def test_an_answer_takes_time_until_it_is_seen() -> None:
    # One client: answers at 10 and 10 + 4 + 10; what is rejected is known at once.
    supply = [Request(number, 0, *pair) for number, pair in enumerate([(5, 1), (60, 1), (5, 1)])]
    record = small_cluster().run(ClosedLoop(supply, clients=1, answer_ticks=4))
    assert outcomes(record) == ["completed", "rejected", "completed"]
    assert events(record, "arrival_s") == {0: 0, 1: STEP + 4, 2: STEP + 4}
    assert events(record, "done_s") == {0: STEP, 2: 2 * STEP + 4}


def test_a_timetable_is_kept_whatever_the_state() -> None:
    rows = [(0, 5, 9), (0, 5, 9), (3, 5, 1), (3, 5, 1), (95, 5, 1)]
    record = run_open(small_cluster(), requests_of(*rows))
    assert events(record, "arrival_s") == {number: row[0] for number, row in enumerate(rows)}
    # two places until 90: the third and the fourth come in together then
    assert events(record, "admit_s") == {0: 0, 1: 0, 2: 90, 3: 90, 4: 100}


def test_sources_know_when_they_have_sent_everything() -> None:
    timetable, clients = OpenLoop(requests_of((5, 5, 1))), ClosedLoop(requests_of((0, 5, 1)), 1)
    for source in (timetable, clients):
        assert not source.exhausted
        small_cluster().run(source)
        assert source.exhausted
