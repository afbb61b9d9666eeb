"""Cascades: a cheap strategy first, a dear one where the first is not sure."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from sim.errors import InputError
from sim.quality import RIGHT
from sim.schema import StrictModel
from sim.units import Fraction
from sim.workload.programs import MAIN, Call, Control, Task
from sim.workload.strategies.budget import Budget
from sim.workload.strategies.chain import Chain
from sim.workload.strategies.direct import Direct, Outcome
from sim.workload.strategies.samples import Samples
from sim.workload.strategies.verifier import Verifier

if TYPE_CHECKING:
    from sim.workload.strategies.kinds import StrategyKind

Opening = Annotated[Direct | Chain | Budget | Samples, Field(discriminator="kind")]
"""What a cascade can begin with: what ends in one solution that can be judged."""


class Agreement(StrictModel):
    """Trust samples that agree (Yue et al., arXiv:2310.03094)."""

    kind: Literal["agreement"] = "agreement"
    threshold: Fraction
    """Share of the samples with the chosen answer from which on it stands."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return frozenset()

    def accepts(self, task: Task, outcome: Outcome) -> Control:
        """Judge an outcome; the generator returns whether it stands."""
        del task
        _known(outcome)
        return outcome.agreement >= self.threshold
        yield  # a generator that asks nobody


class Score(StrictModel):
    """Trust what a verifier scores high (FrugalGPT: Chen et al., arXiv:2305.05176)."""

    kind: Literal["score"] = "score"
    verifier: Verifier
    """What reads the solution."""
    threshold: float
    """Score from which on the answer stands."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return frozenset({self.verifier.model} - {MAIN})

    def accepts(self, task: Task, outcome: Outcome) -> Control:
        """Judge an outcome; the generator returns whether it stands."""
        answer, solution = _known(outcome)
        answers = np.array([answer], dtype=np.int64)
        score = float(self.verifier.scores(task, task.rng, answers)[0])
        tokens = int(self.verifier.output_tokens.sample(task.rng, 1)[0])
        yield self.verifier.call(task, solution, tokens)
        return score >= self.threshold


class Check(StrictModel):
    """Trust what a perfect check passes, such as unit tests or a proof checker, which is free."""

    kind: Literal["check"] = "check"

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return frozenset()

    def accepts(self, task: Task, outcome: Outcome) -> Control:
        """Judge an outcome; the generator returns whether it stands."""
        del task
        answer, _ = _known(outcome)
        return answer == RIGHT
        yield  # a generator that asks nobody


def _known(outcome: Outcome) -> tuple[int, Call]:
    """Give an answer's class, which the question has to tell, and the call that gave it."""
    if outcome.answer is None or outcome.solution is None:
        raise InputError("a cascade has to know how good answers are: give a benchmark")
    return outcome.answer, outcome.solution


class Cascade(StrictModel):
    """One strategy, and another one after it where the first one's answer is not trusted.

    The first is usually one of a small model. Of the questions a share f goes on, so that the
    cascade costs c_first + f c_then; a `Router`, which predicts, costs (1 - f) c_easy + f c_hard.
    ``then`` may be a cascade itself.
    """

    kind: Literal["cascade"] = "cascade"
    first: Opening
    """What every question is tried with."""
    accept: Annotated[Agreement | Score | Check, Field(discriminator="kind")]
    """Whether its answer stands."""
    then: "StrategyKind"
    """What the other questions are given to, from the start."""

    @model_validator(mode="after")
    def _samples_can_agree(self) -> Self:
        first = self.first
        votes = isinstance(first, Samples) and first.select != "oracle"
        if isinstance(self.accept, Agreement) and not votes:
            raise ValueError(
                "accept by agreement needs several samples among which nobody knows the right one: "
                "make first of kind samples, and do not let it select by oracle"
            )
        return self

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return self.first.models | self.accept.models | self.then.models

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        outcome: Outcome = yield from self.first.outcome(task)
        if outcome.solution is not None and (yield from self.accept.accepts(task, outcome)):
            return outcome.answer
        return (yield from self.then.control(task))
