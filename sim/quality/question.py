"""What strategies may ask of a question, and the question of which nobody knows anything."""

from typing import Never, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.quality.grounds import Selection

RIGHT = 0
"""Class of the right answer; every other whole number is some wrong one."""


class MissingLawError(InputError):
    """A benchmark does not say what a strategy has to know."""

    law: str = ""
    """Which of its laws is missing, as `sim.quality.benchmark.Laws` names it."""
    entry: str = ""
    """Which entry of that, where it holds several; any unless given."""


class Question(Protocol):
    """One question: how hard it is, and what answers to it turn out to be."""

    @property
    def known(self) -> bool:
        """Whether anything is known of its answers."""
        ...

    @property
    def chance(self) -> float:
        """Chance that one direct answer is right."""
        ...

    def answers(
        self, rng: np.random.Generator, count: int, *, effort: float = 1.0, model: str = ""
    ) -> NDArray[np.int64]:
        """Draw the classes of independent answers.

        Parameters
        ----------
        rng : numpy.random.Generator
        count : int
        effort : float
            Length of the chain of thought, in those of a direct answer.
        model : str
            Which of the case's models answers.
        """
        ...

    def choose(self, count: int, *, by: Selection, model: str = "") -> None:
        """Hear that one of ``count`` answers is chosen, of which no scores are asked for."""
        ...

    def note(self, text: str) -> None:
        """Hear what a strategy takes for granted that no law of the question says."""
        ...

    def scores(
        self, rng: np.random.Generator, answers: NDArray[np.int64], *, verifier: str
    ) -> NDArray[np.float64]:
        """Draw what a verifier thinks of answers: more of those that it believes in."""
        ...

    def revised(
        self,
        rng: np.random.Generator,
        answer: int,
        *,
        rounds_before: int,
        effort: float = 1.0,
        model: str = "",
    ) -> int:
        """Draw the class of an answer after one more round of critique and rewriting."""
        ...

    def searched(
        self, rng: np.random.Generator, *, breadth: int, depth: int, model: str = ""
    ) -> int:
        """Draw the class of the answer that a tree search finds."""
        ...

    def estimate(self, rng: np.random.Generator) -> float:
        """Draw what a gate believes ``chance`` to be."""
        ...


class Unknown:
    """A question of which nobody knows how hard it is."""

    known = False

    @property
    def chance(self) -> float:
        """Refuse."""
        return self._refuse()

    def answers(
        self, rng: np.random.Generator, count: int, *, effort: float = 1.0, model: str = ""
    ) -> NDArray[np.int64]:
        """Refuse."""
        del rng, count, effort, model
        return self._refuse()

    def choose(self, count: int, *, by: Selection, model: str = "") -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def scores(
        self, rng: np.random.Generator, answers: NDArray[np.int64], *, verifier: str
    ) -> NDArray[np.float64]:
        """Refuse."""
        del rng, answers, verifier
        return self._refuse()

    def revised(
        self,
        rng: np.random.Generator,
        answer: int,
        *,
        rounds_before: int,
        effort: float = 1.0,
        model: str = "",
    ) -> int:
        """Refuse."""
        del rng, answer, rounds_before, effort, model
        return self._refuse()

    def searched(
        self, rng: np.random.Generator, *, breadth: int, depth: int, model: str = ""
    ) -> int:
        """Refuse."""
        del rng, breadth, depth, model
        return self._refuse()

    def estimate(self, rng: np.random.Generator) -> float:
        """Refuse."""
        del rng
        return self._refuse()

    def _refuse(self) -> Never:
        raise InputError("the strategy has to know how good answers are: give a benchmark")
