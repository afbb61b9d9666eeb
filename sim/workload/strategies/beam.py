"""Beam search: many chains of thought step by step, the best of them kept by a reward model."""

from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import model_validator

from sim.schema import StrictModel
from sim.units import Fraction, NonNegativeInt, PositiveInt
from sim.workload.content import Content, joined
from sim.workload.programs import MAIN, Call, Control, Parallel, Task
from sim.workload.single import TokensLaw
from sim.workload.strategies.direct import ANSWER_HEAD, VERIFIER_HEAD
from sim.workload.strategies.verifier import Verifier


class _Path(NamedTuple):
    """One chain of thought so far, as the model and as the reward model read it."""

    chain: Content
    judged: Content


class Beam(StrictModel):
    """Beam search with a process reward model.

    In each step every beam writes one more step of its chain, and the reward model reads it. The
    best of the beams, one in ``width``, go on, each as ``width`` beams that share what it has
    written. Beams that reach their end leave the search, and their places with them.

    References
    ----------
    Snell et al., arXiv:2408.03314, section 5.2: N beams, beam width M, at most 40 steps.
    """

    kind: Literal["beam"] = "beam"
    beams: PositiveInt
    """Chains at the same time, and solutions in the end."""
    width: PositiveInt
    """Continuations of each chain that is kept; a divisor of ``beams``."""
    max_steps: PositiveInt
    """Steps after which every chain has ended."""
    step_tokens: TokensLaw
    """Of one step of one chain."""
    finish_fraction: Fraction = 0.0
    """Chance of each step to be the last of its chain."""
    model: str = MAIN
    """Which of the case's models writes the chains; its own model unless given."""
    instruction_tokens: NonNegativeInt = 0
    """Beginning that the prompts of all questions share."""
    verifier: Verifier
    """The reward model, which reads each chain after each step."""

    @model_validator(mode="after")
    def _beams_are_whole(self) -> Self:
        if self.beams % self.width:
            msg = f"beams {self.beams} is no multiple of width {self.width}"
            raise ValueError(msg)
        return self

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return frozenset({self.model, self.verifier.model} - {MAIN})

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        shape = (self.max_steps, self.beams)
        tokens = self.step_tokens.sample(task.rng, self.max_steps * self.beams).reshape(shape)
        ranks = task.rng.random(shape)
        ends = task.rng.random(shape) < self.finish_fraction
        verdicts = self.verifier.output_tokens.sample(task.rng, tokens.size).reshape(shape)

        question = task.asked
        start = _Path(
            task.head(self.instruction_tokens, ANSWER_HEAD) + question,
            task.head(self.verifier.instruction_tokens, VERIFIER_HEAD) + question,
        )
        paths = [start] * self.beams
        for step in range(self.max_steps):
            lengths = zip(tokens[step].tolist(), verdicts[step].tolist(), strict=True)
            calls = [
                self._step(task, path, *pair) for path, pair in zip(paths, lengths, strict=False)
            ]
            yield Parallel([_in_turn(pair) for pair in calls])
            grown = [_Path(chain.transcript, judged.prompt) for chain, judged in calls]
            going = np.flatnonzero(~ends[step, : len(grown)])
            # The best ones, each with `width` successors, as far as there are places for them.
            best = going[np.argsort(ranks[step, going])]
            paths = [grown[index] for index in best for _ in range(self.width)][: len(going)]
            if not paths:
                break
        if not task.question.known:
            return None
        return task.question.searched(
            task.rng, breadth=self.beams, depth=self.max_steps, model=self.model
        )

    def _step(self, task: Task, path: _Path, tokens: int, verdict_tokens: int) -> tuple[Call, Call]:
        """Write one more step of a chain, and have the chain judged."""
        call = task.call("step", path.chain, tokens, model=self.model)
        if self.verifier.model == self.model:
            return call, self.verifier.call(task, call, verdict_tokens)
        judged = joined(path.judged, (call.answer_stream, 0, tokens))
        return call, task.call("verify", judged, verdict_tokens, model=self.verifier.model)


def _in_turn(calls: tuple[Call, Call]) -> Control:
    yield calls[0]
    yield calls[1]
