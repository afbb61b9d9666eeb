"""Test-time compute as programs: jobs of many model calls that depend on each other.

A strategy is a generator. It yields a `Call` and goes on when that is answered, or it yields
`Parallel` branches and goes on when all of them are over, or enough; what it returns is the answer
to its question. It knows nothing of engines and clocks. Whoever runs it decides when calls are
answered: a simulated cluster, or `answered_at_once`.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sim.errors import InternalError
from sim.quality import Question
from sim.seeds import BLOCK_STREAMS, numbered_streams
from sim.workload.content import SYSTEM_STREAM, Content, Reuse, in_part, joined, tokens_of
from sim.workload.single import TokensLaw

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

MAIN = ""
"""The model of the case itself, as calls name it."""

TASK_STREAMS = 1_000_000
"""Texts of one task at most."""

HEADS = 1_000
"""Shared beginnings of prompts that one strategy can tell apart."""


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt and its completion."""

    label: str
    """What it is for, in tables and traces: ``sample``, ``vote``."""
    prompt: Content
    output_tokens: int
    answer_stream: int
    """Stream of the completion's tokens, which begin at position 0."""
    model: str = MAIN
    """Which of the case's models computes it."""
    wait_s: float = 0.0
    """From when it could be sent until it is: a tool runs."""
    reuse: Reuse = "all"
    """What of it other calls may begin with. Less is a promise that spares the prefix cache work
    and changes nothing else."""

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompt."""
        return tokens_of(self.prompt)

    @property
    def transcript(self) -> Content:
        """Prompt and completion: what a call that continues this one begins with."""
        return joined(self.prompt, (self.answer_stream, 0, self.output_tokens))


@dataclass(frozen=True, slots=True)
class Parallel:
    """Branches that run side by side, and a barrier at their end."""

    branches: "Sequence[Call | Control]"
    enough: Callable[[Sequence[Any]], bool] | None = None
    """Asked after each branch, with the results so far in the order in which they came: whether
    the others are to be cancelled. None of them is unless given."""


Control = Generator["Call | Parallel", Any, Any]
"""What a strategy does about one question.

It is sent the `Call` itself when that is answered, and a list with the result of each branch when
`Parallel` branches are over, in their own order: the call or what the generator returned, none for
those that were cancelled. A call that is not answered raises `Unanswered` where it was yielded.
"""


class Unanswered(Exception):  # noqa: N818 - what has happened, not an error of anybody
    """A call has left without an answer; its one argument is the outcome."""


class Strategy(Protocol):
    """A way to spend compute on questions."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        ...

    def control(self, task: "Task") -> Control:
        """Begin to work on a question; what the generator returns is the answer's class.

        Nothing is asked about the question when it is over. Strategies within others rely on it,
        when they promise that nobody goes on from a call.
        """
        ...


@runtime_checkable
class OneCallStrategy(Protocol):
    """A strategy whose programs are one call each, so that nobody has to wait to know it."""

    def only_calls(self, tasks: "Sequence[Task]") -> "list[tuple[Call, int | None]]":
        """Give the call of each task and the class of its answer, all of one workload.

        The same as `Strategy.control` yields and returns, for many tasks at a fraction of the cost.
        """
        ...


class OneOfEach:
    """Random generators side by side: draws as many numbers as there are, one from each.

    Stands for a generator where laws of tokens draw: each task then gets what it would get alone.
    """

    def __init__(self, rngs: Sequence[np.random.Generator]) -> None:
        self._rngs = rngs

    def standard_normal(self, count: int) -> Floats:
        """Draw normal numbers."""
        return np.array([rng.standard_normal() for rng in self._each(count)])

    def random(self, count: int) -> Floats:
        """Draw uniform numbers."""
        return np.array([rng.random() for rng in self._each(count)])

    def integers(self, low: int, high: int, count: int) -> Integers:
        """Draw whole numbers below ``high``."""
        return np.array([rng.integers(low, high, 1)[0] for rng in self._each(count)])

    def _each(self, count: int) -> Sequence[np.random.Generator]:
        if count != len(self._rngs):
            raise InternalError(f"{count} numbers of {len(self._rngs)} generators, one of each")
        return self._rngs


@dataclass
class Task:
    """One question that a strategy works on.

    Everything random about it comes from ``rng``. A strategy that branches draws what its branches
    need before they begin, or gives them streams of their own (`rng.spawn`): in which order
    branches get on must not change what they draw.
    """

    number: int
    rng: np.random.Generator
    question: Question
    """Its difficulty, and what answers turn out to be."""
    question_tokens: int
    answer_tokens: TokensLaw
    """Length of one direct answer to questions like this, for strategies that give none."""
    first_stream: int = 0
    """Streams from here on are its own."""
    part: int = 0
    """Part of a mix that it belongs to: no other part has its beginnings of prompts."""
    _streams: int = field(default=0, init=False)
    _asked: Content | None = field(default=None, init=False)

    @property
    def untouched(self) -> bool:
        """Whether it has no text yet, so that no call before has one of its texts."""
        return not self._streams

    def stream(self) -> int:
        """Give a stream that nobody has used."""
        self._streams += 1
        return self.first_stream + self._streams - 1

    def text(self, tokens: int) -> Content:
        """Give tokens that no other prompt has, until this text is part of one again."""
        return ((self.stream(), 0, tokens),) if tokens else ()

    @property
    def asked(self) -> Content:
        """The question's text: the same tokens in every prompt that holds it."""
        asked = self._asked
        if asked is None:
            asked = self._asked = self.text(self.question_tokens)
        return asked

    def head(self, tokens: int, number: int = 0) -> Content:
        """Give the beginning that prompts of one kind share in all tasks: instructions, examples.

        Parameters
        ----------
        tokens : int
        number : int
            Which of the strategy's beginnings, below `HEADS`.
        """
        if not 0 <= number < HEADS:
            raise InternalError(f"beginning {number} of a strategy that may have {HEADS}")
        head = ((SYSTEM_STREAM - 1 - number, 0, tokens),) if tokens else ()
        return in_part(head, self.part)

    def call(
        self,
        label: str,
        prompt: Content,
        output_tokens: int,
        *,
        model: str = MAIN,
        wait_s: float = 0.0,
        reuse: Reuse = "all",
    ) -> Call:
        """Ask for a completion of a prompt."""
        return Call(label, prompt, output_tokens, self.stream(), model, wait_s, reuse)


@dataclass(frozen=True)
class ProgramPlans:
    """Questions of a workload, and how and when they are worked on."""

    strategy: Strategy
    questions: Sequence[Question]
    question_tokens: Integers
    """Of each question, without the strategy's instructions."""
    answer_tokens: TokensLaw
    """Length of a direct answer."""
    seed: int
    names: tuple[str | int, ...] = ()
    """Of the random streams, see `sim.seeds.stream`."""
    start_s: Floats | None = None
    """When each is asked, rising; none: clients ask them (see ``clients``)."""
    clients: int = 0
    """Closed-loop clients, each of which waits for its answer before it asks its next question."""
    first_stream: int = 0
    """Texts of the programs are in streams from here on."""
    first_number: int = 0
    """Number of the first question in tables: other programs of a mix have those before it."""
    tenant: int = 0
    """Index of the tenant whose questions they are."""
    part: int = 0
    """Place in the mix."""

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.questions)

    @property
    def question_notes(self) -> tuple[str, ...]:
        """What has been asked of the questions so far that no law of theirs covers."""
        notes: tuple[str, ...] = getattr(self.questions, "notes", ())
        return notes

    def starts(self) -> list[float]:
        """Return when each question is asked, in seconds; at once where clients ask."""
        return [0.0] * len(self) if self.start_s is None else self.start_s.tolist()

    @cached_property
    def _streams(self) -> Callable[[int], np.random.Generator]:
        return numbered_streams(self.seed, *self.names, "tasks")

    def task(self, number: int) -> Task:
        """Return one question to be worked on: the same whenever it is asked for."""
        return Task(
            number,
            self._streams(number),
            self.questions[number],
            int(self.question_tokens[number]),
            self.answer_tokens,
            self.first_stream + number * TASK_STREAMS,
            self.part,
        )

    def control(self, number: int) -> Control:
        """Begin to work on a question."""
        return self.strategy.control(self.task(number))

    def only_calls(self) -> Iterator[tuple[Call, int | None]] | None:
        """Give what each question takes, in their order, and its answer; none: ask `control`."""
        strategy = self.strategy
        if not isinstance(strategy, OneCallStrategy):
            return None
        blocks = (
            range(first, min(first + BLOCK_STREAMS, len(self)))
            for first in range(0, len(self), BLOCK_STREAMS)
        )
        return chain.from_iterable(
            strategy.only_calls(list(map(self.task, block))) for block in blocks
        )


@dataclass
class Ledger:
    """What a program asked for, had all calls been answered at once."""

    calls: list[Call] = field(default_factory=list)
    """In the order in which they were sent."""
    answer: Any = None
    """What the strategy returned."""
    critical_calls: int = 0
    """Most calls that waited for one another."""

    @property
    def input_tokens(self) -> int:
        """Of all prompts."""
        return sum(call.input_tokens for call in self.calls)

    @property
    def output_tokens(self) -> int:
        """Of all completions."""
        return sum(call.output_tokens for call in self.calls)


def answered_at_once(control: Control, refused: Callable[[Call], bool] | None = None) -> Ledger:
    """Run a program in no time: branches one after the other, in their order.

    A branch after enough of them are over is not begun, so that this is the least that a program
    asks for.

    Parameters
    ----------
    control : generator
    refused : callable, optional
        Whether a call gets no answer; all get one unless given.

    Raises
    ------
    Unanswered
        The program cannot do without a call that was refused.
    """
    ledger = Ledger()
    ledger.answer, ledger.critical_calls = _run(control, ledger, refused)
    return ledger


def _run(
    control: Control, ledger: Ledger, refused: Callable[[Call], bool] | None
) -> tuple[Any, int]:
    """Give what a generator returns, and how many of its calls waited for one another."""
    reply: Any = None
    failure: Unanswered | None = None
    depth = deeper = 0
    while True:
        try:
            step = control.send(reply) if failure is None else control.throw(failure)
        except StopIteration as stop:
            return stop.value, depth
        reply = failure = None
        try:
            if isinstance(step, Call):
                reply, deeper = _answered(step, ledger, refused), 1
            else:
                reply, deeper = _branches(step, ledger, refused)
        except Unanswered as unanswered:
            failure, deeper = unanswered, 0
        depth += deeper


def _answered(call: Call, ledger: Ledger, refused: Callable[[Call], bool] | None) -> Call:
    ledger.calls.append(call)
    if refused is not None and refused(call):
        raise Unanswered("rejected")
    return call


def _branches(
    step: Parallel, ledger: Ledger, refused: Callable[[Call], bool] | None
) -> tuple[list[Any], int]:
    results: list[Any] = [None] * len(step.branches)
    came: list[Any] = []
    deepest = 0
    for place, branch in enumerate(step.branches):
        if isinstance(branch, Call):
            results[place], depth = _answered(branch, ledger, refused), 1
        else:
            results[place], depth = _run(branch, ledger, refused)
        deepest = max(deepest, depth)
        came.append(results[place])
        if step.enough is not None and step.enough(came):
            break
    return results, deepest
