"""Candidates of a search: how many next steps a proposal lists, and where they stand in it."""

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.schema import StrictModel
from sim.units import PositiveInt
from sim.workload.content import Run
from sim.workload.programs import Call

PROPOSAL_HEAD = 100
"""First of the shared beginnings of prompts that ask for candidates (`Task.head`)."""

VALUE_HEAD = 200
"""First of those that ask for a judgement."""


class Candidates(StrictModel):
    """A lognormal number of candidates, rounded and clipped to a range.

    >>> Candidates(median=5).sample(np.random.default_rng(0), 3)
    array([5, 5, 5])
    """

    median: Annotated[float, Field(ge=1)]
    """Median before rounding."""
    sigma: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the natural logarithm; 0: always the median."""
    fewest: PositiveInt = 1
    """Fewest; smaller draws become this many."""
    most: PositiveInt | None = None
    """Most; larger draws become this many."""

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.most is not None and self.fewest > self.most:
            msg = f"fewest {self.fewest} is above most {self.most}"
            raise ValueError(msg)
        return self

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Return the numbers of candidates of ``count`` proposals."""
        drawn = np.rint(self.median * np.exp(self.sigma * rng.standard_normal(count)))
        return np.clip(drawn, self.fewest, self.most).astype(np.int64)


def lines_of(call: Call, tokens: list[int]) -> list[Run]:
    """Say which runs the candidates are that a completion lists one after the other.

    >>> lines_of(Call("propose", ((0, 0, 9),), 30, answer_stream=7), [10, 20])
    [(7, 0, 10), (7, 10, 20)]
    """
    starts = np.cumsum([0, *tokens])
    return [(call.answer_stream, int(start), n) for start, n in zip(starts, tokens, strict=False)]
