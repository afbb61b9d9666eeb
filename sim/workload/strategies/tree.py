"""Trees of thoughts, breadth first: propose next steps, value them, keep the best, go on."""

from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from sim.schema import StrictModel
from sim.units import NonNegativeInt, PositiveInt
from sim.workload.content import Content, joined
from sim.workload.programs import MAIN, Call, Control, Parallel, Task
from sim.workload.single import TokensLaw
from sim.workload.strategies.candidates import (
    PROPOSAL_HEAD,
    VALUE_HEAD,
    Candidates,
    lines_of,
)

Sigma = Annotated[float, Field(ge=0)]


class Generation(StrictModel):
    """How candidates come from a state."""

    how: Literal["propose", "sample"] = "propose"
    """``propose``: one call lists all candidates of a state; ``sample``: one call for each."""
    candidates: Candidates
    """Of one state."""
    candidate_tokens: TokensLaw | None = None
    """Of one candidate; as many as a direct answer has unless given."""
    instruction_tokens: NonNegativeInt = 0
    """Beginning of the prompts, examples with it; stages whose beginnings are equally long share
    one."""
    state_tokens: TokensLaw | None = None
    """What a prompt shows of the state, in place of question and candidates on the way to it."""


class RepeatedStates(StrictModel):
    """States that were valued before, in this task or an earlier one, and are not again.

    The share that is new falls as tasks are done, as Heaps' law has it: in task ``n``, from 0, it
    is ``first_fraction * (n + 1) ** -exponent``, at most 1.
    """

    first_fraction: Annotated[float, Field(gt=0)]
    """Share of new states in the first task; above 1, all are new for some tasks."""
    exponent: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 where tasks know nothing of each other."""


class Valuation(StrictModel):
    """How candidates are judged."""

    how: Literal["value", "vote"] = "value"
    """``value``: each candidate has prompts of its own; ``vote``: one prompt shows them all."""
    votes: PositiveInt = 1
    """Completions of each prompt."""
    vote_tokens: TokensLaw
    """Of one completion."""
    instruction_tokens: NonNegativeInt = 0
    """Beginning of the prompts, examples with it; stages whose beginnings are equally long share
    one."""
    state_tokens: TokensLaw | None = None
    """What a prompt shows of one candidate, in place of the question and the way to it."""
    new_states: RepeatedStates | None = None
    """How many candidates are valued where equal states are valued once; all unless given."""

    @model_validator(mode="after")
    def _votes_see_all(self) -> Self:
        if self.how == "vote" and (self.new_states is not None or self.state_tokens is not None):
            msg = "new_states and state_tokens are of how: value; a vote shows all candidates"
            raise ValueError(msg)
        return self


class Stage(StrictModel):
    """One step of the search."""

    generate: Generation
    """New candidates from each state."""
    value: Valuation | None = None
    """Judgement of the candidates; without, the first ones are kept."""
    keep: PositiveInt
    """Candidates that become the states of the next stage."""


class BetweenQuestions(StrictModel):
    """How much questions differ from each other beyond chance, as lognormal factors of mean 1."""

    new_states_sigma: Sigma = 0.0
    """Of the share of new states."""
    vote_tokens_sigma: Sigma = 0.0
    """Of the lengths of votes."""


class _Factors(NamedTuple):
    """What is special about one question."""

    new_states: float
    vote_tokens: float


class Tree(StrictModel):
    """Breadth-first search of a tree of thoughts.

    Each stage asks for candidates from all of its states side by side, waits for all of them, has
    them valued side by side, waits again, and keeps the best.

    References
    ----------
    Yao et al., arXiv:2305.10601.
    """

    kind: Literal["tree"] = "tree"
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """In their order."""
    final_tokens: TokensLaw | None = None
    """Of a last call that answers from the best state; none unless given."""
    between_questions: BetweenQuestions = BetweenQuestions()
    """What one question has more or less of than another."""

    model: str = MAIN
    """Which of the case's models searches; its own model unless given."""
    judge_model: str | None = None
    """Which of them values candidates; the one that searches unless given."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return frozenset({self.model, self.judge_model or MAIN} - {MAIN})

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        spread = self.between_questions
        factors = _Factors(
            _factor(task.rng, spread.new_states_sigma), _factor(task.rng, spread.vote_tokens_sigma)
        )
        states = [task.asked]
        for stage in self.stages:
            candidates = yield from self._generated(task, stage.generate, states)
            order = np.arange(len(candidates))
            if stage.value is not None:
                yield from self._valued(task, stage.value, candidates, factors)
                order = task.rng.permutation(len(candidates))
            states = [candidates[index] for index in order[: stage.keep].tolist()]
        if self.final_tokens is not None:
            tokens = int(self.final_tokens.sample(task.rng, 1)[0])
            yield task.call("answer", states[0], tokens, model=self.model)
        if not task.question.known:
            return None
        breadth = max(stage.keep for stage in self.stages)
        return task.question.searched(
            task.rng, breadth=breadth, depth=len(self.stages), model=self.model
        )

    def _generated(self, task: Task, law: Generation, states: list[Content]) -> Control:
        """Ask for the candidates of some states; returns those."""
        counts = law.candidates.sample(task.rng, len(states)).tolist()
        lengths = {stage.generate.instruction_tokens for stage in self.stages}
        head = _head(task, PROPOSAL_HEAD, lengths, law.instruction_tokens)
        calls: list[Call] = []
        candidates: list[Content] = []
        lengths_law = law.candidate_tokens or task.answer_tokens
        for state, count in zip(states, counts, strict=True):
            tokens = lengths_law.sample(task.rng, count).tolist()
            prompt = head + _shown(task, law.state_tokens, state)
            if law.how == "propose":
                asked = [task.call("propose", prompt, sum(tokens), model=self.model)]
                lines = lines_of(asked[0], tokens)
            else:
                asked = [task.call("sample", prompt, n, model=self.model) for n in tokens]
                lines = [(call.answer_stream, 0, call.output_tokens) for call in asked]
            calls += asked
            candidates += [joined(state, line) for line in lines]
        yield Parallel(calls)
        return candidates

    def _valued(
        self, task: Task, law: Valuation, candidates: list[Content], factors: _Factors
    ) -> Control:
        """Have candidates judged."""
        lengths = {each.value.instruction_tokens for each in self.stages if each.value is not None}
        head = _head(task, VALUE_HEAD, lengths, law.instruction_tokens)
        if law.how == "vote":
            shown = [run for state in candidates for run in state[1:]]
            prompts = [(*head, *task.asked, *shown)]
        else:
            new = _new(task, law.new_states, len(candidates), factors)
            prompts = [head + _shown(task, law.state_tokens, candidates[index]) for index in new]
        drawn = law.vote_tokens.sample(task.rng, len(prompts) * law.votes)
        tokens = np.maximum(1, np.rint(drawn * factors.vote_tokens)).astype(int).tolist()
        judge = self.model if self.judge_model is None else self.judge_model
        asked = [prompt for prompt in prompts for _ in range(law.votes)]
        calls = [
            task.call(law.how, prompt, n, model=judge)
            for prompt, n in zip(asked, tokens, strict=True)
        ]
        if calls:
            yield Parallel(calls)


def _new(task: Task, law: RepeatedStates | None, count: int, factors: _Factors) -> list[int]:
    """Draw which of some candidates were not valued before."""
    if law is None:
        return list(range(count))
    share = law.first_fraction * (task.number + 1) ** -law.exponent * factors.new_states
    return [int(index) for index in np.flatnonzero(task.rng.random(count) < share)]


def _head(task: Task, first: int, lengths: set[int], tokens: int) -> Content:
    """Give the beginning of prompts of one purpose: the same where it is equally long."""
    return task.head(tokens, first + sorted(lengths).index(tokens))


def _shown(task: Task, state_tokens: TokensLaw | None, state: Content) -> Content:
    """Say what a prompt shows of a state."""
    if state_tokens is None:
        return state
    return task.text(int(state_tokens.sample(task.rng, 1)[0]))


def _factor(rng: np.random.Generator, sigma: float) -> float:
    """Draw a lognormal factor of mean 1."""
    return float(np.exp(sigma * rng.standard_normal() - sigma**2 / 2))
