"""Every shipped scenario runs, made small, and laws hold on what comes out.

Figures stand here only beside the hand arithmetic that bounds them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.catalog import open_catalog
from sim.forecast import forecast
from sim.report.data import SUMMARY_COLUMNS, RunTables
from sim.scenario import load_scenario

CATALOG = open_catalog()
Settings = Callable[[Path], list[tuple[str, str]]]

REQUESTS = 300
LOADS = (1, 8, 64)
SMALL_CURVE = f"{{concurrency_per_replica: {list(LOADS)}, requests_per_client: 3}}"


def small(_: Path) -> list[tuple[str, str]]:
    return [("workload.requests", str(REQUESTS)), ("curve", SMALL_CURVE)]


def without_curve(_: Path) -> list[tuple[str, str]]:
    return [("workload.requests", str(REQUESTS))]


def replay(folder: Path) -> list[tuple[str, str]]:
    """Write a trace in place of the recorded one: a request every 150 ms, long and short ones."""
    rows = [f"{0.15 * i:.3f},{200 + 37 * i % 3000},{5 + 13 * i % 300}" for i in range(REQUESTS)]
    path = folder / "trace.csv"
    path.write_text("\n".join(["t_s,input_tokens,output_tokens", *rows]), encoding="utf-8")
    return [("workload.path", str(path))]


MADE_SMALL: Mapping[str, Settings] = {
    "azure_conversation_replay": replay,
    "bench/fixed_512_256": without_curve,
    "dense_vs_moe": small,
    "quickstart": small,
}


def watch(_: str) -> Callable[[int, int], None]:
    return lambda _done, _total: None


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunTables]:
    """Run a scenario once for all tests that look at it."""
    done: dict[str, RunTables] = {}

    def run(name: str) -> RunTables:
        if name not in done:
            settings = MADE_SMALL[name](tmp_path_factory.mktemp("trace"))
            scenario = load_scenario(CATALOG.path("scenarios", name), settings)
            done[name] = forecast(scenario, CATALOG, watch, manifest={})
        return done[name]

    return run


@pytest.fixture(params=sorted(MADE_SMALL))
def tables(request: pytest.FixtureRequest, run_of: Callable[[str], RunTables]) -> RunTables:
    return run_of(request.param)


def test_none_is_forgotten() -> None:
    """Those of a folder that has tests of its own are run there."""
    elsewhere = ("catalogue/", "published/", "serving/", "test_time_compute/")
    names = {name for name in CATALOG.names("scenarios") if not name.startswith(elsewhere)}
    assert names == set(MADE_SMALL)


class TestLaws:
    def test_every_figure_is_there(self, tables: RunTables) -> None:
        figures = tables.summary[list(SUMMARY_COLUMNS)].drop(columns=["case", "system", "model"])
        assert np.isfinite(figures.to_numpy(float)).all()
        assert (figures.drop(columns="failed_requests") >= 0).all().all()

    def test_requests_are_conserved(self, tables: RunTables) -> None:
        for row in tables.summary.to_dict("records"):
            assert row["completed_requests"] + row["failed_requests"] == REQUESTS
        assert (tables.requests.groupby("case").size() == REQUESTS).all()
        assert (tables.requests["outcome"] == "completed").all()

    def test_no_token_is_lost(self, tables: RunTables) -> None:
        """All cases of a scenario serve the same requests, token by token."""
        sums = tables.requests.groupby("case")[["input_tokens", "output_tokens"]].sum()
        assert len(sums.drop_duplicates()) == 1

    def test_the_clock_goes_forward(self, tables: RunTables) -> None:
        frame = tables.requests
        times = frame[["arrival_s", "admit_s", "first_token_s", "done_s"]].to_numpy()
        assert (np.diff(times, axis=1) >= 0).all()

    def test_percentiles_are_in_order(self, tables: RunTables) -> None:
        rows = tables.summary
        for name in ("ttft_s", "tpot_s"):
            for low, high in (("p50", "p95"), ("p95", "p99")):
                assert (rows[f"{name}_{low}"] <= rows[f"{name}_{high}"]).all()
            assert (rows[f"{name}_mean"] <= rows[f"{name}_p99"]).all()
        assert (rows["e2e_s_p50"] <= rows["e2e_s_p99"]).all()
        assert (rows["ttft_s_p50"] <= rows["e2e_s_p50"]).all()

    def test_interactivity_is_the_inverse_of_tpot(self, tables: RunTables) -> None:
        product = tables.summary["interactivity_tokens_per_s"] * tables.summary["tpot_s_p50"]
        np.testing.assert_allclose(product, 1.0)

    def test_fractions_are_fractions(self, tables: RunTables) -> None:
        names = ["utilization_fraction", "mfu_fraction", "mbu_fraction", "slo_attainment_fraction"]
        values = tables.summary[names].to_numpy(float)
        assert ((values >= 0) & (values <= 1 + 1e-9)).all()
        assert (tables.summary["mfu_fraction"] < tables.summary["utilization_fraction"]).all()

    def test_goodput_is_the_part_that_meets_the_slo(self, tables: RunTables) -> None:
        rows = tables.summary
        wanted = rows["offered_requests_per_s"] * rows["slo_attainment_fraction"]
        np.testing.assert_allclose(rows["goodput_requests_per_s"], wanted)

    def test_lines_of_the_bill_add_up(self, tables: RunTables) -> None:
        lines = tables.bill.groupby("case")[["usd_per_hour", "share_fraction"]].sum()
        rows = tables.summary.set_index("case")
        np.testing.assert_allclose(lines["usd_per_hour"][rows.index], rows["usd_per_hour"])
        np.testing.assert_allclose(lines["share_fraction"], 1.0)
        assert (tables.bill["usd_per_hour"] > 0).all()

    def test_tokens_pay_the_bill(self, tables: RunTables) -> None:
        """Input and output tokens at their prices come to the dollars of an hour."""
        rows = tables.summary
        all_tokens = rows["total_tokens_per_s_per_chip"] * rows["chips"]
        outputs = rows["output_tokens_per_s"]
        paid = rows["usd_per_mtok_output"] * outputs
        paid += rows["usd_per_mtok_input"] * (all_tokens - outputs)
        np.testing.assert_allclose(paid / 1e6 * 3600, rows["usd_per_hour"])
        np.testing.assert_allclose(rows["usd_per_mtok_total"] * all_tokens, paid)
        assert (rows["usd_per_mtok_input"] < rows["usd_per_mtok_output"]).all()

    def test_energy_is_power_over_tokens(self, tables: RunTables) -> None:
        rows = tables.summary
        wanted = rows["power_w_mean"] / rows["output_tokens_per_s"]
        np.testing.assert_allclose(rows["energy_j_per_output_token"], wanted)

    def test_power_lies_between_idle_and_all_at_their_limit(self, tables: RunTables) -> None:
        for row in tables.summary.to_dict("records"):
            system = CATALOG.system(str(row["system"]))
            power = CATALOG.accelerator(system.accelerator).power
            shares = {int(row["chips"]) / system.chips, 1.0}  # chips, or whole systems, are charged
            host_w = system.host_power_w.value
            least = min(share * (host_w + system.chips * power.idle_w.value) for share in shares)
            most = max(share * (host_w + system.chips * power.tdp_w.value) for share in shares)
            assert least < row["power_w_mean"] < most

    def test_the_timeline_counts_the_same_tokens(self, tables: RunTables) -> None:
        for case, bins in tables.timeline.groupby("case"):
            counted = (bins["output_tokens_per_s"] * (bins["end_s"] - bins["start_s"])).sum()
            mine = tables.requests[tables.requests["case"] == case]
            # What was computed twice, after a preemption, is not an output token twice.
            assert counted == pytest.approx(mine["output_tokens"].sum(), rel=1e-6)


class TestCurves:
    @pytest.fixture(params=["quickstart", "dense_vs_moe"])
    def curve(
        self, request: pytest.FixtureRequest, run_of: Callable[[str], RunTables]
    ) -> pd.DataFrame:
        curve = run_of(request.param).curve
        assert curve is not None
        return curve

    def test_more_users_more_tokens_each_slower(self, curve: pd.DataFrame) -> None:
        for case, points in curve.groupby("case"):
            assert len(points) == len(LOADS), case
            assert points["concurrency"].is_monotonic_increasing
            assert (points["output_tokens_per_s_per_chip"].diff().dropna() > 0).all(), case
            assert (points["interactivity_tokens_per_s"].diff().dropna() < 0).all(), case

    def test_a_fuller_system_is_cheaper_per_token(self, curve: pd.DataFrame) -> None:
        for case, points in curve.groupby("case"):
            assert points["usd_per_mtok_total"].is_monotonic_decreasing, case
            assert points["energy_j_per_output_token"].is_monotonic_decreasing, case


class TestChips:
    """Where decode waits for memory, the chip with the faster memory is the faster one."""

    def single_user_tpot_s(self, run_of: Callable[[str], RunTables]) -> dict[str, float]:
        curve = run_of("quickstart").curve
        assert curve is not None
        lone = curve[curve.groupby("case")["concurrency"].transform("min") == curve["concurrency"]]
        return dict(zip(lone["system"], lone["tpot_s_p50"], strict=True))

    def test_h200_is_not_slower_than_h100(self, run_of: Callable[[str], RunTables]) -> None:
        """4.8 TB/s instead of 3.35, the rest alike: at most 1.43 times as fast."""
        curve = run_of("quickstart").curve
        assert curve is not None
        tpot_s = curve.pivot_table(index="concurrency", columns="system", values="tpot_s_p50")
        ratio = tpot_s["h100_sxm_x8"] / tpot_s["h200_sxm_x8"]
        assert (ratio.dropna() >= 1.0).all()
        assert (ratio.dropna() <= 4.8 / 3.35).all()
        assert len(ratio.dropna()) == len(LOADS)

    @pytest.mark.parametrize(
        ("system", "terabytes_per_s"),
        [("h100_sxm_x8", 3.35), ("h200_sxm_x8", 4.8), ("b200_sxm_x8", 8.0), ("gb300_nvl72", 8.0)],
    )
    def test_a_token_takes_as_long_as_the_weights(
        self, run_of: Callable[[str], RunTables], system: str, terabytes_per_s: float
    ) -> None:
        """Four chips read 70 GB for each token of a lone user: on the H100 5.2 ms, never less.

        Launches, all-reduces and an efficiency below one come on top. They are the larger part on
        chips with the fastest memory: B200 hosts were measured at three times the bound.
        """
        bound_s = 70e9 / (4 * terabytes_per_s * 1e12)
        assert bound_s < self.single_user_tpot_s(run_of)[system] < 4 * bound_s

    def test_experts_that_rest_are_not_read(self, run_of: Callable[[str], RunTables]) -> None:
        """R1 holds ten times the weights and reads half of Llama 70B's for a lone token."""
        curve = run_of("dense_vs_moe").curve
        assert curve is not None
        lone = curve[curve["concurrency"] == 1].set_index("case")["tpot_s_p50"]
        ratio = lone["R1 on 8x H200"] / lone["70B dense on 8x H200"]
        # 37 GB instead of 70; 61 layers instead of 80, with more and smaller kernels each.
        assert 37 / 70 < ratio < 671 / 70 / 3
