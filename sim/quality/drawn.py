"""Questions drawn from the laws of a benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from sim.quality.grounds import Choice, Selection, Told
from sim.quality.laws import Difficulty, Floats, shift_to, shifted
from sim.quality.question import RIGHT, MissingLawError
from sim.schema import did_you_mean
from sim.seeds import stream

if TYPE_CHECKING:
    from sim.quality.benchmark import Benchmark

LEAST_TOP_SHARE = 1e-3
"""Wrong answers that agree less are as good as all different."""


@dataclass(frozen=True)
class DrawnQuestion:
    """One question of a benchmark; see `sim.quality.question.Question`."""

    benchmark: "Benchmark"
    rank: float
    """Its place among all questions, 0 hardest to 1 easiest; the same for all models."""
    top_share: float
    """Share of the most frequent wrong answer among wrong ones."""
    seed: int
    """Of what verifiers believe of its answers each time."""
    told: Told = field(repr=False, compare=False)
    """Where the notes go."""

    @property
    def known(self) -> bool:
        """Return that its answers are known."""
        return True

    @property
    def chance(self) -> float:
        """Chance that one direct answer is right."""
        return self.chance_of(1.0)

    def chance_of(self, effort: float, model: str = "") -> float:
        """Return the chance that one answer of a length is right.

        Parameters
        ----------
        effort : float
            Length in the benchmark's direct answers.
        model : str
            Which of the case's models answers.
        """
        difficulty = self._difficulty(model)
        law = self.benchmark.laws.effort
        if law is None or model in self.benchmark.laws.models:
            if effort != 1.0:
                self._note(
                    f"nothing is known of how length changes accuracy: answers of {effort:.3g} "
                    "times the direct length are taken to be as good as direct ones"
                )
            return float(difficulty.chances(np.array(self.rank)))
        tokens = effort * self.benchmark.answer_tokens.mean_tokens
        # Lengths are compared as they are printed: rounding is no extrapolation.
        if not law.x_min_tokens * 0.999 <= tokens <= law.x_max_tokens * 1.001:
            self._note(
                f"answers of {tokens:.4g} tokens, {effort:.3g} direct ones, are outside the "
                f"{law.x_min_tokens:.4g} to {law.x_max_tokens:.4g} that the law was fitted to; it "
                "stays at the nearest of them"
            )
        return self._shifted(difficulty, law.accuracy(tokens))

    def answers(
        self, rng: np.random.Generator, count: int, *, effort: float = 1.0, model: str = ""
    ) -> NDArray[np.int64]:
        """Draw the classes of independent answers."""
        if count == 1 and not model:
            self.told.answer(self.benchmark)
        right = rng.random(count) < self.chance_of(effort, model)
        wrong = rng.geometric(self.top_share, count)
        return np.where(right, RIGHT, wrong).astype(np.int64)

    def choose(self, count: int, *, by: Selection, model: str = "") -> None:
        """Note what a choice among answers rests on."""
        named = model if model in self.benchmark.laws.models else ""
        self.told.choose(self.benchmark, Choice(by, count, named))

    def note(self, text: str) -> None:
        """Note what no law of the question says."""
        self._note(text)

    def scores(
        self, rng: np.random.Generator, answers: NDArray[np.int64], *, verifier: str
    ) -> Floats:
        """Draw how likely a verifier holds answers, at even odds, to be right.

        The chance that a normal score was drawn around the mean of right answers and not around
        that of wrong ones; it rises with the score, so that the best answer is the same.
        """
        known = self.benchmark.laws.verifiers
        if not known:
            raise self._missing("knows no verifier", "verifiers")
        name = verifier if verifier in known else next(iter(known))
        if name != verifier:
            self._note(f"verifier {verifier or 'of the model itself'!r} judges like {name!r}")
        law = known[name]
        self.told.choose(self.benchmark, Choice("best_of", len(answers), verifier=name))
        noise = rng.standard_normal(len(answers))
        if law.shared_fraction:
            classes, places = np.unique(answers, return_inverse=True)
            beliefs = [stream(self.seed, name, int(one)).standard_normal() for one in classes]
            shared = np.sqrt(law.shared_fraction) * np.array(beliefs)[places]
            noise = shared + np.sqrt(1 - law.shared_fraction) * noise
        score = law.separation * (answers == RIGHT) + noise
        believed = abs(law.separation)  # who prefers wrong answers does not know it
        odds = believed * (score - believed / 2)
        return np.asarray(1.0 / (1.0 + np.exp(-odds)), dtype=np.float64)

    def revised(
        self,
        rng: np.random.Generator,
        answer: int,
        *,
        rounds_before: int,
        effort: float = 1.0,
        model: str = "",
    ) -> int:
        """Draw the class of an answer after one more round."""
        del effort, model
        law = self.benchmark.laws.revision
        if law is None:
            raise self._missing("does not know what a revision does to an answer", "revision")
        if rounds_before >= law.max_rounds:
            self._note(
                f"more than the {law.max_rounds} rounds of revision that were measured are taken "
                "to change nothing"
            )
        fixed, broken = law.rates(rounds_before)
        draw, wrong = rng.random(), int(rng.geometric(self.top_share))
        if answer == RIGHT:
            return wrong if draw < broken else RIGHT
        return RIGHT if draw < fixed else answer

    def searched(
        self, rng: np.random.Generator, *, breadth: int, depth: int, model: str = ""
    ) -> int:
        """Draw the class of the answer that a tree search finds."""
        law = self.benchmark.laws.search
        if law is None:
            raise self._missing("does not know what a search finds", "search")
        nodes = breadth * depth
        if not law.min_nodes <= nodes <= law.max_nodes:
            self._note(
                f"a search of breadth {breadth} and depth {depth} is outside breadth x depth "
                f"{law.min_nodes} to {law.max_nodes}, for which the law was fitted; it stays at "
                "the nearest of them"
            )
        if model in self.benchmark.laws.models:
            self._note(f"searches of model {model!r} are taken to be as good as the main one's")
        chance = self._shifted(self.benchmark.laws.difficulty, law.accuracy(breadth, depth))
        return RIGHT if rng.random() < chance else int(rng.geometric(self.top_share))

    def estimate(self, rng: np.random.Generator) -> float:
        """Draw what a gate believes the chance of a direct answer to be."""
        law = self.benchmark.laws.gate
        if law is None:
            raise self._missing("does not know how well difficulty is guessed", "gate")
        if law.confidence == "estimate":
            self._note(f"the gate's correlation with difficulty, {law.correlation:g}, is assumed")
        rank = law.guessed_rank(self.rank, rng.standard_normal())
        return DrawnQuestion(self.benchmark, rank, self.top_share, self.seed, self.told).chance

    def _difficulty(self, model: str) -> Difficulty:
        laws = self.benchmark.laws
        if not model:
            return laws.difficulty
        if model not in laws.models:
            what = f"does not know model {model!r}{did_you_mean(model, laws.models)}"
            raise self._missing(what, "models", model)
        return laws.models[model]

    def _shifted(self, difficulty: Difficulty, accuracy: float) -> float:
        chance = difficulty.chances(np.array([self.rank]))
        return float(shifted(chance, shift_to(difficulty, accuracy))[0])

    def _missing(self, what: str, law: str, entry: str = "") -> MissingLawError:
        error = MissingLawError(f"benchmark {self.benchmark.title} {what}: give it in laws.{law}")
        error.law, error.entry = law, entry
        return error

    def _note(self, text: str) -> None:
        self.told.add(text)


class Questions(Sequence[DrawnQuestion]):
    """Questions drawn together, and what was asked of them that no law of theirs covers."""

    def __init__(self, questions: Sequence[DrawnQuestion], told: Told) -> None:
        self._questions = questions
        self._told = told

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._questions)

    @overload
    def __getitem__(self, index: int) -> DrawnQuestion: ...
    @overload
    def __getitem__(self, index: slice) -> "Questions": ...
    def __getitem__(self, index: int | slice) -> "DrawnQuestion | Questions":
        """Return one question, or some of them that share their notes."""
        if isinstance(index, slice):
            return Questions(self._questions[index], self._told)
        return self._questions[index]

    @property
    def notes(self) -> tuple[str, ...]:
        """What has been asked so far that is outside what was measured, sorted."""
        return self._told.notes
