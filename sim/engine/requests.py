"""One request on its way through the engine."""

from typing import Literal, Protocol

Outcome = Literal["completed", "rejected", "unfinished"]


class Request:
    """A prompt, the answer it will get, and what has happened to it so far.

    ``output_tokens`` is the simulator's foreknowledge of when the model will stop. No scheduling
    or routing decision may read it; the check at the door does, because it stands for the
    ``max_tokens`` that a client asks for, taken to be what the answer needs.

    Parameters
    ----------
    request_id : int
    arrival_tick : int
    input_tokens, output_tokens : int
        At least 1 each.
    """

    __slots__ = (
        "admit_tick",
        "arrival_tick",
        "base_tokens",
        "computed_tokens",
        "done_tick",
        "finish_step",
        "first_token_tick",
        "generated_tokens",
        "input_tokens",
        "on_done",
        "outcome",
        "output_tokens",
        "preemptions",
        "replica",
        "request_id",
        "sent_at_boundary_of",
    )

    def __init__(
        self, request_id: int, arrival_tick: int, input_tokens: int, output_tokens: int
    ) -> None:
        self.request_id = request_id
        self.arrival_tick = arrival_tick
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.admit_tick = -1
        self.first_token_tick = -1
        self.done_tick = -1
        self.generated_tokens = 0
        """Output tokens produced; all but the last are part of the context."""
        self.computed_tokens = 0
        """Prompt tokens in the KV cache while prefilling."""
        self.base_tokens = 0
        """Context while decoding, less the batch's step count (see `DecodeBatch`)."""
        self.finish_step = -1
        """Step count of the batch at which it completes; -1 while not decoding."""
        self.preemptions = 0
        self.replica = -1
        self.sent_at_boundary_of = -1
        """Replica whose step boundary let a client send it; -1 if the clock did."""
        self.outcome: Outcome = "unfinished"
        self.on_done: RequestListener | None = None
        """Who waits for the answer (a closed-loop client)."""

    @property
    def prefill_tokens(self) -> int:
        """Tokens that prefill must put into the cache: after a preemption the answer so far too."""
        return self.input_tokens + self.generated_tokens

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id}, in={self.input_tokens}, out={self.output_tokens}, "
            f"generated={self.generated_tokens}, {self.outcome})"
        )


class RequestListener(Protocol):
    """Somebody to be told when a request has left the system."""

    def request_done(self, request: Request) -> None:
        """Take note that ``request`` completed or was rejected."""
        ...
