"""What a choice among answers rests on: how many were measured, and which numbers are guesses."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from sim.quality.laws import LawFit

if TYPE_CHECKING:
    from sim.quality.benchmark import Benchmark, Point

Selection = Literal["vote", "coverage", "best_of"]
"""How one of several answers is chosen, as points name it: the most frequent, a right one if there
is any, the best scored."""

FEW_POINTS = 3
"""So many points, and fewer, are named one by one."""


class Choice(NamedTuple):
    """One answer out of several."""

    by: Selection
    samples: int
    model: str = ""
    """Whose answers they are; the main model's unless given."""
    verifier: str = ""
    """Who scores them."""

    @property
    def title(self) -> str:
        """What it is called in notes.

        >>> Choice("best_of", 2000, verifier="prm").title
        "the best of 2,000 samples by 'prm'"
        """
        what = {"vote": "a vote of", "coverage": "coverage by", "best_of": "the best of"}[self.by]
        who = f" by {self.verifier!r}" if self.verifier else ""
        whose = f" of model {self.model!r}" if self.model else ""
        return f"{what} {self.samples:,} samples{whose}{who}"


class Told:
    """Notes on what was asked of some questions beyond what is known of them, each once."""

    def __init__(self) -> None:
        self._notes: set[str] = set()
        self._choices: set[Choice] = set()
        self._answered: set[str] = set()

    @property
    def notes(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted(self._notes))

    def add(self, text: str) -> None:
        """Take down a note."""
        self._notes.add(text)

    def choose(self, benchmark: "Benchmark", choice: Choice) -> None:
        """Take down what there is to say of a choice among answers."""
        if choice.samples > 1 and choice not in self._choices:
            self._choices.add(choice)
            self._notes.update(notes_of_choice(benchmark, choice))

    def answer(self, benchmark: "Benchmark") -> None:
        """Take down what there is to say of a single answer."""
        if benchmark.title not in self._answered:
            self._answered.add(benchmark.title)
            self._notes.update(notes_of_answer(benchmark))


def notes_of_answer(benchmark: "Benchmark") -> Iterator[str]:
    """Say where the accuracy of one answer was never measured.

    Points of one answer tell it, and those of longer and shorter answers; points of many answers
    alone do not.
    """
    fit = benchmark.laws.difficulty.fit
    points = [point for point in benchmark.points if point.fitted and point.model is None]
    told = any(
        point.strategy in ("answer", "effort", "below")
        or (point.strategy in ("coverage", "vote") and point.x == 1)
        for point in points
    )
    if fit is None or told or not points:
        return
    assumed = "; ".join(_assumed("difficulty", fit))
    yield (
        f"one answer on {benchmark.title} was never measured: it follows from laws that were "
        f"fitted to {_listed(points)}" + (f"; assumed: {assumed}" if assumed else "")
    )


def notes_of_choice(benchmark: "Benchmark", choice: Choice) -> Iterator[str]:
    """Say where a choice lies outside of what was measured, and what it rests on if that is thin.

    Parameters
    ----------
    benchmark : Benchmark
    choice : Choice
        Among two or more answers.
    """
    what = f"{choice.title} on {benchmark.title}"
    if choice.model:
        yield (
            f"{what} was not measured: the difficulty for that model is a law of its own, and its "
            "wrong answers are taken to agree as those of the main one do"
        )
        return
    if benchmark.laws.difficulty.fit is None:
        yield f"{what} rests on laws that were written by hand, not fitted"
        return
    points = [point for point in benchmark.points if point.fitted and _tells(point, choice)]
    yield from _outside(what, choice, points)
    yield from _thin(what, benchmark, choice, points)


def _tells(point: "Point", choice: Choice) -> bool:
    """Tell whether a point is one to which the laws of a choice are fitted."""
    if point.model is not None:
        return False
    if point.strategy == "best_of":
        return choice.by == "best_of" and point.verifier == choice.verifier
    return point.strategy in ("answer", "coverage", "below", "vote")


def _outside(what: str, choice: Choice, points: list["Point"]) -> Iterator[str]:
    """Compare the number of samples with those that were measured."""
    chosen = {point.x for point in points if point.strategy == choice.by and point.x > 1}
    single = {1.0 for point in points if point.strategy in ("answer", "coverage") and point.x == 1}
    if not chosen:
        rest = f": it follows from laws that were fitted to {_listed(points)}" if points else ""
        yield f"{what} was never measured, nor with other numbers of samples{rest}"
        return
    measured = sorted(chosen | single)
    if not measured[0] <= choice.samples <= measured[-1]:
        span = f"{measured[0]:,.0f} to {measured[-1]:,.0f}"
        if len(measured) <= FEW_POINTS:
            span = f"points at {_and(f'{x:,.0f}' for x in measured)}"
        yield (
            f"{what} is outside what the laws were fitted to, {span} samples: they are taken to "
            "hold beyond, where nobody has measured"
        )


def _thin(
    what: str, benchmark: "Benchmark", choice: Choice, points: list["Point"]
) -> Iterator[str]:
    """Say how many numbers stand against how many points, and which are guesses."""
    laws = benchmark.laws
    difficulty, wrong = laws.difficulty.fit, laws.wrong_answers.fit
    verifier = laws.verifiers[choice.verifier].fit if choice.by == "best_of" else None
    fits = [fit for fit in (difficulty, wrong, verifier) if fit is not None]
    numbers, known = sum(fit.parameters for fit in fits), sum(fit.points for fit in fits)
    guessed = list(_guessed(choice, difficulty, wrong, verifier))
    thin = numbers >= known or (verifier is not None and verifier.parameters >= verifier.points)
    if not (thin or guessed):
        return
    if wrong is not None and wrong.points and choice.by != "coverage":
        guessed += _assumed("agreement of wrong answers", wrong)
    rest = (
        f"{_count(numbers, 'number')} fitted to {_count(known, 'point')}" if known else "no point"
    )
    if points and len(points) <= FEW_POINTS:
        rest += f" ({_listed(points)})"
    if numbers >= known > 0:
        rest += ", which they retell"
    yield f"{what} rests on {rest}" + (f"; assumed: {'; '.join(guessed)}" if guessed else "")


def _guessed(
    choice: Choice, difficulty: LawFit | None, wrong: LawFit | None, verifier: LawFit | None
) -> Iterator[str]:
    """List what decides about a choice and no point of the file tells."""
    yield from _assumed("difficulty", difficulty)
    if choice.by != "coverage" and wrong is not None and not wrong.points:
        yield from _assumed("agreement of wrong answers", wrong)
    yield from _assumed("the verifier", verifier)


def _assumed(law: str, fit: LawFit | None) -> Iterator[str]:
    """Give the first sentence of what a law's file says about its guesses."""
    if fit is not None and fit.assumed:
        first = fit.assumed.strip().split(". ")[0].removesuffix(".")
        yield f"{first.removeprefix('not from points: ')} ({law})"


def _listed(points: list["Point"]) -> str:
    """Name points by what they are of, each kind with its numbers of samples."""
    kinds = {
        "answer": "one answer",
        "below": "success rates",
        "coverage": "coverage by",
        "vote": "votes of",
        "best_of": "best of",
    }
    found = []
    for kind, name in kinds.items():
        x = sorted(point.x for point in points if point.strategy == kind)
        if not x:
            continue
        span = f" {x[0]:,.0f}" if len(x) == 1 else f" {x[0]:,.0f} to {x[-1]:,.0f}"
        found.append(name if kind in ("answer", "below") else name + span)
    return _and(found)


def _and(words: Iterator[str] | list[str]) -> str:
    """Join words.

    >>> _and(["a", "b", "c"]), _and(["a"])
    ('a, b and c', 'a')
    """
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
