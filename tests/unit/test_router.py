"""Which replica a request goes to, and what a router knows when it decides."""

import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from math import ceil, log2
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from small_clusters import outcomes, replica_plan, run_open

from sim.engine.clients import ClosedLoop
from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, PoolPlan
from sim.engine.patience import Patience, PatiencePlan
from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.engine.router import (
    SPARE_ENTRIES,
    AnyReplica,
    KvAware,
    LeastOutstanding,
    Load,
    PowerOfTwo,
    PredictedLength,
    PrefixAware,
    RoundRobin,
    Router,
    SessionSticky,
    requests_of,
    tokens_of,
)
from sim.engine.router_choice import router_of
from sim.routing_policy import PredictedLengthPolicy, RouterPolicy
from sim.seeds import stream
from sim.workload.content import Content

POLICY: TypeAdapter[RouterPolicy] = TypeAdapter(RouterPolicy)
KINDS = (
    "round_robin",
    "random",
    "least_outstanding",
    "power_of_two",
    "prefix_aware",
    "kv_aware",
    "session_sticky",
)
"""Those that need no settings."""


class Fleet:
    """Replicas as a router sees them, and what is sent there."""

    def __init__(self, router: Router, replicas: int) -> None:
        self.clock = SimpleNamespace(now=0)
        self.router = router
        self.all = [SeenReplica(index, self.clock) for index in range(replicas)]
        self.sent = 0

    @property
    def accepting(self) -> Any:
        return [replica for replica in self.all if replica.accepts]

    @property
    def loads(self) -> list[int]:
        return [replica.outstanding_requests for replica in self.all]

    def send(self, request: Request | None = None) -> int:
        """Send a request, or any, in the order in which a pool does; where did it go?"""
        self.sent += 1
        request = request or Request(self.sent, self.clock.now, 1, 1)
        replica = cast("Any", self.router.choose(request, self.accepting))
        request.replica = replica.index
        replica.take(request, 1)
        return int(replica.index)

    def leave(self, request: Request) -> None:
        replica = self.all[request.replica]
        replica.take(request, -1)
        self.router.left(request, cast("Any", replica))

    def switch(self, index: int, *, accepts: bool) -> None:
        self.all[index].accepts = accepts
        self.router.changed(self.accepting)


class SeenReplica:
    def __init__(self, index: int, clock: SimpleNamespace) -> None:
        self.index = index
        self.env = clock
        self.accepts = True
        self.outstanding_requests = 0
        self.outstanding_tokens = 0
        self.block_tokens = 16
        self.cached: dict[Content | None, int] = {}

    def take(self, request: Request, sign: int) -> None:
        self.outstanding_requests += sign
        self.outstanding_tokens += sign * request.longest_tokens

    def cached_tokens(self, content: Content) -> int:
        return self.cached.get(content, 0)


def prompt(request_id: int, content: Content, *, session: int = -1) -> Request:
    request = Request(request_id, 0, sum(tokens for _, _, tokens in content), 1)
    request.content, request.session = content, session
    return request


# --- On real replicas.


def replicas_of(
    new_router: Callable[[], Router], rows: Sequence[tuple[int, int, int]], replicas: int
) -> list[int]:
    """Where requests (arrival, input and output tokens) went, in steps of ten ticks."""
    requests = [Request(number, *row) for number, row in enumerate(rows)]
    plan = PoolPlan("serve", replicas, replica_plan(), new_router)
    run_open(Cluster([plan]), requests)
    return [request.replica for request in requests]


def test_round_robin_takes_turns_whatever_the_load() -> None:
    rows = [(0, 1, 1), (0, 1, 99), (0, 1, 1), (500, 1, 1), (500, 1, 1), (900, 1, 1)]
    assert replicas_of(RoundRobin, rows, replicas=3) == [0, 1, 2, 0, 1, 2]


def test_the_least_loaded_replica_is_chosen_and_the_first_of_equals() -> None:
    # all at once: 0, 1, 2 are empty in turn, then one each, and so on
    assert replicas_of(LeastOutstanding, [(0, 1, 1)] * 5, replicas=3) == [0, 1, 2, 0, 1]


def test_waiting_and_running_requests_both_count() -> None:
    # At 95 replica 0 has decoded its first request for nine steps of fifty; replica 1 finished
    # its own at 20, replica 2 at 40: 1 is the first of the idle ones, then 2, then all have one.
    rows = [(0, 1, 50), (0, 1, 2), (0, 1, 4), (95, 1, 9), (95, 1, 9), (95, 1, 9)]
    assert replicas_of(LeastOutstanding, rows, replicas=3) == [0, 1, 2, 1, 2, 0]


def test_a_prompt_that_is_being_computed_counts() -> None:
    # The first request's only step lasts from 0 to 10: at 5 replica 0 is not idle.
    assert replicas_of(LeastOutstanding, [(0, 20, 9), (5, 1, 1)], replicas=2) == [0, 1]


def test_the_load_is_that_of_the_moment() -> None:
    # Replica 0 gets requests 0 and 2, replica 1 gets request 1. In the middle of its long stretch
    # replica 0 has two; request 2 ends at 30 (admitted at 10, two steps), and 0 has one again.
    rows = [(0, 1, 90), (0, 1, 90), (5, 1, 2), (25, 1, 90), (35, 1, 1)]
    assert replicas_of(LeastOutstanding, rows, replicas=2) == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_replica_gets_everything(kind: str) -> None:
    rows = [(0, 1, 3), (5, 1, 3), (5, 1, 3)]
    policy = POLICY.validate_python(kind)
    assert replicas_of(lambda: router_of(policy, 1), rows, replicas=1) == [0, 0, 0]


# --- Least outstanding.


@given(
    replicas=st.integers(1, 6),
    load=st.sampled_from([requests_of, tokens_of]),
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(1, 50)),
            st.tuples(st.sampled_from(["leave", "switch"]), st.integers(0, 5)),
        ),
        max_size=80,
    ),
)
def test_the_heap_finds_what_looking_at_all_finds(
    replicas: int, load: Load, moves: list[tuple[str, int]]
) -> None:
    """Replicas come and go, and those that are gone finish what they have."""
    fleet = Fleet(LeastOutstanding(load), replicas)
    under_way: list[Request] = []
    for number, (move, value) in enumerate(moves):
        if move == "send" and fleet.accepting:
            expected = min(fleet.accepting, key=load).index
            request = Request(number, 0, value, 1)
            assert fleet.send(request) == expected
            under_way.append(request)
        elif move == "leave" and under_way:
            fleet.leave(under_way.pop(value % len(under_way)))
        elif move == "switch" and value < replicas:
            fleet.switch(value, accepts=not fleet.all[value].accepts)


@given(replicas=st.integers(1, 9), jobs=st.integers(0, 60))
def test_equal_jobs_are_spread_as_evenly_as_can_be(replicas: int, jobs: int) -> None:
    """The pigeonhole bound: somebody has jobs/replicas, rounded up, whatever the router does."""
    fleet = Fleet(LeastOutstanding(), replicas)
    for _ in range(jobs):
        fleet.send()
    assert max(fleet.loads) == ceil(jobs / replicas)


def test_tokens_weigh_long_requests() -> None:
    fleet = Fleet(LeastOutstanding(tokens_of), 2)
    rows = [(900, 100), (10, 10), (10, 10), (10, 10)]
    assert [fleet.send(Request(n, 0, *row)) for n, row in enumerate(rows)] == [0, 1, 1, 1]


@pytest.mark.parametrize("replicas", [1, 16])
def test_the_heap_does_not_grow_with_the_requests(replicas: int) -> None:
    """Loads go up and down below each other's peaks: entries of the peaks never come to the top."""
    router = LeastOutstanding()
    fleet, under_way = Fleet(router, replicas), deque[Request]()
    for number in range(5000):
        under_way.append(Request(number, 0, 1, 1))
        fleet.send(under_way[-1])
        if number % 4:
            fleet.leave(under_way.popleft())
        if len(under_way) > 2 * replicas:
            while under_way:
                fleet.leave(under_way.pop())
        assert len(router._heap) <= SPARE_ENTRIES * replicas


# --- Random choices.


def heaviest(new_router: Callable[[np.random.Generator], Router], seed: int) -> int:
    """Throw as many balls as there are bins."""
    fleet = Fleet(new_router(stream(seed, "test")), 200)
    for _ in range(200):
        fleet.send()
    return max(fleet.loads)


def test_two_choices_beat_one_and_more_beat_two() -> None:
    """Azar et al. 1994: the fullest of n bins has ln ln n / ln d + O(1) balls, not ln n / ln ln n.

    With n = 200 that is 3.2 of one choice and 2.4 of two before the constants; whatever these are,
    more choices must not be worse.
    """
    one, two, eight = (
        np.mean([heaviest(router, seed) for seed in range(20)])
        for router in (AnyReplica, PowerOfTwo, lambda rng: PowerOfTwo(rng, choices=8))
    )
    assert one - two > 1.0
    assert two > eight


def test_random_is_even_in_the_long_run() -> None:
    fleet = Fleet(AnyReplica(stream(3, "test")), 10)
    for _ in range(10_000):
        fleet.send()
    # chi-square with 9 degrees of freedom: above 33.7 once in ten thousand
    assert sum((load - 1000) ** 2 / 1000 for load in fleet.loads) < 33.7


@pytest.mark.parametrize("kind", ["random", "power_of_two"])
def test_draws_depend_on_the_seed_and_the_role_alone(kind: str) -> None:
    policy = POLICY.validate_python(kind)

    def course(seed: int, role: str = "serve") -> list[int]:
        fleet = Fleet(router_of(policy, seed, role), 50)
        return [fleet.send() for _ in range(40)]

    assert course(1) == course(1)
    assert course(1) != course(2)
    assert course(1) != course(1, "prefill")


# --- Sessions.


def test_sessions_stay() -> None:
    fleet = Fleet(SessionSticky(LeastOutstanding()), 4)
    homes = {session: fleet.send(prompt(session, (), session=session)) for session in range(4)}
    assert sorted(homes.values()) == [0, 1, 2, 3]
    for turn in range(20):  # however uneven that makes it
        assert fleet.send(prompt(100 + turn, (), session=2)) == homes[2]


def test_a_session_moves_for_good_when_its_replica_takes_no_more() -> None:
    fleet = Fleet(SessionSticky(LeastOutstanding()), 2)
    assert fleet.send(prompt(0, (), session=7)) == 0
    fleet.switch(0, accepts=False)
    assert fleet.send(prompt(1, (), session=7)) == 1
    fleet.switch(0, accepts=True)
    assert fleet.send(prompt(2, (), session=7)) == 1


def test_requests_of_no_session_do_not_stick() -> None:
    fleet = Fleet(SessionSticky(LeastOutstanding()), 3)
    assert [fleet.send() for _ in range(6)] == [0, 1, 2, 0, 1, 2]


# --- Prefixes.

SYSTEM: Content = ((-2, 0, 1000),)


def test_equal_prefixes_go_to_the_replica_that_has_them() -> None:
    fleet = Fleet(PrefixAware(0.5, 32, 1.0001), 4)
    fleet.all[2].cached[SYSTEM] = 992
    assert [fleet.send(prompt(number, SYSTEM)) for number in range(10)] == [2] * 10


@pytest.mark.parametrize(("cached", "goes_to"), [(500, 0), (501, 1)])
def test_a_match_counts_if_it_covers_more_than_the_threshold(cached: int, goes_to: int) -> None:
    fleet = Fleet(PrefixAware(0.5, 32, 1.0001), 2)
    fleet.all[1].cached[SYSTEM] = cached
    assert fleet.send(prompt(0, SYSTEM)) == goes_to


@pytest.mark.parametrize(
    ("loads", "goes_to"),
    [
        ((10, 20), 1),  # they differ by 10, which is not more than 10
        ((10, 21), 0),  # by 11, and 21 > 1.5 * 10
        ((30, 41), 1),  # by 11, but 41 < 1.5 * 30
        ((30, 45), 1),  # 45 is not more than 1.5 * 30
        ((30, 46), 0),
    ],
)
def test_loads_are_uneven_beyond_both_thresholds(loads: tuple[int, int], goes_to: int) -> None:
    """As `cache_aware.rs` has it: max - min > abs and max > rel * min."""
    fleet = Fleet(PrefixAware(0.5, 10, 1.5), 2)
    fleet.all[1].cached[SYSTEM] = 992
    for replica, load in zip(fleet.all, loads, strict=True):
        replica.outstanding_requests = load
    assert fleet.send(prompt(0, SYSTEM)) == goes_to


def test_an_overloaded_favourite_sheds_the_rest() -> None:
    """Nothing leaves: the favourite gets 33 before the loads differ by more than 32."""
    fleet = Fleet(PrefixAware(0.5, 32, 1.0001), 2)
    fleet.all[1].cached[SYSTEM] = 992
    course = [fleet.send(prompt(number, SYSTEM)) for number in range(35)]
    assert course == [1] * 33 + [0, 1]


def with_active_blocks(*active: int, overlap_weight: float) -> Fleet:
    """Replicas to which prompts of so many blocks were sent, of which nothing was cached."""
    fleet = Fleet(KvAware(overlap_weight), len(active))
    for replica, blocks in zip(fleet.all, active, strict=True):
        filler = Request(1000 + replica.index, 0, 16 * blocks, 1)
        fleet.router.choose(filler, cast("Any", [replica]))
    return fleet


def test_the_worked_example_of_dynamo() -> None:
    """Ten blocks of prompt, of which 2, 5, 8 are cached; 10, 5, 9 blocks active: 18, 10, 11."""
    content: Content = ((1, 0, 160),)
    fleet = with_active_blocks(10, 5, 9, overlap_weight=1.0)
    for replica, cached in zip(fleet.all, (2, 5, 8), strict=True):
        replica.cached[content] = 16 * cached
    assert fleet.send(prompt(0, content)) == 1


@pytest.mark.parametrize(("weight", "goes_to"), [(0.0, 0), (1.0, 0), (3.0, 1)])
def test_the_weight_trades_overlap_against_load(weight: float, goes_to: int) -> None:
    """Costs: 10 w + 0 and 2 w + 12, equal at w = 1.5."""
    content: Content = ((1, 0, 160),)
    fleet = with_active_blocks(0, 12, overlap_weight=weight)
    fleet.all[1].cached[content] = 128
    assert fleet.send(prompt(0, content)) == goes_to


def test_a_burst_is_spread_by_blocks() -> None:
    """Nothing has begun, and yet each one counts: 2 blocks of 16 tokens for 20 tokens, 7 for 100.

    0: [7, 0]; 1: [7, 2]; 2: [7, 4]; 3: [7, 6]; 4: [7, 8]; 5: [9, 8].
    """
    rows = [(0, 100, 9), *[(0, 20, 9)] * 5]
    assert replicas_of(lambda: KvAware(1.0), rows, replicas=2) == [0, 1, 1, 1, 1, 0]


def test_prompts_that_wait_count_though_they_hold_no_blocks() -> None:
    """One place each: all but the first two wait, and the blocks in use never change."""
    rows = [(tick, 16, 50) for tick in range(0, 60, 10)]
    requests = [Request(number, *row) for number, row in enumerate(rows)]
    plan = PoolPlan("serve", 2, replica_plan(seqs=1), lambda: KvAware(1.0))
    run_open(Cluster([plan]), requests)
    assert [request.replica for request in requests] == [0, 1, 0, 1, 0, 1]


def test_a_prompt_counts_without_what_was_cached() -> None:
    """A prompt of 63 blocks, 62 of them cached on replica 1, leaves room there for 62 more.

    Costs of 63 on replica 0 and of n + 1 on replica 1 after n of them: the 63rd is a tie, which
    goes to the first of equals.
    """
    content: Content = ((-2, 0, 992), (1, 0, 16))
    fleet = Fleet(KvAware(1.0), 2)
    fleet.all[1].cached[content] = 992
    course = [fleet.send(prompt(number, content)) for number in range(64)]
    assert course == [1] * 62 + [0, 1]


# --- Predicted lengths.


def test_the_least_work_by_prediction() -> None:
    fleet = Fleet(PredictedLength(lambda request: 100 * request.request_id), 2)
    first = Request(5, 0, 10, 1)  # 510
    assert fleet.send(first) == 0
    assert fleet.send(Request(2, 0, 10, 1)) == 1  # 210
    assert fleet.send(Request(1, 0, 10, 1)) == 1  # 320
    assert fleet.send(Request(3, 0, 10, 1)) == 1  # 630
    assert fleet.send(Request(0, 0, 10, 1)) == 0  # 520
    fleet.leave(first)
    assert fleet.send(Request(9, 0, 10, 1)) == 0  # 10 against 630


class TestBooks:
    """What a router has sent is struck off when it leaves, however it leaves."""

    def course(
        self, router: PredictedLength, rows: Sequence[tuple[int, int, int]], **plan: Any
    ) -> tuple[list[str], list[int]]:
        """Outcomes, and what is on the books of two replicas at the end, with two attempts each."""
        requests = [Request(number, *row) for number, row in enumerate(rows)]
        cluster = Cluster([PoolPlan("serve", 2, replica_plan(**plan), lambda: router)])
        patience = Patience([PatiencePlan(max_retries=1, backoff_s=lambda _: 5 / TICKS_PER_S)])
        record = run_open(cluster, requests, [patience])
        replicas = cluster.pools["serve"].replicas
        return outcomes(record), [router._books.load(replica) for replica in replicas]

    def test_all_is_zero_when_all_have_left(self) -> None:
        """Eight at once where one may wait: two of each replica's four come again, in vain."""
        rows = [(0, 20, 9)] * 8
        found, books = self.course(PredictedLength(lambda _: 10), rows, max_queue_requests=1)
        assert Counter(found) == {"completed": 4, "shed": 4}
        assert books == [0, 0]

    def test_who_is_turned_away_does_not_count(self) -> None:
        """No prompt of more than 16,000 tokens fits; the next one goes to the same replica."""
        router = PredictedLength(lambda _: 10)
        rows = [(0, 20_000, 1), (0, 10, 1), (0, 10, 1), (0, 20_000, 1), (0, 10, 1)]
        found, books = self.course(router, rows)
        assert found == ["rejected", "completed", "completed", "rejected", "completed"]
        assert books == [0, 0]

    def test_who_ends_with_the_same_step_is_heard_one_after_the_other(self) -> None:
        """Replica 0 has 10 + 20, replica 1 has 35, and both of replica 0 end with one step.

        The client of the first sends its next prompt at once: the second is still on the books.
        """
        requests = [Request(number, 0, tokens, 2) for number, tokens in enumerate((10, 35, 20, 5))]
        requests[1].output_tokens = 9
        routers: list[Watcher] = []

        def new_router() -> Router:
            routers.append(Watcher(PredictedLength(lambda _: 0)))
            return routers[0]

        plan = PoolPlan("serve", 2, replica_plan(), new_router)
        Cluster([plan]).run(ClosedLoop(requests, clients=3))
        assert [request.replica for request in requests] == [0, 1, 0, 0]
        assert routers[0].loads == [[0, 0], [10, 0], [10, 35], [20, 35]]


class Watcher(PredictedLength):
    """Notes what is on the books of all replicas at each choice."""

    def __init__(self, router: PredictedLength) -> None:
        super().__init__(router._predict)
        self.loads: list[list[int]] = []

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        self.loads.append([self._books.load(replica) for replica in replicas])
        return super().choose(request, replicas)


def test_predictions_are_noisy_unbiased_and_the_same_in_any_order() -> None:
    policy = PredictedLengthPolicy(error_sigma=0.5)
    first, second = (cast("Any", router_of(policy, 1))._predict for _ in range(2))
    requests = [Request(number, 0, 1, 1000) for number in range(4000)]
    predicted = [first(request) for request in requests]
    assert predicted == [second(request) for request in reversed(requests)][::-1]
    logs = np.log(np.array(predicted) / 1000)
    # 4000 draws: four standard errors of the deviation, and of the mean, which is exp(0.5^2)-1 wide
    assert logs.std() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2 * 4000))
    assert np.mean(predicted) == pytest.approx(1000, rel=4 * np.sqrt(np.expm1(0.25) / 4000))
    assert np.mean(np.array(predicted) == 1000) < 0.01


@pytest.mark.parametrize("settings", [{}, {"error_sigma": 0}])
def test_there_is_no_exact_prediction(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        POLICY.validate_python({"kind": "predicted_length", **settings})


# --- What it costs.


def calls_per_choice(new_router: Callable[[], Router], replicas: int) -> float:
    """Mean number of Python and C calls of a choice, in a steady state of two jobs a replica."""
    fleet = Fleet(new_router(), replicas)
    accepting, rng = fleet.accepting, stream(1, "test")
    under_way: list[Request] = []
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    for number in range(2 * replicas + 500):
        request = Request(number, 0, 1 + number % 7, 1)
        request.session = number % 100
        if number >= 2 * replicas:
            fleet.leave(under_way.pop(int(rng.integers(len(under_way)))))
            sys.setprofile(count)
        chosen = cast("Any", fleet.router.choose(request, accepting))
        sys.setprofile(None)
        request.replica = chosen.index
        chosen.take(request, 1)
        under_way.append(request)
    return calls / 500


@pytest.mark.parametrize(
    "new_router",
    [
        RoundRobin,
        lambda: AnyReplica(stream(1, "test")),
        lambda: PowerOfTwo(stream(1, "test")),
        LeastOutstanding,
        lambda: LeastOutstanding(tokens_of),
        lambda: SessionSticky(LeastOutstanding()),
        lambda: PredictedLength(lambda request: request.request_id % 13),
    ],
)
def test_choices_grow_no_faster_than_the_logarithm_of_the_fleet(
    new_router: Callable[[], Router],
) -> None:
    few, many = 8, 2048
    growth = calls_per_choice(new_router, many) / calls_per_choice(new_router, few)
    assert growth <= log2(many) / log2(few)


# --- The schema.


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_name_is_a_router_with_its_defaults(kind: str) -> None:
    assert POLICY.validate_python(kind) == POLICY.validate_python({"kind": kind})


@pytest.mark.parametrize("value", ["least_loaded", {"kind": "round_robin", "choices": 2}, {}])
def test_what_is_no_router(value: object) -> None:
    with pytest.raises(ValidationError):
        POLICY.validate_python(value)
