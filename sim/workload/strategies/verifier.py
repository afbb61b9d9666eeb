"""Verifiers: models that score answers."""

from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from sim.schema import StrictModel
from sim.units import NonNegativeInt
from sim.workload.programs import MAIN, Call, Task
from sim.workload.single import ConstantTokens, Floats, Integers, TokensLaw
from sim.workload.strategies.direct import VERIFIER_HEAD

_JUDGES = {"outcome": "orm", "process": "prm", "generative": "generative"}
"""Names of verifiers in benchmarks, by their kind."""


class Verifier(StrictModel):
    """A model that reads a question and a solution to it, and says how good it is.

    A reward model scores in one forward pass: a prefill of question and solution, and one token.
    That holds for outcome reward models, which score the whole (Cobbe et al., arXiv:2110.14168),
    and for process reward models, which read the scores of all steps off the same pass (Lightman
    et al., arXiv:2305.20050). A generative verifier writes a chain of thought of its own before
    its verdict (ThinkPRM, arXiv:2504.16828).

    The sampling model as its own verifier goes on from the sample's transcript, the keys and
    values of which it has; any other reads instructions, question and solution.
    """

    model: str = MAIN
    """Which of the case's models verifies; its own model unless given."""
    kind: Literal["outcome", "process", "generative"]
    """What it scores: the outcome, every step, or what it writes about it."""
    output_tokens: TokensLaw = ConstantTokens(tokens=1)
    """Tokens that it writes; 1 for a score."""
    instruction_tokens: NonNegativeInt = 0
    """Tokens of instructions to it, which all tasks share."""
    judges_like: str | None = None
    """Which verifier of the benchmark it judges as well as (``laws.verifiers``); ``orm``, ``prm``
    or ``generative`` by its kind unless given."""

    @model_validator(mode="after")
    def _writes_what_its_kind_writes(self) -> Self:
        writes = "output_tokens" in self.model_fields_set
        if (self.kind == "generative") != writes:
            raise ValueError(
                "a generative verifier needs output_tokens, a law of what it writes; outcome and "
                "process verifiers write one token, so leave it out"
            )
        return self

    def scores(self, task: Task, rng: np.random.Generator, classes: Integers) -> Floats:
        """Draw what it thinks of answers."""
        name = self.judges_like or _JUDGES[self.kind]
        return task.question.scores(rng, classes, verifier=name)

    def call(self, task: Task, sample: Call, tokens: int) -> Call:
        """Ask what it thinks of a sample.

        Parameters
        ----------
        task : Task
        sample : Call
            It need not have been answered yet.
        tokens : int
            Length of what the verifier writes, drawn from ``output_tokens``.
        """
        instructions = task.head(self.instruction_tokens, VERIFIER_HEAD)
        if sample.model == self.model:
            prompt = sample.transcript + instructions
        else:
            solution = (sample.answer_stream, 0, sample.output_tokens)
            prompt = (*instructions, *task.asked, solution)
        return task.call("verify", prompt, tokens, model=self.model)
