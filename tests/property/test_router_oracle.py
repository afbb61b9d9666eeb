"""Routers choose as if they counted all that is on the replicas anew for every request.

Each example is a random cluster with all that can happen to a request: it is turned away, given up
and tried again, handed over, broken off by a failure; replicas drain, fail and come back. An oracle
beside each router looks into the schedulers at every choice, keeps lists instead of sums, and must
choose the same replica.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
from test_engine_features import Setup, setup
from test_lockstep_equality import with_ranks

from sim.engine.clients import ClosedLoop, Source
from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.cluster import Cluster
from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.engine.router import Books, KvAware, PredictedLength, Router
from sim.engine.router_choice import router_of
from sim.engine.stale import Stale
from sim.pools import Role
from sim.routing_policy import (
    KvAwarePolicy,
    LeastOutstandingPolicy,
    PowerOfTwoPolicy,
    PredictedLengthPolicy,
    PrefixAwarePolicy,
    RandomPolicy,
    RoundRobinPolicy,
    RouterPolicy,
    SessionStickyPolicy,
)
from sim.seeds import stream

EXAMPLES = 60
"""Of each router, with and without a delay."""
SEED = 1
DELAYS = (0, 100, 2000)
"""Ticks: as they are, and as they were some steps and many steps ago."""

POLICIES: dict[str, Callable[[float], RouterPolicy]] = {
    "round robin": lambda stale_s: RoundRobinPolicy(stale_s=stale_s),
    "random": lambda stale_s: RandomPolicy(stale_s=stale_s),
    "fewest requests": lambda stale_s: LeastOutstandingPolicy(stale_s=stale_s),
    "fewest tokens": lambda stale_s: LeastOutstandingPolicy(count="tokens", stale_s=stale_s),
    "power of two": lambda stale_s: PowerOfTwoPolicy(stale_s=stale_s),
    "power of three by tokens": lambda stale_s: PowerOfTwoPolicy(
        choices=3, count="tokens", stale_s=stale_s
    ),
    "prefix aware": lambda stale_s: PrefixAwarePolicy(
        least_match_fraction=0.2, uneven_requests=3, stale_s=stale_s
    ),
    "KV aware": lambda stale_s: KvAwarePolicy(overlap_weight=0.7, stale_s=stale_s),
    "session sticky": lambda stale_s: SessionStickyPolicy(stale_s=stale_s),
    "predicted length": lambda stale_s: PredictedLengthPolicy(error_sigma=0.5, stale_s=stale_s),
}


@dataclass(frozen=True, eq=False)
class Sent:
    """One attempt of a request, and what it weighed when it was sent."""

    request: Request
    replica: Replica
    blocks: int
    """Of the prompt, without what was cached."""


@dataclass
class Seen:
    """What is known of one replica."""

    there: list[Request] = field(default_factory=list)
    """Requests that were in its scheduler when it was looked at."""
    not_left: list[Sent] = field(default_factory=list)
    """Attempts that had not left when it was looked at."""
    sent_since: list[Sent] = field(default_factory=list)

    def forget(self, request: Request) -> None:
        self.there = [other for other in self.there if other is not request]
        self.not_left = [sent for sent in self.not_left if sent.request is not request]
        self.sent_since = [sent for sent in self.sent_since if sent.request is not request]


def in_scheduler(replica: Replica) -> list[Request]:
    """Find the requests of a replica wherever its scheduler has them."""
    chunks = () if replica._stretch is None else replica._stretch.chunks
    found = dict.fromkeys(request for request, _ in chunks)
    ranks: Sequence[Any] = getattr(replica.scheduler, "ranks", [replica.scheduler])
    for rank in ranks:
        found |= dict.fromkeys([*rank.line, *rank.batch, *rank.prefilling])
        found |= dict.fromkeys([*rank.ready, *rank.fetching])
    return list(found)


class Oracle:
    """Chooses by counting everything anew."""

    def __init__(self, policy: RouterPolicy, role: Role) -> None:
        self.policy = policy
        self.delay = to_ticks(policy.stale_s)
        self.rng = stream(SEED, "router", role)
        self.choices = 0
        self.homes: dict[int, Replica] = {}
        self.under_way: list[Sent] = []
        self.seen: dict[Replica, Seen] = {}
        self.accepting: list[Replica] = []
        self.looked_tick: int | None = None

    # -- what it knows ----------------------------------------------------------------------

    def look(self, replica: Replica) -> None:
        not_left = [sent for sent in self.under_way if sent.replica is replica]
        self.seen[replica] = Seen(in_scheduler(replica), not_left)

    def changed(self, replicas: Sequence[Replica]) -> None:
        """One that has come is looked at; nothing is known before the first request."""
        if self.looked_tick is not None:
            for replica in set(replicas) - set(self.accepting):
                self.look(replica)
        self.accepting = list(replicas)

    def left(self, request: Request, replica: Replica) -> None:
        """A client hears at once that it was turned away, and that is all."""
        (sent,) = (
            sent for sent in self.under_way if sent.request is request and sent.replica is replica
        )
        self.under_way.remove(sent)
        if request.outcome in ("rejected", "shed"):
            self.seen[replica].forget(request)

    def requests(self, replica: Replica) -> int:
        seen = self.seen[replica]
        return len(seen.there) + len(seen.sent_since)

    def tokens(self, replica: Replica) -> int:
        seen = self.seen[replica]
        known = [*seen.there, *(sent.request for sent in seen.sent_since)]
        return sum(
            request.input_tokens + (request.max_tokens or request.output_tokens)
            for request in known
        )

    def known(self, replica: Replica) -> list[Sent]:
        seen = self.seen[replica]
        return [*seen.not_left, *seen.sent_since]

    # -- how it chooses ---------------------------------------------------------------------

    def choose(self, request: Request, replicas: Sequence[Replica], now: int) -> Replica:
        for seen in self.seen.values():  # it cannot be where it was when it comes again
            seen.forget(request)
        if self.looked_tick is None or now >= self.looked_tick + self.delay:
            self.looked_tick = now
            self.accepting = list(replicas)
            for replica in replicas:
                self.look(replica)
        assert self.accepting == list(replicas)
        chosen = self.pick(request, replicas)
        self.choices += 1
        if request.session >= 0:
            self.homes[request.session] = chosen
        sent = Sent(request, chosen, self.missing_blocks(request, chosen))
        self.under_way.append(sent)
        self.seen[chosen].sent_since.append(sent)
        return chosen

    def pick(  # noqa: C901, PLR0911 - a table
        self, request: Request, replicas: Sequence[Replica]
    ) -> Replica:
        match self.policy:
            case RoundRobinPolicy():
                return replicas[self.choices % len(replicas)]
            case RandomPolicy():
                return replicas[int(self.rng.integers(len(replicas)))]
            case LeastOutstandingPolicy(count=count):
                return min(replicas, key=self.requests if count == "requests" else self.tokens)
            case PowerOfTwoPolicy(choices=choices, count=count):
                drawn: list[int] = self.rng.integers(len(replicas), size=choices).tolist()
                load = self.requests if count == "requests" else self.tokens
                return min((replicas[place] for place in drawn), key=load)
            case SessionStickyPolicy():
                home = self.homes.get(request.session)
                if home is not None and home in replicas:
                    return home
                return min(replicas, key=self.requests)
            case PrefixAwarePolicy():
                return self.by_prefix(self.policy, request, replicas)
            case KvAwarePolicy(overlap_weight=weight):
                return min(replicas, key=lambda replica: self.cost(request, replica, weight))
            case PredictedLengthPolicy(error_sigma=sigma):
                return min(replicas, key=lambda replica: self.work(replica, sigma))

    def by_prefix(
        self, policy: PrefixAwarePolicy, request: Request, replicas: Sequence[Replica]
    ) -> Replica:
        loads = sorted(self.requests(replica) for replica in replicas)
        uneven = (
            loads[-1] - loads[0] > policy.uneven_requests
            and loads[-1] > policy.uneven_ratio * loads[0]
        )
        best = max(replicas, key=lambda replica: cached(request, replica))
        enough = policy.least_match_fraction * request.input_tokens
        if uneven or cached(request, best) <= enough:
            return min(replicas, key=self.requests)
        return best

    def missing_blocks(self, request: Request, replica: Replica) -> int:
        return -(-(request.input_tokens - cached(request, replica)) // replica.block_tokens)

    def cost(self, request: Request, replica: Replica, weight: float) -> float:
        prompt = request.input_tokens - cached(request, replica)
        active = sum(sent.blocks for sent in self.known(replica))
        return weight * prompt / replica.block_tokens + active

    def work(self, replica: Replica, sigma: float) -> int:
        return sum(
            sent.request.input_tokens + prediction(sent.request, sigma)
            for sent in self.known(replica)
        )


def cached(request: Request, replica: Replica) -> int:
    return 0 if request.content is None else replica.cached_tokens(request.content)


def prediction(request: Request, sigma: float) -> int:
    """The true length times a lognormal error of mean 1, the same whenever it is asked for."""
    score = stream(SEED, "predicted length", request.request_id).standard_normal()
    return max(1, round(request.output_tokens * float(np.exp(sigma * score - sigma**2 / 2))))


class Watched:
    """A router beside its oracle."""

    def __init__(self, policy: RouterPolicy, router: Router, role: Role) -> None:
        self.router = router
        self.oracle = Oracle(policy, role)
        self.seen: Counter[str] = Counter()

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        for replica in replicas:
            self.look(replica)
        now = int(replicas[0].env.now)
        expected = self.oracle.choose(request, replicas, now)
        assert self.router.choose(request, replicas) is expected
        self.seen["choices"] += 1
        self.seen["choices of several"] += len(replicas) > 1
        return expected

    def look(self, replica: Replica) -> None:
        """What a replica says is what it has; all that was sent there and has not left is there.

        But for requests that end with the same step, of which one is heard after the other.
        """
        there = in_scheduler(replica)
        assert replica.outstanding_requests == len(there)
        assert replica.outstanding_tokens == sum(request.longest_tokens for request in there)
        sent = [each.request for each in self.oracle.under_way if each.replica is replica]
        assert set(there) <= set(sent)
        now = int(replica.env.now)
        for request in set(sent) - set(there):
            assert (request.outcome, request.done_tick) == ("completed", now)
            self.seen["ends with others"] += 1

    def left(self, request: Request, replica: Replica) -> None:
        self.seen[request.outcome] += 1
        self.seen["comes again"] += request.attempts > 1
        self.oracle.left(request, replica)
        self.router.left(request, replica)

    def changed(self, replicas: Sequence[Replica]) -> None:
        self.seen["changes"] += 1
        self.oracle.changed(replicas)
        self.router.changed(replicas)

    def end(self) -> None:
        """Nothing is left on any books once what has left is heard of."""
        assert not self.oracle.under_way
        router: Any = self.router
        if isinstance(router, Stale):
            for request, view in router._unheard.items():
                router._router.left(request, cast("Any", view))
            router = router._router
        if isinstance(router, KvAware | PredictedLength):
            books: Books = router._books
            assert not books._shares
            assert set(books._loads.values()) <= {0}


def watch(
    case: Setup, policy: RouterPolicy, new_router: Callable[[RouterPolicy, Role], Router], most: int
) -> Counter[str]:
    """Run a cluster with a router in all its pools; ``most`` may wait at a replica."""
    watched: list[Watched] = []

    def new(role: Role) -> Router:
        watched.append(Watched(policy, new_router(policy, role), role))
        return watched[-1]

    plans = tuple(
        replace(
            plan,
            replicas=plan.replicas + 1,  # one alone needs no router
            plan=replace(plan.plan, max_queue_requests=most or None),
            new_router=partial(new, plan.role),
        )
        for plan in case.plans
    )
    source: Source = case.source()
    if case.clients is not None and most:  # one that sends again within the end of a step
        source = ClosedLoop(case.requests(), case.clients)
    Cluster(plans).run(source, case.companions)
    for each in watched:
        each.end()
    return sum((each.seen for each in watched), Counter())


def cluster(seed: int) -> Setup:
    """One of random features; replicas of every fourth have several attention ranks."""
    return setup(seed) if seed % 4 else with_ranks(seed)


def plain(policy: RouterPolicy, role: Role) -> Router:
    return router_of(policy, SEED, role)


def wrapped(policy: RouterPolicy, role: Role) -> Router:
    """A view that is renewed for every request is none that is old."""
    return Stale(router_of(policy, SEED, role), 0)


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("name", POLICIES)
def test_a_router_chooses_as_one_that_counts_anew(name: str, delay: int) -> None:
    policy = POLICIES[name](delay / TICKS_PER_S)
    for seed in range(EXAMPLES):
        watch(cluster(seed), policy, plain, most=seed % 3)


@pytest.mark.parametrize("name", POLICIES)
def test_no_delay_is_none(name: str) -> None:
    for seed in range(EXAMPLES):
        watch(cluster(seed), POLICIES[name](0.0), wrapped, most=seed % 3)


def test_the_examples_are_full_of_events() -> None:
    """Books that nothing ever disturbs would be right whatever the router did."""
    seen: Counter[str] = Counter()
    for seed in range(EXAMPLES):
        seen += watch(cluster(seed), POLICIES["predicted length"](0.0), plain, most=seed % 3)
    wanted = (
        "choices of several",
        "completed",
        "shed",
        "timed_out",
        "unfinished",  # broken off by a failure
        "comes again",
        "changes",
    )
    assert {name: seen[name] for name in wanted if seen[name] < 3} == {}
