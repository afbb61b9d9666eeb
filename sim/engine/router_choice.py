"""From the router of a scenario to one that works."""

from collections.abc import Callable
from math import exp

from sim.engine.clock import to_ticks
from sim.engine.requests import Request
from sim.engine.router import (
    AnyReplica,
    KvAware,
    LeastOutstanding,
    PowerOfTwo,
    PredictedLength,
    PrefixAware,
    RoundRobin,
    Router,
    SessionSticky,
    requests_of,
    tokens_of,
)
from sim.engine.stale import Stale
from sim.routing_policy import (
    KvAwarePolicy,
    LeastOutstandingPolicy,
    PowerOfTwoPolicy,
    PredictedLengthPolicy,
    PrefixAwarePolicy,
    RandomPolicy,
    RouterPolicy,
    SessionStickyPolicy,
)
from sim.seeds import stream

_LOADS = {"requests": requests_of, "tokens": tokens_of}


def router_of(policy: RouterPolicy, seed: int, role: str = "serve") -> Router:
    """Make a router.

    Parameters
    ----------
    policy : RouterPolicy
    seed : int
        Of the run; the router has a stream of its own.
    role : str
        Of its pool.
    """
    router = _fresh(policy, seed, role)
    return Stale(router, to_ticks(policy.stale_s)) if policy.stale_s else router


def _fresh(policy: RouterPolicy, seed: int, role: str) -> Router:  # noqa: PLR0911 - a table
    """Make a router that sees the replicas as they are."""
    match policy:
        case LeastOutstandingPolicy():
            return LeastOutstanding(_LOADS[policy.count])
        case RandomPolicy():
            return AnyReplica(stream(seed, "router", role))
        case PowerOfTwoPolicy():
            return PowerOfTwo(stream(seed, "router", role), policy.choices, _LOADS[policy.count])
        case PrefixAwarePolicy():
            return PrefixAware(
                policy.least_match_fraction, policy.uneven_requests, policy.uneven_ratio
            )
        case KvAwarePolicy():
            return KvAware(policy.overlap_weight)
        case SessionStickyPolicy():
            return SessionSticky(LeastOutstanding())
        case PredictedLengthPolicy():
            return PredictedLength(_predictor(policy.error_sigma, seed))
        case _:
            return RoundRobin()


def _predictor(sigma: float, seed: int) -> Callable[[Request], int]:
    """Give a predictor of answers with a lognormal error of mean 1."""

    def predict(request: Request) -> int:
        score = stream(seed, "predicted length", request.request_id).standard_normal()
        return max(1, round(request.output_tokens * exp(sigma * score - sigma**2 / 2)))

    return predict
