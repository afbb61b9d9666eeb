"""Programs as a part of a mix: bills, tenants, errors; and curves of closed loops of programs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_scenarios import forecast_of, write

from sim.catalog import open_catalog
from sim.checks import resolve
from sim.errors import InputError
from sim.report.data import CURVE_TASK_COLUMNS, TENANT_TASK_COLUMNS, RunTables
from sim.scenario import load_scenario
from sim.simulate import CaseRun, serve
from sim.workload.draw import draw
from sim.workload.kinds import MixWorkload
from sim.workload.mix import mixed
from sim.workload.requests import Traffic

CATALOG = open_catalog()

HEAD = """\
name: mixed
question: What do jobs do to a chat?
seed: 4
model: llama_3_1_8b
precision: {weights: bf16, kv_cache: bf16, attention: bf16}
parallelism: {tp: 1}
system: h100_sxm_x8
replicas: 1
engine: {name: vllm, max_num_seqs: 32}
slo: {ttft_s: 1 s, tpot_s: 50 ms}
prices: {book: us_2026_11, charge: chips}
measure: {warmup_fraction: 0}
"""
CHAT = """\
    chat:
      kind: open_loop
      lengths: {kind: fixed, input_tokens: 300, output_tokens: 40}
      arrivals: {kind: burst}
      requests: 60
"""
JOBS = """\
    jobs:
      kind: programs
      strategy: {kind: samples, samples: 4}
      benchmark: math_claims
      answer_tokens: {kind: lognormal, median_tokens: 60, sigma: 0.5, min_tokens: 1, max_tokens: 99}
      concurrency: 9
      tasks: 9
"""
RACE = """\
    race:
      kind: programs
      strategy: {kind: samples, samples: 8, batch: 4, stop: {threshold: 0.95}}
      benchmark: gsm8k_claims
      arrivals: {kind: burst}
      tasks: 7
"""
MIX = HEAD + "workload:\n  kind: mix\n  parts:\n"
ALL = MIX + CHAT + JOBS + RACE
PROGRAMS = (
    HEAD
    + """\
workload:
  kind: programs
  strategy: {kind: samples, samples: 2}
  question_tokens: {kind: constant, tokens: 100}
  answer_tokens: {kind: constant, tokens: 50}
  arrivals: {kind: poisson, rate_requests_per_s: 1}
  tasks: 8
"""
)
POISSON = "arrivals: {kind: poisson, rate_requests_per_s: 1}"
OTHER = "{model: llama_3_1_8b, replicas: 1, parallelism: {tp: 1}}"
CURVE = "curve: {concurrency_per_replica: [1, 4], requests_per_client: 10, min_requests: 40}\n"


def run(path: Path, keep: Callable[[CaseRun], None] | None = None) -> RunTables:
    return forecast_of(path, keep=keep)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunTables, CaseRun]:
    """A chat and jobs of two kinds, all at once, so that the window is the whole run."""
    runs: list[CaseRun] = []
    tables = run(write(tmp_path_factory.mktemp("mix"), ALL), runs.append)
    return tables, runs[0]


@pytest.fixture(scope="module")
def tables(kept: tuple[RunTables, CaseRun]) -> RunTables:
    return kept[0]


def tasks_of(tables: RunTables, tenant: str) -> pd.DataFrame:
    assert tables.tasks is not None
    return tables.tasks[tables.tasks["tenant"] == tenant]


def calls_of(tables: RunTables) -> pd.DataFrame:
    assert tables.calls is not None
    return tables.calls


class TestConservation:
    def test_every_token_is_computed_for_a_request_or_a_call(
        self, kept: tuple[RunTables, CaseRun]
    ) -> None:
        """Tokens of all steps are those of the chat and of the calls, once each."""
        tables, case = kept
        chat = tables.requests[tables.requests["tenant"] == "chat"]
        calls = calls_of(tables)
        did = case.record.stretches
        written = chat["output_tokens"].sum() + calls["produced_tokens"].sum()
        # the token that comes out of prefill is counted with the prompt's step
        assert did["output_tokens"].sum() == written
        computed = (chat["input_tokens"] - chat["cached_tokens"] + chat["recomputed_tokens"]).sum()
        prefilled = (did["prefill_tokens"] * did["steps"]).sum()
        assert prefilled == computed + calls["prefilled_tokens"].sum()
        assert set(calls["request_id"]).isdisjoint(chat["request_id"])
        assert len(calls) + len(chat) == len(tables.requests)

    def test_chat_and_tasks_pay_the_bill_once(self, tables: RunTables) -> None:
        assert tables.tasks is not None
        billed = tables.bill["usd"].sum()
        hours = tables.summary["duration_s"].iloc[0] / 3600
        shares = tables.tenants.set_index("tenant")["usd_per_hour"] * hours
        assert shares.sum() == pytest.approx(billed, rel=1e-9)
        paid = shares["chat"] + tables.tasks["usd"].sum()
        assert paid == pytest.approx(billed, rel=1e-6)
        assert shares["chat"] > 0.05 * billed

    def test_a_tenant_pays_what_its_tasks_do(self, tables: RunTables) -> None:
        """All calls of ``jobs`` are answered: the tokens that they share the bill by are all."""
        hours = tables.summary["duration_s"].iloc[0] / 3600
        share = tables.tenants.set_index("tenant").loc["jobs", "usd_per_hour"] * hours
        mine = tasks_of(tables, "jobs")
        assert (mine["discarded_tokens"] == 0).all()
        assert mine["usd"].sum() == pytest.approx(share, rel=1e-6)

    def test_each_model_is_paid_for_by_those_who_call_it(self, tmp_path: Path) -> None:
        """Jobs alone call the verifier: their share of the bill is what their tasks cost.

        By the tokens of all pools together the chat would pay for a verifier that it never calls.
        """
        judged = JOBS.replace("{kind: samples, samples: 4}", "best_of_16_prm")
        judged = judged.replace("math_claims", "math500_gpt4_lightman")
        text = MIX.replace("replicas: 1\n", f"replicas: 1\nother_models: {{verifier: {OTHER}}}\n")
        found = run(write(tmp_path, text + CHAT + judged))
        billed = found.bill["usd"].sum()
        hours = found.summary["duration_s"].iloc[0] / 3600
        shares = found.tenants.set_index("tenant")["usd_per_hour"] * hours
        assert shares.sum() == pytest.approx(billed, rel=1e-9)
        mine = tasks_of(found, "jobs")["usd"].sum()
        assert shares["jobs"] == pytest.approx(mine, rel=1e-6)
        verifier = found.pools.set_index("pool").loc["verifier", "usd_per_hour"] * hours
        assert shares["chat"] < billed - verifier


class TestTenants:
    def test_tasks_are_summed_up_by_tenant(self, tables: RunTables) -> None:
        rows = tables.tenants.set_index("tenant")
        assert set(TENANT_TASK_COLUMNS) <= set(rows)
        assert rows.loc[["jobs", "race"], "tasks"].tolist() == [9, 7]
        assert rows.loc["chat", list(TENANT_TASK_COLUMNS)].isna().all()
        for tenant in ("jobs", "race"):
            mine = tasks_of(tables, tenant)
            assert rows.loc[tenant, "usd_per_task"] == pytest.approx(mine["usd"].mean())
            assert rows.loc[tenant, "task_s_p50"] == pytest.approx(mine["task_s"].median())
            assert rows.loc[tenant, "requests"] == mine["calls"].sum() - unsent(tables, mine)
        assert rows.loc["chat", "requests"] == 60

    def test_each_has_the_accuracy_of_its_own_benchmark(self, tables: RunTables) -> None:
        """A vote of four is better than one answer, 42.3 % and 68.1 % of the claimed table."""
        rows = tables.tenants.set_index("tenant")
        assert rows["benchmark"].dropna().tolist() == ["MATH", "GSM8K"]
        assert 0.423 < rows.loc["jobs", "accuracy_fraction"] < 0.681
        assert rows.loc["race", "accuracy_fraction"] > 0.681

    def test_the_case_has_the_tasks_of_all(self, tables: RunTables) -> None:
        row = tables.summary.iloc[0]
        assert row["tasks"] == 16
        assert row["benchmark"] == "MATH + GSM8K"
        assert tables.tasks is not None
        assert row["accuracy_fraction"] == pytest.approx(tables.tasks["solved"].mean())
        assert row["usd_per_task"] == pytest.approx(tables.tasks["usd"].mean())

    def test_tenants_have_targets_and_priorities_of_their_own(self, tmp_path: Path) -> None:
        """Calls of jobs come first; the chat, which came first of all, waits behind them."""
        ranked = ALL.replace("max_num_seqs: 32", "max_num_seqs: 4, order: priority")
        own = "priority: -1, slo: {ttft_s: 1 s, tpot_s: 1 s, task_s: 1000 s}"
        first = f"tenants: {{race: {{{own}}}, jobs: {{priority: -1}}}}\n"
        swift = run(write(tmp_path, ranked + first)).tenants.set_index("tenant")
        even = run(write(tmp_path, ranked)).tenants.set_index("tenant")
        assert swift.loc["race", "task_slo_attainment_fraction"] == 1.0
        assert np.isnan(swift.loc["jobs", "task_slo_attainment_fraction"])
        assert swift.loc["chat", "ttft_s_p50"] > 1.5 * even.loc["chat", "ttft_s_p50"]
        for tenant in ("jobs", "race"):
            assert swift.loc[tenant, "task_s_p50"] < even.loc[tenant, "task_s_p50"]


def unsent(tables: RunTables, tasks: pd.DataFrame) -> int:
    calls = calls_of(tables)
    return int(tasks["calls"].sum() - calls["task"].isin(tasks["task"]).sum())


def test_a_chat_that_is_hardly_there_changes_nothing(tmp_path: Path) -> None:
    """One request long after the jobs: their calls take as long as those of the jobs alone."""
    late = "arrivals: {kind: poisson, rate_requests_per_s: 0.001}\n      requests: 1"
    chat = CHAT.replace("arrivals: {kind: burst}\n      requests: 60", late)
    runs: list[CaseRun] = []
    run(write(tmp_path, MIX + chat + JOBS), runs.append)
    mix = runs[0].service.case.workload
    assert isinstance(mix, MixWorkload)
    jobs = draw(mix.parts["jobs"], CATALOG, 4, "part", "jobs")
    alone = serve(runs[0].service, jobs, seed=4)
    beside = runs[0].record
    first = float(beside.requests["arrival_s"][beside.requests["tenant"] == 0][0])
    assert first > float(alone.programs["done_s"].max())
    for name in ("task", "arrival_s", "done_s", "answer", "calls", "critical_s"):
        assert beside.programs[name].tolist() == alone.programs[name].tolist()


def test_a_small_chat_slows_jobs_a_little(tmp_path: Path) -> None:
    """More of it slows them more: nobody is faster for somebody else's requests."""
    times = []
    for requests in (1, 10, 100):
        chat = CHAT.replace("requests: 60", f"requests: {requests}")
        found = run(write(tmp_path, MIX + chat + JOBS))
        times.append(tasks_of(found, "jobs")["task_s"].mean())
    assert times[0] < times[1] < times[2]
    assert times[1] < 1.5 * times[0]


def test_sessions_and_calls_have_numbers_of_their_own(tmp_path: Path) -> None:
    sessions = """\
    talks:
      kind: sessions
      law:
        turns: {kind: constant, turns: 3}
        first_tokens: {kind: constant, tokens: 50}
        new_tokens: {kind: constant, tokens: 20}
        answer_tokens: {kind: constant, tokens: 30}
        think: {kind: constant, duration_s: 1 s}
        max_context_tokens: 1000
      arrivals: {kind: poisson, rate_requests_per_s: 5}
      sessions: 6
"""
    found = run(write(tmp_path, MIX + sessions + CHAT + JOBS))
    requests = found.requests
    assert requests["request_id"].is_unique
    talks = set(requests.loc[requests["tenant"] == "talks", "session"])
    jobs = set(requests.loc[requests["tenant"] == "jobs", "session"])
    assert talks == set(range(6))
    assert jobs == set(range(6, 15))
    assert tasks_of(found, "jobs")["task"].tolist() == list(range(9))


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                ("concurrency: 9\n", f"{POISSON}\n      load_fraction: 0.5\n"),
                r"part 'jobs' gives load_fraction.*whole mix; give arrivals with a rate",
            ),
            (("math_claims", "maths_claims"), r"workload\.parts\.jobs\.benchmark.*math_claims"),
            (
                ("{kind: samples, samples: 4}", "best_of_16_prm"),
                r"workload\.parts\.jobs\.strategy.*calls the model 'verifier'",
            ),
            (
                ("      requests: 60\n", "      requests: 60\n      load_fraction: 1\n"),
                "load_fraction",
            ),
        ],
    )
    def test_mistakes_in_a_part_are_found_before_a_run(
        self, tmp_path: Path, change: tuple[str, str], words: str
    ) -> None:
        with pytest.raises(InputError, match=words):
            resolve(load_scenario(write(tmp_path, ALL, change)), CATALOG)

    def test_targets_of_tasks_need_a_part_with_tasks(self, tmp_path: Path) -> None:
        target = ("tpot_s: 50 ms}", "tpot_s: 50 ms, task_s: 3 s}")
        resolve(load_scenario(write(tmp_path, ALL, target)), CATALOG)
        with pytest.raises(InputError, match="kind mix has none"):
            load_scenario(write(tmp_path, MIX + CHAT, target))

    def test_a_closed_loop_of_requests_cannot_be_merged(self) -> None:
        ones = np.ones(3, dtype=np.int32)
        with pytest.raises(InputError, match="part 'a' of the mix is a closed loop"):
            mixed({"a": Traffic(ones, ones, clients=1)})

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (ALL, r"part 'jobs' is of kind programs.*leave curve out"),
            (
                HEAD
                + "workload: {kind: sessions, traffic: claude_code_2026, sessions: 3, "
                + "arrivals: {kind: poisson, rate_requests_per_s: 1}}\n",
                r"sessions start at times of their own.*leave curve out",
            ),
        ],
    )
    def test_curves_that_nobody_can_run(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(InputError, match=words):
            resolve(load_scenario(write(tmp_path, text + CURVE)), CATALOG)


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    found = run(write(tmp_path_factory.mktemp("curve"), PROGRAMS + CURVE)).curve
    assert found is not None
    return found


class TestCurve:
    def test_it_has_a_point_for_each_load(self, curve: pd.DataFrame) -> None:
        assert curve["concurrency"].tolist() == [1, 4]
        assert set(CURVE_TASK_COLUMNS) <= set(curve)
        assert curve.drop(columns="usd_per_solved_task").notna().all(axis=None)
        assert curve["usd_per_solved_task"].isna().all()  # nobody knows how good answers are

    def test_little_holds(self, curve: pd.DataFrame) -> None:
        """Clients that always wait for a task: tasks per second times their time is how many.

        All tasks are alike. Their client's part outside the engine is in their time, and the first
        and last task of the window are cut: one of eight and more.
        """
        busy = curve["tasks_per_s"] * curve["task_s_p50"]
        np.testing.assert_allclose(busy, curve["concurrency"], rtol=0.15)

    def test_more_at_once_are_cheaper_and_slower(self, curve: pd.DataFrame) -> None:
        one, four = curve.iloc[0], curve.iloc[1]
        assert four["usd_per_task"] < one["usd_per_task"]
        assert four["task_s_p50"] > one["task_s_p50"]
        assert four["interactivity_tokens_per_s"] < one["interactivity_tokens_per_s"]

    def test_a_load_fraction_is_of_the_case_and_not_of_its_curve(self, tmp_path: Path) -> None:
        loaded = PROGRAMS.replace("  tasks: 8\n", "  tasks: 8\n  load_fraction: 0.5\n")
        found = run(write(tmp_path, loaded + CURVE)).curve
        again = run(write(tmp_path, PROGRAMS + CURVE)).curve
        assert found is not None
        assert again is not None
        pd.testing.assert_frame_equal(found, again)


def test_the_columns_of_a_curve_of_programs_stand_in_the_reference() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "output-files.md"
    _, _, rest = page.read_text(encoding="utf-8").partition("<!-- columns of task_curve -->")
    table = rest.partition("\n## ")[0]
    named = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert tuple(named) == CURVE_TASK_COLUMNS
