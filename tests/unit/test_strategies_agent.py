"""Agents: model calls and tools in turns on one transcript.

The question has 100 tokens and a direct answer 20.
"""

from typing import Any

import numpy as np
import pytest
from fake_question import FakeQuestion, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from timed_executor import timed

from sim.catalog import open_catalog
from sim.quality import Unknown
from sim.workload.content import first_tokens
from sim.workload.programs import Task, answered_at_once
from sim.workload.single import ConstantTime, ConstantTokens, ExponentialTime, UniformTokens
from sim.workload.strategies.agent import Agent
from sim.workload.strategies.entry import read_entry

TASKS = 4000


def unknown_task(seed: int = 0) -> Task:
    return Task(0, np.random.default_rng(seed), Unknown(), 100, ConstantTokens(tokens=20), 1000)


def agent(**changes: Any) -> Agent:
    fields: dict[str, Any] = {
        "max_tool_calls": 3,
        "tool_call_tokens": ConstantTokens(tokens=10),
        "tool_result_tokens": ConstantTokens(tokens=500),
        "tool_wait": ConstantTime(duration_s=4.0),
        "instruction_tokens": 1000,
    }
    return Agent(**(fields | changes))


def test_each_call_continues_the_one_before_behind_a_tool() -> None:
    ledger = answered_at_once(agent().control(unknown_task()))
    # 1000 + 100, then 10 of the call and 500 of the result more each time.
    assert [(c.label, c.input_tokens, c.output_tokens, c.wait_s) for c in ledger.calls] == [
        ("act", 1100, 10, 0.0),
        ("act", 1610, 10, 4.0),
        ("act", 2120, 10, 4.0),
        ("answer", 2630, 20, 4.0),
    ]
    for before, after in zip(ledger.calls, ledger.calls[1:], strict=False):
        known = before.input_tokens + before.output_tokens
        assert first_tokens(after.prompt, known) == before.transcript
    assert ledger.answer is None
    assert timed(agent().control(unknown_task())).end == 4


def test_no_tool_is_a_direct_answer() -> None:
    (call,) = answered_at_once(agent(max_tool_calls=0).control(unknown_task())).calls
    assert (call.label, call.input_tokens, call.output_tokens, call.wait_s) == (
        "answer",
        1100,
        20,
        0.0,
    )


def test_chance_to_stop() -> None:
    # A third of the calls answer: 2/3 + 4/9 + 8/27 tool calls before on average.
    strategy = agent(stop_fraction=1 / 3)
    counts = [
        len(answered_at_once(strategy.control(unknown_task(seed))).calls) - 1
        for seed in range(TASKS)
    ]
    # The standard error of the mean is below 1.5 / sqrt(4000) = 0.024.
    assert np.mean(counts) == pytest.approx(2 / 3 + 4 / 9 + 8 / 27, abs=0.1)
    assert max(counts) == 3


@given(st.integers(1200, 6000), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_context_is_kept(most: int, seed: int) -> None:
    strategy = agent(
        max_tool_calls=20,
        tool_result_tokens=UniformTokens(min_tokens=1, max_tokens=600),
        tool_wait=ExponentialTime(mean_s=2.0),
        max_context_tokens=most,
    )
    calls = answered_at_once(strategy.control(unknown_task(seed))).calls
    assert max(call.input_tokens for call in calls) <= most
    # It answers because the next result did not fit, or after the last tool.
    assert len(calls) == 21 or calls[-1].input_tokens > most - 610
    assert calls[-1].label == "answer"


def test_effort_is_all_that_is_written() -> None:
    question = FakeQuestion()
    strategy = agent(model="small")
    ledger = answered_at_once(strategy.control(task_of(question)))
    # Three tool calls of 10 and an answer of 20, in answers of 20.
    assert question.asked == [(1, 2.5, "small")]
    assert ledger.answer is not None
    assert strategy.models == {"small"}
    assert {call.model for call in ledger.calls} == {"small"}


def test_effort_is_expected_and_not_drawn() -> None:
    """A third of the calls answer: 2/3 + 4/9 + 8/27 tool calls of 10, and an answer of 20."""
    question = FakeQuestion()
    strategy = agent(
        stop_fraction=1 / 3, tool_call_tokens=UniformTokens(min_tokens=5, max_tokens=15)
    )
    answered_at_once(strategy.control(task_of(question)))
    ((_, effort, _),) = question.asked
    assert effort == pytest.approx(1 + (2 / 3 + 4 / 9 + 8 / 27) * 10 / 20)


def test_coding_agent_has_the_published_calls_tokens_and_waits() -> None:
    # github.com/nilenso/swe-bench-pro-cost-token-time-analysis, docs/report.txt, GPT-5: 64 calls,
    # 42,200 tokens a call, 7,100 visible output tokens and 296 s of tools per task on average.
    catalog = open_catalog()
    strategy = read_entry(
        catalog.located("strategies", "agent_swe_bench_pro"),
        lambda name: catalog.located("strategies", name),
    ).strategy
    ledgers = []
    for seed in range(300):
        task = Task(
            0, np.random.default_rng(seed), Unknown(), 1000, ConstantTokens(tokens=100), 1000
        )
        ledgers.append(answered_at_once(strategy.control(task)))
    assert {len(ledger.calls) for ledger in ledgers} == {64}
    prompts = np.mean([ledger.input_tokens for ledger in ledgers]) / 64
    outputs = np.mean([ledger.output_tokens for ledger in ledgers])
    waits_s = np.mean([sum(call.wait_s for call in ledger.calls) for ledger in ledgers])
    assert prompts == pytest.approx(42_200, rel=0.05)
    assert outputs == pytest.approx(7_100, rel=0.05)
    assert waits_s == pytest.approx(296, rel=0.10)
