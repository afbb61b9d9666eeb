"""The scenarios of test-time compute run, made small, and laws hold on what comes out.

Figures stand here only beside the reasoning that bounds them, or as the claims that they are.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import betaln

from sim.catalog import open_catalog
from sim.forecast import forecast
from sim.report.data import TASK_SUMMARY_COLUMNS, RunTables
from sim.scenario import load_scenario
from sim.workload.tasks import benchmark_of, strategy_of

CATALOG = open_catalog()
Settings = Sequence[tuple[str, str]]
Run = Callable[[str], RunTables]
PLACES = ("engine.max_num_seqs", "64")
"""Fewer places make the pilot runs that find the capacity shorter."""
SMALL: Mapping[str, Settings] = {
    "strategies": [PLACES, ("workload.tasks", "120")],
    "shared_prompt_of_16": [PLACES, ("workload.tasks", "80")],
    "small_with_ttc_vs_large": [("engine.max_num_seqs", "16"), ("workload.tasks", "30")],
    "dense_vs_moe_ttc": [("engine.max_num_seqs", "16"), ("workload.tasks", "30")],
    "dynamic_10x_to_10000x": [("workload.tasks", "60")],
    "reasoning_traffic": [("workload.duration_s", "300 s")],
    "reasoning_beside_chat": [],
}
NAMES = [
    name.removeprefix("test_time_compute/")
    for name in CATALOG.names("scenarios")
    if name.startswith("test_time_compute/")
]
CLAIMED = {
    "baseline": (1, 0.423, 0.681, 0.8),
    "chain of 8 steps": (8, 0.587, 0.824, 6.4),
    "10 passes of refinement": (10, 0.612, 0.850, 8.0),
    "tree of depth 3, width 5": (15, 0.678, 0.883, 12.0),
    "by difficulty": (4, 0.635, 0.861, 3.2),
}
"""Multiple of compute, accuracy on MATH and GSM8K, and latency in seconds: the claimed table."""


def watch(_: str) -> Callable[[int, int], None]:
    return lambda _done, _total: None


@pytest.fixture(scope="module")
def run_of() -> Run:
    """Run a scenario once for all tests that look at it."""
    done: dict[str, RunTables] = {}

    def run(name: str) -> RunTables:
        if name not in done:
            path = CATALOG.path("scenarios", f"test_time_compute/{name}")
            done[name] = forecast(load_scenario(path, SMALL[name]), CATALOG, watch, manifest={})
        return done[name]

    return run


def rows(tables: RunTables) -> pd.DataFrame:
    return tables.summary.set_index("case")


def test_none_is_forgotten() -> None:
    assert set(NAMES) == set(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_done_and_paid_for(name: str, run_of: Run) -> None:
    tables = run_of(name)
    assert tables.tasks is not None
    assert tables.calls is not None
    assert set(TASK_SUMMARY_COLUMNS) <= set(tables.summary)
    assert (tables.tasks["outcome"] == "completed").all()
    assert (tables.tasks["usd"] > 0).all()
    assert (tables.tasks["task_s"] >= tables.tasks["critical_s"] * (1 - 1e-12)).all()
    by_task = tables.calls.groupby(["case", "task"]).size()
    asked = tables.tasks.set_index(["case", "task"])["calls"]
    assert (by_task <= asked.reindex(by_task.index)).all()  # those cancelled early were never sent
    costs = tables.summary[tables.summary["tasks"].notna()].set_index("case")
    assert (costs["usd_per_task_cvar95"] >= costs["usd_per_task_p95"] * (1 - 1e-9)).all()
    assert (costs["usd_per_solved_task"].isna() | (costs["usd_per_solved_task"] > 0)).all()


class TestClaimedTable:
    @pytest.mark.parametrize("case", list(CLAIMED))
    def test_multiples_and_accuracies(self, case: str, run_of: Run) -> None:
        found = rows(run_of("strategies"))
        multiple, math, gsm8k, _ = CLAIMED[case]
        for row, accuracy in ((found.loc[case], math), (found.loc[f"{case}, GSM8K"], gsm8k)):
            if case != "by difficulty":
                # passes of refinement write a word more than answers
                assert row["compute_multiplier"] == pytest.approx(multiple, rel=0.01)
                error = 3 * row["accuracy_standard_error"]
                assert row["accuracy_fraction"] == pytest.approx(accuracy, abs=error)
            else:
                assert row["compute_multiplier"] == pytest.approx(multiple, rel=0.2)
                assert row["accuracy_fraction"] < accuracy - 3 * row["accuracy_standard_error"]

    def test_no_gate_on_difficulty_reaches_the_claim(self, run_of: Run) -> None:
        """It beats the baseline for its compute, and spending as much on everybody."""
        found = rows(run_of("strategies"))["accuracy_fraction"]
        assert found["baseline"] + 0.05 < found["by difficulty"] < found["chain of 8 steps"]

    @pytest.mark.parametrize("case", list(CLAIMED))
    def test_latency_on_an_idle_server(self, case: str, run_of: Run) -> None:
        """In proportion where calls wait for one another; trees write five thoughts at once.

        Three stages of one thought's time each: 3 / 15 of what proportion would have.
        """
        found = rows(run_of("strategies")).loc[case]
        multiple, _, _, latency_s = CLAIMED[case]
        if case.startswith("tree"):
            assert found["task_s_mean"] == pytest.approx(3 / 15 * latency_s, rel=0.05)
        elif case == "by difficulty":
            assert found["linear_latency_ratio"] == pytest.approx(1, rel=0.02)
        else:
            assert found["task_s_mean"] == pytest.approx(latency_s, rel=0.02)
        assert found["task_s_mean"] > latency_s / multiple * 0.98

    def test_a_busy_server_slows_everybody(self, run_of: Run) -> None:
        found = rows(run_of("strategies"))
        for case in CLAIMED:
            slower = found.loc[f"{case}, busy", "task_s_mean"] / found.loc[case, "task_s_mean"]
            assert slower > 1.1
            cheaper = found.loc[f"{case}, busy", "usd_per_task"] / found.loc[case, "usd_per_task"]
            assert cheaper < 0.1  # the server stood idle before


def test_a_prompt_is_computed_once_for_sixteen_samples(run_of: Run) -> None:
    """4,096 tokens, and for each of the fifteen others its last block of 16."""
    found = rows(run_of("shared_prompt_of_16"))
    once, each = found.iloc[0], found.iloc[1]
    assert once["prefilled_tokens_per_task"] == 4096 + 15 * 16
    assert each["prefilled_tokens_per_task"] >= 16 * 4096
    assert once["ttft_s_p50"] < each["ttft_s_p50"] / 2
    assert once["usd_per_task"] < each["usd_per_task"] * 0.75


def test_more_votes_solve_more_and_cost_more(run_of: Run) -> None:
    for name, cases in {
        "small_with_ttc_vs_large": ("7B, one answer", "7B, vote of 8", "7B, vote of 64"),
        "dense_vs_moe_ttc": ("mixture, one answer", "mixture, vote of 8", "mixture, vote of 32"),
    }.items():
        found = rows(run_of(name)).loc[list(cases)]
        assert (np.diff(found["accuracy_fraction"]) > 0).all()
        assert (np.diff(found["usd_per_solved_task"]) > 0).all()
        votes = found["calls_per_task"]
        # lengths of 30 tasks: a standard error of 0.8 / sqrt(27) of the mean, three of it
        tokens = found["output_tokens_per_task"] / votes
        assert tokens.to_numpy() == pytest.approx(tokens.iloc[-1], rel=0.46)


def test_who_stops_early_solves_as_much_for_less(run_of: Run) -> None:
    found = rows(run_of("small_with_ttc_vs_large"))
    all_of_them, early = found.loc["7B, vote of 64"], found.loc["7B, vote of 64 that stops early"]
    assert early["calls_per_task"] < 0.8 * all_of_them["calls_per_task"]
    assert early["accuracy_fraction"] == pytest.approx(
        all_of_them["accuracy_fraction"], abs=3 * all_of_them["accuracy_standard_error"]
    )
    assert early["usd_per_solved_task"] < all_of_them["usd_per_solved_task"]


def test_coverage_is_that_of_the_difficulty_and_its_tail_is_paid_for(run_of: Run) -> None:
    """Of questions whose chance is Beta(a, b), E[1 - (1 - p)^k] = 1 - B(a, b + k) / B(a, b)."""
    found = rows(run_of("dynamic_10x_to_10000x"))
    law = benchmark_of("math_llama_3_8b", CATALOG).laws.difficulty
    for case, samples in {
        "one answer": 1,
        "10 samples for all": 10,
        "100 samples for all": 100,
        "1,000 samples for all": 1000,
    }.items():
        row = found.loc[case]
        missed = np.exp(betaln(law.a, law.b + samples) - betaln(law.a, law.b))
        error = 3 * row["accuracy_standard_error"]
        assert row["accuracy_fraction"] == pytest.approx(1 - missed, abs=error)
    tail = found["usd_per_task_p99"] / found["usd_per_task_p50"]
    assert tail["1 to 10,000 by difficulty"] > 10 * tail["10 samples for all"]


def test_a_limit_to_thinking_cuts_what_is_written(run_of: Run) -> None:
    """Expected thinking up to 1,000 tokens, from the law's own quantiles, and answers as before."""
    found = rows(run_of("reasoning_traffic"))
    free, limited = found.iloc[0], found.iloc[1]
    strategy = strategy_of("reasoning_production_r1", CATALOG)
    draws = strategy.thinking_tokens.sample(np.random.default_rng(0), 100_000)  # type: ignore[attr-defined]
    saved = float(np.maximum(draws - 1000, 0).mean())
    less = free["output_tokens_per_task"] - limited["output_tokens_per_task"]
    spread = 3 * float(np.maximum(draws - 1000, 0).std()) / np.sqrt(free["tasks"])
    assert less == pytest.approx(saved, abs=spread)
    assert limited["task_s_p99"] < free["task_s_p99"]


def test_jobs_beside_a_chat(run_of: Run) -> None:
    """Whoever is not alone waits for longer; who comes first, or is spared others, for less.

    Priorities and a limit are for the chat: with either its tail is shorter than first come.
    """
    tables = run_of("reasoning_beside_chat")
    found = tables.tenants.set_index(["case", "tenant"])
    together = ("first come", "chat first", "96 calls of jobs at most")
    first, chat_first, limited = (f"together, {name}" for name in together)
    tails = found.xs("chat", level="tenant")["ttft_s_p99"]
    assert tails["chat alone"] <= tails[limited] < tails[first]
    assert tails["chat alone"] < tails[chat_first] < tails[first]
    times = found.xs("jobs", level="tenant")["task_s_p50"]
    assert (times[[first, chat_first, limited]] > times["jobs alone"]).all()
    # who shares a chip pays for less of it
    costs = found.xs("jobs", level="tenant")["usd_per_task"]
    assert (costs[[first, chat_first, limited]] < costs["jobs alone"]).all()
    # both ask the same questions at the same times whatever happens to them
    assert tables.tasks is not None
    asked = tables.tasks.groupby("case")["arrival_s"].agg(list)
    assert asked[first] == asked[chat_first] == asked[limited] == asked["jobs alone"]


def test_the_command_writes_tables_of_tenants_and_tasks(tmp_path: Path) -> None:
    whole = CATALOG.path("scenarios", "test_time_compute/reasoning_beside_chat")
    text = whole.read_text(encoding="utf-8")
    assert "duration_s: 20 min" in text
    path, out = tmp_path / "shorter.yaml", tmp_path / "beside"
    path.write_text(text.replace("duration_s: 20 min", "duration_s: 6 min"), encoding="utf-8")
    command = [sys.executable, "-m", "sim.cli", "run", str(path), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tenants, tasks = (pd.read_csv(out / f"{name}.csv") for name in ("tenants", "tasks"))
    assert len(tenants) == 1 + 1 + 3 * 2
    assert set(tasks["tenant"]) == {"jobs"}
    counted = tasks[tasks["measured"]].groupby("case").size()
    rows = tenants[tenants["tenant"] == "jobs"].set_index("case")
    assert rows["tasks"].to_dict() == counted.to_dict()
    assert tenants.loc[tenants["tenant"] == "chat", "tasks"].isna().all()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Task p50, s" in page
