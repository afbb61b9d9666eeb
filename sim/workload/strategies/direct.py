"""One answer in one call, and what all strategies that ask for answers have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from sim.schema import StrictModel
from sim.units import NonNegativeInt
from sim.workload.content import Content, Reuse
from sim.workload.programs import MAIN, Call, Control, OneOfEach, Task
from sim.workload.single import Integers, TokensLaw

ANSWER_HEAD = 0
"""Which of a task's shared beginnings tells a model how to answer (`Task.head`)."""

VERIFIER_HEAD = 1
"""Which of them tells a verifier how to judge."""

GATE_HEAD = 2
"""Which of them tells a gate how to estimate."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What working on a question has come to."""

    answer: int | None
    """Class of the answer; none where nothing is known of answers, or none has come."""
    solution: Call | None
    """The call whose completion is the answer; none where none has come."""
    agreement: float = 1.0
    """Share of the samples that say the same."""
    unanswered: str | None = None
    """Why no solution has come: what became of the call for it."""


class Answering(StrictModel):
    """How a model is asked for one answer.

    Its effort, on which the chance of a right answer depends, is the expected length of what it
    writes over that of a direct answer (`Task.answer_tokens`). It is not the length that happens
    to be drawn: a model that writes more than it does on average has met a harder question.
    """

    model: str = MAIN
    """Which of the case's models answers; its own model unless given."""
    instruction_tokens: NonNegativeInt = 0
    """Tokens in front of the question that all tasks share: instructions, worked examples."""
    answer_tokens: TokensLaw | None = None
    """Tokens of the answer; those of the workload's direct answers unless given."""
    thinking_tokens: TokensLaw | None = None
    """Tokens of thinking before the answer, in the same call; none unless given."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return frozenset({self.model} - {MAIN})

    def prompt(self, task: Task) -> Content:
        """Give the shared instructions and the question."""
        if not self.instruction_tokens:
            return task.asked
        return task.head(self.instruction_tokens, ANSWER_HEAD) + task.asked

    def output_tokens(
        self, task: Task, rng: np.random.Generator, count: int, steps: int = 1
    ) -> Integers:
        """Draw the lengths of some completions: thinking, and ``steps`` times an answer."""
        answers = (self.answer_tokens or task.answer_tokens).sample(rng, count) * steps
        if self.thinking_tokens is None:
            return answers
        return answers + self.thinking_tokens.sample(rng, count)

    def effort(self, task: Task, steps: int = 1) -> float:
        """Give the expected length of a completion, in those of the workload's direct answers."""
        answer = (self.answer_tokens or task.answer_tokens).mean_tokens * steps
        thinking = 0.0 if self.thinking_tokens is None else self.thinking_tokens.mean_tokens
        return (answer + thinking) / task.answer_tokens.mean_tokens

    def answer_class(self, task: Task, effort: float) -> int | None:
        """Draw the class of one answer; none where nothing is known of answers."""
        if not task.question.known:
            return None
        return int(task.question.answers(task.rng, 1, effort=effort, model=self.model)[0])


class Direct(Answering):
    """One call: the answer, after some thinking where a law of it is given.

    With ``thinking_tokens`` this is a reasoning model as served: one long call, of which the
    thinking was 70 % of the output on average in a recorded DeepSeek-R1 service (ServeGen,
    arXiv:2505.09999).
    """

    kind: Literal["direct"] = "direct"

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        ((call, answer),) = self.only_calls([task])
        yield call
        return answer

    def outcome(self, task: Task) -> Control:
        """Work on a question; the generator returns the `Outcome`."""
        ((call, answer),) = self._calls([task], "all")
        yield call
        return Outcome(answer, call)

    def only_calls(self, tasks: Sequence[Task]) -> list[tuple[Call, int | None]]:
        """Give the call of each task and the class of its answer."""
        alone = tasks[0].untouched and not self.instruction_tokens
        return self._calls(tasks, "none" if alone else "prompt")

    def _calls(self, tasks: Sequence[Task], reuse: Reuse) -> list[tuple[Call, int | None]]:
        first, model = tasks[0], self.model
        rng = cast("np.random.Generator", OneOfEach([task.rng for task in tasks]))
        lengths, effort = self.output_tokens(first, rng, len(tasks)), self.effort(first)
        calls = []
        for task, tokens in zip(tasks, lengths.tolist(), strict=True):
            answer = self.answer_class(task, effort)
            call = task.call("answer", self.prompt(task), tokens, model=model, reuse=reuse)
            calls.append((call, answer))
        return calls
