"""Strategies of one line of thought: direct answers, chains, thinking to a budget.

The question has 100 tokens and a direct answer 20, unless a test says otherwise.
"""

from itertools import pairwise

import numpy as np
import pytest
from fake_question import FakeQuestion, common_tokens, prefill_tokens, task_of
from hypothesis import given
from hypothesis import strategies as st

from sim.quality import Unknown
from sim.workload.content import tokens_of
from sim.workload.programs import Task, answered_at_once
from sim.workload.single import ConstantTokens, LognormalTokens, UniformTokens
from sim.workload.strategies.budget import Budget
from sim.workload.strategies.chain import Chain
from sim.workload.strategies.direct import Direct

# --- Direct.


def test_a_direct_answer_is_one_call():
    question = FakeQuestion(chance=1.0)
    ledger = answered_at_once(Direct(instruction_tokens=30).control(task_of(question)))
    assert [(call.input_tokens, call.output_tokens) for call in ledger.calls] == [(130, 20)]
    assert ledger.answer == 0
    assert question.asked == [(1, 1.0, "")]


def test_two_questions_share_the_instructions_only():
    strategy = Direct(instruction_tokens=30)
    first = task_of()
    second = Task(1, first.rng, first.question, 100, first.answer_tokens, first_stream=5000)
    calls = [answered_at_once(strategy.control(task)).calls[0] for task in (first, second)]
    assert common_tokens(calls[0].prompt, calls[1].prompt) == 30


def test_thinking_comes_in_the_same_call_and_is_effort():
    question = FakeQuestion()
    strategy = Direct(thinking_tokens=ConstantTokens(tokens=180), model="small")
    ledger = answered_at_once(strategy.control(task_of(question)))
    assert [call.output_tokens for call in ledger.calls] == [200]
    assert question.asked == [(1, 10.0, "small")]  # (180 + 20) / 20
    assert strategy.models == {"small"}


def test_effort_is_of_the_mean_and_not_of_the_draw():
    question = FakeQuestion()
    strategy = Direct(thinking_tokens=UniformTokens(min_tokens=10, max_tokens=190))
    lengths = set()
    for seed in range(5):
        ledger = answered_at_once(strategy.control(task_of(question, seed)))
        lengths.add(ledger.output_tokens)
    assert len(lengths) > 1
    assert {effort for _, effort, _ in question.asked} == {6.0}  # (100 + 20) / 20


def test_a_long_answer_is_effort_too():
    question = FakeQuestion()
    strategy = Direct(answer_tokens=ConstantTokens(tokens=50))
    ledger = answered_at_once(strategy.control(task_of(question)))
    assert (ledger.output_tokens, question.asked[0][1]) == (50, 2.5)


@pytest.mark.parametrize(
    "strategy",
    [
        Direct(),
        Chain(steps=3),
        Budget(thinking_tokens=ConstantTokens(tokens=5), waits=1),
    ],
)
def test_nothing_need_be_known_of_answers(strategy: Direct | Chain | Budget):
    task = Task(0, np.random.default_rng(0), Unknown(), 100, ConstantTokens(tokens=20))
    ledger = answered_at_once(strategy.control(task))
    assert ledger.calls
    assert ledger.answer is None


# --- Chain.


def test_a_chain_in_one_call():
    question = FakeQuestion()
    ledger = answered_at_once(Chain(steps=8).control(task_of(question)))
    assert [(call.input_tokens, call.output_tokens) for call in ledger.calls] == [(100, 160)]
    assert question.asked == [(1, 8.0, "")]


def test_a_chain_in_separate_calls_continues_its_transcript():
    # Prompts: 100; then each time 20 tokens of the step before and 5 that ask for the next.
    strategy = Chain(steps=3, separate_calls=True, step_instruction_tokens=5)
    calls = answered_at_once(strategy.control(task_of())).calls
    assert [call.input_tokens for call in calls] == [100, 125, 150]
    assert [call.output_tokens for call in calls] == [20, 20, 20]
    for before, after in pairwise(calls):
        assert after.prompt[: len(before.transcript)] == before.transcript


def test_separate_calls_read_everything_but_compute_what_is_new():
    # k prompts of P + (i - 1) (O + 5) tokens; new are P, and 5 for each call after the first.
    strategy = Chain(steps=8, separate_calls=True, step_instruction_tokens=5)
    calls = answered_at_once(strategy.control(task_of())).calls
    assert prefill_tokens(calls) == (8 * 100 + 28 * 25, 100 + 7 * 5)


def test_thinking_stands_before_the_first_step():
    strategy = Chain(steps=2, separate_calls=True, thinking_tokens=ConstantTokens(tokens=7))
    calls = answered_at_once(strategy.control(task_of())).calls
    assert [call.output_tokens for call in calls] == [27, 20]


@given(steps=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_chain_writes_the_same_in_one_call_and_in_many(steps: int, seed: int):
    law = LognormalTokens(median_tokens=200, sigma=0.7, min_tokens=1, max_tokens=5000)
    one, many = (
        answered_at_once(
            Chain(steps=steps, separate_calls=separate).control(
                task_of(seed=seed, answer_tokens=law)
            )
        )
        for separate in (False, True)
    )
    assert one.output_tokens == many.output_tokens
    assert (len(one.calls), len(many.calls)) == (1, steps)
    assert one.answer == many.answer


# --- Budget.


def test_thinking_is_cut_off_at_the_budget():
    strategy = Budget(thinking_tokens=ConstantTokens(tokens=500), budget_tokens=300)
    question = FakeQuestion()
    ledger = answered_at_once(strategy.control(task_of(question)))
    assert [call.output_tokens for call in ledger.calls] == [320]
    assert question.asked == [(1, 16.0, "")]  # (300 + 20) / 20


def test_a_wait_resumes_on_its_own_transcript():
    # Thinking of 500, then 200 after each of two waits; the answer of 20 ends the last call.
    # Before each wait the prompt grows by what was thought, and by the word itself.
    strategy = Budget(
        thinking_tokens=ConstantTokens(tokens=500), waits=2, wait_tokens=ConstantTokens(tokens=200)
    )
    question = FakeQuestion()
    calls = answered_at_once(strategy.control(task_of(question))).calls
    assert [call.label for call in calls] == ["think", "resume", "resume"]
    assert [call.input_tokens for call in calls] == [100, 601, 802]
    assert [call.output_tokens for call in calls] == [500, 200, 220]
    assert calls[2].prompt[: len(calls[1].transcript)] == calls[1].transcript
    assert question.asked == [(1, 46.0, "")]  # (500 + 2 * 200 + 20) / 20


def test_a_wait_computes_only_the_word():
    law = ConstantTokens(tokens=500)
    calls = answered_at_once(Budget(thinking_tokens=law, waits=3).control(task_of())).calls
    assert prefill_tokens(calls) == (4 * 100 + 6 * 501, 100 + 3)


def test_a_used_up_budget_leaves_no_calls():
    # 500 of 600 are used before the first wait, which gets 100 of its 200; the second gets none.
    strategy = Budget(
        thinking_tokens=ConstantTokens(tokens=500),
        waits=2,
        wait_tokens=ConstantTokens(tokens=200),
        budget_tokens=600,
    )
    calls = answered_at_once(strategy.control(task_of())).calls
    assert [call.output_tokens for call in calls] == [500, 120]


def test_expected_thinking_under_a_budget():
    # Even over 1 .. 100 and cut off at 50: (1 + ... + 50 + 50 * 50) / 100 = (1275 + 2500) / 100.
    law = UniformTokens(min_tokens=1, max_tokens=100)
    strategy = Budget(thinking_tokens=law, budget_tokens=50)
    assert strategy.mean_thinking_tokens == pytest.approx(37.75, rel=0.01)
    # Without one the means add up.
    assert Budget(thinking_tokens=law, waits=3).mean_thinking_tokens == 4 * 50.5


@given(
    waits=st.integers(0, 4),
    budget=st.none() | st.integers(1, 3000),
    seed=st.integers(0, 999),
)
def test_a_budget_is_never_exceeded(waits: int, budget: int | None, seed: int):
    law = LognormalTokens(median_tokens=300, sigma=1.0, min_tokens=1, max_tokens=4000)
    strategy = Budget(thinking_tokens=law, waits=waits, budget_tokens=budget)
    calls = answered_at_once(strategy.control(task_of(seed=seed))).calls
    thought = sum(call.output_tokens for call in calls) - 20
    assert 1 <= len(calls) <= 1 + waits
    assert all(call.output_tokens > 0 for call in calls)
    assert thought > 0
    if budget is not None:
        assert thought <= budget
        assert thought == budget or len(calls) == 1 + waits
    assert tokens_of(calls[-1].prompt) == 100 + thought + 20 - calls[-1].output_tokens + (
        len(calls) - 1
    )
