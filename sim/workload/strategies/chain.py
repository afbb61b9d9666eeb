"""Chain of thought: a longer answer, in one call or in several that go on from each other."""

from typing import Literal

from sim.units import NonNegativeInt, PositiveInt
from sim.workload.programs import Control, Task
from sim.workload.strategies.direct import Answering, Outcome


class Chain(Answering):
    """A chain of ``steps`` steps, each as long as a direct answer.

    In one call, as chain-of-thought prompting has it (Wei et al., arXiv:2201.11903), or with
    ``separate_calls`` in one call per step, each of which continues the transcript. Both write the
    same tokens; what separate calls cost on top is what stands between them and the way through
    the scheduler, for the prompt is in the cache but for the last of it.
    """

    kind: Literal["chain"] = "chain"
    steps: PositiveInt
    """Length of the chain, in direct answers."""
    separate_calls: bool = False
    """Whether each step is a call of its own."""
    step_instruction_tokens: NonNegativeInt = 0
    """Tokens that ask for the next step, where steps are calls of their own."""

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        outcome = yield from self.outcome(task)
        return outcome.answer

    def outcome(self, task: Task) -> Control:
        """Work on a question; the generator returns the `Outcome`."""
        step_tokens = int((self.answer_tokens or task.answer_tokens).sample(task.rng, 1)[0])
        tokens = [step_tokens] * self.steps if self.separate_calls else [step_tokens * self.steps]
        if self.thinking_tokens is not None:
            tokens[0] += int(self.thinking_tokens.sample(task.rng, 1)[0])
        answer = self.answer_class(task, self.effort(task, self.steps))
        prompt, call = self.prompt(task), None
        for each in tokens:
            call = yield task.call("step", prompt, each, model=self.model)
            prompt = call.transcript + task.text(self.step_instruction_tokens)
        return Outcome(answer, call)
