"""Depth-first search: try candidates one after the other, go deeper or turn back."""

from typing import Literal

from sim.schema import StrictModel
from sim.units import Fraction, NonNegativeInt, PositiveInt
from sim.workload.content import Content, joined
from sim.workload.programs import MAIN, Call, Control, Parallel, Task
from sim.workload.single import TokensLaw
from sim.workload.strategies.candidates import (
    PROPOSAL_HEAD,
    VALUE_HEAD,
    Candidates,
    lines_of,
)


class DepthFirst(StrictModel):
    """A depth-first search of a tree of thoughts, with pruning and a limit of its steps.

    In each state one call proposes candidates. A step tries one of them: some calls side by side
    judge the state that it leads to, and it is pruned or the search goes on from there. Where no
    candidate is left it turns back.

    References
    ----------
    Yao et al., arXiv:2305.10601, section 4.3: mini crosswords, at most 100 steps.
    """

    kind: Literal["dfs"] = "dfs"
    max_steps: PositiveInt
    """Candidates that are tried, at most."""
    depth: PositiveInt
    """Candidates on a way from the question to a full solution."""
    candidates: Candidates
    """That a proposal has."""
    candidate_tokens: TokensLaw
    """Of one candidate in a proposal."""
    max_tried: PositiveInt | None = None
    """Candidates of one state that are tried, the first ones; all unless given."""
    prune_fraction: Fraction
    """Chance of a candidate to be pruned."""
    solved_fraction: Fraction = 0.0
    """Chance of a state at full depth to be the solution, which ends the search."""
    judgements: PositiveInt = 1
    """Calls that judge one state, side by side."""
    judgement_tokens: TokensLaw
    """Of one judgement."""
    instruction_tokens: NonNegativeInt = 0
    """Beginning of the proposals' prompts, examples with it."""
    judgement_instruction_tokens: NonNegativeInt = 0
    """Beginning of the judgements' prompts."""
    state_tokens: TokensLaw | None = None
    """State as prompts show it, written anew each time; the candidates on the way to it, which
    share their prefixes, unless given."""

    model: str = MAIN
    """Which of the case's models searches; its own model unless given."""
    judge_model: str | None = None
    """Which of them judges; the one that searches unless given."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return frozenset({self.model, self.judge_model or MAIN} - {MAIN})

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        question = task.asked
        waiting = yield from self._proposed(task, 1, question, question)
        steps, solved = 0, False
        while waiting and steps < self.max_steps and not solved:
            steps += 1
            depth, path = waiting.pop()
            shown = self._shown(task, question, path)
            yield from self._judged(task, shown)
            pruned = bool(task.rng.random() < self.prune_fraction)
            if depth == self.depth:
                solved = not pruned and bool(task.rng.random() < self.solved_fraction)
            elif not pruned and steps < self.max_steps:
                waiting += yield from self._proposed(task, depth + 1, path, shown)
        if not task.question.known:
            return None
        breadth = max(1, round(self.candidates.median))
        return task.question.searched(task.rng, breadth=breadth, depth=self.depth, model=self.model)

    def _proposed(self, task: Task, depth: int, path: Content, shown: Content) -> Control:
        """Propose candidates of a state; returns them, the first one last."""
        count = int(self.candidates.sample(task.rng, 1)[0])
        tokens = self.candidate_tokens.sample(task.rng, count).tolist()
        prompt = task.head(self.instruction_tokens, PROPOSAL_HEAD) + shown
        call: Call = yield task.call("propose", prompt, sum(tokens), model=self.model)
        lines = lines_of(call, tokens)[: self.max_tried]
        return [(depth, joined(path, line)) for line in reversed(lines)]

    def _judged(self, task: Task, shown: Content) -> Control:
        """Have a state judged by some calls side by side."""
        judge = self.model if self.judge_model is None else self.judge_model
        prompt = task.head(self.judgement_instruction_tokens, VALUE_HEAD) + shown
        lengths = self.judgement_tokens.sample(task.rng, self.judgements).tolist()
        yield Parallel([task.call("value", prompt, tokens, model=judge) for tokens in lengths])

    def _shown(self, task: Task, question: Content, path: Content) -> Content:
        """Say what a prompt shows of a state."""
        if self.state_tokens is None:
            return path
        return question + task.text(int(self.state_tokens.sample(task.rng, 1)[0]))
