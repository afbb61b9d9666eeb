"""What a router knows that sees the replicas only from time to time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_router import Fleet, prompt

from sim.engine.requests import Request
from sim.engine.router import (
    KvAware,
    LeastOutstanding,
    PredictedLength,
    PrefixAware,
    RoundRobin,
    Router,
    SessionSticky,
    tokens_of,
)
from sim.engine.stale import Stale
from sim.seeds import stream
from sim.workload.content import Content


def requests(count: int) -> list[Request]:
    return [Request(number, 0, 1, 1) for number in range(count)]


# --- The view of the loads.


def test_departures_are_seen_late_and_arrivals_at_once() -> None:
    fleet = Fleet(Stale(LeastOutstanding(), 100), 2)
    requests = [Request(number, 0, 1, 1) for number in range(6)]
    assert [fleet.send(request) for request in requests[:4]] == [0, 1, 0, 1]
    fleet.leave(requests[1])
    fleet.leave(requests[3])
    fleet.clock.now = 99  # by now replica 1 is empty, which the router does not know
    assert fleet.send(requests[4]) == 0
    fleet.clock.now = 100
    assert fleet.send(requests[5]) == 1
    assert fleet.loads == [3, 1]


def test_a_view_is_as_old_as_its_first_request_not_the_clock() -> None:
    fleet = Fleet(Stale(LeastOutstanding(), 100), 2)
    fleet.clock.now = 1050
    first = Request(0, 0, 1, 1)
    assert fleet.send(first) == 0
    fleet.leave(first)
    fleet.clock.now = 1149
    assert fleet.send() == 1
    fleet.clock.now = 1150
    assert fleet.send() == 0


def imbalance(stale_ticks: int) -> float:
    """Mean difference of loads where each of eight replicas ends a job every 8 ticks."""
    least = LeastOutstanding()
    fleet = Fleet(Stale(least, stale_ticks) if stale_ticks else least, 8)
    lines: list[list[Request]] = [[] for _ in range(8)]
    rng, spreads = stream(1, "test"), []
    for tick in range(4000):
        fleet.clock.now = tick
        for line in lines:
            if line and rng.random() < 1 / 8:
                fleet.leave(line.pop(0))
        if rng.random() < 0.9:
            request = Request(tick, tick, 1, 1)
            lines[fleet.send(request)].append(request)
        spreads.append(max(fleet.loads) - min(fleet.loads))
    return float(np.mean(spreads))


def test_the_older_the_view_the_more_uneven_the_loads() -> None:
    now, old, older = imbalance(0), imbalance(100), imbalance(400)
    assert now < old < older


def test_a_replica_that_comes_or_goes_is_known_at_once() -> None:
    fleet = Fleet(Stale(LeastOutstanding(), 1000), 3)
    assert [fleet.send() for _ in range(3)] == [0, 1, 2]
    fleet.switch(0, accepts=False)
    assert [fleet.send() for _ in range(2)] == [1, 2]
    fleet.switch(0, accepts=True)
    assert fleet.send() == 0


def test_tokens_are_seen_late_as_well() -> None:
    """100 tokens on replica 0, 60 + 30 on replica 1; all of them leave unseen."""
    fleet = Fleet(Stale(LeastOutstanding(tokens_of), 100), 2)
    sent = [Request(number, 0, tokens, 1) for number, tokens in enumerate((99, 59, 29))]
    assert [fleet.send(request) for request in sent] == [0, 1, 1]
    for request in sent:
        fleet.leave(request)
    fleet.clock.now = 50
    assert fleet.send(Request(3, 0, 20, 1)) == 1  # 100 against 90
    assert fleet.send(Request(4, 0, 20, 1)) == 0  # 100 against 111
    fleet.clock.now = 100
    assert fleet.send(Request(5, 0, 9, 1)) == 0  # 21 each


@dataclass
class Stay:
    """Where a request was, from which move to which one."""

    request: Request
    replica: int
    came: int
    left: int | None = None


@given(
    delay=st.integers(0, 30),
    moves=st.lists(
        st.tuples(st.sampled_from(["send", "send", "leave"]), st.integers(0, 9)), max_size=60
    ),
)
def test_known_is_who_was_seen_and_who_was_sent(delay: int, moves: list[tuple[str, int]]) -> None:
    """From the whole history: who was there at the last look, and who was sent since."""
    fleet = Fleet(Stale(LeastOutstanding(), delay), 3)
    history: list[Stay] = []
    looked_tick, looked_move = -delay, 0
    for move, (kind, value) in enumerate(moves):
        fleet.clock.now += value
        there = [stay for stay in history if stay.left is None]
        if kind == "leave" and there:
            gone = there[value % len(there)]
            gone.left = move
            fleet.leave(gone.request)
        elif kind == "send":
            if fleet.clock.now >= looked_tick + delay:
                looked_tick, looked_move = fleet.clock.now, move
            known = [0, 0, 0]
            for stay in history:
                seen = stay.left is None or stay.left > looked_move
                known[stay.replica] += seen or stay.came >= looked_move
            request = Request(move, 0, 1, 1)
            history.append(Stay(request, fleet.send(request), move))
            assert history[-1].replica == known.index(min(known))


# --- Who is not there any more.


@pytest.mark.parametrize("outcome", ["rejected", "shed"])
def test_who_is_turned_away_is_not_counted(outcome: Any) -> None:
    """Sent to 0 and turned away there: it is as empty as before, and the first of equals."""
    fleet = Fleet(Stale(LeastOutstanding(), 1000), 2)
    request = Request(0, 0, 1, 1)
    assert fleet.send(request) == 0
    request.outcome = outcome
    fleet.leave(request)
    assert fleet.send() == 0


def test_who_comes_again_is_not_where_it_was() -> None:
    """Two on each; one of replica 1 was given up: known when it comes again, and not before."""
    fleet = Fleet(Stale(LeastOutstanding(), 1000), 2)
    sent = requests(4)
    assert [fleet.send(request) for request in sent] == [0, 1, 0, 1]
    sent[3].outcome = "timed_out"
    fleet.leave(sent[3])
    assert fleet.send() == 0  # 2 and 2, as far as it knows
    sent[3].outcome = "unfinished"
    assert fleet.send(sent[3]) == 1  # 3 and 1
    assert fleet.send() == 1  # 3 and 2
    assert fleet.send() == 0  # 3 and 3


@pytest.mark.parametrize("router", [PredictedLength(lambda _: 1), KvAware(1.0)])
def test_books_are_struck_off_late_as_well(router: Router) -> None:
    """Ten blocks of prompt on replica 0, which leave unseen, and one on replica 1."""
    fleet = Fleet(Stale(router, 100), 2)
    long, short = Request(0, 0, 160, 1), Request(1, 0, 16, 1)
    assert [fleet.send(long), fleet.send(short)] == [0, 1]
    fleet.leave(long)
    fleet.clock.now = 99
    assert fleet.send(Request(2, 0, 16, 1)) == 1
    fleet.clock.now = 100
    assert fleet.send(Request(3, 0, 16, 1)) == 0


# --- Who takes requests.


def test_who_comes_is_seen_and_nobody_else() -> None:
    """One on each of two, and replica 1 has done with its own when replica 2 comes.

    Known are 1, 1 and 0: replica 2 is next, then the first of equals.
    """
    fleet = Fleet(Stale(LeastOutstanding(), 1000), 3)
    fleet.switch(2, accepts=False)
    sent = requests(2)
    assert [fleet.send(request) for request in sent] == [0, 1]
    fleet.leave(sent[1])
    fleet.clock.now = 10
    fleet.switch(2, accepts=True)
    assert [fleet.send() for _ in range(4)] == [2, 0, 1, 2]


def test_who_comes_back_is_seen_as_it_is_then() -> None:
    """Replica 0 goes with three requests and comes back with one; of replica 1 one left unseen."""
    fleet = Fleet(Stale(LeastOutstanding(), 1000), 2)
    sent = requests(6)
    assert [fleet.send(request) for request in sent] == [0, 1, 0, 1, 0, 1]
    fleet.switch(0, accepts=False)
    for place in (0, 2, 1):
        fleet.leave(sent[place])
    fleet.switch(0, accepts=True)
    assert [fleet.send() for _ in range(4)] == [0, 0, 0, 1]  # 1, 2, 3, 4 against 3


def test_all_may_go() -> None:
    fleet = Fleet(Stale(LeastOutstanding(), 1000), 2)
    assert fleet.send() == 0
    for index, accepts in ((0, False), (1, False), (1, True)):
        fleet.switch(index, accepts=accepts)
    assert fleet.send() == 1


# --- What does not age.

SYSTEM: Content = ((-2, 0, 1000),)


def test_caches_are_followed_by_events_of_their_own() -> None:
    fleet = Fleet(Stale(PrefixAware(0.5, 32, 1.0001), 1000), 2)
    assert fleet.send(prompt(0, SYSTEM)) == 0
    fleet.all[1].cached[SYSTEM] = 992
    assert fleet.send(prompt(1, SYSTEM)) == 1


def test_turns_need_no_view() -> None:
    fleet = Fleet(Stale(RoundRobin(), 1000), 3)
    assert [fleet.send() for _ in range(5)] == [0, 1, 2, 0, 1]


def test_homes_need_no_view() -> None:
    fleet = Fleet(Stale(SessionSticky(LeastOutstanding()), 1000), 3)
    sent = [prompt(number, (), session=session) for number, session in enumerate((5, 6, 5, 5))]
    assert [fleet.send(request) for request in sent] == [0, 1, 0, 0]
    fleet.switch(0, accepts=False)
    assert fleet.send(prompt(9, (), session=5)) == 2
