"""A minimal serving engine with continuous batching, and closed-loop clients before it.

Each step prefills the next chunk of one prompt, if a request waits and a slot is free, and then
makes one token for every sequence that is being decoded. Requests are served in their order. The
loop knows neither PyTorch nor the clock of the machine: both are given to it.
"""

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Load:
    """Clients that each wait for their answer and then send the next request."""

    clients: int
    requests: int
    """Of all clients together."""
    input_tokens: int
    output_tokens: int
    """Of each request, the first token included."""
    chunk_tokens: int | None = None
    """Prompt tokens of one step at most; none: whole prompts."""


@dataclass
class Request:
    """One request and when things happened to it, seconds."""

    number: int
    arrival_s: float
    admit_s: float = 0.0
    """When the first step of its prefill began."""
    first_token_s: float = 0.0
    done_s: float = 0.0
    prefilled_tokens: int = 0
    generated_tokens: int = 0


class ServedModel(Protocol):
    """A model with a cache of so many slots."""

    def prefill(self, slot: int, start: int, tokens: int, *, last: bool) -> None:
        """Read so many prompt tokens into a slot, after ``start`` others; the last give a token.

        Returns when the work is done.
        """

    def decode(self, slots: Sequence[int]) -> None:
        """Make one token for each of these slots; returns when the work is done."""


@dataclass
class Served:
    """What happened in one run."""

    load: Load
    started_s: float
    requests: list[Request] = field(default_factory=list)
    """In the order in which they were done."""
    decode_steps: int = 0
    prefill_steps: int = 0

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last token."""
        return max(each.done_s for each in self.requests) - self.started_s

    @property
    def ttft_s(self) -> list[float]:
        """Time to first token of each request."""
        return [each.first_token_s - each.arrival_s for each in self.requests]

    @property
    def tpot_s(self) -> list[float]:
        """Time per token after the first; requests of one token have none."""
        return [
            (each.done_s - each.first_token_s) / (each.generated_tokens - 1)
            for each in self.requests
            if each.generated_tokens > 1
        ]

    @property
    def e2e_s(self) -> list[float]:
        """Time of each whole request."""
        return [each.done_s - each.arrival_s for each in self.requests]

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens of all requests over the duration."""
        return sum(each.generated_tokens for each in self.requests) / self.duration_s


def serve(model: ServedModel, load: Load, clock: Callable[[], float]) -> Served:
    """Serve a closed loop of clients until all requests are done.

    Parameters
    ----------
    model
        Has a slot for every client.
    load
        What the clients send: all of them at once, and then each the next when it has its answer.
    clock
        Seconds.
    """
    loop = _Loop(model, load, clock)
    for _ in range(load.clients):
        loop.send()
    while loop.busy:
        loop.prefill_step()
        loop.decode_step()
    return loop.served


class _Loop:
    """Requests on their way through the slots."""

    def __init__(self, model: ServedModel, load: Load, clock: Callable[[], float]) -> None:
        self.model, self.load, self.clock = model, load, clock
        self.served = Served(load, clock())
        self.waiting: deque[Request] = deque()
        self.filling: tuple[int, Request] | None = None
        self.running: dict[int, Request] = {}
        self.free = list(reversed(range(load.clients)))
        self.sent = 0

    @property
    def busy(self) -> bool:
        """Whether a request is not done yet."""
        return bool(self.waiting or self.filling or self.running)

    def send(self) -> None:
        """Let a client send its next request, if there is one left."""
        if self.sent < self.load.requests:
            self.waiting.append(Request(self.sent, self.clock()))
            self.sent += 1

    def prefill_step(self) -> None:
        """Read the next chunk of a prompt: of the one begun, else of the first that waits."""
        if self.filling is None and self.waiting and self.free:
            request = self.waiting.popleft()
            request.admit_s = self.clock()
            self.filling = (self.free.pop(), request)
        if self.filling is None:
            return
        slot, request = self.filling
        missing = self.load.input_tokens - request.prefilled_tokens
        tokens = min(missing, self.load.chunk_tokens or missing)
        self.model.prefill(slot, request.prefilled_tokens, tokens, last=tokens == missing)
        self.served.prefill_steps += 1
        request.prefilled_tokens += tokens
        if tokens == missing:
            self.filling = None
            self.running[slot] = request
            request.first_token_s = self.clock()
            self._count_token(slot)

    def decode_step(self) -> None:
        """Make one token for every sequence that has its first."""
        slots = sorted(self.running)
        if slots:
            self.model.decode(slots)
            self.served.decode_steps += 1
            for slot in slots:
                self._count_token(slot)

    def _count_token(self, slot: int) -> None:
        """Note a token; with the last one the slot is free and the client sends again."""
        request = self.running[slot]
        request.generated_tokens += 1
        if request.generated_tokens == self.load.output_tokens:
            request.done_s = self.clock()
            self.served.requests.append(request)
            del self.running[slot]
            self.free.append(slot)
            self.send()


def percentile(values: Sequence[float], fraction: float) -> float:
    """Interpolate a percentile between ordered values, as numpy does.

    >>> percentile([1.0, 2.0, 4.0], 0.5), percentile([1.0, 2.0, 4.0], 0.75)
    (2.0, 3.0)
    """
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def mean(values: Sequence[float]) -> float:
    """Mean of some values."""
    return statistics.fmean(values)
