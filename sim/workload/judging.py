"""How good the answers of a strategy are, found by running its programs without an engine."""

from dataclasses import dataclass
from math import sqrt

from sim.catalog import Catalog
from sim.quality import RIGHT
from sim.workload.kinds import ProgramsWorkload
from sim.workload.programs import answered_at_once
from sim.workload.tasks import benchmark_of, programs

QUESTIONS = 4_000
"""Questions that accuracy is counted over: the standard error is below 0.8 points."""
MOST_CALLS = 400_000
"""Calls of all programs together, about: where questions take more, fewer must do."""
FIRST_QUESTIONS = 100
"""Questions from which the calls of one are estimated, and asked in any case."""


@dataclass(frozen=True)
class Accuracy:
    """Share of the questions to which the right answer is found."""

    benchmark: str
    """The set of questions, as `sim.quality.Benchmark` names it."""
    fraction: float
    questions: int
    """How many were asked."""
    notes: tuple[str, ...]
    """Where the laws were asked beyond what they were fitted to."""

    @property
    def standard_error(self) -> float:
        """Of the count alone: the laws are uncertain too.

        >>> Accuracy("MATH", 0.5, 2500, ()).standard_error
        0.01
        """
        return sqrt(self.fraction * (1.0 - self.fraction) / self.questions)


def accuracy_of(workload: ProgramsWorkload, catalog: Catalog, seed: int) -> Accuracy | None:
    """Forecast how many questions a strategy answers rightly; none without a benchmark.

    Thousands of questions beside those whose calls are simulated: what is known of a strategy's
    accuracy should not hang on how many tasks a run has. Of branches that race, those named first
    are taken to arrive first; which of equal branches is fastest says nothing of its answer.

    How many are asked is settled after the first ones. To ask until some number of calls is used up
    would end on a dear question more often than not, and those are seldom answered rightly.

    Parameters
    ----------
    workload : ProgramsWorkload
    catalog : Catalog
    seed : int
    """
    if workload.benchmark is None:
        return None
    plans = programs(workload.asked_by(1, QUESTIONS), catalog, seed, ("accuracy",))
    right = calls = 0
    asked = QUESTIONS
    for number in range(QUESTIONS):
        if number == FIRST_QUESTIONS:
            affordable = int(MOST_CALLS * FIRST_QUESTIONS / max(calls, 1))
            asked = min(max(affordable, FIRST_QUESTIONS), QUESTIONS)
        if number == asked:
            break
        ledger = answered_at_once(plans.control(number))
        right += ledger.answer == RIGHT
        calls += len(ledger.calls)
    name = benchmark_of(workload.benchmark, catalog).benchmark
    return Accuracy(name, right / asked, asked, plans.question_notes)
