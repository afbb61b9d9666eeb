"""Services of several pools: from the keys of a scenario to the tables of a run."""

from pathlib import Path

import numpy as np
import pytest
from small_scenarios import ONE_CASE, silent

from sim.catalog import open_catalog
from sim.errors import InfeasibleError, InputError
from sim.forecast import forecast
from sim.report.data import RunTables
from sim.report.explanation import explanation
from sim.scenario import Scenario, load_scenario
from sim.service import Service, service_of

CATALOG = open_catalog()

SPLIT = (
    ONE_CASE
    + """\
cases:
  - name: one
    parallelism: {tp: 4}
  - name: split
    pools:
      prefill: {parallelism: {tp: 2}}
      decode: {parallelism: {tp: 4}, replicas: 1}
  - name: apart
    pools:
      prefill: {system: h200_sxm_x8, systems: 2, engine: {max_num_batched_tokens: 16384}}
      decode: {router: round_robin}
"""
)
"""What is shared stands in lines 1 to 14, the cases from line 16."""


def scenario(
    folder: Path, *changes: tuple[str, str], settings: dict[str, str] | None = None
) -> Scenario:
    text = SPLIT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "split.yaml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path, list((settings or {}).items()))


def services(folder: Path, *changes: tuple[str, str]) -> dict[str, Service]:
    return {case.name: service_of(case, CATALOG) for case in scenario(folder, *changes).cases}


class TestKeys:
    def test_a_case_without_pools_is_one_pool(self, tmp_path: Path) -> None:
        one = scenario(tmp_path).cases[0]
        assert (one.roles, one.sharing_roles, one.of_pool("serve")) == (("serve",), ("serve",), one)

    def test_pools_are_laid_over_their_case(self, tmp_path: Path) -> None:
        apart = scenario(tmp_path).cases[2]
        prefill, decode = (apart.of_pool(role) for role in ("prefill", "decode"))
        assert (prefill.name, decode.name) == ("apart, prefill", "apart, decode")
        assert (prefill.system, decode.system) == ("h200_sxm_x8", "h100_sxm_x8")
        # max_num_seqs is shared; the token budget is that of the pool
        assert (prefill.engine.max_num_seqs, prefill.engine.max_num_batched_tokens) == (64, 16384)
        assert (decode.engine.max_num_seqs, decode.engine.max_num_batched_tokens) == (64, 8192)
        assert (prefill.router.kind, decode.router.kind) == ("least_outstanding", "round_robin")
        assert (prefill.parallelism.tp, decode.parallelism.tp) == (8, 8)

    def test_pools_share_the_systems_of_their_case_unless_they_name_their_own(
        self, tmp_path: Path
    ) -> None:
        _, split, apart = scenario(tmp_path).cases
        assert split.sharing_roles == ("prefill", "decode")
        assert apart.sharing_roles == ("decode",)
        assert (apart.of_pool("prefill").systems, apart.of_pool("decode").systems) == (2, 1)

    def test_another_system_is_one_of_its_own(self, tmp_path: Path) -> None:
        apart = scenario(tmp_path, (", systems: 2", "")).cases[2]
        assert apart.sharing_roles == ("decode",)
        assert apart.of_pool("prefill").systems == 1

    def test_a_case_takes_the_pools_of_the_shared_keys_back(self, tmp_path: Path) -> None:
        pools = "pools: {prefill: {replicas: 1}, decode: {replicas: 1}}\ncases:"
        found = scenario(
            tmp_path, ("cases:", pools), ("- name: one", "- name: one\n    pools: null")
        )
        assert [case.roles for case in found.cases] == [("serve",), *[("prefill", "decode")] * 2]
        assert found.cases[2].of_pool("prefill").replicas == 1

    def test_a_case_need_not_repeat_what_its_pools_say(self, tmp_path: Path) -> None:
        path = tmp_path / "pools.yaml"
        text = ONE_CASE.replace("parallelism: {tp: 8}\n", "")
        path.write_text(
            text + "pools:\n  prefill: {parallelism: {tp: 2}, replicas: 1}\n"
            "  decode: {parallelism: {tp: 4}}\n",
            encoding="utf-8",
        )
        (case,) = load_scenario(path).cases
        assert [case.of_pool(role).parallelism.tp for role in case.roles] == [2, 4]

    def test_a_setting_of_a_shared_key_wins_over_pools(self, tmp_path: Path) -> None:
        found = scenario(tmp_path, settings={"parallelism.tp": "8"}).cases
        assert {case.of_pool(role).parallelism.tp for case in found for role in case.roles} == {8}

    def test_a_setting_can_name_a_pool(self, tmp_path: Path) -> None:
        found = scenario(tmp_path, settings={"cases.1.pools.decode.replicas": "3"}).cases
        assert found[1].of_pool("decode").replicas == 3


class TestProblems:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                "decode: {router: round_robin}",
                "decode: {ruoter: round_robin}",
                r"split.yaml:25: pools\.decode\.ruoter: unknown key; did you mean router\?",
            ),
            ("{tp: 2}", "{tp: two}", r"split.yaml:20: pools\.prefill\.parallelism\.tp: 'two'"),
            ("      decode: {router: round_robin}\n", "", r"split.yaml:23: pools: give prefill"),
            ("decode: {router", "decode: {model: llama_3_1_8b, router", "cannot read its keys"),
            ("decode: {router", "dekode: {}\n      decode: {router", "did you mean decode"),
        ],
    )
    def test_of_keys_have_their_place(
        self, tmp_path: Path, old: str, new: str, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            scenario(tmp_path, (old, new))

    def test_pools_that_share_systems_say_how(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="give all but one of them replicas"):
            services(tmp_path, (", replicas: 1}", "}"))

    @pytest.mark.parametrize(
        ("replicas", "message"),
        [
            ("3", r"the pools need 12 chips \(decode 12\), 1 x h100_sxm_x8 has 8: systems >= 2"),
            ("2", "a replica of the prefill pool needs 2 chips, .* take 8 .*: systems >= 2"),
        ],
    )
    def test_too_few_chips_for_all(self, tmp_path: Path, replicas: str, message: str) -> None:
        with pytest.raises(InfeasibleError, match=message):
            services(tmp_path, ("replicas: 1", f"replicas: {replicas}"))

    def test_what_does_not_fit_names_its_pool(self, tmp_path: Path) -> None:
        with pytest.raises(InfeasibleError, match=r"GiB of weights") as caught:
            services(tmp_path, ("{tp: 2}", "{tp: 1}, precision: {weights: bf16}"))
        assert [problem.keys for problem in caught.value.problems] == [
            (("pools", "prefill", "model"),)
        ]

    def test_a_link_has_to_join_the_pools(self, tmp_path: Path) -> None:
        link = ("  - name: apart", "  - name: apart\n    kv_transfer: {link: scale_up}")
        with pytest.raises(InputError, match="do not stand in one scale-up domain"):
            services(tmp_path, link)


class TestChips:
    def test_one_pool_gets_what_the_others_leave(self, tmp_path: Path) -> None:
        split = services(tmp_path)["split"]
        # 8 chips less one replica of 4: two of 2
        assert [pool.replicas for pool in split.pools] == [2, 1]
        assert (split.chips, split.replicas, split.first_replicas) == (8, 3, (0, 2))
        (fleet,) = split.fleets
        assert (fleet.chips, fleet.installed_chips) == (8, 8)

    def test_systems_of_their_own_are_fleets_of_their_own(self, tmp_path: Path) -> None:
        apart = services(tmp_path)["apart"]
        shared, own = apart.fleets
        assert (shared.system_id, shared.systems, shared.places) == ("h100_sxm_x8", 1, (1,))
        assert (own.system_id, own.systems, own.places) == ("h200_sxm_x8", 2, (0,))


class TestKvPath:
    def test_bytes_of_a_token(self, tmp_path: Path) -> None:
        """Llama 3.1 70B keeps a key and a value of 128 bytes for 8 heads in each of 80 layers."""
        path = services(tmp_path)["split"].kv_path
        assert path is not None
        assert path.request_bytes(1000) == 1000 * 80 * 2 * 8 * 128

    def test_copies_are_sent_to_every_chip_that_keeps_one(self, tmp_path: Path) -> None:
        """Over 16 ranks each of the 8 heads is kept twice."""
        twice = (
            "decode: {parallelism: {tp: 4}, replicas: 1}",
            "decode: {system: gb200_nvl72, parallelism: {tp: 16}}",
        )
        path = services(tmp_path, twice)["split"].kv_path
        assert path is not None
        assert path.request_bytes(1) == 2 * 80 * 2 * 8 * 128

    def test_pools_in_one_domain_use_its_network(self, tmp_path: Path) -> None:
        """450 GB/s a chip on NVLink, of which NCCL reaches 0.7; two and four chips."""
        path = services(tmp_path)["split"].kv_path
        assert path is not None
        assert path.out_port.bytes_per_s == pytest.approx(2 * 0.7 * 450e9)
        assert path.in_port.bytes_per_s == pytest.approx(4 * 0.7 * 450e9)
        assert "scale_up" in path.in_port.source

    def test_others_go_from_card_to_card(self, tmp_path: Path) -> None:
        """400 Gb/s a chip, of which NCCL reaches 0.95; eight chips on both sides."""
        path = services(tmp_path)["apart"].kv_path
        assert path is not None
        assert path.out_port.bytes_per_s == pytest.approx(8 * 0.95 * 50e9)
        assert "scale_out" in path.out_port.source

    def test_given_rates_are_those_of_a_chip(self, tmp_path: Path) -> None:
        given = "kv_transfer: {overlap: layerwise, bandwidth_bytes_per_s: 1 GB/s, latency_s: 1 ms}"
        path = services(tmp_path, ("  - name: apart", f"  - name: apart\n    {given}"))[
            "apart"
        ].kv_path
        assert path is not None
        assert (path.out_port.bytes_per_s, path.out_port.latency_s) == (8e9, 1e-3)
        assert path.overlap_fraction == 79 / 80


def test_each_pool_explains_the_step_that_it_runs(tmp_path: Path) -> None:
    found = services(tmp_path)
    steps = explanation(found["apart"], batch=8, context=500, prompt=10_000)
    assert [(step.case, step.kind) for step in steps] == [
        ("apart, prefill", "prefill"),
        ("apart, decode", "decode"),
    ]
    assert [step.system for step in steps] == ["h200_sxm_x8", "h100_sxm_x8"]
    one = explanation(found["one"], batch=8, context=500, prompt=1000)
    assert [step.kind for step in one] == ["prefill", "decode"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    settings = {"workload.requests": "120", "workload.rate_requests_per_s": "12"}
    found = scenario(tmp_path_factory.mktemp("split"), settings=settings)
    return forecast(found, CATALOG, silent, manifest={})


class TestRun:
    """A split service from its file to the tables."""

    def test_every_request_is_answered(self, tables: RunTables) -> None:
        assert (tables.summary["completed_requests"] == 120).all()
        several = tables.requests[tables.requests["case"] != "one"]
        assert (several["prefill_replica"] >= 0).all()
        assert (several["replica"] > several["prefill_replica"]).all()

    def test_no_token_is_lost_or_made_twice(self, tables: RunTables) -> None:
        for case, bins in tables.timeline.groupby("case"):
            counted = (bins["output_tokens_per_s"] * (bins["end_s"] - bins["start_s"])).sum()
            mine = tables.requests[tables.requests["case"] == case]
            assert counted == pytest.approx(mine["output_tokens"].sum(), rel=1e-9)

    def test_every_prompt_is_moved_once(self, tables: RunTables) -> None:
        """Prompts of 100 tokens, of 163,840 bytes each; nothing moves where there is one pool."""
        bins = tables.timeline
        moved = bins["kv_transfer_bytes_per_s"] * (bins["end_s"] - bins["start_s"])
        found = moved.groupby(bins["case"]).sum()
        assert found["one"] == 0.0
        for case in ("split", "apart"):
            assert found[case] == pytest.approx(120 * 100 * 163_840)

    def test_the_parts_of_a_request_make_up_the_whole(self, tables: RunTables) -> None:
        rows = tables.requests
        parts = rows[["queue_s", "encode_s", "prefill_s", "decode_s"]].sum(axis="columns")
        outside = rows["e2e_s"] - parts
        assert (outside.groupby(rows["case"]).std() < 1e-9).all()
        moved_s = rows["handover_wait_s"] + rows["transfer_s"]
        assert (moved_s <= rows["decode_s"]).all()

    def test_pools_pay_the_bill(self, tables: RunTables) -> None:
        paid = tables.pools.groupby("case")["usd_per_hour"].sum()
        bill = tables.bill.groupby("case")["usd_per_hour"].sum()
        np.testing.assert_allclose(paid[bill.index], bill)
        chips = tables.pools.groupby("case")["chips"].sum()
        assert chips.to_dict() == {"one": 8, "split": 8, "apart": 24}

    def test_prompts_are_paid_by_their_pool(self, tables: RunTables) -> None:
        """The prefill pool does nothing else, and the decode pool no prompts."""
        rows = tables.summary.set_index("case")
        pools = tables.pools.set_index(["case", "pool"])["usd_per_hour"]
        for case in ("split", "apart"):
            row = rows.loc[case]
            inputs = row["total_tokens_per_s_per_chip"] * row["chips"] - row["output_tokens_per_s"]
            paid = row["usd_per_mtok_input"] * inputs * 3600 / 1e6
            assert paid == pytest.approx(pools[case, "prefill"])

    def test_every_pool_says_what_it_rests_on(self, tables: RunTables) -> None:
        items = tables.provenance.groupby("case")["item"].agg(set)
        assert {"prefill: model", "decode: model", "keys and values into decode"} <= items["split"]
        assert "model" in items["one"]
        assert set(tables.manifest["inputs"]) >= {  # type: ignore[arg-type]
            "systems/h100_sxm_x8",
            "systems/h200_sxm_x8",
        }

    def test_tenants_pay_the_bill_too(self, tables: RunTables) -> None:
        rows = tables.tenants
        np.testing.assert_allclose(rows["usd_per_hour"], tables.summary["usd_per_hour"])
        np.testing.assert_allclose(rows["ttft_s_p99"], tables.summary["ttft_s_p99"])
