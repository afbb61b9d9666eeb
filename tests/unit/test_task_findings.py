"""Sentences about tasks: they say what the numbers say, and claim no more."""

import math

import pandas as pd
import pytest
from report_fixtures import four_cases
from task_fixtures import strategies, twenty_strategies

from sim.report.task_findings import (
    by_benchmark,
    comparable,
    dominated,
    front,
    opening,
    task_sentences,
)
from sim.routing_policy import Slo

NAN = float("nan")


def three(**columns: list[object]) -> pd.DataFrame:
    """Direct answers, a long chain, and a vote that is dear and no better than the chain."""
    given: dict[str, list[object]] = {
        "case": ["direct", "chain", "vote"],
        "benchmark": ["sums"] * 3,
        "tasks": [1000.0] * 3,
        "failed_tasks": [0.0] * 3,
        "accuracy_fraction": [0.3, 0.6, 0.6],
        "accuracy_standard_error": [0.01] * 3,
        "task_s_p50": [1.0, 4.0, 5.0],
        "task_s_p95": [2.0, 8.0, 9.0],
        "usd_per_task": [0.1, 0.4, 3.0],
        "usd_per_task_cvar95": [0.2, 1.6, 3.3],
        "usd_per_solved_task": [1 / 3, 2 / 3, 5.0],
        "latency_multiplier": [1.0, 4.0, 5.0],
        "compute_multiplier": [1.0, 4.0, 40.0],
        "linear_latency_ratio": [1.0, 1.0, 0.125],
        "latency_growth": ["", "as compute", "slower"],
        "load": ["70 % of capacity"] * 3,
        "baseline": ["direct"] * 3,
        "model": ["small"] * 3,
        "input_tokens_per_task": [100.0, 100.0, 1000.0],
        "cached_tokens_per_task": [0.0, 0.0, 900.0],
        "output_tokens_per_task": [50.0, 200.0, 2000.0],
        "discarded_tokens_per_task": [0.0, 0.0, 500.0],
        "task_slo_attainment_fraction": [NAN] * 3,
        "slo_task_s": [NAN] * 3,
        "slo_usd_per_task": [NAN] * 3,
    }
    return pd.DataFrame({**given, **columns})


def said(summary: pd.DataFrame, word: str) -> list[str]:
    return [sentence for sentence in task_sentences(summary) if word in sentence]


def test_the_front_are_the_cases_that_nobody_beats() -> None:
    assert front(three(), "usd_per_task") == ("direct", "chain")
    better = three(accuracy_fraction=[0.3, 0.6, 0.61])
    assert front(better, "usd_per_task") == ("direct", "chain", "vote")
    cheaper = three(usd_per_task=[0.1, 0.4, 0.05])
    assert front(cheaper, "usd_per_task") == ("vote",)


def test_of_two_equals_in_cost_the_better_one_is_on_the_front() -> None:
    assert front(three(usd_per_task=[1.0, 1.0, 1.0]), "usd_per_task") == ("chain",)


def test_a_case_is_dominated_in_all_three_respects_or_not_at_all() -> None:
    assert dominated(three()) == {"vote": "chain"}
    assert dominated(three(task_s_p50=[1.0, 4.0, 3.9])) == {}
    assert dominated(three(accuracy_fraction=[0.3, 0.6, 0.601])) == {}
    assert dominated(three(usd_per_task=[0.1, 0.4, 0.41])) == {}  # level: less than 5 % apart


def test_the_cheapest_solved_task_is_named_with_the_next() -> None:
    (sentence,) = said(three(), "cheapest")
    assert sentence == "direct has the cheapest solved tasks: $0.333, against $0.667 for chain."
    (level,) = said(three(usd_per_solved_task=[0.66, 2 / 3, 5.0]), "level with $0.667 for chain")
    assert level.startswith("direct ($0.660)")


def test_without_a_benchmark_nothing_is_said_of_solving() -> None:
    unknown = three(accuracy_fraction=[NAN] * 3, usd_per_solved_task=[NAN] * 3)
    assert not said(unknown, "solve")
    assert said(unknown, "cheapest tasks: $0.100, against $0.400 for chain")


def test_where_nothing_is_solved_its_cost_is_said_not_to_be_defined() -> None:
    none = three(accuracy_fraction=[0.0] * 3, usd_per_solved_task=[NAN] * 3)
    assert said(none, "No task was solved")


def test_the_best_within_a_budget_is_that_of_those_who_keep_it() -> None:
    asked = three(slo_usd_per_task=[0.2] * 3)
    assert said(asked, "$0.200 per task on average") == [
        "For $0.200 per task on average or less, direct solves most (30.0 %)."
    ]
    (rich,) = said(three(slo_usd_per_task=[9.0] * 3), "$9.00 per task")
    assert "chain solves most (60.0 %); level with it: vote." in rich
    (poor,) = said(three(slo_usd_per_task=[0.01] * 3), "$0.0100 per task")
    assert "there is no strategy" in poor


def test_without_a_budget_those_are_said_that_the_cases_offer() -> None:
    """Quartiles of 0.1, 0.4 and 3: the cheapest, and the middle one."""
    assert [sentence[:9] for sentence in said(three(), "per task on average")] == [
        "For $0.10",
        "For $0.40",
    ]
    assert not said(three().iloc[:2], "per task on average")  # of two cases one is cheaper


def test_deadlines_are_kept_by_95_of_100_tasks() -> None:
    (sentence,) = said(three(slo_task_s=[8.5] * 3), "With 95 %")
    assert sentence == "With 95 % of the tasks done in 8.50 s or less, chain solves most (60.0 %)."


def test_accuracies_are_level_within_two_standard_errors() -> None:
    """sqrt(2) of 1 point, twice: 2.8 points."""
    near = three(accuracy_fraction=[0.3, 0.6, 0.62], slo_usd_per_task=[9.0] * 3)
    assert said(near, "vote solves most (62.0 %); level with it: chain")
    far = three(accuracy_fraction=[0.3, 0.6, 0.63], slo_usd_per_task=[9.0] * 3)
    assert not said(far, "level with it")


def test_cases_of_two_benchmarks_are_not_compared() -> None:
    """The vote solves fewer sums than the chain, and is the only one that was asked puzzles."""
    two = three(benchmark=["sums", "sums", "puzzles"], slo_usd_per_task=[9.0] * 3)
    assert dominated(two) == {}
    assert list(by_benchmark(two)) == ["sums", "puzzles"]
    assert said(two, "cheapest solved tasks of sums: $0.333, against $0.667 for chain.")
    assert said(two, "vote: cost per solved task of puzzles $5.00.")
    assert said(two, "chain solves most of sums (60.0 %).")
    assert said(two, "vote solves most of puzzles (60.0 %).")
    assert list(by_benchmark(three())) == [""]


def test_targets_are_said_with_the_share_that_met_them() -> None:
    met = three(
        slo_task_s=[3.0] * 3,
        slo_usd_per_task=[1.0, 1.0, 1.0],
        task_slo_attainment_fraction=[0.9, 0.5, 0.0],
    )
    assert said(
        met, "Tasks completed within 3.00 s and $1.00: direct 90.0 %, chain 50.0 %, vote 0 %"
    )


def test_latency_is_compared_with_compute() -> None:
    (sentence,) = said(three(), "more slowly")
    assert "vote (5 times the time, 40 times the tokens)" in sentence
    assert "chain" not in sentence
    assert said(three(), "grows as compute does: chain (4 times the time, 4 times the tokens)")
    assert not said(three(), "faster than compute")
    slow = three(latency_growth=["", "faster", "slower"])
    assert said(slow, "faster than compute: chain")


def test_latency_at_two_loads_is_said_of_each() -> None:
    idle = three(load=["0.5 % of capacity"] * 3)
    busy = pd.concat([idle, busy_three()], ignore_index=True)
    assert said(busy, "Against direct (0.5 % of capacity), latency grows as compute does: chain (4")
    (sentence,) = said(busy, "Against direct, busy (70 % of capacity), latency grows as compute")
    assert sentence.endswith("does: chain, busy (4 times the time, 4 times the tokens).")
    lone = three(load=["1 tasks/s", "2 tasks/s", "3 tasks/s"], latency_growth=[""] * 3)
    (told,) = said(lone, "is not said of")
    assert "chain, vote: their baseline, direct, has another load" in told


def busy_three() -> pd.DataFrame:
    """The same three where many share the machines: cheaper, and slower."""
    names = ["direct, busy", "chain, busy", "vote, busy"]
    summary = three(case=names, baseline=[names[0]] * 3)
    times, costs = ["task_s_p50", "task_s_p95"], ["usd_per_task", "usd_per_solved_task"]
    summary[times] *= 3.0
    summary[costs] *= 0.01
    return summary


def test_idle_and_busy_cases_are_not_played_off_against_each_other() -> None:
    """A busy machine is cheap for each task; that makes no strategy better than another."""
    idle = three(load=["0.5 % of capacity"] * 3, slo_usd_per_task=[0.2] * 3)
    both = pd.concat([idle, busy_three().assign(slo_usd_per_task=0.2)], ignore_index=True)
    assert dominated(both) == {"vote": "chain", "vote, busy": "chain, busy"}
    assert said(both, "direct solves most at 0.5 % of capacity (30.0 %).")
    assert said(both, "chain, busy solves most at 70 % of capacity (60.0 %)")
    assert said(both, "cheapest solved tasks at 70 % of capacity: $0.0033")


def test_cases_that_each_have_a_load_of_their_own_are_compared() -> None:
    lone = three(load=["1 tasks/s", "2 tasks/s", "3 tasks/s"])
    assert list(comparable(lone)) == [""]


def test_a_small_model_is_set_against_a_large_one_at_equal_accuracy() -> None:
    """A vote of the small one is level with one answer of the large one, for half the cost."""
    two = three(
        model=["large", "small", "small"],
        accuracy_fraction=[0.6, 0.3, 0.59],
        usd_per_solved_task=[1.0, 0.2, 0.5],
    )
    (sentence,) = said(two, "another model than large")
    assert "for direct (60.0 %, $1.00) vote (59.0 %, $0.500), 0.5 times the cost" in sentence
    assert "Most accurate of all: direct (60.0 %)" in sentence
    worse = two.assign(accuracy_fraction=[0.7, 0.3, 0.59])
    assert said(worse, "for direct (70.0 %, $1.00) there is none")
    assert not said(three(), "another model")


def test_the_opening_names_the_cheapest_and_the_dearest_and_no_more() -> None:
    found = opening(pd.concat([three(load=["idle"] * 3), busy_three()], ignore_index=True))
    assert "direct has the cheapest solved tasks" in found
    assert "The dearest are those of vote: $5.00. 3 more cases stand under Tasks." in found
    assert len(opening(twenty_strategies().summary)) < 400


def test_what_was_in_vain_and_what_was_spared_is_said() -> None:
    assert said(three(), "thrown away")[0].endswith("25.0 % of vote.")
    assert said(three(), "0 % in direct to 90.0 % in vote")
    none = three(discarded_tokens_per_task=[0.0] * 3, cached_tokens_per_task=[0.0] * 3)
    assert not said(none, "thrown away")
    assert said(none, "Prefix caching saved nothing")


def test_the_heaviest_tail_is_that_of_the_case_with_the_largest_ratio() -> None:
    """1.6 over 0.4 is four; direct has two."""
    assert said(three(), "The dearest 5 % of the tasks of chain cost 4 times its mean, $1.60 each")


def test_failed_tasks_are_not_passed_over() -> None:
    assert said(three(failed_tasks=[0.0, 0.0, 250.0]), "vote failed in 250 of 1,000 tasks")
    lost = three(**dict.fromkeys(("task_s_p50", "usd_per_task", "accuracy_fraction"), [NAN] * 3))
    assert task_sentences(lost.assign(failed_tasks=1000.0))[0].startswith("direct failed in 1,000")


def test_a_run_without_tasks_has_nothing_to_say() -> None:
    assert task_sentences(four_cases().summary) == ()


@pytest.mark.parametrize("known", [True, False])
def test_made_up_runs_are_told_without_missing_numbers(known: bool) -> None:
    slo = Slo(ttft_s=1.0, tpot_s=1.0, task_s=5.0, usd_per_task=0.004)
    for tables in (strategies(known=known, slo=slo), strategies("dynamic"), twenty_strategies()):
        sentences = task_sentences(tables.summary)
        assert sentences
        for sentence in sentences:
            assert sentence.endswith(".")
            assert "nan" not in sentence
            assert "\N{EN DASH}" not in sentence


def test_multiples_of_the_fixture_are_those_of_its_strategies() -> None:
    """The made-up tasks are what they are made to be, or the charts would show nothing."""
    rows = strategies().summary.set_index("case")
    assert math.isclose(rows.loc["self_consistency_8", "compute_multiplier"], 32, rel_tol=0.1)
    assert rows.loc["self_refine_4", "linear_latency_ratio"] > 1.0
