"""Who is let in: buckets against their definition, limits, and what a door does in a cluster."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_clusters import cluster_of, events, outcomes, run_open

from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster
from sim.engine.door import Door, TenantDoor, TokenBucket
from sim.engine.patience import Patience, PatiencePlan
from sim.engine.requests import Request
from sim.routing_policy import Backoff, ClientPatience, RateLimit, ServiceClass

GAP = 100
"""Ticks between two requests of the buckets here."""


def bucket_of(burst: int) -> TokenBucket:
    return TokenBucket(TICKS_PER_S / GAP, burst)


def request_of(number: int, *, tenant: int = 0, arrival: int = 0, outputs: int = 1) -> Request:
    request = Request(number, arrival, 1, outputs)
    request.tenant = tenant
    return request


# --- Token buckets.


def filled(arrivals: list[int], burst: int) -> list[bool]:
    """Let requests in as the definition says: tokens drip in until the bucket is full."""
    tokens, last, admitted = Fraction(burst), 0, []
    for tick in arrivals:
        tokens = min(Fraction(burst), tokens + Fraction(tick - last, GAP))
        last = tick
        admitted.append(tokens >= 1)
        tokens -= admitted[-1]
    return admitted


GAPS = st.lists(st.integers(0, 3 * GAP), max_size=80)


@given(gaps=GAPS, burst=st.integers(1, 5))
def test_a_bucket_does_what_its_definition_says(gaps: list[int], burst: int) -> None:
    arrivals = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    bucket = bucket_of(burst)
    assert [bucket.take(tick) for tick in arrivals] == filled(arrivals, burst)


@given(gaps=GAPS, burst=st.integers(1, 5))
def test_no_span_of_time_lets_in_more_than_burst_and_rate(gaps: list[int], burst: int) -> None:
    bucket, tick, let_in = bucket_of(burst), 0, []
    for gap in gaps:
        tick += gap
        if bucket.take(tick):
            let_in.append(tick)
    for first, start in enumerate(let_in):
        for last in range(first, len(let_in)):
            assert last - first + 1 <= burst + (let_in[last] - start) / GAP


def test_whoever_keeps_to_the_rate_is_never_turned_away() -> None:
    bucket = bucket_of(1)
    assert all(bucket.take(GAP * number) for number in range(1000))


def test_what_is_turned_away_costs_nothing() -> None:
    bucket = bucket_of(1)
    assert bucket.take(0)
    assert not any(bucket.take(tick) for tick in range(1, GAP))
    assert bucket.take(GAP)


# --- Limits.


def test_places_of_a_tenant() -> None:
    door = Door({1: TenantDoor(max_outstanding_requests=2)})
    ours, theirs = request_of(0, tenant=1), request_of(1, tenant=0)
    assert [door.admits(ours, 0) for _ in range(3)] == [True, True, False]
    assert all(door.admits(theirs, 0) for _ in range(9))
    door.left(theirs)
    assert not door.admits(ours, 0)
    door.left(ours)
    assert [door.admits(ours, 0) for _ in range(2)] == [True, False]


def test_places_of_all_tenants_together() -> None:
    door = Door(max_outstanding_requests=3)
    requests = [request_of(number, tenant=number) for number in range(4)]
    assert [door.admits(request, 0) for request in requests] == [True, True, True, False]
    door.left(requests[0])
    assert door.admits(requests[3], 0)


def test_a_full_house_takes_nothing_from_the_bucket() -> None:
    full = TenantDoor(bucket_of(1), max_outstanding_requests=1)
    door = Door({0: full})
    full.outstanding_requests = 1
    assert not door.admits(request_of(0), 0)
    full.outstanding_requests = 0
    assert door.admits(request_of(0), 0)


@given(moves=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=80))
def test_there_are_never_more_inside_than_may_be(moves: list[tuple[int, bool]]) -> None:
    limits = (1, 3, 4)
    tenants = {k: TenantDoor(max_outstanding_requests=most) for k, most in enumerate(limits)}
    door, inside = Door(tenants, 5), [0, 0, 0]
    for number, (tenant, comes) in enumerate(moves):
        request = request_of(number, tenant=tenant)
        if comes:
            room = inside[tenant] < limits[tenant] and sum(inside) < 5
            assert door.admits(request, 0) == room
            inside[tenant] += room
        elif inside[tenant]:
            door.left(request)
            inside[tenant] -= 1


# --- In a cluster; steps of ten ticks.


def doored(door: Door, **plan: int) -> Cluster:
    cluster = cluster_of(**plan)
    cluster.door = door
    return cluster


def test_shed_at_once_and_nobody_else_is_disturbed() -> None:
    # one place: the first is inside from 0 to 30, the third comes when it has left
    rows = [(0, 3), (20, 3), (31, 3)]
    requests = [request_of(n, arrival=at, outputs=out) for n, (at, out) in enumerate(rows)]
    record = run_open(doored(Door(max_outstanding_requests=1)), requests)
    assert outcomes(record) == ["completed", "shed", "completed"]
    assert events(record, "done_s") == {0: 30, 2: 61}


def test_shed_requests_may_come_again() -> None:
    # shed at 20, and again at 25; let in at 30 + 5: a boundary at 30 comes after what the clock
    # does then, so the attempt of 30 is the third that is shed
    requests = [request_of(0, outputs=3), request_of(1, arrival=20)]
    patience = Patience([PatiencePlan(max_retries=9, backoff_s=lambda _: 5 / TICKS_PER_S)])
    record = run_open(doored(Door(max_outstanding_requests=1)), requests, [patience])
    assert outcomes(record) == ["completed", "completed"]
    assert record.requests["attempts"].tolist() == [1, 4]
    assert events(record, "done_s") == {0: 30, 1: 45}


def test_whoever_gives_up_leaves_the_place() -> None:
    requests = [request_of(0, outputs=50), request_of(1, arrival=101)]
    # gives up in the step that ends at 100
    patience = Patience([PatiencePlan(timeout_s=95 / TICKS_PER_S, until="completion")])
    record = run_open(doored(Door(max_outstanding_requests=1)), requests, [patience])
    assert outcomes(record) == ["timed_out", "completed"]


@pytest.mark.parametrize("every_step", [False, True])
def test_all_is_given_back_in_the_end(every_step: bool) -> None:
    tenant = TenantDoor(bucket_of(2), max_outstanding_requests=2)
    door = Door({0: tenant}, 3)
    cluster = cluster_of(every_step=every_step, seqs=1)
    cluster.door = door
    requests = [request_of(n, tenant=n % 2, arrival=7 * n, outputs=1 + n % 40) for n in range(100)]
    plans = [
        PatiencePlan(timeout_s=300 / TICKS_PER_S, max_retries=2),
        PatiencePlan(timeout_s=50 / TICKS_PER_S, until="completion"),
    ]
    record = run_open(cluster, requests, [Patience(plans)])
    assert len(record.requests["request_id"]) == 100
    assert {"completed", "shed", "timed_out"} <= set(outcomes(record))
    assert (tenant.outstanding_requests, door._outstanding) == (0, 0)


# --- The schema.


def test_defaults_limit_nobody() -> None:
    plain = ServiceClass()
    assert (plain.priority, plain.weight) == (0, 1.0)
    assert (plain.slo, plain.patience, plain.rate_limit, plain.max_outstanding_requests) == (
        (None,) * 4
    )
    assert (ClientPatience().timeout_s, ClientPatience().max_retries) == (None, 0)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (RateLimit, {"requests_per_s": 0}),
        (RateLimit, {"requests_per_s": 1, "burst_requests": 0}),
        (ServiceClass, {"weight": 0}),
        (ServiceClass, {"max_outstanding_requests": 0}),
        (ClientPatience, {"timeout_s": 0}),
        (ClientPatience, {"max_retries": -1}),
        (Backoff, {"factor": 0.5}),
        (Backoff, {"jitter_fraction": 1.5}),
    ],
)
def test_what_makes_no_sense_is_refused(model: type[ServiceClass], values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        model(**values)  # type: ignore[arg-type]
