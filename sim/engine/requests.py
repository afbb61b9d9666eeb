"""One request on its way through the engine."""

from typing import Any, Literal, Protocol

from sim.workload.content import PRIVATE_STREAM, Content, Reuse, joined

Outcome = Literal["completed", "rejected", "timed_out", "lost", "shed", "cancelled", "unfinished"]
"""How a request has left: answered; longer than the cache or the model allows; given up by its
client; broken off by a failure and not tried again; turned away at the door; no longer needed by
the program that asked; or not at all."""

NEVER = -1
"""Tick of what has not happened."""


class Turn:
    """Whose step boundary is being settled at this moment.

    Boundaries of one tick come in the order of the replicas. Whoever is told of something in the
    middle of a boundary can tell from it which of the others are over.
    """

    __slots__ = ("replica",)

    def __init__(self) -> None:
        self.replica = -1
        """Index of the replica; -1 while the clock acts (arrivals, timers, transfers)."""


class RemoteKv(Protocol):
    """Keys and values that lie elsewhere and have to be fetched before a request can go on."""

    tokens: int
    """How many tokens of the request's context they cover, from its start."""


class Request:
    """A prompt, the answer it will get, and what has happened to it so far.

    ``output_tokens`` is the simulator's foreknowledge of when the model will stop. No scheduling
    or routing decision may read it; they may read ``max_tokens``, which the client asks for.

    Parameters
    ----------
    request_id : int
    arrival_tick : int
    input_tokens, output_tokens : int
        At least 1 each.
    """

    # Class attributes instead of slots: what a request does not need costs nothing to make.
    tenant = 0
    """Index of the tenant."""
    priority = 0
    """Smaller ones are served first, by engines that look at it."""
    session = -1
    """Session or program that it is part of."""
    turn = 0
    """Place in it."""
    model = ""
    """Which of the case's models answers; empty: the one that the case is about."""
    content: Content | None = None
    """What the prompt consists of; none: nothing that any other prompt has."""
    answer: tuple[int, int] | None = None
    """Stream and position of the answer's first token; none: nobody will send it again."""
    reuse: Reuse = "all"
    """What of prompt and answer other requests may begin with."""
    encode_tokens = 0
    """Tokens of images and the like, which an encoder computes first."""
    max_tokens = 0
    """Longest answer that the client asks for; 0: just as long as the answer will be."""

    queued_tick = NEVER
    """When it joined the waiting line of its replica."""
    admit_tick = NEVER
    first_token_tick = NEVER
    done_tick = NEVER
    left_batch_tick = NEVER
    """When it was preempted last, while it waits to come back."""
    preempted_ticks = 0
    """Time between preemptions and returns, summed."""
    encode_ticks = 0
    """Time that a pool of encoders took for its images before it was admitted, summed."""
    handover_wait_ticks = 0
    """Time from when its prompt was computed until the replica that decodes asked for its keys and
    values, summed: until a step of its own had ended, and it had blocks."""
    transfer_ticks = 0
    """Time from when its keys and values were asked for until they were here, summed, the wait for
    the link included; those of preempted sequences apart."""
    pauses: tuple[tuple[int, int, int], ...] = ()
    """Replica, begin and end of each preemption after which it came back."""
    preemptions = 0
    attempts = 1
    computed_tokens = 0
    """Tokens in the KV cache while prefilling."""
    reached_tokens = 0
    """Most tokens of its context that were in a cache before it lost its place."""
    cached_tokens = 0
    """Prompt tokens that were found in a cache, and never computed for it."""
    prefilled_tokens = 0
    """Tokens that were computed in prefill, those that were computed again included."""
    first_tokens = 0
    """How often its prompt was completed and gave a token."""
    encoded_tokens = 0
    """Like ``prefilled_tokens``, of its images, in a pool of encoders."""
    base_tokens = 0
    """Context while decoding, less the batch's step count (see `DecodeBatch`)."""
    finish_step = -1
    """Step count of the batch at which it completes; -1 while not decoding."""
    seat: "tuple[int, int, Request] | None" = None
    """Its entry among those of the batch that are to complete; entries of others are stale."""
    remote: RemoteKv | None = None
    """Keys and values to fetch before it can run."""
    keeps_blocks = False
    """Its blocks stay in use when it is done, until somebody has fetched what is in them."""
    reserved_blocks = 0
    """KV blocks set aside for it by engines that never preempt."""
    holding: Any = None
    """Its readership of shared blocks, kept by the prefix cache."""
    stage_of: "Request | None" = None
    """The request of which this one is a part, done in a pool of its own."""
    stage: "Request | None" = None
    """The part that is under way."""
    pool: Any = None
    """Where it is."""
    replica = -1
    prefill_replica = -1
    """Where the prompt was computed, if that was another one."""
    outcome: Outcome = "unfinished"
    given_up: Outcome | None = None
    """Outcome that it is to have after the part under way, if its client has given it up."""
    on_done: "RequestListener | None" = None
    """Who waits for the answer."""

    def __init__(
        self, request_id: int, arrival_tick: int, input_tokens: int, output_tokens: int
    ) -> None:
        self.request_id = request_id
        self.arrival_tick = arrival_tick
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.generated_tokens = 0
        """Output tokens produced; all but the last are part of the context."""

    @property
    def prefill_tokens(self) -> int:
        """Tokens that prefill must put into the cache: after a preemption the answer so far too."""
        return self.input_tokens + self.generated_tokens

    @property
    def recomputed_tokens(self) -> int:
        """Of an answered request: tokens that were computed again, after they had been lost.

        Its prompt was found in a cache or computed once. Whenever prefill was done again it also
        computed the token that the next decode step would have.
        """
        more = self.prefilled_tokens - (self.input_tokens - self.cached_tokens)
        return more - (self.first_tokens - 1)

    def forget_work(self) -> None:
        """Begin the answer again: nothing of what was computed for it is kept."""
        self.generated_tokens = self.computed_tokens = self.reached_tokens = 0
        self.cached_tokens = self.prefilled_tokens = self.first_tokens = 0
        self.encoded_tokens = 0
        self.first_token_tick = NEVER

    @property
    def context(self) -> Content:
        """What prompt and answer so far consist of."""
        content = self.content or ()
        if not self.generated_tokens:
            return content
        stream, start = self.answer or (PRIVATE_STREAM - self.request_id, 0)
        return joined(content, (stream, start, self.generated_tokens))

    @property
    def longest_tokens(self) -> int:
        """Prompt and longest answer that the client asks for."""
        return self.input_tokens + (self.max_tokens or self.output_tokens)

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id}, in={self.input_tokens}, out={self.output_tokens}, "
            f"generated={self.generated_tokens}, {self.outcome})"
        )


class RequestListener(Protocol):
    """Somebody to be told when a request has left the system."""

    def request_done(self, request: Request) -> None:
        """Take note that ``request`` has left, whatever its outcome."""
        ...
