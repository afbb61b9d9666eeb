"""Thinking to a budget: thinking that is cut off, or made to go on."""

from functools import cached_property
from typing import Literal

import numpy as np

from sim.units import NonNegativeInt, PositiveInt, Tokens
from sim.workload.programs import Control, Task
from sim.workload.single import Integers, TokensLaw
from sim.workload.strategies.direct import Answering, Outcome

_DRAWS = 2**14
"""Trains of thought from which the expected length under a budget is taken: its standard error
is the coefficient of variation over 128, below 1 %."""


class Budget(Answering):
    """Thinking that ends at a budget, or goes on where it would have ended.

    Budget forcing (Muennighoff et al., s1, arXiv:2501.19393): thinking is cut off at
    ``budget_tokens``; and ``waits`` times the end of thinking is replaced by the word "Wait", upon
    which the model thinks on. Each of these is a call that resumes on its own keys and values: its
    prompt is the transcript and a few tokens. The answer follows in the last of them. Once the
    budget is used up there are no further calls.
    """

    kind: Literal["budget"] = "budget"
    thinking_tokens: TokensLaw
    """Tokens of thinking until the model would end it."""
    budget_tokens: Tokens | None = None
    """Most tokens of thinking in all; as many as the model wants unless given."""
    waits: NonNegativeInt = 0
    """How often the model is made to think on."""
    wait_tokens: TokensLaw | None = None
    """Tokens of thinking after each of them; as before the first unless given."""
    wait_instruction_tokens: PositiveInt = 1
    """Tokens that make it think on, in front of each continuation."""

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        outcome = yield from self.outcome(task)
        return outcome.answer

    def outcome(self, task: Task) -> Control:
        """Work on a question; the generator returns the `Outcome`."""
        thinking = [tokens for tokens in self.thinking(task.rng, 1)[0].tolist() if tokens]
        answer_law = self.answer_tokens or task.answer_tokens
        thinking[-1] += int(answer_law.sample(task.rng, 1)[0])
        effort = (
            self.mean_thinking_tokens + answer_law.mean_tokens
        ) / task.answer_tokens.mean_tokens
        answer = self.answer_class(task, effort)
        prompt, call = self.prompt(task), None
        for number, tokens in enumerate(thinking):
            label = "resume" if number else "think"
            call = yield task.call(label, prompt, tokens, model=self.model)
            prompt = call.transcript + task.text(self.wait_instruction_tokens)
        return Outcome(answer, call)

    def thinking(self, rng: np.random.Generator, count: int) -> Integers:
        """Draw trains of thought.

        Returns
        -------
        numpy.ndarray
            Tokens, shape ``(count, 1 + waits)``: until the first end, and after each "Wait". The
            first is at least 1; those after the budget is used up are 0.
        """
        first = self.thinking_tokens.sample(rng, count)
        further = (self.wait_tokens or self.thinking_tokens).sample(rng, count * self.waits)
        wanted = np.column_stack([first, further.reshape(count, self.waits)])
        ends = np.cumsum(wanted, axis=1)
        if self.budget_tokens is not None:
            ends = np.minimum(ends, self.budget_tokens)
        return np.diff(ends, axis=1, prepend=0)

    @cached_property
    def mean_thinking_tokens(self) -> float:
        """Expected tokens of thinking: exact without a budget, else the mean of many draws."""
        if self.budget_tokens is None:
            further = self.wait_tokens or self.thinking_tokens
            return self.thinking_tokens.mean_tokens + self.waits * further.mean_tokens
        drawn = self.thinking(np.random.default_rng(0), _DRAWS)
        return float(drawn.sum(axis=1).mean())
