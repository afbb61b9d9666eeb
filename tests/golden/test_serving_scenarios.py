"""The scenarios of the serving engine's features run as they are, and laws hold on what comes out.

Figures stand here only beside the reasoning that bounds them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from sim.catalog import open_catalog
from sim.forecast import forecast
from sim.report.data import RunTables
from sim.scenario import load_scenario

CATALOG = open_catalog()
Settings = Callable[[Path], list[tuple[str, str]]]
Run = Callable[[str], RunTables]
BLOCK = 512


def as_it_is(_: Path) -> list[tuple[str, str]]:
    return []


def log(folder: Path) -> list[tuple[str, str]]:
    """Write a log of fifty requests in place of a recorded one."""
    rows = [f"{0.2 * i:.1f},{100 + 37 * i},{5 + i}" for i in range(50)]
    path = folder / "log.csv"
    path.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]), encoding="utf-8")
    return [("workload.path", str(path))]


def blocks(folder: Path) -> list[tuple[str, str]]:
    """Write a trace of a hundred prompts of four blocks, half of which all have in common."""
    rows = [
        {
            "timestamp": 500 * i,
            "input_length": 4 * BLOCK,
            "output_length": 20,
            "hash_ids": [0, 1, 2 + 2 * i, 3 + 2 * i],
        }
        for i in range(100)
    ]
    path = folder / "trace.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return [("workload.path", str(path))]


FILES: Mapping[str, Settings] = {"vllm_log_replay": log, "mooncake_replay": blocks}
NAMES = [
    name.removeprefix("serving/")
    for name in CATALOG.names("scenarios")
    if name.startswith("serving/")
]


def watch(_: str) -> Callable[[int, int], None]:
    return lambda _done, _total: None


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a scenario once for all tests that look at it."""
    done: dict[str, RunTables] = {}

    def run(name: str) -> RunTables:
        if name not in done:
            settings = FILES.get(name, as_it_is)(tmp_path_factory.mktemp("trace"))
            scenario = load_scenario(CATALOG.path("scenarios", f"serving/{name}"), settings)
            done[name] = forecast(scenario, CATALOG, watch, manifest={})
        return done[name]

    return run


@pytest.fixture(params=NAMES)
def tables(request: pytest.FixtureRequest, run_of: Run) -> RunTables:
    return run_of(request.param)


def by_case(tables: RunTables, column: str) -> dict[str, float]:
    return dict(zip(tables.summary["case"], tables.summary[column].astype(float), strict=True))


class TestLaws:
    def test_requests_are_conserved(self, tables: RunTables) -> None:
        for row in tables.summary.to_dict("records"):
            mine = tables.requests[tables.requests["case"] == row["case"]]
            assert mine["request_id"].is_unique
            assert row["completed_requests"] == (mine["outcome"] == "completed").sum()
            assert row["completed_requests"] + row["failed_requests"] == len(mine)
            assert (mine["outcome"] != "unfinished").all()

    def test_cases_serve_the_same_requests(self, tables: RunTables) -> None:
        """But for sessions that end early, and cases with a workload of their own."""
        served = tables.requests[tables.requests["session"] < 0]
        for _, mine in served.groupby("request_id"):
            if tables.scenario != "speculative_decoding":
                assert mine["input_tokens"].nunique() == 1
                assert mine["output_tokens"].nunique() == 1

    def test_the_clock_goes_forward(self, tables: RunTables) -> None:
        frame = tables.requests[tables.requests["outcome"] == "completed"]
        times = frame[["arrival_s", "admit_s", "first_token_s", "done_s"]].to_numpy()
        assert (np.diff(times, axis=1) >= 0).all()

    def test_tenants_share_the_bill(self, tables: RunTables) -> None:
        shares = tables.tenants.groupby("case")["share_fraction"].sum()
        np.testing.assert_allclose(shares, 1.0)

    def test_replicas_that_are_paid_were_built(self, tables: RunTables) -> None:
        assert (tables.pools["replicas_mean"] <= tables.pools["replicas"] + 1e-9).all()
        assert (tables.pools["replicas_mean"] > 0).all()


def test_templates_are_found_again(run_of: Run) -> None:
    """Of 2,300 tokens 2,000 are a template: no more than that part can be found."""
    tables = run_of("prefix_caching")
    found, ttft_s = by_case(tables, "cached_input_fraction"), by_case(tables, "ttft_s_p50")
    assert found["no cache"] == 0
    assert 0.8 * 2000 / 2300 < found["cache"] <= 2000 / 2300
    assert found["small cache"] < found["cache"]
    assert found["small cache above host memory"] > found["small cache"]
    assert ttft_s["cache"] < ttft_s["no cache"]


def test_a_session_stays_where_its_context_is(run_of: Run) -> None:
    found = by_case(run_of("sticky_sessions"), "cached_input_fraction")
    assert found["sticky"] > found["round robin"]
    assert found["prefix aware"] > found["round robin"]


def test_prompts_apart_do_not_disturb_answers(run_of: Run) -> None:
    tables = run_of("together_or_apart")
    tpot_s, moved = by_case(tables, "tpot_s_p99"), by_case(tables, "kv_transfer_bytes")
    assert tpot_s["apart"] < tpot_s["together"]
    assert moved["together"] == 0
    window = tables.requests[(tables.requests["case"] == "apart") & tables.requests["measured"]]
    # Keys and values of Llama 3.1 70B in 8 bit: 2 x 80 layers x 8 heads x 128 bytes per token.
    each = 2 * 80 * 8 * 128 * 6000
    assert moved["apart"] == pytest.approx(each * len(window), rel=0.05)
    assert list(tables.pools["pool"]) == ["serve", "prefill", "decode", "prefill", "decode"]


def test_images_apart_wait_for_their_way(run_of: Run) -> None:
    tables = run_of("multimodal_encode_pools")
    names = ("together", "images together with prompts", "images apart")
    for name in (*names, "images before all else"):
        mine = tables.requests[tables.requests["case"] == name]
        assert set(mine["input_tokens"]) == {300 + 2 * 1024}
    tpot_s = by_case(tables, "tpot_s_p99")
    assert max(tpot_s[names[1]], tpot_s[names[2]]) < tpot_s["together"]
    assert tpot_s["images before all else"] < tpot_s["together"]  # one disturbance less
    # Whoever meets nobody waits for the encoder and the prompt in either case; apart, also for one
    # more step of an engine and for 2048 embeddings of 3584 x 2 bytes, at 450 GB/s at most.
    best_s = tables.requests.groupby("case")["ttft_s"].min()
    way_s = best_s["images apart"] - best_s["images together with prompts"]
    assert 2048 * 3584 * 2 / 450e9 < way_s < 5e-3
    assert list(tables.pools["pool"]) == [
        "serve",
        "prefill",
        "decode",
        "encode",
        "serve",
        "encode",
        "prefill",
        "decode",
    ]
    busy = dict(
        zip(
            zip(tables.pools["case"], tables.pools["pool"], strict=True),
            tables.pools["utilization_fraction"],
            strict=True,
        )
    )
    # Five chips do what two and three do apart, but for what the engine adds to every step.
    joint = 5 * busy[names[1], "prefill"]
    apart = 2 * busy[names[2], "encode"] + 3 * busy[names[2], "prefill"]
    assert apart == pytest.approx(joint, rel=0.1)


def test_drafts_gain_less_in_a_full_batch(run_of: Run) -> None:
    tpot_s = by_case(run_of("speculative_decoding"), "tpot_s_p50")
    for who, drafts in (("8B", "EAGLE-3"), ("R1", "MTP")):
        gain = {
            users: tpot_s[f"{who}, plain, {users} users"]
            / tpot_s[f"{who}, {drafts}, {users} users"]
            for users in (2, 128)
        }
        assert gain[2] > gain[128]
        # No step yields more than was measured: 1 + 0.73 + 0.52 + 0.35, and 1 + 0.875.
        assert 1 < gain[2] < (2.61 if who == "8B" else 1.88)


def test_priorities_and_shares_spare_the_small_tenants(run_of: Run) -> None:
    rows = run_of("tenants").tenants
    assert list(rows["tenant"].unique()) == ["application", "chat", "batch"]
    met = {
        (case, tenant): float(share)
        for case, tenant, share in zip(
            rows["case"], rows["tenant"], rows["slo_attainment_fraction"], strict=True
        )
    }
    for case in ("priorities", "fair shares", "at most 24 of the batch"):
        for tenant in ("application", "chat"):
            assert met[case, tenant] > met["first come", tenant]
    assert (rows.groupby("tenant")["requests"].nunique() == 1).all()


def test_clients_that_give_up_and_come_back(run_of: Run) -> None:
    tables = run_of("impatient_clients")
    late, turned_away = (by_case(tables, f"{name}_requests") for name in ("timed_out", "shed"))
    assert late["patient"] == turned_away["patient"] == 0
    assert late["gives up"] > late["backs off"]
    assert turned_away["short queue"] > 0
    attempts = tables.requests.groupby("case")["attempts"].max()
    assert attempts["gives up"] == 1
    assert attempts["tries again at once"] == 4  # the first and three more
    gave_up = tables.requests[tables.requests["case"] == "gives up"]
    waited_s = gave_up.loc[gave_up["outcome"] == "completed", "ttft_s"]
    assert waited_s.max() < 3.1  # three seconds, a step and the way of the answer


def test_an_autoscaler_follows_the_day(run_of: Run) -> None:
    tables = run_of("autoscaling_day")
    usd = by_case(tables, "usd_per_hour")
    met = by_case(tables, "slo_attainment_fraction")
    assert usd["scaled by load"] < usd["eight all day"]
    assert usd["scaled by load, host ready"] < usd["eight all day"]
    assert met["scaled by load"] < met["scaled by load, host ready"] <= met["eight all day"]
    up = tables.timeline.groupby("case")["replicas_up"]
    assert up.max()["eight all day"] == pytest.approx(8)
    assert up.min()["eight all day"] == pytest.approx(8)
    assert up.min()["scaled by load"] < 3
    assert 5 < up.max()["scaled by load"] < 8 + 1e-9


def test_a_prepared_spare_is_worth_its_chips(run_of: Run) -> None:
    tables = run_of("failures_and_spares")
    met = by_case(tables, "slo_attainment_fraction")
    usd, lost = by_case(tables, "usd_per_hour"), by_case(tables, "lost_work_usd_per_hour")
    assert met["no spare"] < met["hot spare"] <= met["nothing fails"] == 1
    assert usd["no spare"] == pytest.approx(usd["nothing fails"], rel=0.02)
    # Eight chips are paid for instead of seven; power moves with what they do.
    assert usd["hot spare"] / usd["no spare"] == pytest.approx(8 / 7, rel=0.02)
    assert usd["cold spare"] < usd["hot spare"]
    assert lost["nothing fails"] == 0
    assert 0 < lost["hot spare"] < lost["hot spare, answers begin again"]
    assert any("failures in the run: chip" in note for note in tables.notes)


def test_swapping_spares_prompts(run_of: Run) -> None:
    tables = run_of("swap_or_recompute")
    left, rate = by_case(tables, "preemptions"), by_case(tables, "output_tokens_per_s")
    assert left["no preemption"] == 0
    assert min(left["recompute"], left["swap"]) > 0
    assert rate["swap"] > rate["recompute"]
    assert by_case(tables, "lost_work_usd_per_hour")["no preemption"] == 0
    moved = tables.timeline.groupby("case")["kv_offload_bytes_per_s"].sum()
    assert moved["recompute"] == moved["no preemption"] == 0
    assert moved["swap"] > 0


def test_presets_differ(run_of: Run) -> None:
    """The same model on the same chips: engines differ by some percent and not by factors."""
    rows = run_of("presets").summary
    assert rows["ttft_s_p95"].nunique() == len(rows) == 3
    assert rows["tpot_s_p50"].max() < 2 * rows["tpot_s_p50"].min()


def test_contexts_of_agents_are_found_again(run_of: Run) -> None:
    tables = run_of("agentic_sessions")
    found = by_case(tables, "cached_input_fraction")
    assert found["without"] == 0
    assert found["with a prefix cache"] > 0.8
    assert (tables.requests["session"] >= 0).all()


def test_blocks_of_a_trace_are_found_again(run_of: Run) -> None:
    """Half of each prompt but of the first on each replica; all of it could be in the store."""
    found = by_case(run_of("mooncake_replay"), "cached_input_fraction")
    for part in found.values():
        assert 0.45 < part <= 0.5


def test_notes_say_what_is_not_in(run_of: Run) -> None:
    assert "Boot, failures and maintenance are not in." in run_of("presets").notes
    notes = run_of("failures_and_spares").notes
    assert "Boot, failures and maintenance of nothing fails are not in." in notes


def test_the_folder_is_not_empty() -> None:
    assert set(FILES) < set(NAMES)
