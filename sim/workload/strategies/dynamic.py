"""Allocation by difficulty: a gate guesses how hard a question is, and how much it is worth."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from sim.schema import StrictModel
from sim.units import Fraction, NonNegativeInt, Tokens
from sim.workload.programs import MAIN, Control, Task
from sim.workload.strategies.direct import GATE_HEAD

if TYPE_CHECKING:
    from sim.workload.strategies.kinds import StrategyKind


class Gate(StrictModel):
    """The call that guesses how hard a question is: a prefill of it, and hardly any output."""

    model: str = MAIN
    """Which of the case's models reads the question; its own model unless given."""
    output_tokens: Tokens = 1
    """Tokens that it writes."""
    instruction_tokens: NonNegativeInt = 0
    """Tokens of instructions to it, which all tasks share."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return frozenset({self.model} - {MAIN})


class _Gated(StrictModel):
    """What strategies have in common that guess before they work."""

    gate: Gate | None = None
    """The call that guesses; guessing costs nothing unless given."""

    def difficulty(self, task: Task) -> Control:
        """Guess how hard a question is; the generator returns the chance of a wrong answer.

        The guess is about one direct answer, and no better than `Question.estimate`.
        """
        guess = 1.0 - task.question.estimate(task.rng)
        if self.gate is not None:
            prompt = task.head(self.gate.instruction_tokens, GATE_HEAD) + task.asked
            yield task.call("gate", prompt, self.gate.output_tokens, model=self.gate.model)
        return guess

    @property
    def _gate_models(self) -> frozenset[str]:
        return frozenset() if self.gate is None else self.gate.models


class Router(_Gated):
    """One of two strategies, usually of a small and a large model, by the guessed difficulty.

    RouteLLM (Ong et al., arXiv:2406.18665) and Hybrid LLM (Ding et al., arXiv:2404.14618). Where a
    share f of the questions is guessed to be hard it costs (1 - f) c_easy + f c_hard, and the gate.
    """

    kind: Literal["router"] = "router"
    difficulty_threshold: Fraction
    """Guessed chance of a wrong direct answer from which on a question is hard."""
    easy: "StrategyKind"
    """For the questions below it."""
    hard: "StrategyKind"
    """For the others."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return self._gate_models | self.easy.models | self.hard.models

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        guess = yield from self.difficulty(task)
        chosen = self.easy if guess < self.difficulty_threshold else self.hard
        return (yield from chosen.control(task))


class Level(StrictModel):
    """A strategy, and up to which difficulty it is the one."""

    up_to: Fraction
    """Highest guessed chance of a wrong direct answer for which it is chosen."""
    strategy: "StrategyKind"
    """What such questions are given to."""


class Dynamic(_Gated):
    """One of several strategies of rising cost, by the guessed difficulty of the question.

    Compute goes where it is thought to pay (Snell et al., arXiv:2408.03314; Damani et al.,
    arXiv:2410.04707): from a direct answer to easy questions to ten thousand times that. A gate
    that guesses wrong wastes compute on easy questions and gives hard ones too little.
    """

    kind: Literal["dynamic"] = "dynamic"
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]
    """In rising order of ``up_to``; the last goes up to 1."""

    @model_validator(mode="after")
    def _levels_rise_to_one(self) -> Self:
        _check_levels([level.up_to for level in self.levels])
        return self

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return self._gate_models.union(*(level.strategy.models for level in self.levels))

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        guess = yield from self.difficulty(task)
        chosen = next((level for level in self.levels if guess <= level.up_to), self.levels[-1])
        return (yield from chosen.strategy.control(task))


def _check_levels(ends: Sequence[float]) -> None:
    for low, high in pairwise(ends):
        if low >= high:
            raise ValueError(f"levels must rise; up_to {low} is followed by {high}")
    if ends[-1] != 1:
        raise ValueError(f"the last level must go up to 1, not {ends[-1]}")
