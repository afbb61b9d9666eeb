"""Trees of thoughts, breadth first and depth first: calls, tokens, shared prefixes, barriers.

The question has 100 tokens and a direct answer 20, unless a test says otherwise.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from fake_question import FakeQuestion, common_tokens, prefill_tokens, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from random_executor import answered_in_any_order
from timed_executor import timed

from sim.catalog import open_catalog
from sim.quality import Unknown
from sim.workload.content import tokens_of
from sim.workload.programs import Call, Ledger, Task, answered_at_once
from sim.workload.single import ConstantTokens, UniformTokens
from sim.workload.strategies.candidates import Candidates, lines_of
from sim.workload.strategies.dfs import DepthFirst
from sim.workload.strategies.entry import StrategyEntry, read_entry
from sim.workload.strategies.tree import (
    BetweenQuestions,
    Generation,
    RepeatedStates,
    Stage,
    Tree,
    Valuation,
)

TASKS = 2000


@dataclass
class SearchedQuestion(FakeQuestion):
    """A question of which a search finds answer 7."""

    searches: list[tuple[int, int, str]] = field(default_factory=list)

    def searched(
        self, rng: np.random.Generator, *, breadth: int, depth: int, model: str = ""
    ) -> int:
        del rng
        self.searches.append((breadth, depth, model))
        return 7


def unknown_task(seed: int = 0, number: int = 0) -> Task:
    rng = np.random.default_rng([seed, number])
    return Task(number, rng, Unknown(), 100, ConstantTokens(tokens=20), 1000)


def counted(calls: list[Call]) -> Counter[str]:
    return Counter(call.label for call in calls)


def prompt_tokens(ledger: Ledger) -> int:
    """Count prompts as a log of requests does: one request asks for all votes of one prompt."""
    requests = {(call.label, call.prompt): call.input_tokens for call in ledger.calls}
    return sum(requests.values())


def stage(**changes: Any) -> Stage:
    fields: dict[str, Any] = {
        "generate": Generation(
            candidates=Candidates(median=3),
            candidate_tokens=ConstantTokens(tokens=10),
            instruction_tokens=40,
        ),
        "value": Valuation(votes=2, vote_tokens=ConstantTokens(tokens=5), instruction_tokens=60),
        "keep": 2,
    }
    return Stage(**(fields | changes))


# --- Candidates.


def test_candidates_of_a_completion_lie_one_after_the_other() -> None:
    call = Call("propose", ((0, 0, 9),), 30, answer_stream=7)
    assert lines_of(call, [10, 15, 5]) == [(7, 0, 10), (7, 10, 15), (7, 25, 5)]


def test_law_of_candidates() -> None:
    # Mean of a lognormal: 8 exp(0.3^2 / 2) = 8.368; its sd is the mean times sqrt(exp(0.09) - 1).
    drawn = Candidates(median=8, sigma=0.3).sample(np.random.default_rng(1), 100_000)
    assert drawn.mean() == pytest.approx(8.368, abs=0.03)
    # Rounding adds a twelfth to the variance: sqrt((8.368 * 0.3069)^2 + 1 / 12) = 2.584.
    assert drawn.std() == pytest.approx(2.584, abs=0.03)
    clipped = Candidates(median=8, sigma=0.3, fewest=7, most=9).sample(
        np.random.default_rng(1), 999
    )
    assert set(clipped.tolist()) == {7, 8, 9}
    with pytest.raises(ValidationError, match="fewest 9 is above most 7"):
        Candidates(median=8, fewest=9, most=7)


# --- Breadth first.


def test_calls_of_two_stages_by_hand() -> None:
    strategy = Tree(stages=(stage(), stage()), final_tokens=ConstantTokens(tokens=50))
    ledger = answered_at_once(strategy.control(unknown_task()))
    # Stage 1: 1 proposal, 3 candidates with 2 votes each; stage 2: 2 proposals, 6 candidates.
    assert counted(ledger.calls) == {"propose": 3, "value": 18, "answer": 1}
    # Proposals: 40 + 100, then 40 + 100 + 10 twice. Values: 60 + 110 six times, 60 + 120 twelve
    # times. The answer reads question and way: 100 + 20.
    assert ledger.input_tokens == 140 + 2 * 150 + 6 * 170 + 12 * 180 + 120
    assert ledger.output_tokens == 3 * 30 + 18 * 5 + 50
    # One request asks for both votes of a prompt.
    assert prompt_tokens(ledger) == 140 + 2 * 150 + 3 * 170 + 6 * 180 + 120


def test_stages_are_barriers() -> None:
    strategy = Tree(stages=(stage(), stage(), stage()), final_tokens=ConstantTokens(tokens=50))
    run = timed(strategy.control(unknown_task()), lambda call: float(call.input_tokens))
    # All of a stage wait for the slowest: proposals 140, 150, 160; values 170, 180, 190; then 130.
    assert run.end == 140 + 150 + 160 + 170 + 180 + 190 + 130


def test_siblings_share_instructions_question_and_way() -> None:
    strategy = Tree(stages=(stage(), stage()))
    calls = answered_at_once(strategy.control(unknown_task())).calls
    first, *later = [call for call in calls if call.label == "propose"]
    values = [call for call in calls if call.label == "value"]
    # Proposals share instructions and question; the way to the second is of the first's candidates.
    assert [common_tokens(call.prompt, first.prompt) for call in later] == [140, 140]
    assert {call.prompt[-1][0] for call in later} == {first.answer_stream}
    # Votes on one state have one prompt, those on others the question in common.
    assert values[0].prompt == values[1].prompt
    assert common_tokens(values[0].prompt, values[2].prompt) == 160
    assert len({call.answer_stream for call in calls}) == len(calls)


def test_what_a_prefix_cache_leaves_to_compute() -> None:
    strategy = Tree(stages=(stage(), stage()))
    calls = answered_at_once(strategy.control(unknown_task())).calls
    # Proposals: 40 + 100 once, then each of the two states, 10 tokens, unless the first candidate
    # is one of them, which continues its proposal so that a cache has it. Values: 60 + 100 once,
    # then the 10 tokens of each of 3 and the last 10 of each of 6; their ways are there.
    states = [call.prompt[-1] for call in calls if call.label == "propose"][1:]
    proposed = 140 + sum(10 for _, start, _ in states if start)
    everything, new = prefill_tokens(calls)
    assert everything == 140 + 2 * 150 + 6 * 170 + 12 * 180
    assert new == proposed + 160 + 3 * 10 + 6 * 10


def test_instructions_are_shared_by_stages_where_they_are_equally_long() -> None:
    other = Generation(
        candidates=Candidates(median=3),
        candidate_tokens=ConstantTokens(tokens=10),
        instruction_tokens=41,
    )
    strategy = Tree(stages=(stage(), stage(generate=other), stage()))
    calls = answered_at_once(strategy.control(unknown_task())).calls
    heads = [call.prompt[0] for call in calls if call.label == "propose"]
    # One proposal, then two in each stage; 40, 41 and 40 tokens of instructions.
    assert heads[0] == heads[3] == heads[4]
    assert heads[1] == heads[2]
    assert heads[0][0] != heads[1][0]
    assert {call.prompt[0] for call in calls if call.label == "value"}.isdisjoint(heads)


def test_sampled_candidates_are_calls_of_their_own() -> None:
    generate = Generation(
        how="sample", candidates=Candidates(median=5), candidate_tokens=ConstantTokens(tokens=10)
    )
    vote = Valuation(how="vote", votes=4, vote_tokens=ConstantTokens(tokens=8))
    strategy = Tree(stages=(Stage(generate=generate, value=vote, keep=1),) * 2)
    run = timed(strategy.control(unknown_task()))
    # Each stage: 5 samples of one prompt, then 4 votes of a prompt with all of them.
    assert counted(run.calls) == {"sample": 10, "vote": 8}
    votes = [call for call in run.calls if call.label == "vote"]
    assert votes[0].input_tokens == 100 + 5 * 10
    assert votes[4].input_tokens == 100 + 5 * 20
    assert votes[0].prompt == votes[3].prompt
    assert run.end == 4


def test_states_written_anew_take_the_place_of_question_and_way() -> None:
    generate = Generation(
        candidates=Candidates(median=3),
        candidate_tokens=ConstantTokens(tokens=10),
        instruction_tokens=40,
        state_tokens=ConstantTokens(tokens=6),
    )
    value = Valuation(
        vote_tokens=ConstantTokens(tokens=5),
        instruction_tokens=60,
        state_tokens=ConstantTokens(tokens=4),
    )
    strategy = Tree(stages=(stage(generate=generate, value=value),) * 2)
    calls = answered_at_once(strategy.control(unknown_task())).calls
    assert {(call.label, call.input_tokens) for call in calls} == {("propose", 46), ("value", 64)}
    states = [call.prompt[1] for call in calls]
    assert len(set(states)) == len(states)


def test_equal_states_are_valued_once() -> None:
    # Of 30 candidates a share of 0.8 (n + 1)^-0.5 is new: 24 in the first task, 12 in the fourth.
    value = Valuation(
        votes=3,
        vote_tokens=ConstantTokens(tokens=5),
        new_states=RepeatedStates(first_fraction=0.8, exponent=0.5),
    )
    generate = Generation(
        candidates=Candidates(median=30), candidate_tokens=ConstantTokens(tokens=10)
    )
    strategy = Tree(stages=(stage(generate=generate, value=value),))
    for number, expected in ((0, 24.0), (3, 12.0)):
        values = [
            counted(answered_at_once(strategy.control(unknown_task(seed, number))).calls)["value"]
            for seed in range(TASKS)
        ]
        # Standard error of the mean: sqrt(30 * 0.25 / 2000) = 0.06 at most.
        assert np.mean(values) / 3 == pytest.approx(expected, abs=0.3)
        assert all(each % 3 == 0 for each in values)


def test_questions_differ_with_factors_of_mean_one() -> None:
    value = Valuation(vote_tokens=ConstantTokens(tokens=1000))
    strategy = Tree(
        stages=(stage(value=value),), between_questions=BetweenQuestions(vote_tokens_sigma=0.5)
    )
    lengths = [
        {
            call.output_tokens
            for call in answered_at_once(strategy.control(unknown_task(seed))).calls
            if call.label == "value"
        }
        for seed in range(TASKS)
    ]
    # All votes on a question have its factor.
    assert {len(each) for each in lengths} == {1}
    means = np.array([each.pop() for each in lengths])
    # sd of the factor: sqrt(exp(0.25) - 1) = 0.533, and 0.012 that of the mean of 2000.
    assert means.mean() == pytest.approx(1000, abs=60)
    assert np.log(means).std() == pytest.approx(0.5, abs=0.04)


def test_models_of_a_search() -> None:
    strategy = Tree(stages=(stage(),), model="small", judge_model="judge")
    calls = answered_at_once(strategy.control(unknown_task())).calls
    assert {(call.label, call.model) for call in calls} == {
        ("propose", "small"),
        ("value", "judge"),
    }
    assert strategy.models == {"small", "judge"}
    assert Tree(stages=(stage(),)).models == frozenset()


def test_the_answer_is_what_a_search_of_that_size_finds() -> None:
    question = SearchedQuestion()
    strategy = Tree(stages=(stage(keep=4), stage(), stage()), model="small")
    assert answered_at_once(strategy.control(task_of(question))).answer == 7
    assert question.searches == [(4, 3, "small")]


def test_a_vote_takes_no_cache() -> None:
    with pytest.raises(ValidationError, match="a vote shows all candidates"):
        Valuation(
            how="vote",
            vote_tokens=ConstantTokens(tokens=5),
            new_states=RepeatedStates(first_fraction=0.5),
        )


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_order_of_answers_changes_nothing(seed: int, order: int) -> None:
    generate = Generation(
        candidates=Candidates(median=4, sigma=0.5),
        candidate_tokens=UniformTokens(min_tokens=1, max_tokens=20),
    )
    value = Valuation(votes=2, vote_tokens=UniformTokens(min_tokens=1, max_tokens=20))
    strategy = Tree(stages=(stage(generate=generate, value=value),) * 3)
    ledger = answered_at_once(strategy.control(unknown_task(seed)))
    shuffled = answered_in_any_order(
        strategy.control(unknown_task(seed)), np.random.default_rng(order)
    )
    assert shuffled.calls == ledger.calls


# --- Depth first.


def depth_first(**changes: Any) -> DepthFirst:
    fields: dict[str, Any] = {
        "max_steps": 50,
        "depth": 2,
        "candidates": Candidates(median=2),
        "candidate_tokens": ConstantTokens(tokens=10),
        "prune_fraction": 0.0,
        "judgements": 3,
        "judgement_tokens": ConstantTokens(tokens=5),
    }
    return DepthFirst(**(fields | changes))


def test_a_full_tree_without_pruning() -> None:
    # Two levels of two candidates: 6 steps of 3 judgements; proposals from the question and from
    # the two states of the first level.
    run = timed(depth_first().control(unknown_task()))
    assert counted(run.calls) == {"propose": 3, "value": 18}
    # Judgements of a step are side by side, all else is serial.
    assert run.end == 3 + 6
    ways = [call.input_tokens for call in run.calls if call.label == "propose"]
    assert ways == [100, 110, 110]
    # First all below the first candidate, then the second.
    steps = [call.prompt for call in run.calls if call.label == "value"][::3]
    assert [tokens_of(prompt) for prompt in steps] == [110, 120, 120, 110, 120, 120]
    # Each level in the order of its proposal: from token 0 of it, then from token 10.
    assert [prompt[-1][1] for prompt in steps] == [0, 0, 10, 10, 0, 10]


def test_steps_are_limited() -> None:
    run = timed(depth_first(depth=9, max_steps=4).control(unknown_task()))
    # The fourth step goes nowhere, for there is none after it.
    assert counted(run.calls) == {"propose": 1 + 3, "value": 4 * 3}


def test_all_pruned_is_one_level() -> None:
    run = timed(depth_first(prune_fraction=1.0).control(unknown_task()))
    assert counted(run.calls) == {"propose": 1, "value": 2 * 3}


def test_a_solution_ends_the_search() -> None:
    question = SearchedQuestion()
    strategy = depth_first(depth=3, solved_fraction=1.0)
    run = timed(strategy.control(task_of(question)))
    # Straight down: three proposals, three steps.
    assert counted(run.calls) == {"propose": 3, "value": 9}
    assert run.answer == 7
    assert question.searches == [(2, 3, "")]


def test_few_candidates_of_a_state_are_tried() -> None:
    strategy = depth_first(candidates=Candidates(median=8), max_tried=1, depth=5)
    run = timed(strategy.control(unknown_task()))
    assert counted(run.calls) == {"propose": 5, "value": 15}
    assert {call.output_tokens for call in run.calls if call.label == "propose"} == {80}


def test_states_as_prompts_show_them() -> None:
    strategy = depth_first(
        state_tokens=ConstantTokens(tokens=30),
        instruction_tokens=200,
        judgement_instruction_tokens=150,
        judge_model="judge",
    )
    calls = answered_at_once(strategy.control(unknown_task())).calls
    assert [call.input_tokens for call in calls if call.label == "propose"] == [300, 330, 330]
    assert {call.input_tokens for call in calls if call.label == "value"} == {280}
    assert {call.model for call in calls if call.label == "value"} == {"judge"}
    assert strategy.models == {"judge"}


# --- What is shipped, against published figures.


def entry(name: str) -> StrategyEntry:
    catalog = open_catalog()
    return read_entry(
        catalog.located("strategies", name), lambda other: catalog.located("strategies", other)
    )


def test_game_of_24_has_the_published_calls_and_tokens() -> None:
    # Yao et al., arXiv:2305.10601: log of 100 problems with breadth 5 in the authors' repository,
    # github.com/princeton-nlp/tree-of-thought-llm: mean and 95th percentile of prompt tokens 13,879
    # and 23,266, of completion tokens 5,479 and 10,212; 0.745 USD a problem at 0.03 and 0.06 USD
    # per thousand; 9.5, 31.8, 20.5 and 22.4 candidates on the four stages.
    strategy = entry("tree_of_thoughts_game24").strategy
    ledgers = [
        answered_at_once(strategy.control(unknown_task(seed, number)))
        for seed in range(10)
        for number in range(100)
    ]
    assert {counted(ledger.calls)["propose"] for ledger in ledgers} == {1 + 5 + 5 + 5}
    prompts = np.array([prompt_tokens(ledger) for ledger in ledgers])
    completions = np.array([ledger.output_tokens for ledger in ledgers])
    assert prompts.mean() == pytest.approx(13_879, rel=0.05)
    assert np.percentile(prompts, 95) == pytest.approx(23_266, rel=0.10)
    assert completions.mean() == pytest.approx(5_479, rel=0.05)
    assert np.percentile(completions, 95) == pytest.approx(10_212, rel=0.10)
    usd = 0.03 * prompts.mean() / 1000 + 0.06 * completions.mean() / 1000
    assert usd == pytest.approx(0.745, rel=0.05)


def test_mini_crosswords_reach_the_limit_as_often_as_recorded() -> None:
    # Of 20 recorded puzzles 17 reached 100 steps; a step is five judgements.
    strategy = entry("tree_of_thoughts_crosswords").strategy
    steps = [
        counted(answered_at_once(strategy.control(unknown_task(seed))).calls)["value"] / 5
        for seed in range(400)
    ]
    assert max(steps) == 100
    assert np.mean(np.equal(steps, 100)) == pytest.approx(17 / 20, abs=0.05)
