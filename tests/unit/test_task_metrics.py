"""Tasks of test-time compute: what they cost, by hand, and that their costs add up to the bill."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hand_made_run import NAN, pool, service, table
from hypothesis import given
from hypothesis import strategies as st
from small_scenarios import forecast_of, write

from sim.engine.records import CALL_COLUMNS, LOSS_COLUMNS, PROGRAM_COLUMNS
from sim.errors import InputError
from sim.metrics.baselines import against_baseline, with_baselines
from sim.metrics.programs import (
    Rates,
    call_table,
    conditional_value_at_risk,
    rates,
    task_summary,
    task_table,
    tasks_in,
)
from sim.metrics.requests import Window
from sim.report.data import RunTables
from sim.routing_policy import Slo
from sim.scenario import load_scenario
from sim.service import Service
from sim.workload.judging import Accuracy

ANY_SLO = Slo(ttft_s=1.0, tpot_s=1.0)


def rates_of(
    totals: list[float], shares: list[float], prefilled: list[float], produced: list[float]
) -> Rates:
    books: Any = SimpleNamespace(pools=[SimpleNamespace(prefill_share=share) for share in shares])
    did = SimpleNamespace(
        prefill_tokens=np.array([prefilled]).T, output_tokens=np.array([produced]).T
    )
    inventory: Any = SimpleNamespace(tally=SimpleNamespace(pools=did))
    return rates(np.array(totals), books, inventory)


def test_prompts_and_answers_bear_the_parts_of_a_pool_that_they_took() -> None:
    """A quarter of 10 USD for 100 prompt tokens, the rest for 50; all of 4 USD for 80."""
    found = rates_of([10.0, 4.0], [0.25, 1.0], [100.0, 80.0], [50.0, 0.0])
    np.testing.assert_allclose(found.prefill, [0.025, 0.05])
    np.testing.assert_allclose(found.output, [0.15, 0.0])


def test_a_pool_that_stands_by_is_paid_for_by_those_who_use_the_others() -> None:
    """14 USD were used and 7 stood by: every token bears half as much again."""
    used = rates_of([10.0, 4.0], [0.25, 1.0], [100.0, 80.0], [50.0, 0.0])
    found = rates_of([10.0, 4.0, 7.0], [0.25, 1.0, 0.0], [100.0, 80.0, 0.0], [50.0, 0.0, 0.0])
    np.testing.assert_allclose(found.prefill, [*(1.5 * used.prefill), 0.0])
    np.testing.assert_allclose(found.output, [*(1.5 * used.output), 0.0])


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 1e3), st.floats(0.0, 1.0), st.integers(0, 500), st.integers(0, 500)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_all_tokens_together_bear_all_of_the_cost(pools: list[tuple[float, ...]]) -> None:
    totals, shares, prefilled, produced = (
        list(map(float, part)) for part in zip(*pools, strict=True)
    )
    found = rates_of(totals, shares, prefilled, produced)
    borne = found.prefill @ np.array(prefilled) + found.output @ np.array(produced)
    used = any(
        total * share * read > 0 or total * (1 - share) * written > 0
        for total, share, read, written in pools
    )
    assert borne == pytest.approx(sum(totals) if used else 0.0, rel=1e-9, abs=1e-200)


# Four calls of two tasks. Request 0 finds 30 of its 100 tokens in the cache and computes 5 again
# after a preemption; 1 is answered at the second attempt, the first had computed 60 and made 4; 2
# goes to the verifier and makes one token; 3 is cancelled when 20 of its prompt were computed.
CALLS = table(
    CALL_COLUMNS,
    request_id=[0, 1, 2, 3],
    task=[7, 7, 7, 3],
    call=[0, 1, 2, 0],
    label=["sample", "sample", "score", "sample"],
    model=["", "", "verifier", ""],
    after=[-1, -1, 1, -1],
)
REQUESTS = pd.DataFrame(
    {
        "request_id": [0, 1, 2, 3, 9],
        "input_tokens": [100, 60, 90, 50, 1000],
        "cached_tokens": [30, 0, 80, 10, 0],
        "recomputed_tokens": [5, 0, 0, 0, 0],
        "output_tokens": [10, 12, 1, 40, 1000],
        "outcome": ["completed", "completed", "completed", "cancelled", "completed"],
    }
)
LOSSES = table(
    LOSS_COLUMNS,
    request_id=[1, 3],
    prefilled_tokens=[60, 20],
    generated_tokens=[4, 0],
    first_tokens=[1, 0],
)
PROGRAMS = table(
    PROGRAM_COLUMNS,
    task=[7, 3],
    arrival_s=[1.0, 2.0],
    done_s=[6.0, 2.5],
    outcome=["completed", "cancelled"],
    answer=[0, -1],
    calls=[3, 1],
    cancelled_calls=[0, 1],
    critical_calls=[2, 1],
    critical_s=[4.0, 0.5],
)


def calls() -> pd.DataFrame:
    return call_table(CALLS, REQUESTS, LOSSES)


def with_verifier(*main: Any) -> Service:
    return replace(service(*main, pool("verifier", replicas=1)), other_models=1)


def test_calls_bear_what_was_computed_for_all_their_attempts() -> None:
    found = calls()
    assert found["request_id"].tolist() == [0, 1, 2, 3]  # 9 belongs to no task
    assert found["prefilled_tokens"].tolist() == [100 - 30 + 5, 60 + 60, 90 - 80, 20]
    assert found["produced_tokens"].tolist() == [10, 12 + 4, 1, 0]
    assert found["first_tokens"].tolist() == [1, 1 + 1, 1, 0]


def tasks(of: Service, rate: Rates) -> pd.DataFrame:
    return task_table(PROGRAMS, calls(), of, {"usd": rate}).set_index("task")


def test_a_task_costs_what_its_calls_took_of_each_model() -> None:
    """0.01 USD a prompt token and 0.1 an answer token; ten times as much at the verifier."""
    rate = Rates(prefill=np.array([0.01, 0.1]), output=np.array([0.1, 1.0]))
    found = tasks(with_verifier(pool()), rate)
    assert found.index.tolist() == [3, 7]
    main = 0.01 * (75 + 120) + 0.1 * (10 + 16)
    assert found.loc[7, "usd"] == pytest.approx(main + 0.1 * 10 + 1.0 * 1)
    assert found.loc[3, "usd"] == pytest.approx(0.01 * 20)
    assert found.loc[7, ["input_tokens", "cached_tokens", "prefilled_tokens"]].tolist() == [
        100 + 60 + 90,
        30 + 80,
        75 + 120 + 10,
    ]
    assert found.loc[7, ["output_tokens", "discarded_tokens"]].tolist() == [10 + 16 + 1, 0]


def test_what_cancelled_calls_had_produced_was_in_vain() -> None:
    late = {**LOSSES, "generated_tokens": np.array([4, 8])}
    thrown = call_table(CALLS, REQUESTS, late)
    rate = Rates(prefill=np.zeros(2), output=np.ones(2))
    found = task_table(PROGRAMS, thrown, with_verifier(pool()), {"usd": rate}).set_index("task")
    assert found.loc[3, ["output_tokens", "discarded_tokens", "usd"]].tolist() == [8, 8, 8]


def test_first_tokens_come_out_of_the_pool_that_computes_prompts() -> None:
    """Prompts 0.01 at the prefill pool, tokens 0.1 at the decode pool, which makes no first one."""
    rate = Rates(prefill=np.array([0.01, 0.0, 0.1]), output=np.array([0.0, 0.1, 1.0]))
    found = tasks(with_verifier(pool("prefill"), pool("decode")), rate)
    main = 0.01 * (75 + 120) + 0.1 * (10 - 1 + 16 - 2)
    assert found.loc[7, "usd"] == pytest.approx(main + 0.1 * 10 + 1.0 * 1)


def test_times_of_tasks_are_those_of_calls_and_of_tools() -> None:
    found = tasks(with_verifier(pool()), Rates(np.zeros(2), np.zeros(2)))
    assert found["task_s"].tolist() == [0.5, 5.0]
    assert found["tool_s"].tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(found["solved"], [NAN, 1.0])


def test_the_window_takes_the_tasks_that_were_asked_in_it() -> None:
    found = tasks_in(pd.DataFrame({"arrival_s": [0.5, 1.0, 2.0, 2.5]}), Window(1.0, 2.0))
    assert found["arrival_s"].tolist() == [1.0, 2.0]


# --- The summary.


def five_tasks() -> pd.DataFrame:
    """Of five tasks one failed; of the other four two are solved, one is not known to be."""
    amounts = ("input", "cached", "prefilled", "output", "discarded")
    counts = ("calls", "cancelled_calls", "critical_calls")
    return pd.DataFrame(
        {
            "arrival_s": [0.0, 1.0, 2.0, 3.0, 4.0],
            "outcome": ["completed"] * 4 + ["lost"],
            "solved": [1.0, 1.0, 0.0, NAN, NAN],
            "task_s": [1.0, 2.0, 3.0, 10.0, 0.1],
            "usd": [0.1, 0.2, 0.3, 0.4, 0.5],
            "energy_j": [1.0, 1.0, 1.0, 5.0, 99.0],
            "chip_s": [2.0, 2.0, 2.0, 6.0, 99.0],
            **{f"{name}_tokens": [10.0, 20.0, 30.0, 40.0, 1000.0] for name in amounts},
            **{name: [1, 1, 1, 5, 100] for name in counts},
        }
    )


def test_tasks_are_summed_up_over_those_that_were_completed() -> None:
    found = task_summary(five_tasks(), ANY_SLO)
    assert (found["tasks"], found["failed_tasks"]) == (5, 1)
    assert found["accuracy_fraction"] == pytest.approx(2 / 3)
    assert found["accuracy_standard_error"] == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 3))
    assert found["output_tokens_per_task"] == 25.0
    assert found["tokens_per_task"] == 50.0
    assert found["calls_per_task"] == 2.0
    assert found["task_s_mean"] == 4.0
    assert found["task_s_p50"] == 2.5
    assert found["usd_per_task"] == pytest.approx(0.25)
    assert found["energy_j_per_task"] == 2.0
    assert found["chip_s_per_task"] == 3.0


def test_solved_tasks_bear_the_cost_of_the_others_failed_ones_too() -> None:
    found = task_summary(five_tasks(), ANY_SLO)
    assert found["usd_per_solved_task"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.4 + 0.5) / 2)
    none = task_summary(five_tasks().assign(solved=0.0), ANY_SLO)
    assert math.isnan(none["usd_per_solved_task"])
    assert none["accuracy_fraction"] == 0.0


@pytest.mark.parametrize(
    ("deadline_s", "budget_usd", "share"),
    [
        (2.0, None, 2 / 5),  # the failed one was fast and does not count as in time
        (None, 0.3, 3 / 5),
        (2.0, 0.1, 1 / 5),
        (0.5, 9.0, 0.0),
        (None, None, NAN),
    ],
)
def test_targets_are_met_by_completed_tasks_within_both(
    deadline_s: float | None, budget_usd: float | None, share: float
) -> None:
    slo = Slo(ttft_s=1.0, tpot_s=1.0, task_s=deadline_s, usd_per_task=budget_usd)
    found = task_summary(five_tasks(), slo)
    assert found["task_slo_attainment_fraction"] == pytest.approx(share, nan_ok=True)
    assert found["slo_task_s"] == pytest.approx(deadline_s or NAN, nan_ok=True)
    assert found["slo_usd_per_task"] == pytest.approx(budget_usd or NAN, nan_ok=True)


def test_without_tasks_nothing_is_defined_and_nothing_warns() -> None:
    found = task_summary(five_tasks().iloc[:0], Slo(ttft_s=1.0, tpot_s=1.0, task_s=1.0))
    defined = {name for name, value in found.items() if not math.isnan(value)}
    assert defined == {"tasks", "failed_tasks", "slo_task_s"}


def test_the_tail_counts_the_task_at_its_edge_as_far_as_it_lies_inside() -> None:
    """5 % of 30 are one and a half: the dearest, and half of the next."""
    costs = np.arange(1.0, 31.0)
    assert conditional_value_at_risk(costs) == pytest.approx((30.0 + 29.0 / 2) / 1.5)
    assert math.isnan(conditional_value_at_risk(np.zeros(0)))


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=80), st.randoms())
def test_the_tail_is_dearer_than_the_mean_and_knows_no_order(
    costs: list[float], random: Any
) -> None:
    found = conditional_value_at_risk(np.array(costs))
    assert np.mean(costs) <= found * (1 + 1e-9) + 1e-300
    assert found <= max(costs) * (1 + 1e-9)
    random.shuffle(costs)
    assert conditional_value_at_risk(np.array(costs)) == pytest.approx(found)


def test_the_error_of_costs_is_that_of_tasks_and_of_how_many_came() -> None:
    """Costs of 1 and 3: s is sqrt(4/3) of four. Gaps of 1, 1 and 4: mean 2, s sqrt(3), of three."""
    tasks = (
        five_tasks()
        .iloc[:4]
        .assign(outcome="completed", usd=[1.0, 3.0, 1.0, 3.0], solved=[1.0, 0.0, 1.0, 0.0])
    )
    even = task_summary(tasks.assign(arrival_s=[0.0, 1.0, 2.0, 3.0]), ANY_SLO)
    of_costs = math.sqrt(4 / 3 / 4)
    assert even["usd_per_task_standard_error"] == pytest.approx(of_costs)
    late = task_summary(tasks.assign(arrival_s=[0.0, 1.0, 2.0, 6.0]), ANY_SLO)
    of_gaps = math.sqrt(3) / 2 / math.sqrt(3)
    expected = math.hypot(of_costs, 2.0 * of_gaps)
    assert late["usd_per_task_standard_error"] == pytest.approx(expected)
    # 8 USD for two solved ones: usd - 4 solved is -3, 3, -3, 3, over the share of a half
    of_ratio = math.sqrt(36 / 3 / 4) / 0.5
    assert even["usd_per_solved_task_standard_error"] == pytest.approx(of_ratio)
    told = task_summary(
        tasks.assign(arrival_s=[0.0, 1.0, 2.0, 3.0]), ANY_SLO, Accuracy("sums", 0.5, 2500, ())
    )
    both = 4.0 * math.hypot(of_costs / 2.0, 0.01 / 0.5)
    assert told["usd_per_solved_task_standard_error"] == pytest.approx(both)
    alone = task_summary(tasks.iloc[:1], ANY_SLO)
    assert math.isnan(alone["usd_per_task_standard_error"])


# --- Against the baseline.


def compared(named: dict[str, str] | None = None, **columns: list[Any]) -> pd.DataFrame:
    given = {
        "case": ["none", "direct", "vote"],
        "model": ["small"] * 3,
        "system": ["one"] * 3,
        "load": ["idle"] * 3,
        "output_tokens_per_task": [NAN, 100.0, 800.0],
        "chip_s_per_task": [NAN, 2.0, 6.0],
        "task_s_mean": [NAN, 4.0, 8.0],
        "accuracy_fraction": [NAN, 0.5, 0.7],
        "benchmark": [NAN, "sums", "sums"],
    }
    return against_baseline(with_baselines(pd.DataFrame({**given, **columns}), named or {}))


def test_multiples_are_those_of_the_first_case_with_a_strategy() -> None:
    found = compared()
    assert found["baseline"].tolist() == ["", "direct", "direct"]
    np.testing.assert_allclose(found["compute_multiplier"], [NAN, 1.0, 8.0])
    np.testing.assert_allclose(found["compute_multiplier_chip_s"], [NAN, 1.0, 3.0])
    np.testing.assert_allclose(found["latency_multiplier"], [NAN, 1.0, 2.0])
    # eight times the tokens in twice the time: a quarter of what would be proportional
    np.testing.assert_allclose(found["linear_latency_ratio"], [NAN, 1.0, 0.25])
    assert found["latency_growth"].tolist() == ["", "", "slower"]
    # 20 points for two further times the chip-seconds; the baseline spends no more than itself
    np.testing.assert_allclose(found["accuracy_gain_per_multiple"], [NAN, NAN, 0.1])


IDLE_AND_BUSY: dict[str, list[Any]] = {
    "case": ["direct", "chain", "direct, busy", "chain, busy"],
    "model": ["small"] * 4,
    "system": ["one"] * 4,
    "load": ["0.5 % of capacity"] * 2 + ["80 % of capacity"] * 2,
    "output_tokens_per_task": [178.0, 1424.0, 178.0, 1424.0],
    "chip_s_per_task": [0.8, 6.4, 0.012, 0.1],
    "task_s_mean": [0.8, 6.4, 2.4, 20.2],
    "accuracy_fraction": [0.42, 0.59, 0.42, 0.59],
    "benchmark": ["sums"] * 4,
}


def test_a_busy_case_is_compared_with_a_busy_one() -> None:
    """Against the idle baseline the chain would take 25 times as long for 8 times the tokens."""
    found = compared(**IDLE_AND_BUSY)
    assert found["baseline"].tolist() == ["direct"] * 2 + ["direct, busy"] * 2
    np.testing.assert_allclose(found["latency_multiplier"], [1.0, 8.0, 1.0, 20.2 / 2.4])
    np.testing.assert_allclose(found["compute_multiplier_chip_s"], [1.0, 8.0, 1.0, 0.1 / 0.012])
    assert found["latency_growth"].tolist() == ["", "as compute", "", "as compute"]
    gains = 0.17 / (np.array([8.0, 0.1 / 0.012]) - 1.0)
    np.testing.assert_allclose(found["accuracy_gain_per_multiple"].iloc[[1, 3]], gains)


def test_a_case_alone_with_its_load_is_compared_with_the_nearest() -> None:
    """Of the same system before the same model, of that before the same benchmark."""
    lone = compared(**IDLE_AND_BUSY | {"load": ["1", "2", "3", "4"]})
    assert lone["baseline"].tolist() == ["direct"] * 4
    assert lone["latency_growth"].tolist() == [""] * 4  # what waits for others tells nothing
    moved = compared(**IDLE_AND_BUSY | {"load": ["1", "1", "2", "3"], "system": [*"AABB"]})
    assert moved["baseline"].tolist() == ["direct", "direct", "direct, busy", "direct, busy"]
    other = compared(**IDLE_AND_BUSY | {"load": [*"1123"], "system": [*"AABC"], "model": [*"xyxy"]})
    assert other["baseline"].tolist() == ["direct", "chain", "direct", "chain"]
    asked = compared(**IDLE_AND_BUSY | {"load": [*"1234"], "benchmark": ["a", "b", "b", "c"]})
    assert asked["baseline"].tolist() == ["direct", "chain", "chain", "direct"]


def test_a_case_may_name_its_baseline() -> None:
    found = compared(named={"chain, busy": "chain"}, **IDLE_AND_BUSY)
    assert found["baseline"].tolist()[3] == "chain"
    assert found["latency_multiplier"].iloc[3] == pytest.approx(20.2 / 6.4)


def test_what_costs_no_more_has_no_gain_for_more() -> None:
    """Nothing is gained for each time of compute that was saved: not minus 20 points either."""
    found = compared(chip_s_per_task=[NAN, 2.0, 1.0])
    assert found["accuracy_gain_per_multiple"].isna().all()


def test_what_is_solved_of_another_benchmark_is_no_gain() -> None:
    found = compared(benchmark=[NAN, "sums", "puzzles"])
    assert found["accuracy_gain_per_multiple"].isna().all()
    np.testing.assert_allclose(found["compute_multiplier"], [NAN, 1.0, 8.0])


def test_a_run_without_tasks_has_no_multiples_and_one_that_completed_none_has_no_number() -> None:
    bare = pd.DataFrame({"case": ["a"]})
    assert against_baseline(with_baselines(bare, {})) is bare
    none = compared(output_tokens_per_task=[NAN] * 3)
    assert none["latency_multiplier"].isna().all()
    assert none["compute_multiplier"].isna().all()


# --- A whole run.

SCENARIO = """
name: sums
question: Do the costs of tasks add up to the bill?
seed: 3
model: llama_3_1_8b
precision: {weights: bf16, kv_cache: bf16, attention: bf16}
parallelism: {tp: 1}
engine: {name: vllm}
system: h100_sxm_x8
measure: {warmup_fraction: 0}
workload:
  kind: programs
  strategy: {kind: samples, samples: 4}
  question_tokens: {kind: constant, tokens: 100}
  answer_tokens: {kind: lognormal, median_tokens: 8, sigma: 0.5, min_tokens: 1, max_tokens: 50}
  tasks: 12
  concurrency: 12  # all at once, so that the window is the whole run
slo: {ttft_s: 1 s, tpot_s: 50 ms, task_s: 0.3 s}
prices: {book: us_2026_11, charge: chips}
cases:
  - {name: one, replicas: 1}
  - {name: two, pools: {prefill: {replicas: 1}, decode: {replicas: 1}}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    return forecast_of(write(tmp_path_factory.mktemp("tasks"), SCENARIO))


@pytest.mark.parametrize("case", ["one", "two"])
def test_the_costs_of_tasks_add_up_to_the_bill(run: RunTables, case: str) -> None:
    assert run.tasks is not None
    mine = run.tasks[run.tasks["case"] == case]
    row = run.summary.set_index("case").loc[case]
    billed = run.bill.loc[run.bill["case"] == case, "usd"].sum()
    assert mine["measured"].all()
    assert mine["usd"].sum() == pytest.approx(billed, rel=1e-9)
    joules = row["power_w_mean"] * row["duration_s"]
    assert mine["energy_j"].sum() == pytest.approx(joules, rel=1e-9)
    assert row["usd_per_task"] * row["tasks"] == pytest.approx(billed, rel=1e-9)


def test_four_samples_of_a_question_compute_its_prompt_once(run: RunTables) -> None:
    """Blocks of 16 tokens: three samples find 96 of their 100 tokens where the first left them."""
    assert run.tasks is not None
    assert (run.tasks["input_tokens"] == 4 * 100).all()
    assert (run.tasks["cached_tokens"] == 3 * 96).all()
    assert (run.tasks["prefilled_tokens"] == 100 + 3 * 4).all()


def test_the_deadline_of_the_scenario_is_counted(run: RunTables) -> None:
    assert run.tasks is not None
    for case, found in run.summary.set_index("case")["task_slo_attainment_fraction"].items():
        mine = run.tasks[run.tasks["case"] == case]
        assert found == pytest.approx((mine["done_s"] - mine["arrival_s"] <= 0.3).mean())


def test_targets_of_tasks_need_tasks(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    open_loop = """
workload:
  kind: open_loop
  lengths: {kind: fixed, input_tokens: 10, output_tokens: 10}
  arrivals: {kind: poisson, rate_requests_per_s: 5}
  requests: 20
slo:"""
    head, _, rest = SCENARIO.partition("\nworkload:")
    path.write_text(head + open_loop + rest.partition("slo:")[2], encoding="utf-8")
    with pytest.raises(InputError, match=r"slo\.task_s .* open_loop has none"):
        load_scenario(path)
