"""Intervals of a forecast: arithmetic by hand from two known errors, and the chance of an SLO."""

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_scenarios import CLOSED_LOOP, FOUR_CASES, ONE_CASE, forecast_of, write

from sim.catalog import Catalog, open_catalog
from sim.checks import resolve
from sim.metrics.intervals import Errors, Loop, notes_of, slo_probability
from sim.metrics.regimes import capacity_estimate, unloaded_ttft_s
from sim.metrics.sampling import sampling_reach
from sim.report.data import RunTables
from sim.routing_policy import Slo
from sim.scenario import load_scenario
from sim.simulate import capacity_requests_per_s
from sim.uncertainty import EDGE, LogSpread

Rows = Mapping[str, Mapping[Hashable, Any]]
TPOT, TTFT = 1.25, 2.0
"""Times may be longer or shorter by these factors."""
RESIDUALS = f"""\
about: made up
date: '2026-11-21'
method: by hand
source: nobody
correlation: 0.0
quantities:
  tpot:
    regimes:
      pooled: {{q10: {-math.log(TPOT)}, q50: 0.0, q90: {math.log(TPOT)}, rows: 9, groups: 3}}
    shared_fraction: 0.75
    coverage: {{all: 0.8}}
  ttft:
    regimes:
      pooled: {{q10: {-math.log(TTFT)}, q50: 0.0, q90: {math.log(TTFT)}, rows: 9, groups: 3}}
    shared_fraction: 0.5
    coverage: {{all: 0.8}}
"""
OTHERS = f"""\
  - name: closed
{CLOSED_LOOP}\
  - {{name: not measured, system: mi300x_x8}}
  - name: share of capacity
    workload: {{arrivals: {{kind: poisson, rate_requests_per_s: 1}}, load_fraction: 0.5,
               requests: 300}}
  - name: too much
    workload: {{arrivals: {{kind: poisson, rate_requests_per_s: 400}}, requests: 4000}}
  - name: all at once
    workload: {{arrivals: {{kind: burst}}, requests: 300}}
"""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("catalog")
    (root / "hardware" / "residuals").mkdir(parents=True)
    (root / "hardware" / "residuals" / "serving.yaml").write_text(RESIDUALS, encoding="utf-8")
    return open_catalog([root])


def run(text: str, catalog: Catalog, folder: Path) -> RunTables:
    return forecast_of(write(folder, text), catalog=catalog)


@pytest.fixture(scope="module")
def tables(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    curve = "curve: {concurrency_per_replica: [1, 8], requests_per_client: 5}\n"
    text = ONE_CASE.replace("workload:\n", curve + "workload:\n").replace(
        "  arrivals: {kind: poisson, rate_requests_per_s: 2}\n  requests: 20\n", ""
    )
    text += (
        "cases:\n  - name: plain\n"
        "    workload: {arrivals: {kind: poisson, rate_requests_per_s: 2}, requests: 20}\n"
    )
    other = OTHERS.replace(
        "system: mi300x_x8",
        "system: mi300x_x8, workload: "
        "{arrivals: {kind: poisson, rate_requests_per_s: 2}, requests: 20}",
    )
    return run(text + other, catalog, tmp_path_factory.mktemp("scenario"))


@pytest.fixture(scope="module")
def rows(tables: RunTables) -> Rows:
    return {row["case"]: row for row in tables.summary.to_dict("records")}


def ends(row: Mapping[Hashable, Any], column: str) -> tuple[float, float]:
    """Ends of an interval over the forecast."""
    return row[f"{column}_lo"] / row[column], row[f"{column}_hi"] / row[column]


class TestColumns:
    def test_every_interval_holds_its_forecast(self, tables: RunTables) -> None:
        """The errors of this catalogue have no bias."""
        assert tables.curve is not None
        for frame in (tables.summary, tables.curve):
            names = map(str, frame.columns)
            columns = [name.removesuffix("_lo") for name in names if name.endswith("_lo")]
            assert {"tpot_s_p50", "usd_per_mtok_total"} <= set(columns)
            for column in columns:
                known = frame[frame[f"{column}_lo"].notna()]
                assert (known[f"{column}_lo"] <= known[column] * (1 + 1e-12)).all(), column
                assert (known[column] <= known[f"{column}_hi"] * (1 + 1e-12)).all(), column

    def test_times_are_off_by_the_factors_and_the_choice_of_requests(
        self, rows: Rows, tables: RunTables
    ) -> None:
        plain, frame = rows["plain"], tables.requests
        mine = frame[(frame["case"] == "plain") & frame["measured"]].sort_values("arrival_s")
        for name, factor in (("tpot_s", TPOT), ("ttft_s", TTFT)):
            down, up = sampling_reach(mine[name].to_numpy(float), "p50")
            low, high = ends(plain, f"{name}_p50")
            assert low == pytest.approx(math.exp(-math.hypot(math.log(factor), down)))
            assert high == pytest.approx(math.exp(math.hypot(math.log(factor), up)))

    def test_interactivity_is_one_over_the_time_of_a_token(self, rows: Rows) -> None:
        for row in rows.values():
            low, high = ends(row, "tpot_s_p50")
            assert ends(row, "interactivity_tokens_per_s") == pytest.approx((1 / high, 1 / low))

    def test_a_rate_that_is_given_is_known_and_so_is_the_cost(self, rows: Rows) -> None:
        plain = rows["plain"]
        for column in ("output_tokens_per_s", "usd_per_mtok_total", "usd_per_mtok_output"):
            assert ends(plain, column) == (1.0, 1.0)
        assert math.isnan(plain["energy_j_per_output_token_lo"])

    def test_a_share_of_capacity_is_off_as_capacity_is(self, rows: Rows) -> None:
        """Cost is the bill over the tokens: 1 / 1.25 to 1.25 times the forecast."""
        row = rows["share of capacity"]
        for column in ("output_tokens_per_s", "usd_per_mtok_total", "energy_j_per_output_token"):
            assert ends(row, column) == pytest.approx((1 / TPOT, TPOT))

    def test_a_closed_loop_by_littles_law(self, rows: Rows, tables: RunTables) -> None:
        """Logs of both parts of a request by their share of it, as squares."""
        row, frame = rows["closed"], tables.requests
        mine = frame[(frame["case"] == "closed") & frame["measured"]]
        share = mine["ttft_s"].mean() / mine["e2e_s"].mean()
        reach = math.hypot(share * math.log(TTFT), (1 - share) * math.log(TPOT))
        expected = (math.exp(-reach), math.exp(reach))
        for column in ("output_tokens_per_s", "usd_per_mtok_total"):
            assert ends(row, column) == pytest.approx(expected)

    def test_what_is_asked_for_is_never_exceeded(self, rows: Rows) -> None:
        """A server that falls behind may turn out to do less, or all of what is asked for."""
        row = rows["too much"]
        low, high = ends(row, "output_tokens_per_s")
        assert low == pytest.approx(1 / TPOT)
        assert 1.0 < high <= TPOT
        assert row["ttft_s_p50_hi"] / row["ttft_s_p50"] > TTFT  # the queue grows faster

    def test_a_batch_is_limited_by_the_server(self, rows: Rows) -> None:
        low, high = ends(rows["all at once"], "usd_per_mtok_total")
        assert low < 0.85
        assert high > 1 / 0.85

    def test_a_chip_that_was_not_measured_has_wider_ones(self, rows: Rows) -> None:
        measured, other = (ends(rows[name], "tpot_s_mean") for name in ("plain", "not measured"))
        assert other[0] < measured[0]
        assert other[1] > measured[1]
        assert "not measured" in rows["not measured"]["forecast_ground"]

    def test_notes_say_what_they_rest_on(self, tables: RunTables) -> None:
        text = "\n".join(tables.notes)
        assert "four fifths" in text
        assert "plain: intervals are those of measured runs with the engine fitted" in text

    def test_without_residuals_there_are_none_and_it_is_said(
        self, catalog: Catalog, tmp_path: Path
    ) -> None:
        bare = Catalog({**catalog.files, "residuals": {}})
        tables = run(ONE_CASE, bare, tmp_path)
        assert not [name for name in tables.summary if str(name).endswith(("_lo", "_hi"))]
        assert any("carry no interval" in note for note in tables.notes)

    def test_outside_of_what_was_measured_is_said(self, catalog: Catalog, tmp_path: Path) -> None:
        text = ONE_CASE.replace("max_num_seqs: 64", "max_num_seqs: 4096")
        text = text.replace("output_tokens: 10", "output_tokens: 200").replace(
            "rate_requests_per_s: 2}\n  requests: 20", "rate_requests_per_s: 900}\n  requests: 6000"
        )
        tables = run(text, catalog, tmp_path)
        said = tables.summary["outside_calibration"].iloc[0]
        assert "sequences per replica, fitted at" in said, tables.notes
        assert any("outside the calibrated region" in note for note in tables.notes)


TASKS = """\
name: tasks
question: How long do tasks take?
model: llama_3_1_8b
parallelism: {tp: 1}
precision: {weights: fp8, kv_cache: fp8}
system: h100_sxm_x8
engine: {name: vllm, prefix_caching: false}
workload:
  kind: programs
  strategy: {kind: samples, samples: 2}
  question_tokens: {kind: constant, tokens: 100}
  answer_tokens: {kind: constant, tokens: 200}
  arrivals: {kind: poisson, rate_requests_per_s: 1}
  tasks: 30
slo: {ttft_s: 1 s, tpot_s: 50 ms}
prices: {book: us_2026_11}
cases:
  - name: at a given rate
  - name: share of capacity
    workload: {load_fraction: 0.3}
"""


@pytest.fixture(scope="module")
def task_rows(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    found = run(TASKS, catalog, tmp_path_factory.mktemp("tasks"))
    return {row["case"]: row for row in found.summary.to_dict("records")}


class TestTasks:
    def test_a_task_takes_as_much_longer_as_its_calls(self, task_rows: Rows) -> None:
        """Nearly all of the time is decoding, so the error is little more than that of a token."""
        for row in task_rows.values():
            low, high = ends(row, "task_s_mean")
            assert 1 / TTFT < low < 1 / TPOT * 1.1
            assert TPOT * 0.9 < high < TTFT
            assert row["task_s_p99_hi"] > row["task_s_p50_hi"] > row["task_s_p50"]

    def test_at_a_given_rate_the_bill_is_known(self, task_rows: Rows) -> None:
        row = task_rows["at a given rate"]
        for column in ("usd_per_task", "usd_per_task_p99", "usd_per_task_cvar95"):
            assert ends(row, column) == pytest.approx((1.0, 1.0))
        assert math.isnan(row["energy_j_per_task_lo"])
        assert ends(row, "chip_s_per_task") == pytest.approx((1 / TPOT, TPOT))

    def test_at_a_share_of_capacity_it_is_dearer_on_a_slower_server(self, task_rows: Rows) -> None:
        row = task_rows["share of capacity"]
        for column in ("usd_per_task", "energy_j_per_task", "chip_s_per_task"):
            assert ends(row, column) == pytest.approx((1 / TPOT, TPOT))

    def test_the_time_of_tools_is_given(self, catalog: Catalog, tmp_path: Path) -> None:
        """Of a time of which a server takes one part in twenty or less, a twentieth is unsure."""
        agent = """{kind: agent, max_tool_calls: 1, tool_wait: {kind: constant, duration_s: 60},
             tool_call_tokens: {kind: constant, tokens: 50},
             tool_result_tokens: {kind: constant, tokens: 50}}"""
        text = TASKS.replace("{kind: samples, samples: 2}", agent)
        row = run(text, catalog, tmp_path).summary.to_dict("records")[0]
        assert row["task_s_mean"] > 60
        low, high = ends(row, "task_s_mean")
        assert TTFT ** (-1 / 20) < low < 1.0 < high < TTFT ** (1 / 20)

    def test_requests_have_none(self, tables: RunTables) -> None:
        assert not [name for name in tables.summary.columns if "task" in str(name)]


def test_cases_of_one_system_model_and_engine_share_errors(rows: Rows) -> None:
    groups = {name: row["error_group"] for name, row in rows.items()}
    assert groups["plain"] == groups["closed"] == "h100_sxm_x8/llama_3_1_70b/vllm"
    assert groups["not measured"] == "mi300x_x8/llama_3_1_70b/vllm"
    assert {row["shared_error_fraction"] for row in rows.values()} == {0.75}


def requests(ttft_s: list[float], tpot_s: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"ttft_s": ttft_s, "tpot_s": tpot_s})


def errors(correlation: float = 0.0, ttft: float = TTFT, tpot: float = TPOT) -> Errors:
    one, other = math.log(ttft), math.log(tpot)
    return Errors(LogSpread(-one, 0.0, one), LogSpread(-other, 0.0, other), correlation)


FREE = Loop(closed=False, relative=False, elastic=False, headroom=math.inf)
ALIKE = requests([0.1] * 10, [0.01] * 10)


def probability(
    slo: Slo, known: Errors | None = None, loop: Loop = FREE, wanted: int = 10
) -> float:
    return slo_probability(ALIKE, wanted, slo, known or errors(), loop)


class TestChance:
    def test_sure_and_hopeless(self) -> None:
        assert probability(Slo(ttft_s=100.0, tpot_s=100.0)) == pytest.approx(1.0)
        assert probability(Slo(ttft_s=1e-6, tpot_s=100.0)) == 0.0
        assert probability(Slo(ttft_s=100.0, tpot_s=1e-6)) == pytest.approx(0.0, abs=1e-9)

    def test_at_the_forecast_it_is_even(self) -> None:
        """Both at once, independent: a quarter; both of one error: a half."""
        slo = Slo(ttft_s=0.1, tpot_s=0.01)
        assert probability(Slo(ttft_s=100.0, tpot_s=0.01)) == pytest.approx(0.5)
        assert probability(slo) == pytest.approx(0.25, abs=0.01)
        assert probability(slo, errors(correlation=0.9999)) == pytest.approx(0.5, abs=0.01)

    def test_at_the_end_of_the_interval_it_is_nine_tenths(self) -> None:
        slack = 1 + 1e-9
        assert probability(Slo(ttft_s=100.0, tpot_s=0.01 * TPOT * slack)) == pytest.approx(0.9)
        found = probability(Slo(ttft_s=0.1 * TTFT * slack, tpot_s=100.0))
        assert found == pytest.approx(0.9, abs=0.011)  # one node of 101

    def test_requests_that_were_not_answered_missed_it(self) -> None:
        slo = Slo(ttft_s=100.0, tpot_s=100.0)
        assert probability(slo, wanted=11) == pytest.approx(1.0)  # 10 of 11 are 91 %
        assert probability(slo, wanted=12) == 0.0  # 83 %

    def test_only_as_many_count_as_are_asked_for(self) -> None:
        """Of ten requests one is ten times as slow: it may miss if nine suffice."""
        slow = requests([0.1] * 9 + [1.0], [0.01] * 10)
        slo = Slo(ttft_s=0.5, tpot_s=1.0)
        every = Slo(ttft_s=0.5, tpot_s=1.0, attainment_fraction=1.0)
        assert slo_probability(slow, 10, slo, errors(), FREE) > 0.98
        # it meets it if all times are half as long or less: at the lower end, one in ten
        assert slo_probability(slow, 10, every, errors(), FREE) == pytest.approx(0.1, abs=0.011)

    def test_a_server_that_may_be_too_slow_misses_it(self) -> None:
        """With 25 % to spare, and an error that is below 25 % in nine of ten."""
        loop = Loop(closed=False, relative=False, elastic=False, headroom=TPOT)
        assert probability(Slo(ttft_s=9.0, tpot_s=9.0), loop=loop) == pytest.approx(0.9, abs=0.01)

    @given(first=st.floats(0.05, 0.4), second=st.floats(0.05, 0.4))
    def test_a_looser_target_is_no_less_likely(self, first: float, second: float) -> None:
        tight, loose = sorted((first, second))
        found = [probability(Slo(ttft_s=each, tpot_s=0.011)) for each in (tight, loose)]
        assert found[0] <= found[1] + 1e-12


@pytest.mark.parametrize(("value", "said"), [(0.5, "longer"), (1.5, ""), (3.0, "shorter")])
def test_a_forecast_outside_its_own_interval_is_said(value: float, said: str) -> None:
    """Where measured runs lie to one side of their forecasts, the interval does too."""
    row = {"forecast_ground": "engine", "outside_calibration": "", "ttft_s_p50": value}
    notes = list(notes_of("a", row | {"ttft_s_p50_lo": 1.0, "ttft_s_p50_hi": 2.0}))
    assert len(notes) == 1 + bool(said)
    assert said in notes[-1]


class TestSampling:
    def test_of_a_mean_as_the_central_limit_theorem_has_it(self) -> None:
        values = np.random.default_rng(3).exponential(1.0, 2000)
        down, up = sampling_reach(values, "mean")
        assert down == up == pytest.approx(EDGE / math.sqrt(2000), rel=0.25)

    def test_of_a_quantile_it_holds_four_fifths_of_the_runs(self) -> None:
        random, truth = np.random.default_rng(4), math.log(20.0)  # p95 of an exponential law
        inside = 0
        for _ in range(400):
            values = random.exponential(1.0, 300)
            found = float(np.quantile(values, 0.95))
            down, up = sampling_reach(values, "p95")
            inside += found * math.exp(-down) <= truth <= found * math.exp(up)
        assert 0.72 < inside / 400 < 0.88  # four standard errors, of 2 %

    def test_neighbours_that_are_alike_count_as_fewer(self) -> None:
        random = np.random.default_rng(5)
        alone = random.exponential(1.0, 1000)
        alike = np.repeat(random.exponential(1.0, 100), 10)
        assert sampling_reach(alike, "mean")[0] > 2 * sampling_reach(alone, "mean")[0]

    def test_many_requests_leave_nothing_to_chance(self) -> None:
        assert sampling_reach(np.random.default_rng(6).exponential(1.0, 5000), "p99") == (0.0, 0.0)


@pytest.mark.parametrize(("prompt", "answer", "tp"), [(100, 10, 8), (1000, 300, 4)])
def test_capacity_is_estimated_as_a_pilot_run_finds_it(
    prompt: int, answer: int, tp: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.simulate.PILOT_REQUESTS", 1500)
    path = write(
        tmp_path,
        ONE_CASE,
        (
            "input_tokens: 100, output_tokens: 10",
            f"input_tokens: {prompt}, output_tokens: {answer}",
        ),
        ("tp: 8", f"tp: {tp}"),
    )
    catalog = open_catalog()
    (found,) = resolve(load_scenario(path), catalog)
    pilot = capacity_requests_per_s(found.service, catalog, 1)
    estimate = capacity_estimate(found.service, prompt, prompt, answer)
    # an answer of ten tokens is over within few steps, which the estimate takes to be even
    assert estimate == pytest.approx(pilot, rel=0.12)


def test_a_prompt_alone_takes_what_the_first_request_of_a_run_takes(
    catalog: Catalog, tmp_path: Path
) -> None:
    path = write(tmp_path, FOUR_CASES)
    for resolved in resolve(load_scenario(path), catalog):
        alone_s = unloaded_ttft_s(resolved.service, 100)
        tables = run(FOUR_CASES, catalog, tmp_path)
        first = tables.requests[tables.requests["case"] == resolved.service.case.name].iloc[0]
        assert first["ttft_s"] == pytest.approx(alone_s, rel=0.02)
        break
