"""Revisions: answers one after the other, each with the last few before it in its context."""

from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from sim.schema import KeyedValueError
from sim.units import PositiveInt
from sim.workload.programs import MAIN, Call, Control, Parallel, Task
from sim.workload.strategies.direct import Answering
from sim.workload.strategies.verifier import Verifier
from sim.workload.strategies.voting import majority


class Revisions(Answering):
    """A chain of answers, each with those before it in its prompt, and a choice among them.

    Only the last ``kept`` answers are in the context. While the chain is shorter each call
    continues the one before; once the window slides, what follows the question is different in
    every prompt, and a prefix cache saves the question alone.

    References
    ----------
    Snell et al., arXiv:2408.03314, section 6: revision models, context of the last four answers,
    choice by vote or verifier because right answers get revised too.
    """

    kind: Literal["revisions"] = "revisions"
    answers: PositiveInt
    """Length of the chain, the first answer included."""
    kept: PositiveInt = 4
    """Most answers in a context."""
    select: Literal["last", "majority", "verifier"] = "majority"
    """Which answer of the chain is given."""
    verifier: Verifier | None = None
    """Who scores the answers, each in a call of its own, where ``select`` says so."""

    @model_validator(mode="after")
    def _verifier_selects(self) -> Self:
        if (self.select == "verifier") != (self.verifier is not None):
            needed = self.verifier is None
            what = "needs a verifier" if needed else "has no use for a verifier: leave it out"
            msg = f"select {self.select} {what}"
            raise KeyedValueError(msg, "select" if needed else "verifier")
        return self

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        others = frozenset() if self.verifier is None else frozenset({self.verifier.model} - {MAIN})
        return super().models | others

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        lengths = self.output_tokens(task, task.rng, self.answers).tolist()
        classes = self._classes(task)
        score_tokens: list[int] = []
        if self.verifier is not None:
            score_tokens = self.verifier.output_tokens.sample(task.rng, self.answers).tolist()
        beginning = self.prompt(task)
        chain: list[Call] = []
        for tokens in lengths:
            context = [(call.answer_stream, 0, call.output_tokens) for call in chain[-self.kept :]]
            label = "revise" if chain else "answer"
            call = yield task.call(label, (*beginning, *context), tokens, model=self.model)
            chain.append(call)
        if self.verifier is not None:
            pairs = zip(chain, score_tokens, strict=True)
            yield Parallel([self.verifier.call(task, call, tokens) for call, tokens in pairs])
        return self._chosen(task, classes)

    def _classes(self, task: Task) -> list[int]:
        """Draw what the answers of the chain turn out to be; none if nobody knows."""
        effort = self.effort(task)
        first = self.answer_class(task, effort)
        if first is None:
            return []
        classes = [first]
        for before in range(self.answers - 1):
            classes.append(
                task.question.revised(
                    task.rng, classes[-1], rounds_before=before, effort=effort, model=self.model
                )
            )
        return classes

    def _chosen(self, task: Task, classes: list[int]) -> int | None:
        """Choose one answer of the chain; none where nothing is known of them."""
        if not classes:
            return None
        if self.select == "last":
            return classes[-1]
        if self.verifier is None:
            return majority(classes)
        answers = np.array(classes, dtype=np.int64)
        return int(answers[np.argmax(self.verifier.scores(task, task.rng, answers))])
