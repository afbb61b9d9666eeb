"""Agents: a model that calls tools, reads their results and goes on, until it answers."""

from typing import Literal

import numpy as np

from sim.units import Fraction, NonNegativeInt, Tokens
from sim.workload.content import tokens_of
from sim.workload.programs import Call, Control, Task
from sim.workload.single import TimeLaw, TokensLaw
from sim.workload.strategies.direct import Answering


class Agent(Answering):
    """A loop of model calls and tools on one growing transcript.

    Each model call either calls a tool, whose result is appended once it has run, or answers. A
    task with ``n`` tool calls is ``n + 1`` model calls; all but the first continue the one before.
    """

    kind: Literal["agent"] = "agent"
    max_tool_calls: NonNegativeInt
    """Most; after so many the model answers."""
    stop_fraction: Fraction = 0.0
    """Chance of each model call to answer instead of calling a tool."""
    tool_call_tokens: TokensLaw
    """Completion that calls a tool, with the reasoning before it."""
    tool_result_tokens: TokensLaw
    """What a tool appends to the transcript."""
    tool_wait: TimeLaw
    """How long a tool runs."""
    max_context_tokens: Tokens | None = None
    """Longest prompt; the model answers before a result that would exceed it."""

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        tools = self._tool_calls(task.rng)
        called = self.tool_call_tokens.sample(task.rng, tools).tolist()
        results = self.tool_result_tokens.sample(task.rng, tools).tolist()
        waits_s = self.tool_wait.sample(task.rng, tools).tolist()
        answer_tokens = int(self.output_tokens(task, task.rng, 1)[0])

        prompt = self.prompt(task)
        wait_s = 0.0
        for tokens, result_tokens, tool_s in zip(called, results, waits_s, strict=True):
            if not self._fits(tokens_of(prompt) + tokens + result_tokens):
                break
            call: Call = yield task.call("act", prompt, tokens, model=self.model, wait_s=wait_s)
            wait_s = tool_s
            prompt = call.transcript + task.text(result_tokens)
        yield task.call("answer", prompt, answer_tokens, model=self.model, wait_s=wait_s)
        called_tokens = self._mean_tool_calls * self.tool_call_tokens.mean_tokens
        effort = self.effort(task) + called_tokens / task.answer_tokens.mean_tokens
        return self.answer_class(task, effort)

    def _tool_calls(self, rng: np.random.Generator) -> int:
        """Draw how many tool calls come before the model wants to answer."""
        stops = rng.random(self.max_tool_calls) < self.stop_fraction
        return int(stops.argmax()) if stops.any() else self.max_tool_calls

    @property
    def _mean_tool_calls(self) -> float:
        """Expected tool calls: the n-th comes if the model did not stop before it."""
        return float(np.sum((1.0 - self.stop_fraction) ** np.arange(1, self.max_tool_calls + 1)))

    def _fits(self, tokens: int) -> bool:
        return self.max_context_tokens is None or tokens <= self.max_context_tokens
