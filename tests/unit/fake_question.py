"""A question of which a test decides everything, and tasks that ask it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.workload.content import Content
from sim.workload.programs import Call, Task
from sim.workload.single import ConstantTokens, TokensLaw


@dataclass
class FakeQuestion:
    """Answers are right with one chance for each model; wrong ones are even over some classes.

    Verifiers score right answers evenly over 0.2 to 1, wrong ones over 0 to 0.8. The guess of a
    gate is ``guess``, or the chance where that is none.
    """

    chance: float = 0.5
    wrong: int = 3
    of_model: Mapping[str, float] = field(default_factory=dict)
    guess: float | None = None
    known: bool = True
    asked: list[tuple[int, float, str]] = field(default_factory=list)
    """Count, effort and model of each time that answers were drawn."""
    notes: list[str] = field(default_factory=list)
    choices: list[tuple[int, str]] = field(default_factory=list)
    """Number of answers and way to choose, of each choice without scores."""

    def answers(
        self, rng: np.random.Generator, count: int, *, effort: float = 1.0, model: str = ""
    ) -> NDArray[np.int64]:
        self.asked.append((count, effort, model))
        drawn = rng.random((count, 2))
        right = drawn[:, 0] < self.of_model.get(model, self.chance)
        return np.where(right, 0, 1 + np.floor(drawn[:, 1] * self.wrong)).astype(np.int64)

    def choose(self, count: int, *, by: str, model: str = "") -> None:
        del model
        self.choices.append((count, by))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def scores(
        self, rng: np.random.Generator, answers: NDArray[np.int64], *, verifier: str
    ) -> NDArray[np.float64]:
        del verifier
        return 0.8 * rng.random(len(answers)) + np.where(answers == 0, 0.2, 0.0)

    def revised(
        self,
        rng: np.random.Generator,
        answer: int,
        *,
        rounds_before: int,
        effort: float = 1.0,
        model: str = "",
    ) -> int:
        raise NotImplementedError

    def searched(
        self, rng: np.random.Generator, *, breadth: int, depth: int, model: str = ""
    ) -> int:
        raise NotImplementedError

    def estimate(self, rng: np.random.Generator) -> float:
        del rng
        return self.chance if self.guess is None else self.guess


@dataclass
class ToldQuestion(FakeQuestion):
    """A question of which the answers, and what a verifier thinks of them, are given."""

    told: Sequence[int] = ()
    told_scores: Sequence[float] = ()

    def answers(
        self, rng: np.random.Generator, count: int, *, effort: float = 1.0, model: str = ""
    ) -> NDArray[np.int64]:
        del rng
        self.asked.append((count, effort, model))
        return np.array(self.told[:count], dtype=np.int64)

    def scores(
        self, rng: np.random.Generator, answers: NDArray[np.int64], *, verifier: str
    ) -> NDArray[np.float64]:
        del rng, verifier
        return np.array(self.told_scores[: len(answers)])


def task_of(
    question: FakeQuestion | None = None,
    seed: int = 0,
    *,
    question_tokens: int = 100,
    answer_tokens: TokensLaw | None = None,
) -> Task:
    """Give a task: a question of 100 tokens and direct answers of 20 unless it is told."""
    return Task(
        number=0,
        rng=np.random.default_rng(seed),
        question=question or FakeQuestion(),
        question_tokens=question_tokens,
        answer_tokens=answer_tokens or ConstantTokens(tokens=20),
        first_stream=1000,
    )


def common_tokens(one: Content, other: Content) -> int:
    """Count the tokens with which two contents begin alike."""
    count = 0
    for (stream, start, tokens), (stream_2, start_2, tokens_2) in zip(one, other, strict=False):
        if (stream, start) != (stream_2, start_2):
            break
        count += min(tokens, tokens_2)
        if tokens != tokens_2:
            break
    return count


def prefill_tokens(calls: Sequence[Call], model: str = "") -> tuple[int, int]:
    """Count the tokens of a model's prompts: all, and those that no earlier call of it has had.

    The second is what a prefix cache without blocks and without a limit leaves to compute.
    """
    seen: list[Content] = []
    everything = new = 0
    for call in calls:
        if call.model == model:
            cached = max((common_tokens(call.prompt, each) for each in seen), default=0)
            everything += call.input_tokens
            new += call.input_tokens - cached
            seen.append(call.transcript)
    return everything, new
