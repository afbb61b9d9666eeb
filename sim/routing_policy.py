"""How requests are dealt to the replicas of a pool, as a scenario says it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sim.schema import StrictModel
from sim.units import Fraction, NonNegativeInt, PositiveInt, Seconds


class _Policy(StrictModel):
    """What routers have in common."""

    stale_s: Seconds = 0.0
    """Age that the router's view of the replicas may reach: it is renewed by the first request
    after so long, and between renewals the router knows what it has sent itself. 0: it sees them
    as they are."""


class RoundRobinPolicy(_Policy):
    """Each replica in turn."""

    kind: Literal["round_robin"] = "round_robin"


class RandomPolicy(_Policy):
    """Any replica, all with equal chances."""

    kind: Literal["random"] = "random"


class LeastOutstandingPolicy(_Policy):
    """The replica with the least accepted and not done; the first of equals."""

    kind: Literal["least_outstanding"] = "least_outstanding"
    count: Literal["requests", "tokens"] = "requests"
    """What is counted; tokens are those of prompts and of the longest answers asked for."""


class PowerOfTwoPolicy(_Policy):
    """The least loaded of a few replicas drawn at random.

    Mitzenmacher, The power of two choices in randomized load balancing, 2001,
    doi:10.1109/71.963420.
    """

    kind: Literal["power_of_two"] = "power_of_two"
    choices: Annotated[int, Field(ge=2)] = 2
    """Replicas that are drawn, with repetition."""
    count: Literal["requests", "tokens"] = "requests"
    """What is counted."""


class PrefixAwarePolicy(_Policy):
    """The replica that has most of the prompt in its prefix cache, unless loads are uneven.

    Rules and defaults of SGLang's cache-aware router (``sgl-router``, ``cache_aware.rs``): the
    shortest queue if loads differ by more than both thresholds; else the best match, if it covers
    enough of the prompt; else the shortest queue. SGLang sends a prompt that matches nowhere to the
    replica with the smallest tree; here to the least loaded. The defaults are those of its first
    releases (``sgl-router`` 0.1); later ones have 0.3, 64 and 1.5.
    """

    kind: Literal["prefix_aware"] = "prefix_aware"
    least_match_fraction: Fraction = 0.5
    """Share of the prompt that a match must cover to count (``cache_threshold``)."""
    uneven_requests: NonNegativeInt = 32
    """Difference between the largest and the smallest load (``balance_abs_threshold``)."""
    uneven_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0001
    """Ratio between them (``balance_rel_threshold``)."""


class KvAwarePolicy(_Policy):
    """The replica where the prompt costs least beside the prompts that are under way there.

    The cost function of NVIDIA Dynamo's KV router (``docs/architecture/kv_cache_routing.md``):
    ``overlap_weight`` times the blocks of the prompt that are not cached there, plus the active
    blocks: those of prompts that were sent there and have not left. As in Dynamo, the router keeps
    that account itself, and answers do not count (``--router-track-output-blocks`` is off by
    default). Blocks that several prompts share count once in Dynamo; here a prompt counts without
    what was cached of it when it was sent.
    """

    kind: Literal["kv_aware"] = "kv_aware"
    overlap_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """What a block of prompt costs beside one under way (``kv_overlap_score_weight``)."""


class SessionStickyPolicy(_Policy):
    """The replica that served the session before; the least loaded for new sessions."""

    kind: Literal["session_sticky"] = "session_sticky"


class PredictedLengthPolicy(_Policy):
    """The replica with the least work to come, by prompts and predicted answers.

    The prediction is the true length times a lognormal error of mean 1: what a predictor of that
    quality would know, never the length itself.
    """

    kind: Literal["predicted_length"] = "predicted_length"
    error_sigma: Annotated[float, Field(gt=0, le=5)]
    """Standard deviation of the logarithm of the error; there is no exact prediction."""


def _by_name(value: Any) -> Any:
    """Take a bare name for a policy with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


_Router = Annotated[
    RoundRobinPolicy
    | RandomPolicy
    | LeastOutstandingPolicy
    | PowerOfTwoPolicy
    | PrefixAwarePolicy
    | KvAwarePolicy
    | SessionStickyPolicy
    | PredictedLengthPolicy,
    Field(discriminator="kind"),
]
_NameOrRouter = (
    Literal[
        "round_robin",
        "random",
        "least_outstanding",
        "power_of_two",
        "prefix_aware",
        "kv_aware",
        "session_sticky",
    ]
    | _Router
)
"""What people may write. ``predicted_length`` has no default error, and no bare name."""

RouterPolicy = Annotated[_Router, BeforeValidator(_by_name, json_schema_input_type=_NameOrRouter)]
"""Any router, told apart by ``kind``; a bare name stands for one with its defaults."""

LEAST_OUTSTANDING = LeastOutstandingPolicy()


class Backoff(StrictModel):
    """Time between two attempts of a client."""

    first_s: Seconds = 1.0
    """Before the second attempt."""
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """By how much longer before each further one."""
    longest_s: Seconds = 60.0
    """Never longer than this, before the jitter."""
    jitter_fraction: Fraction = 0.0
    """Up to which share the time varies, evenly up and down."""


class ClientPatience(StrictModel):
    """How long clients wait, and how often they try."""

    timeout_s: Annotated[Seconds, Field(gt=0)] | None = None
    """When a client gives an attempt up; never unless given."""
    until: Literal["first_token", "completion"] = "first_token"
    """What it waits for."""
    max_retries: NonNegativeInt = 0
    """Attempts after the first, when one was given up or turned away."""
    backoff: Backoff = Backoff()
    """Time before the next attempt."""


class RateLimit(StrictModel):
    """Requests that are let in, as a token bucket; further ones are turned away."""

    requests_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Long-run rate."""
    burst_requests: PositiveInt = 1
    """Requests that may come at once after a pause."""


class Slo(StrictModel):
    """What a request must meet to count as goodput, and a task of test-time compute beside it."""

    ttft_s: Seconds
    """Arrival to first token."""
    tpot_s: Seconds
    """Mean time per output token after the first."""
    attainment_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the requests that must meet both for the SLO to count as met."""
    task_s: Annotated[Seconds, Field(gt=0)] | None = None
    """Deadline of a task of test-time compute, from the question to the answer; none unless
    given."""
    usd_per_task: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Budget of such a task in dollars; none unless given."""


class ServiceClass(StrictModel):
    """How the requests of one tenant are treated."""

    priority: int = 0
    """Smaller ones are served first, with ``engine.order: priority``."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share of the prompt tokens when several wait, with ``engine.order: fair``."""
    slo: Slo | None = None
    """What its requests must meet; that of the case unless given."""
    patience: ClientPatience | None = None
    """Of its clients; that of the case unless given."""
    rate_limit: RateLimit | None = None
    """No limit unless given."""
    max_outstanding_requests: PositiveInt | None = None
    """Requests of the tenant that may be in the system at once; further ones are turned away."""
