"""Refinement and revisions: what each call reads and writes, and which answer is given.

The question has 100 tokens and a direct answer 20, unless a test says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from fake_question import ToldQuestion, common_tokens, prefill_tokens, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timed_executor import timed

from sim.errors import InputError
from sim.quality import Unknown
from sim.workload.content import first_tokens
from sim.workload.programs import Call, Ledger, Task, answered_at_once
from sim.workload.single import ConstantTokens, UniformTokens
from sim.workload.strategies.refine import ContentCritic, Refine
from sim.workload.strategies.revisions import Revisions
from sim.workload.strategies.verifier import Verifier

TASKS = 4000
CRITIQUE = ConstantTokens(tokens=7)


@dataclass
class RevisedQuestion(ToldQuestion):
    """A question of which the answers after each round are given."""

    revisions: Sequence[int] = ()
    revised_from: list[tuple[int, int, float, str]] = field(default_factory=list)

    def revised(
        self,
        rng: np.random.Generator,
        answer: int,
        *,
        rounds_before: int,
        effort: float = 1.0,
        model: str = "",
    ) -> int:
        del rng
        self.revised_from.append((answer, rounds_before, effort, model))
        return self.revisions[rounds_before]


def unknown_task(seed: int = 0) -> Task:
    return Task(0, np.random.default_rng(seed), Unknown(), 100, ConstantTokens(tokens=20), 1000)


def labels(ledger: Ledger) -> list[str]:
    return [call.label for call in ledger.calls]


def continues(call: Call, other: Call) -> bool:
    """Tell whether a prompt begins with all of another call's prompt and completion."""
    tokens = other.input_tokens + other.output_tokens
    return first_tokens(call.prompt, tokens) == other.transcript


# --- Refinement.


def test_each_round_is_a_critique_and_a_rewriting_that_continue_the_transcript() -> None:
    strategy = Refine(
        rounds=2,
        critique_tokens=CRITIQUE,
        rewrite_tokens=ConstantTokens(tokens=30),
        instruction_tokens=50,
        critique_instruction_tokens=4,
        rewrite_instruction_tokens=5,
    )
    ledger = answered_at_once(strategy.control(unknown_task()))
    # Answer: 50 + 100. Critique: + 20 + 4. Rewriting: + 7 + 5. Then + 30 + 4 and + 7 + 5 again.
    assert [call.input_tokens for call in ledger.calls] == [150, 174, 186, 220, 232]
    assert [call.output_tokens for call in ledger.calls] == [20, 7, 30, 7, 30]
    assert labels(ledger) == ["answer", "critique", "rewrite", "critique", "rewrite"]
    for before, after in zip(ledger.calls, ledger.calls[1:], strict=False):
        assert continues(after, before)
    # A prefix cache leaves the first prompt and the instructions: 150 + 2 * (4 + 5).
    assert prefill_tokens(ledger.calls) == (150 + 174 + 186 + 220 + 232, 168)
    assert ledger.answer is None


def test_one_call_writes_critique_and_rewriting() -> None:
    strategy = Refine(rounds=2, critique_tokens=CRITIQUE, separate_critique=False)
    ledger = answered_at_once(strategy.control(unknown_task()))
    assert [(call.input_tokens, call.output_tokens) for call in ledger.calls] == [
        (100, 20),
        (120, 27),
        (147, 27),
    ]
    assert continues(ledger.calls[2], ledger.calls[1])


@pytest.mark.parametrize("separate", [True, False])
def test_a_content_critic_writes_its_critique_and_nothing_is_rewritten(separate: bool) -> None:
    stop = ContentCritic(accepts_right_fraction=1.0, accepts_wrong_fraction=1.0)
    strategy = Refine(rounds=3, critique_tokens=CRITIQUE, separate_critique=separate, stop=stop)
    ledger = answered_at_once(strategy.control(unknown_task()))
    assert [call.output_tokens for call in ledger.calls] == [20, 7]


def test_a_critic_without_false_alarms_stops_at_the_first_right_answer() -> None:
    stop = ContentCritic(accepts_right_fraction=1.0, accepts_wrong_fraction=0.0)
    strategy = Refine(rounds=5, critique_tokens=CRITIQUE, stop=stop, model="small")
    question = RevisedQuestion(told=[3], revisions=[4, 0, 9, 9, 9])
    ledger = answered_at_once(strategy.control(task_of(question)))
    # Wrong, wrong, right: three critiques, two rewritings.
    assert labels(ledger) == ["answer", *["critique", "rewrite"] * 2, "critique"]
    assert ledger.answer == 0
    assert question.revised_from == [(3, 0, 1.0, "small"), (4, 1, 1.0, "small")]
    assert {call.model for call in ledger.calls} == {"small"}
    assert strategy.models == {"small"}


def test_chances_of_a_content_critic() -> None:
    # Right answers: stopped with 0.8, so 1 + 0.8 * 1 + 0.2 * 2 = 2.2 calls; wrong ones 2.9.
    stop = ContentCritic(accepts_right_fraction=0.8, accepts_wrong_fraction=0.1)
    strategy = Refine(rounds=1, critique_tokens=CRITIQUE, stop=stop)
    for told, expected in ((0, 2.2), (1, 2.9)):
        calls = [
            len(
                answered_at_once(
                    strategy.control(task_of(RevisedQuestion(told=[told], revisions=[1]), seed))
                ).calls
            )
            for seed in range(TASKS)
        ]
        # Five standard errors of a chance: 5 * sqrt(0.25 / 4000) = 0.04.
        assert np.mean(calls) == pytest.approx(expected, abs=0.04)


def test_a_critic_that_tells_right_from_wrong_needs_to_know() -> None:
    stop = ContentCritic(accepts_right_fraction=0.9, accepts_wrong_fraction=0.1)
    strategy = Refine(rounds=1, critique_tokens=CRITIQUE, stop=stop)
    with pytest.raises(InputError, match="give a benchmark"):
        answered_at_once(strategy.control(unknown_task()))


def test_another_model_criticises() -> None:
    strategy = Refine(rounds=1, critique_tokens=CRITIQUE, critic_model="critic")
    calls = answered_at_once(strategy.control(unknown_task())).calls
    assert [call.model for call in calls] == ["", "critic", ""]
    assert strategy.models == {"critic"}
    with pytest.raises(ValidationError, match="separate_critique"):
        Refine(rounds=1, critique_tokens=CRITIQUE, critic_model="critic", separate_critique=False)


def test_refinement_is_serial() -> None:
    strategy = Refine(rounds=3, critique_tokens=CRITIQUE)
    assert timed(strategy.control(unknown_task())).end == 7


# --- Revisions.


def test_the_context_has_the_last_answers() -> None:
    strategy = Revisions(answers=5, kept=2, instruction_tokens=10)
    calls = answered_at_once(strategy.control(unknown_task())).calls
    # 10 + 100, and 20 for each answer in the window: 0, 1, 2, 2, 2 of them.
    assert [call.input_tokens for call in calls] == [110, 130, 150, 150, 150]
    assert [call.label for call in calls] == ["answer", *["revise"] * 4]
    assert calls[4].prompt[-2:] == (
        (calls[2].answer_stream, 0, 20),
        (calls[3].answer_stream, 0, 20),
    )
    # While the window grows each call continues the one before; then the question is all it shares.
    assert continues(calls[1], calls[0])
    assert continues(calls[2], calls[1])
    assert common_tokens(calls[3].prompt, calls[2].prompt) == 110
    assert common_tokens(calls[4].prompt, calls[3].prompt) == 110


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_tokens_of_a_chain(answers: int, kept: int, seed: int) -> None:
    task = Task(
        0,
        np.random.default_rng(seed),
        Unknown(),
        100,
        UniformTokens(min_tokens=1, max_tokens=90),
        1000,
    )
    run = timed(Revisions(answers=answers, kept=kept).control(task))
    lengths = [call.output_tokens for call in run.calls]
    assert run.end == answers
    assert [call.input_tokens for call in run.calls] == [
        100 + sum(lengths[max(0, i - kept) : i]) for i in range(answers)
    ]


@pytest.mark.parametrize(("select", "expected"), [("last", 4), ("majority", 3)])
def test_choice_along_the_chain(select: Literal["last", "majority"], expected: int) -> None:
    question = RevisedQuestion(told=[3], revisions=[0, 3, 4])
    strategy = Revisions(answers=4, select=select)
    ledger = answered_at_once(strategy.control(task_of(question)))
    assert ledger.answer == expected
    assert [before for before, *_ in question.revised_from] == [3, 0, 3]
    assert [rounds for _, rounds, *_ in question.revised_from] == [0, 1, 2]


def test_a_verifier_reads_question_and_one_answer_each() -> None:
    question = RevisedQuestion(told=[3], revisions=[0, 4], told_scores=[0.1, 0.9, 0.3])
    verifier = Verifier(kind="outcome", model="judge", instruction_tokens=8)
    strategy = Revisions(answers=3, select="verifier", verifier=verifier)
    run = timed(strategy.control(task_of(question)))
    checks = run.calls[3:]
    assert run.answer == 0
    assert [(c.label, c.model, c.input_tokens, c.output_tokens) for c in checks] == [
        ("verify", "judge", 128, 1)
    ] * 3
    assert [check.prompt[-1][0] for check in checks] == [c.answer_stream for c in run.calls[:3]]
    # Three answers one after the other, then all verdicts side by side.
    assert run.end == 4
    assert strategy.models == {"judge"}


def test_a_verifier_is_there_if_it_selects() -> None:
    with pytest.raises(ValidationError, match="needs a verifier"):
        Revisions(answers=3, select="verifier")
    with pytest.raises(ValidationError, match="select majority has no use for a verifier"):
        Revisions(answers=3, verifier=Verifier(kind="outcome"))


def test_effort_is_the_length_of_a_chain_of_thought() -> None:
    question = RevisedQuestion(told=[3], revisions=[1])
    strategy = Revisions(answers=2, answer_tokens=ConstantTokens(tokens=60))
    answered_at_once(strategy.control(task_of(question)))
    assert question.asked == [(1, 3.0, "")]
    assert question.revised_from == [(3, 0, 3.0, "")]
