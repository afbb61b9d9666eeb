"""Beam search with a process reward model: calls, shared prefixes, beams that end.

The question has 100 tokens.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from fake_question import FakeQuestion, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from random_executor import answered_in_any_order
from timed_executor import timed

from sim.quality import Unknown
from sim.workload.content import first_tokens
from sim.workload.programs import Call, Task, answered_at_once
from sim.workload.single import ConstantTokens, UniformTokens
from sim.workload.strategies.beam import Beam
from sim.workload.strategies.verifier import Verifier

TASKS = 2000


class SearchedQuestion(FakeQuestion):
    def searched(
        self, rng: np.random.Generator, *, breadth: int, depth: int, model: str = ""
    ) -> int:
        del rng
        return {(8, 3, "small"): 7}[breadth, depth, model]


def unknown_task(seed: int = 0) -> Task:
    return Task(0, np.random.default_rng(seed), Unknown(), 100, ConstantTokens(tokens=20), 1000)


def beam(**changes: Any) -> Beam:
    fields: dict[str, Any] = {
        "beams": 8,
        "width": 4,
        "max_steps": 3,
        "step_tokens": ConstantTokens(tokens=10),
        "verifier": Verifier(kind="process", model="judge", instruction_tokens=30),
    }
    return Beam(**(fields | changes))


def of_step(calls: list[Call], label: str, beams: int) -> list[list[Call]]:
    """Sort calls of one label by their step."""
    chosen = [call for call in calls if call.label == label]
    return [chosen[first : first + beams] for first in range(0, len(chosen), beams)]


def test_calls_and_tokens_by_hand() -> None:
    ledger = answered_at_once(beam(instruction_tokens=50).control(unknown_task()))
    # In step t, from 0, each of 8 beams reads 50 + 100 + 10 t and writes 10; the reward model
    # reads 30 + 100 + 10 (t + 1).
    expected = Counter({("step", 150 + 10 * t, 10, ""): 8 for t in range(3)})
    expected += Counter({("verify", 140 + 10 * t, 1, "judge"): 8 for t in range(3)})
    assert expected == Counter(
        (call.label, call.input_tokens, call.output_tokens, call.model) for call in ledger.calls
    )
    assert ledger.answer is None


def test_children_share_what_their_parent_has_written() -> None:
    calls = answered_at_once(beam().control(unknown_task())).calls
    first, second, third = of_step(calls, "step", 8)
    assert len({call.prompt for call in first}) == 1
    for before, after in ((first, second), (second, third)):
        # Of 8 beams 2 go on, as 4 each, which continue the transcript of their parent.
        parents = Counter(call.prompt for call in after)
        assert sorted(parents.values()) == [4, 4]
        assert set(parents) <= {call.transcript for call in before}


def test_the_reward_model_reads_the_same_chain() -> None:
    calls = answered_at_once(beam().control(unknown_task())).calls
    steps = [call for call in calls if call.label == "step"]
    verdicts = [call for call in calls if call.label == "verify"]
    for step, verdict in zip(steps, verdicts, strict=True):
        # Behind its own 30 tokens of instructions.
        assert verdict.prompt[1:] == step.transcript
    later = of_step(calls, "verify", 8)[1]
    parent = {first_tokens(verdict.prompt, 140) for verdict in later}
    assert parent <= {verdict.prompt for verdict in of_step(calls, "verify", 8)[0]}


def test_one_model_judges_on_its_own_keys_and_values() -> None:
    verifier = Verifier(kind="process", instruction_tokens=30)
    calls = answered_at_once(beam(verifier=verifier).control(unknown_task())).calls
    # The chain so far, then the instructions; the next step goes on from the chain alone.
    for step, verdict in zip(calls[::2], calls[1::2], strict=True):
        assert verdict.prompt[:-1] == step.transcript
        assert verdict.prompt[-1][2] == 30
    assert calls[16].prompt in {call.transcript for call in calls[:16:2]}


def test_steps_are_barriers() -> None:
    def duration(call: Call) -> float:
        return call.output_tokens if call.label == "step" else 0.5

    law = UniformTokens(min_tokens=1, max_tokens=50)
    run = timed(beam(step_tokens=law).control(unknown_task()), duration)
    # All wait for the longest step; a verdict takes half a token's time.
    slowest = [max(c.output_tokens for c in step) for step in of_step(run.calls, "step", 8)]
    assert run.end == sum(slowest) + 3 * 0.5


def test_beams_that_end_leave_the_search() -> None:
    # Each step is the last of its chain with 1/4: 8 (1 + 3/4 + 9/16) steps on average.
    counts = [
        len(answered_at_once(beam(finish_fraction=0.25).control(unknown_task(seed))).calls) / 2
        for seed in range(TASKS)
    ]
    assert np.mean(counts) == pytest.approx(8 * (1 + 3 / 4 + 9 / 16), abs=0.3)
    only = answered_at_once(beam(finish_fraction=1.0).control(unknown_task())).calls
    assert len(only) == 16


def test_the_answer_is_what_a_search_of_that_size_finds() -> None:
    strategy = beam(model="small")
    ledger = answered_at_once(strategy.control(task_of(SearchedQuestion())))
    assert ledger.answer == 7
    assert {call.model for call in ledger.calls} == {"small", "judge"}
    assert strategy.models == {"small", "judge"}


def test_beams_divide_into_widths() -> None:
    with pytest.raises(ValidationError, match="beams 8 is no multiple of width 3"):
        beam(width=3)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_order_of_answers_changes_nothing(seed: int, order: int) -> None:
    law = UniformTokens(min_tokens=1, max_tokens=50)
    strategy = beam(step_tokens=law, finish_fraction=0.2)
    ledger = answered_at_once(strategy.control(unknown_task(seed)))
    shuffled = answered_in_any_order(
        strategy.control(unknown_task(seed)), np.random.default_rng(order)
    )
    assert Counter(shuffled.calls) == Counter(ledger.calls)
