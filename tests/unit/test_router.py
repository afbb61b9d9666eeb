"""Which replica a request goes to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.cluster import Cluster, ReplicaPlan
from sim.engine.requests import Request
from sim.engine.router import ROUTERS, LeastOutstanding, RoundRobin, RouterKind
from sim.engine.scheduler import BatchLimits
from sim.engine.ticks import ConstantPace

STEP = 10


def replicas_of(router: RouterKind, rows: list[tuple[int, int, int]], replicas: int) -> list[int]:
    """Where requests (arrival, input and output tokens) went, in steps of ten ticks."""
    plan = ReplicaPlan(
        limits=BatchLimits(max_num_seqs=8, max_num_batched_tokens=100),
        kv_blocks=100,
        block_tokens=16,
        window_tokens=None,
        pace=ConstantPace(STEP),
        max_model_len=1000,
    )
    cluster = Cluster(plan, replicas, router)
    requests = [Request(number, *row) for number, row in enumerate(rows)]
    cluster.run_open(iter(requests))
    return [request.replica for request in requests]


def test_round_robin_takes_turns_whatever_the_load() -> None:
    rows = [(0, 1, 1), (0, 1, 99), (0, 1, 1), (500, 1, 1), (500, 1, 1), (900, 1, 1)]
    assert replicas_of("round_robin", rows, replicas=3) == [0, 1, 2, 0, 1, 2]


def test_the_least_loaded_replica_is_chosen_and_the_first_of_equals() -> None:
    # all at once: 0, 1, 2 are empty in turn, then one each, and so on
    assert replicas_of("least_outstanding", [(0, 1, 1)] * 5, replicas=3) == [0, 1, 2, 0, 1]


def test_waiting_and_running_requests_both_count() -> None:
    # At 95 replica 0 has decoded its first request for nine steps of fifty; replica 1 finished
    # its own at 20, replica 2 at 40: 1 is the first of the idle ones, then 2, then all have one.
    rows = [(0, 1, 50), (0, 1, 2), (0, 1, 4), (95, 1, 9), (95, 1, 9), (95, 1, 9)]
    assert replicas_of("least_outstanding", rows, replicas=3) == [0, 1, 2, 1, 2, 0]


def test_a_prompt_that_is_being_computed_counts() -> None:
    # The first request's only step lasts from 0 to 10: at 5 replica 0 is not idle.
    rows = [(0, 20, 9), (5, 1, 1)]
    assert replicas_of("least_outstanding", rows, replicas=2) == [0, 1]


def test_the_load_is_that_of_the_moment() -> None:
    # Replica 0 gets requests 0 and 2, replica 1 gets request 1. In the middle of its long stretch
    # replica 0 has two; request 2 ends at 30 (admitted at 10, two steps), and 0 has one again.
    rows = [(0, 1, 90), (0, 1, 90), (5, 1, 2), (25, 1, 90), (35, 1, 1)]
    assert replicas_of("least_outstanding", rows, replicas=2) == [0, 1, 0, 1, 0]


def test_what_is_registered() -> None:
    assert dict(ROUTERS) == {"round_robin": RoundRobin, "least_outstanding": LeastOutstanding}


@pytest.mark.parametrize("router", list(ROUTERS))
def test_a_single_replica_gets_everything(router: RouterKind) -> None:
    assert replicas_of(router, [(0, 1, 3), (5, 1, 3), (5, 1, 3)], replicas=1) == [0, 0, 0]


class CountedReplica:
    """What the router sees of a replica."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.outstanding_requests = 0


@given(
    replicas=st.integers(1, 6),
    moves=st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=60),
)
def test_the_heap_finds_what_looking_at_all_finds(replicas: int, moves: list[int | None]) -> None:
    """A move is an arrival, or the departure of a request from a replica that has one."""
    fleet = [CountedReplica(index) for index in range(replicas)]
    router = LeastOutstanding()
    for move in moves:
        if move is None:
            chosen = router.choose(Request(0, 0, 1, 1), fleet)  # type: ignore[arg-type]
            assert chosen is min(fleet, key=lambda replica: replica.outstanding_requests)
            chosen.outstanding_requests += 1
        elif move < replicas and fleet[move].outstanding_requests:
            fleet[move].outstanding_requests -= 1
            router.left(fleet[move])  # type: ignore[arg-type]
