"""From a scenario to its tables: nothing gets lost, the books agree, and notes say what to know."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_scenarios import CLOSED_LOOP, FOUR_CASES, ONE_CASE, forecast_of, write

import sim.forecast
from sim.catalog import open_catalog
from sim.errors import InfeasibleError, InputError
from sim.forecast import forecast
from sim.report.data import RunTables
from sim.scenario import load_scenario

CATALOG = open_catalog()
REQUESTS = 20


def run(path: Path, *settings: tuple[str, str]) -> RunTables:
    return forecast_of(path, settings)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    curve = "curve: {concurrency_per_replica: [1, 4], requests_per_client: 3}\n"
    text = FOUR_CASES.replace("cases:\n", curve + "cases:\n") + (
        "  - name: closed\n    curve: null\n" + CLOSED_LOOP
    )
    return write(tmp_path_factory.mktemp("scenario"), text)


@pytest.fixture(scope="module")
def tables(file: Path) -> RunTables:
    return run(file)


class TestBooks:
    """What holds in the tables of every run."""

    def test_requests_are_conserved(self, tables: RunTables) -> None:
        asked = {"closed": 30}
        for row in tables.summary.to_dict("records"):
            mine = tables.requests[tables.requests["case"] == row["case"]]
            wanted = asked.get(str(row["case"]), REQUESTS)
            assert list(mine["request_id"]) == list(range(wanted))
            assert row["completed_requests"] + row["failed_requests"] == wanted
            assert (mine["outcome"] == "completed").sum() == row["completed_requests"]

    def test_time_goes_forward(self, tables: RunTables) -> None:
        frame = tables.requests
        for earlier, later in (
            ("arrival_s", "admit_s"),
            ("admit_s", "first_token_s"),
            ("first_token_s", "done_s"),
        ):
            assert (frame[earlier] <= frame[later]).all()

    def test_latencies_are_differences_of_times(self, tables: RunTables) -> None:
        frame = tables.requests
        np.testing.assert_allclose(frame["ttft_s"], frame["first_token_s"] - frame["arrival_s"])
        np.testing.assert_allclose(frame["e2e_s"], frame["done_s"] - frame["arrival_s"])
        # Ten tokens: the first one and nine gaps.
        np.testing.assert_allclose(frame["e2e_s"], frame["ttft_s"] + 9 * frame["tpot_s"])

    def test_the_bill_adds_up(self, tables: RunTables) -> None:
        for row in tables.summary.to_dict("records"):
            lines = tables.bill[tables.bill["case"] == row["case"]]
            assert lines["usd_per_hour"].sum() == pytest.approx(row["usd_per_hour"])
            assert lines["share_fraction"].sum() == pytest.approx(1.0)
            assert lines["usd"].sum() == pytest.approx(
                row["usd_per_hour"] * row["duration_s"] / 3600
            )

    def test_input_and_output_tokens_pay_the_whole_bill(self, tables: RunTables) -> None:
        for row in tables.summary.to_dict("records"):
            total = row["total_tokens_per_s_per_chip"] * row["chips"]
            paid = row["usd_per_mtok_output"] * row["output_tokens_per_s"]
            paid += row["usd_per_mtok_input"] * (total - row["output_tokens_per_s"])
            assert paid / 1e6 == pytest.approx(row["usd_per_hour"] / 3600)
            assert row["usd_per_mtok_total"] * total == pytest.approx(paid)

    def test_cases_meet_the_same_requests(self, tables: RunTables) -> None:
        by_case = tables.requests.groupby("case")["arrival_s"].agg(tuple)
        assert by_case["H100"] == by_case["H200"] == by_case["B200"]
        assert tables.cases == ("H100", "H200", "B200", "H100, two halves", "closed")

    def test_a_closed_loop_keeps_its_clients_waiting(self, tables: RunTables) -> None:
        """Three clients: request n is sent when the client has seen one of those before it."""
        mine = tables.requests[tables.requests["case"] == "closed"].set_index("request_id")
        assert (mine["arrival_s"][:3] == 0.0).all()
        np.testing.assert_allclose(mine["arrival_s"][3:], sorted(mine["done_s"])[:-3])


class TestCurve:
    def test_one_row_per_load_times_replicas(self, tables: RunTables) -> None:
        assert tables.curve is not None
        points = tables.curve.groupby("case", sort=False)["concurrency"].agg(list).to_dict()
        # Two halves of the eight chips are two replicas; the last case has no curve.
        assert points == {
            "H100": [1, 4],
            "H200": [1, 4],
            "B200": [1, 4],
            "H100, two halves": [2, 8],
        }

    def test_more_users_more_tokens_each_slower(self, tables: RunTables) -> None:
        assert tables.curve is not None
        for _, points in tables.curve.groupby("case"):
            assert points["output_tokens_per_s_per_chip"].is_monotonic_increasing
            assert points["interactivity_tokens_per_s"].is_monotonic_decreasing

    def test_a_lone_user_has_the_engine_for_himself(self, tables: RunTables) -> None:
        """One client: the next request starts when the last one is done, so rates are inverse."""
        assert tables.curve is not None
        lone = tables.curve[tables.curve["concurrency"] == 1].set_index("case").loc["H100"]
        assert lone["interactivity_tokens_per_s"] == pytest.approx(1 / lone["tpot_s_p50"])
        assert lone["output_tokens_per_s_per_chip"] * 8 < lone["interactivity_tokens_per_s"]

    def test_none_unless_asked_for(self, tmp_path: Path) -> None:
        assert run(write(tmp_path, ONE_CASE)).curve is None

    def test_a_trace_lends_its_lengths(self, tmp_path: Path) -> None:
        """A trace of one length and a fixed law of it have the same curve."""
        curve = "curve: {concurrency_per_replica: [2], requests_per_client: 4}\n"
        fixed = run(write(tmp_path, ONE_CASE + curve))
        rows = [f"{second},100,10" for second in range(3)]
        text = "\n".join(["arrival_s,input_tokens,output_tokens", *rows])
        (tmp_path / "trace.csv").write_text(text, encoding="utf-8")
        traced = run(
            write(tmp_path, ONE_CASE + curve),
            ("workload", f"{{kind: trace, path: {tmp_path / 'trace.csv'}}}"),
        )
        assert traced.curve is not None
        assert fixed.curve is not None
        pd.testing.assert_frame_equal(traced.curve, fixed.curve)


def evenly(
    count: int, start_s: float, end_s: float, tenant: str = "patient"
) -> list[tuple[float, str]]:
    """Arrivals of a tenant at equal distances."""
    return [(start_s + (end_s - start_s) * number / count, tenant) for number in range(count)]


class TestLoad:
    def test_a_fraction_of_what_the_pilot_run_serves(self, tmp_path: Path) -> None:
        """Evenly paced requests come at exactly that rate."""
        path = write(
            tmp_path,
            ONE_CASE,
            ("{kind: poisson, rate_requests_per_s: 2}", "{kind: uniform, rate_requests_per_s: 2}"),
            ("requests: 20", "requests: 200\n  load_fraction: 0.25"),
        )
        tables = run(path)
        (note,) = [note for note in tables.notes if "requests/s at most" in note]
        most = float(note.split("it serves ")[1].split()[0])
        gaps = np.diff(tables.requests["arrival_s"])
        np.testing.assert_allclose(1 / gaps, most / 4, rtol=0.01)

    def test_falling_behind_is_said(self, tmp_path: Path) -> None:
        path = write(tmp_path, ONE_CASE)
        eased = run(path, ("workload.requests", "200"))
        flooded = run(
            path,
            ("workload.requests", "2000"),
            ("workload.rate_requests_per_s", "2000"),
        )
        assert not [note for note in eased.notes if "falls behind" in note]
        assert [note for note in flooded.notes if note.startswith("small: falls behind: ")]

    @pytest.mark.parametrize(
        ("arrivals", "places", "behind"),
        [
            # one at a time is 11 requests/s; 20 come: fewer than a hundred are too few to tell
            (evenly(99, 0.0, 5.0), 1, False),
            (evenly(100, 0.0, 5.0), 1, True),
            # over before anybody could have an answer, and hardly anybody waits for a place
            (evenly(200, 0.0, 0.025), 256, False),
            # a crowd that gets smaller: some 55 are there after 4 s, some 12 after 8 s
            ([*evenly(100, 0.0, 1.0), (8.0, "patient")], 1, False),
            # who gives up leaves too, and nobody is there at half-time
            ([*evenly(80, 0.0, 4.0, "hasty"), *evenly(81, 5.0, 9.0, "hasty")], 1, False),
            # those who are there and will give up, 60 of them at the end, are no crowd that grows
            (
                [*evenly(100, 0.0, 1.0), *evenly(60, 5.0, 8.0, "hasty"), (8.0, "patient")],
                1,
                False,
            ),
        ],
        ids=["few", "enough", "at once", "shrinking", "impatient", "impatient at the end"],
    )
    def test_only_what_grows_falls_behind(
        self, tmp_path: Path, arrivals: list[tuple[float, str]], places: int, *, behind: bool
    ) -> None:
        rows = [f"{arrival_s},100,10,{tenant}" for arrival_s, tenant in sorted(arrivals)]
        text = "\n".join(["arrival_s,input_tokens,output_tokens,tenant", *rows])
        (tmp_path / "trace.csv").write_text(text, encoding="utf-8")
        settings = [
            ("workload", f"{{kind: trace, path: {tmp_path / 'trace.csv'}}}"),
            ("measure.warmup_fraction", "0"),
            ("engine.max_num_seqs", str(places)),
        ]
        if "hasty" in text:
            settings.append(("tenants", "{hasty: {patience: {timeout_s: 500 ms}}}"))
        tables = run(write(tmp_path, ONE_CASE), *settings)
        assert behind == any("falls behind" in note for note in tables.notes)

    def test_requests_that_do_not_fit_are_counted(self, tmp_path: Path) -> None:
        tables = run(write(tmp_path, ONE_CASE), ("engine.max_model_len", "109"))
        (row,) = tables.summary.to_dict("records")
        assert (row["completed_requests"], row["failed_requests"]) == (0, REQUESTS)
        assert np.isnan(row["tpot_s_p50"])
        assert any(
            note.startswith(f"small: {REQUESTS} requests are longer") for note in tables.notes
        )
        # Nobody waits for a request that was turned away.
        assert not any("falls behind" in note for note in tables.notes)


class TestBefore:
    """Everything is looked up before anything runs."""

    @pytest.mark.parametrize(
        ("settings", "error", "words"),
        [
            ([("cases.4.system", "h101")], InputError, "unknown system 'h101'"),
            (
                [("cases.4.parallelism.tp", "16")],
                InfeasibleError,
                "case 'closed': 1 replica of 16",
            ),
            (
                [("cases.4.prices", "{book: us_2026_11, mode: rent, rent: spot}")],
                InputError,
                "there is no rent",
            ),
        ],
    )
    def test_a_mistake_in_the_last_case(
        self,
        file: Path,
        monkeypatch: pytest.MonkeyPatch,
        settings: list[tuple[str, str]],
        error: type[Exception],
        words: str,
    ) -> None:
        def never(*_: object, **__: object) -> None:
            raise AssertionError("a case has run")

        monkeypatch.setattr(sim.forecast, "simulate", never)
        with pytest.raises(error, match=words):
            run(file, *settings)


def test_progress_is_told_by_case_and_curve(file: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def listen(name: str) -> Callable[[int, int], None]:
        return lambda done, total: told.setdefault(name, []).append((done, total))

    settings = [("workload.requests", "2500"), ("workload.rate_requests_per_s", "500")]
    scenario = load_scenario(file, [*settings, ("cases", "[{name: a}]")])
    forecast(scenario, CATALOG, listen, manifest={})
    assert told == {"a": [(1000, 2500), (2000, 2500), (2500, 2500)], "a, curve": [(1, 2), (2, 2)]}


def test_raw_runs_are_kept_on_demand(file: Path) -> None:
    kept: list[str] = []
    forecast_of(file, keep=lambda run: kept.append(run.service.case.name))
    assert kept == ["H100", "H200", "B200", "H100, two halves", "closed"]


class TestManifest:
    def test_every_input_has_its_hash(self, tables: RunTables, file: Path) -> None:
        inputs = tables.manifest["inputs"]
        assert isinstance(inputs, dict)
        assert set(inputs) == {
            "scenario",
            *(f"systems/{chip}_sxm_x8" for chip in ("h100", "h200", "b200")),
            *(f"accelerators/{chip}_sxm" for chip in ("h100", "h200", "b200")),
            *(f"calibrations/{chip}_sxm" for chip in ("h100", "h200", "b200")),
            *(f"priors/{family}" for family in ("hopper", "blackwell")),
            "engines/vllm",
            "overheads/vllm",
            "residuals/serving",
            "models/llama_3_1_70b",
            "prices/us_2026_11",
        }
        for name, path in (
            ("scenario", file),
            ("models/llama_3_1_70b", CATALOG.path("models", "llama_3_1_70b")),
        ):
            assert inputs[name] == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_wall_time_and_seed(self, tables: RunTables) -> None:
        assert tables.manifest["seed"] == tables.seed == 1
        assert float(str(tables.manifest["wall_time_s"])) > 0


class TestProvenance:
    def test_every_cost_line_and_every_operator_has_a_source(self, tables: RunTables) -> None:
        mine = tables.provenance[tables.provenance["case"] == "H100"]
        assert mine["source"].str.len().min() > 0
        lines = set(tables.bill.loc[tables.bill["case"] == "H100", "line"])
        assert {f"cost: {line}" for line in lines} <= set(mine["item"])
        assert {"model", "memory", "memory bandwidth", "KV cache"} <= set(mine["item"])
        assert mine["item"].is_unique

    def test_the_chip_is_cited_with_its_own_figures(self, tables: RunTables) -> None:
        shown = tables.provenance.set_index(["case", "item"])["value"]
        assert shown["H100", "memory bandwidth"] == "3,350 GB/s"
        assert shown["H200", "memory bandwidth"] == "4,800 GB/s"


LAWS_OF_CALLS = """\
workload:
  kind: programs
  strategy: {kind: samples, samples: 16}
  question_tokens: {kind: constant, tokens: 100}
  answer_tokens: {kind: constant, tokens: 10}
  arrivals: {kind: uniform, rate_requests_per_s: 1}
  tasks: 20
"""
TASKS = ONE_CASE[: ONE_CASE.index("workload:")] + LAWS_OF_CALLS + ONE_CASE[ONE_CASE.index("slo:") :]
"""A task a second, of 16 calls that take a fraction of it."""


class TestTasks:
    """Tasks of test-time compute, each of many calls."""

    def test_calls_that_come_in_bursts_do_not_fall_behind(self, tmp_path: Path) -> None:
        """All but the calls of the last task, asked when the window ends, have left by then."""
        tables = run(write(tmp_path, TASKS))
        assert len(tables.requests) == 20 * 16
        assert not any("falls behind" in note for note in tables.notes)

    def test_tasks_that_fall_behind_are_counted_as_tasks(self, tmp_path: Path) -> None:
        flood = [("workload.tasks", "400"), ("workload.arrivals.rate_requests_per_s", "400")]
        tables = run(write(tmp_path, TASKS), *flood)
        (note,) = [note for note in tables.notes if "falls behind" in note]
        assert "tasks/s leave while 40" in note  # 400 a second arrive

    def test_the_capacity_is_one_of_tasks(self, tmp_path: Path) -> None:
        tables = run(write(tmp_path, TASKS), ("workload.load_fraction", "0.5"))
        (note,) = [note for note in tables.notes if " at most" in note]
        most = float(note.split("it serves ")[1].split(" tasks/s at most")[0])
        np.testing.assert_allclose(1 / np.diff(tables.tasks["arrival_s"]), most / 2, rtol=0.01)

    def test_cancelled_calls_miss_no_target(self, tmp_path: Path) -> None:
        tables = run(
            write(tmp_path, TASKS),
            ("workload.benchmark", "gsm8k_claims"),
            ("workload.strategy", "{kind: samples, samples: 16, select: oracle, cancel: true}"),
            ("workload.answer_tokens", "{kind: uniform, min_tokens: 5, max_tokens: 80}"),
        )
        (row,), (tenant,) = (table.to_dict("records") for table in (tables.summary, tables.tenants))
        assert row["cancelled_requests"] > 0
        assert row["failed_requests"] == 0
        assert row["slo_attainment_fraction"] == tenant["slo_attainment_fraction"] == 1.0

    def test_accuracy_is_that_of_the_answers_that_came(self, tmp_path: Path) -> None:
        """Half of the answers are too long, so that votes have fewer voices, or none at all."""
        settings = [
            ("workload.benchmark", "gsm8k_claims"),
            ("workload.strategy", "{kind: samples, samples: 3}"),
            ("workload.answer_tokens", "{kind: uniform, min_tokens: 1, max_tokens: 100}"),
            ("workload.tasks", "100"),
        ]
        whole = run(write(tmp_path, TASKS), *settings)
        cut = run(write(tmp_path, TASKS), *settings, ("engine.max_model_len", "150"))
        tasks = cut.tasks[cut.tasks["measured"]]
        done = tasks[tasks["outcome"] == "completed"]
        (row,) = cut.summary.to_dict("records")
        assert row["failed_tasks"] == (tasks["outcome"] == "rejected").sum()
        assert 1 / 8 / 2 < row["failed_tasks"] / len(tasks) < 1 / 8 * 2
        assert row["accuracy_fraction"] == done["solved"].mean()
        assert done["solved"].notna().all()
        assert any("accuracy is that of these tasks alone" in note for note in cut.notes)
        (row,) = whole.summary.to_dict("records")
        assert row["accuracy_standard_error"] < 0.01  # of thousands of questions
        assert not any("accuracy is that of" in note for note in whole.notes)
