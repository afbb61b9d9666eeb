"""Waiting lines against lists that are sorted anew each time, and what fair shares promise."""

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.requests import Request
from sim.engine.waiting import FairLine, FcfsLine, PriorityLine, WaitingLine

WEIGHTS = (1.0, 2.0, 4.0)
"""Powers of two, so that virtual times of whole tokens are exact in floating point."""


def request_of(
    number: int, *, arrival: int = 0, priority: int = 0, tenant: int = 0, tokens: int = 1
) -> Request:
    request = Request(number, arrival, tokens, 1)
    request.priority, request.tenant = priority, tenant
    request.queued_tick = arrival
    return request


def pushed(line: WaitingLine, *requests: Request) -> WaitingLine:
    for request in requests:
        line.push(request)
    return line


def pop(line: WaitingLine) -> Request:
    """Take the next one out."""
    request = line.head()
    assert request is not None
    line.take(request)
    return request


def drained(line: WaitingLine) -> list[int]:
    return [pop(line).request_id for _ in range(len(line))]


# --- Any line.


class SortedLine:
    """The obvious line: a list, and for each order where a request belongs in it."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.rows: list[tuple[tuple[int, ...], Request]] = []
        self.numbers = count(1)

    def push(self, request: Request) -> None:
        key = (request.arrival_tick, request.request_id)
        if self.order == "fcfs":
            key = (next(self.numbers),)  # type: ignore[assignment]
        self._enter(request, 1, key)

    def push_front(self, request: Request) -> None:
        self._enter(request, 0, (-next(self.numbers),))

    def _enter(self, request: Request, back: int, key: tuple[int, ...]) -> None:
        priority = request.priority if self.order == "priority" else 0
        self.rows.append(((priority, back, *key), request))
        self.rows.sort(key=lambda row: row[0])

    def remove(self, request: Request) -> None:
        self.rows = [row for row in self.rows if row[1] is not request]

    @property
    def requests(self) -> list[Request]:
        return [row[1] for row in self.rows]


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "push", "push_front", "pop", "remove", "come back"]),
        st.integers(0, 3),
        st.integers(0, 20),
    ),
    max_size=100,
)


@pytest.mark.parametrize(("order", "new_line"), [("fcfs", FcfsLine), ("priority", PriorityLine)])
@given(moves=MOVES)
def test_a_line_is_a_sorted_list(
    order: str, new_line: Callable[[], WaitingLine], moves: list[tuple[str, int, int]]
) -> None:
    line, plain = new_line(), SortedLine(order)
    gone: list[Request] = []
    for number, (move, priority, place) in enumerate(moves):
        waiting = plain.requests
        if move in ("push", "push_front"):
            request = request_of(number, arrival=place, priority=priority)
            getattr(line, move)(request)
            getattr(plain, move)(request)
        elif move == "pop" and waiting:
            assert pop(line) is waiting[0]
            plain.remove(waiting[0])
            gone.append(waiting[0])
        elif move == "remove" and waiting:
            request = waiting[place % len(waiting)]
            assert line.remove(request)
            assert not line.remove(request)
            plain.remove(request)
            gone.append(request)
        elif move == "come back" and gone:  # preempted, or tried again
            request = gone.pop(place % len(gone))
            line.push_front(request)
            plain.push_front(request)
        assert list(line) == plain.requests
        assert len(line) == len(plain.requests)
        assert line.head() is next(iter(plain.requests), None)
        if order != "fcfs":
            known = [request for request in plain.requests if request.queued_tick <= place]
            assert line.known_head(place) is next(iter(known), None)


@pytest.mark.parametrize("new_line", [FcfsLine, PriorityLine, lambda: FairLine(WEIGHTS)])
class TestAnyLine:
    def test_an_empty_one(self, new_line: Callable[[], WaitingLine]) -> None:
        line = new_line()
        assert (len(line), line.head(), list(line)) == (0, None, [])
        assert not line.remove(request_of(1))
        assert line.known_head(10) is None

    def test_whoever_is_preempted_comes_first_and_the_last_one_before_the_others(
        self, new_line: Callable[[], WaitingLine]
    ) -> None:
        line = pushed(new_line(), *(request_of(number) for number in range(3)))
        first, second = pop(line), pop(line)
        line.push_front(second)
        line.push_front(first)
        assert drained(line) == [0, 1, 2]

    def test_looking_changes_nothing(self, new_line: Callable[[], WaitingLine]) -> None:
        rows = [(number, number % 3) for number in range(9)]
        line = pushed(
            new_line(), *(request_of(n, priority=k, tenant=k, tokens=n + 1) for n, k in rows)
        )
        seen = [request.request_id for request in line]
        assert line.head() is next(iter(line))
        assert [request.request_id for request in line] == seen == drained(line)


# --- By priority.


def test_a_preempted_request_stays_in_its_class() -> None:
    line = pushed(PriorityLine(), request_of(0, priority=1), request_of(1, priority=2))
    line.push_front(request_of(2, priority=2))
    assert drained(line) == [0, 2, 1]


def test_within_a_class_by_arrival_not_by_when_it_joined() -> None:
    line = pushed(PriorityLine(), *(request_of(n, arrival=at) for n, at in enumerate([7, 3, 3])))
    assert drained(line) == [1, 2, 0]


# --- In fair shares.


def test_shares_by_hand() -> None:
    """Weights 1 and 2, prompts of 100.

    Tenant 0 starts at 0, 100, 200; tenant 1 at 0, 50, 100, 150; equals by their number.
    """
    rows = [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 1)]
    line = pushed(
        FairLine((1.0, 2.0)), *(request_of(n, tenant=tenant, tokens=100) for n, tenant in rows)
    )
    assert drained(line) == [0, 3, 4, 1, 5, 6, 2]


@given(
    prompts=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 1000)), min_size=1, max_size=120)
)
def test_shares_are_proportional_within_a_prompt(prompts: list[tuple[int, int]]) -> None:
    """Theorem 1 of Goyal, Vin and Cheng.

    As long as two tenants wait, what they were served per weight differs by no more than the
    longest prompt of either over its weight.
    """
    requests = [request_of(n, tenant=k, tokens=size) for n, (k, size) in enumerate(prompts)]
    line = pushed(FairLine(WEIGHTS), *requests)
    left = [sum(tenant == k for tenant, _ in prompts) for k in range(3)]
    longest = [max((size for tenant, size in prompts if tenant == k), default=0) for k in range(3)]
    served = [0, 0, 0]
    while len(line):
        request = pop(line)
        served[request.tenant] += request.input_tokens
        left[request.tenant] -= 1
        waiting = [k for k in range(3) if left[k]]
        for one in waiting:
            for other in waiting:
                gap = served[one] / WEIGHTS[one] - served[other] / WEIGHTS[other]
                assert gap <= longest[one] / WEIGHTS[one] + longest[other] / WEIGHTS[other]


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=30))
def test_within_a_tenant_first_come_first_served(sizes: list[int]) -> None:
    requests = [request_of(n, tenant=1, tokens=size) for n, size in enumerate(sizes)]
    assert drained(pushed(FairLine(WEIGHTS), *requests)) == list(range(len(sizes)))


def test_who_was_away_has_saved_nothing() -> None:
    """Tenant 0 was served 1000 tokens alone; the newcomer does not catch up on them."""
    line = FairLine((1.0, 1.0))
    for number in range(20):
        line.push(request_of(number, tokens=100))
    for _ in range(10):
        pop(line)
    for number in range(20, 30):
        line.push(request_of(number, tenant=1, tokens=100))
    tenants = [pop(line).tenant for _ in range(20)]
    assert abs(tenants[:10].count(0) - tenants[:10].count(1)) <= 2
    assert tenants[10:].count(0) >= 4


def test_a_preempted_prompt_is_not_charged_twice() -> None:
    def course(*, preempted: bool) -> list[int]:
        requests = [request_of(n, tenant=n % 2, tokens=100) for n in range(8)]
        line = pushed(FairLine((1.0, 1.0)), *requests)
        first = pop(line)
        if preempted:
            line.push_front(first)
            assert pop(line) is first
        return drained(line)

    assert course(preempted=True) == course(preempted=False)
