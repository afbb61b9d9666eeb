"""Refinement: answer, criticise the answer, rewrite it, several times over (Self-Refine)."""

from typing import Literal, Self

from pydantic import model_validator

from sim.errors import InputError
from sim.quality import RIGHT
from sim.schema import StrictModel
from sim.units import Fraction, NonNegativeInt, PositiveInt
from sim.workload.programs import MAIN, Call, Control, Task
from sim.workload.single import TokensLaw
from sim.workload.strategies.direct import Answering


class ContentCritic(StrictModel):
    """When the critic is content with an answer, which ends the refinement.

    A critic that knows nothing of the answer has two equal fractions; it works without a benchmark.
    """

    accepts_right_fraction: Fraction
    """Chance that it is content with a right answer; one less it is the false-alarm rate."""
    accepts_wrong_fraction: Fraction
    """Chance that it is content with a wrong answer."""

    @property
    def looks(self) -> bool:
        """Whether its verdict depends on the answer."""
        return self.accepts_right_fraction != self.accepts_wrong_fraction


class Refine(Answering):
    """An answer, then rounds of critique and rewriting, all in one transcript.

    Each call continues the one before, so that a prefix cache saves all of its prompt but the
    instruction.

    References
    ----------
    Self-Refine: Madaan et al., arXiv:2303.17651.
    """

    kind: Literal["refine"] = "refine"
    rounds: PositiveInt
    """Most rounds after the first answer."""
    separate_critique: bool = True
    """Whether critique and rewriting are two calls; else one call writes both."""
    critique_tokens: TokensLaw
    """Of one critique."""
    rewrite_tokens: TokensLaw | None = None
    """Of a rewritten answer; as the first unless given."""
    critique_instruction_tokens: NonNegativeInt = 0
    """What asks for the critique, or for critique and rewriting in one call."""
    rewrite_instruction_tokens: NonNegativeInt = 0
    """What asks for the rewriting in a call of its own."""
    critic_model: str | None = None
    """Which of the case's models criticises, in calls of its own; the one that answers unless
    given."""
    stop: ContentCritic | None = None
    """When to end before the last round; never unless given."""

    @model_validator(mode="after")
    def _critic_is_separate(self) -> Self:
        if self.critic_model is not None and not self.separate_critique:
            msg = f"critic_model {self.critic_model} needs separate_critique: true"
            raise ValueError(msg)
        return self

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return super().models | frozenset({self.critic_model or MAIN} - {MAIN})

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        first_tokens = int(self.output_tokens(task, task.rng, 1)[0])
        rewrites = self.rewrite_tokens or self.answer_tokens or task.answer_tokens
        critique_tokens = self.critique_tokens.sample(task.rng, self.rounds).tolist()
        rewrite_tokens = rewrites.sample(task.rng, self.rounds).tolist()
        verdicts = task.rng.random(self.rounds).tolist()
        effort = self.effort(task)
        answer = self.answer_class(task, effort)

        call: Call = yield task.call("answer", self.prompt(task), first_tokens, model=self.model)
        for done in range(self.rounds):
            content = self._is_content(answer, verdicts[done])
            written = 0 if content else rewrite_tokens[done]
            call = yield self._critique(task, call, critique_tokens[done], written)
            if content:
                break
            if self.separate_critique:
                asked = call.transcript + task.text(self.rewrite_instruction_tokens)
                call = yield task.call("rewrite", asked, written, model=self.model)
            if answer is not None:
                answer = task.question.revised(
                    task.rng, answer, rounds_before=done, effort=effort, model=self.model
                )
        return answer

    def _critique(self, task: Task, last: Call, tokens: int, rewrite_tokens: int) -> Call:
        """Ask for the critique, in one call with what is written after it unless that is apart."""
        asked = last.transcript + task.text(self.critique_instruction_tokens)
        if self.separate_critique:
            critic = self.model if self.critic_model is None else self.critic_model
            return task.call("critique", asked, tokens, model=critic)
        return task.call("refine", asked, tokens + rewrite_tokens, model=self.model)

    def _is_content(self, answer: int | None, draw: float) -> bool:
        if self.stop is None:
            return False
        if answer is None and self.stop.looks:
            raise InputError(
                "strategy refine: a critic that accepts right and wrong answers unequally has to "
                "know them: give a benchmark, or make stop.accepts_right_fraction and "
                "stop.accepts_wrong_fraction equal"
            )
        if answer == RIGHT:
            return draw < self.stop.accepts_right_fraction
        return draw < self.stop.accepts_wrong_fraction
