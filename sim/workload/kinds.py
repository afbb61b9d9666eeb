"""The kinds of workload that a scenario can name, as its YAML has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sim.errors import InternalError
from sim.schema import StrictModel
from sim.units import Fraction, PositiveInt, Seconds, Tokens
from sim.workload.arrivals import ArrivalLaw, BurstArrivals
from sim.workload.lengths import LengthLaw
from sim.workload.sessions import SessionLaw
from sim.workload.sharing import SharedPrefixes
from sim.workload.single import TokensLaw
from sim.workload.traces import TraceKind, TraceOptions

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[Seconds, Field(gt=0)]


class Images(StrictModel):
    """Images and the like, which an encoder turns into tokens of the prompt."""

    tokens: TokensLaw
    """Tokens of one image; the prompt is so much longer for each."""
    per_request: PositiveInt = 1
    """Images of a request that has any, all of one size."""
    fraction: Fraction = 1.0
    """Share of the requests that have any."""


class _Prompts(StrictModel):
    """What requests of laws have in common."""

    traffic: str | None = None
    """Id of a fitted law in ``workloads/lengths``; gives lengths and arrivals at once."""
    lengths: LengthLaw | None = None
    """Law of input and output tokens, when no ``traffic`` is named."""
    sharing: SharedPrefixes | None = None
    """How prompts begin alike; no two do unless given."""
    images: Images | None = None
    """Images in the prompts; none unless given."""
    max_tokens: Tokens | None = None
    """Longest answer that every client asks for, and where longer ones are cut off; just as long
    as each answer will be unless given."""


class OpenLoopWorkload(_Prompts):
    """Requests that arrive by a law, whether or not the system keeps up."""

    kind: Literal["open_loop"]
    arrivals: ArrivalLaw | None = None
    """Law of the arrival times; that of ``traffic`` unless given."""
    requests: PositiveInt | None = None
    """How many arrive; at most so many where a duration is given too."""
    duration_s: Duration | None = None
    """How long they arrive: cases at different rates then see the same stretch of time."""
    rate_requests_per_s: Rate | None = None
    """Mean rate; that of the law unless given."""
    load_fraction: Annotated[float, Field(gt=0, le=2)] | None = None
    """Mean rate as a fraction of what the system can do at most, found by a pilot run in which
    all requests are there from the start."""
    samples: PositiveInt = 1
    """Answers to each prompt (``n`` in the API of OpenAI). Each is a request of its own, sent at
    the same moment with the same prompt, which a prefix cache computes once; ``requests`` and
    rates count prompts. The lengths of the answers are drawn independently."""

    @model_validator(mode="after")
    def _lengths_and_arrivals_are_known(self) -> Self:
        if self.traffic is None and (self.lengths is None or self.arrivals is None):
            raise ValueError("name a traffic law, or give both lengths and arrivals")
        if self.requests is None and self.duration_s is None:
            raise ValueError("give requests, duration_s or both")
        if self.rate_requests_per_s is not None and self.load_fraction is not None:
            raise ValueError("give rate_requests_per_s or load_fraction; set the other to null")
        return self


class ClosedLoopWorkload(_Prompts):
    """Clients that each wait for their answer before they send the next request."""

    kind: Literal["closed_loop"]
    requests: PositiveInt
    """How many are sent in all."""
    concurrency: PositiveInt
    """Clients of the whole system."""

    @model_validator(mode="after")
    def _lengths_are_known(self) -> Self:
        if (self.traffic is None) == (self.lengths is None):
            raise ValueError("name a traffic law or give lengths, one of the two")
        return self


class TraceWorkload(StrictModel):
    """Requests replayed from a recorded trace."""

    kind: Literal["trace"]
    path: Path | None = None
    """The trace; relative to the scenario file, or to the working directory with ``--set``."""
    format: TraceKind = "plain"
    """Layout of the file."""
    options: TraceOptions = TraceOptions()
    """Which part to replay, and how fast."""


class SessionsWorkload(StrictModel):
    """Sessions of several turns that start by a law; each turn waits for the answer before it.

    The sessions come from one of three places: a fitted law of the catalogue, a law written here,
    or recorded agentic sessions.
    """

    kind: Literal["sessions"]
    traffic: str | None = None
    """Id of a fitted law in ``workloads/sessions``."""
    law: SessionLaw | None = None
    """Law of the sessions."""
    path: Path | None = None
    """Recorded agentic sessions; relative to the scenario file, or to the working directory with
    ``--set``."""
    zero_output: Literal["error", "drop"] = "error"
    """Recorded calls without an answer: refuse the file, or leave them out."""
    arrivals: ArrivalLaw
    """Law of the starts of sessions; its rate is in sessions per second."""
    sessions: PositiveInt | None = None
    """How many start; at most so many where a duration is given too. Of recorded sessions all,
    unless this or a duration is given."""
    duration_s: Duration | None = None
    """How long sessions start; those that run go on to their end."""

    @model_validator(mode="after")
    def _sessions_are_known(self) -> Self:
        if sum(one is not None for one in (self.traffic, self.law, self.path)) != 1:
            raise ValueError("give traffic, law or path, one of the three")
        if self.path is not None:
            return self  # the file says how many there are
        if self.sessions is None and self.duration_s is None:
            raise ValueError("give sessions, duration_s or both")
        if isinstance(self.arrivals, BurstArrivals) and self.sessions is None:
            raise ValueError("burst arrivals have no rate: give sessions")
        return self


StrategyChoice = str | Mapping[str, Any]
"""A strategy as a scenario names or writes it; read by `sim.workload.strategies`."""


class ProgramsWorkload(StrictModel):
    """Questions that a strategy of test-time compute works on, each with many calls."""

    kind: Literal["programs"]
    strategy: StrategyChoice
    """How compute is spent: an id in ``workloads/strategies``, that with some fields changed (its
    id as ``name``), or one that is written here (with its ``kind``)."""
    benchmark: str | None = None
    """Id of a file in ``workloads/quality``: how long and how hard its questions are, and how good
    the answers."""
    question_tokens: TokensLaw | None = None
    """Length of a question; that of the benchmark unless given."""
    answer_tokens: TokensLaw | None = None
    """Length of a direct answer; that of the benchmark unless given."""
    tasks: PositiveInt | None = None
    """How many questions are asked; at most so many where a duration is given too."""
    duration_s: Duration | None = None
    """How long they are asked."""
    arrivals: ArrivalLaw | None = None
    """Law of the times at which questions are asked; its rate is in questions per second."""
    concurrency: PositiveInt | None = None
    """Clients that each wait for the answer to their question before they ask the next one."""
    load_fraction: Annotated[float, Field(gt=0, le=2)] | None = None
    """Rate as a fraction of what the system can do at most, found by a pilot run."""

    @model_validator(mode="after")
    def _arrivals_are_known(self) -> Self:
        if (self.arrivals is None) == (self.concurrency is None):
            raise ValueError("give arrivals or concurrency, one of the two")
        if self.tasks is None and (self.duration_s is None or self.concurrency is not None):
            raise ValueError("give tasks; with arrivals, duration_s will do too")
        if self.concurrency is not None and self.load_fraction is not None:
            raise ValueError(
                "load_fraction needs arrivals: give those in place of concurrency, or set "
                "load_fraction to null"
            )
        if self.benchmark is None and (self.question_tokens is None or self.answer_tokens is None):
            raise ValueError("name a benchmark, or give both question_tokens and answer_tokens")
        if self.load_fraction is not None and isinstance(self.arrivals, BurstArrivals):
            raise ValueError("load_fraction needs arrivals with a rate; a burst has none")
        return self

    def at_rate(self, tasks_per_s: float) -> Self:
        """Ask as many questions, or for as long, at another mean rate."""
        if self.arrivals is None or isinstance(self.arrivals, BurstArrivals):
            raise InternalError("these arrivals have no rate")
        arrivals = self.arrivals.at_rate(tasks_per_s)
        return self.model_copy(update={"arrivals": arrivals, "load_fraction": None})

    def asked_by(self, clients: int, tasks: int) -> Self:
        """Let clients ask questions like these, one after the other."""
        asked = {"arrivals": None, "load_fraction": None, "duration_s": None}
        return self.model_copy(update={**asked, "concurrency": clients, "tasks": tasks})


MixPart = Annotated[
    OpenLoopWorkload | TraceWorkload | SessionsWorkload | ProgramsWorkload,
    Field(discriminator="kind"),
]
"""What can run beside others."""


class MixWorkload(StrictModel):
    """Several workloads side by side, each of a tenant of its own."""

    kind: Literal["mix"]
    parts: Annotated[Mapping[str, MixPart], Field(min_length=1)]
    """The workloads by the name of their tenant."""

    @model_validator(mode="after")
    def _rates_are_known(self) -> Self:
        for name, part in self.parts.items():
            if getattr(part, "load_fraction", None) is not None:
                rate = "rate_requests_per_s"
                if isinstance(part, ProgramsWorkload):
                    rate = "arrivals with a rate_requests_per_s"
                msg = (
                    f"part {name!r} gives load_fraction, but what a system can do at most depends "
                    f"on the whole mix; give {rate} (run alone, the part is told what the system "
                    "can do of it at most)"
                )
                raise ValueError(msg)
        return self


Workload = Annotated[
    OpenLoopWorkload
    | ClosedLoopWorkload
    | TraceWorkload
    | SessionsWorkload
    | ProgramsWorkload
    | MixWorkload,
    Field(discriminator="kind"),
]
"""Any workload, told apart by ``kind``."""


def programs_of(workload: Workload) -> dict[tuple[str, ...], ProgramsWorkload]:
    """Give the programs of a workload by their keys in it, of which the last names the tenant.

    The key of a workload that is nothing else is empty.
    """
    if isinstance(workload, ProgramsWorkload):
        return {(): workload}
    parts = workload.parts.items() if isinstance(workload, MixWorkload) else ()
    return {("parts", name): part for name, part in parts if isinstance(part, ProgramsWorkload)}


def images_per_request(workload: Workload) -> frozenset[int]:
    """Give how many images the requests may have that have any; none: nobody sends images.

    Of a trace only the tokens are known: they count as those of one image.
    """
    if isinstance(workload, MixWorkload):
        return frozenset().union(*map(images_per_request, workload.parts.values()))
    if isinstance(workload, TraceWorkload):
        return frozenset({1})
    if isinstance(workload, SessionsWorkload | ProgramsWorkload) or workload.images is None:
        return frozenset()
    return frozenset({workload.images.per_request})
