"""How many questions an accuracy is counted over."""

from types import SimpleNamespace
from typing import Any

import pytest

from sim.catalog import open_catalog
from sim.quality import RIGHT
from sim.workload import judging
from sim.workload.judging import FIRST_QUESTIONS, MOST_CALLS, QUESTIONS, Accuracy, accuracy_of
from sim.workload.kinds import ProgramsWorkload

WORKLOAD = ProgramsWorkload.model_validate(
    {
        "kind": "programs",
        "strategy": "direct",
        "tasks": 5,
        "concurrency": 1,
        "benchmark": "math_claims",
    }
)


def judged(monkeypatch: pytest.MonkeyPatch, calls: list[int], right: list[bool]) -> Accuracy:
    """Judge questions that take some calls each."""
    plans = SimpleNamespace(control=lambda number: number, question_notes=())

    def answered(number: int) -> Any:
        answer = RIGHT if right[number] else 1
        return SimpleNamespace(answer=answer, calls=range(calls[number]))

    monkeypatch.setattr(judging, "programs", lambda *_: plans)
    monkeypatch.setattr(judging, "answered_at_once", answered)
    found = accuracy_of(WORKLOAD, open_catalog(), 1)
    assert found is not None
    return found


def test_cheap_questions_are_all_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, [3] * QUESTIONS, [True, False] * (QUESTIONS // 2))
    assert (found.questions, found.fraction) == (QUESTIONS, 0.5)


def test_the_number_of_questions_does_not_hang_on_what_is_asked_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong answer that takes all the calls there are, asked late, ends nothing."""
    calls = [1000] * QUESTIONS
    calls[FIRST_QUESTIONS + 20] = MOST_CALLS
    right = [number != FIRST_QUESTIONS + 20 for number in range(QUESTIONS)]
    found = judged(monkeypatch, calls, right)
    assert found.questions == MOST_CALLS // 1000
    assert found.fraction == pytest.approx(1 - 1 / found.questions)


def test_the_first_questions_are_asked_however_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, [MOST_CALLS] * QUESTIONS, [True] * QUESTIONS)
    assert found.questions == FIRST_QUESTIONS
