"""Listings of the catalogue: figures of the entries, in a sensible order, and nothing invented."""

import dataclasses
import json

import pytest
from rich.console import Console

from sim.catalog import KINDS, Kind, open_catalog
from sim.report.listing import ABOUT, attention_in_words, kinds, listing
from sim.report.listing_columns import Listing, Row
from sim.report.listing_table import listing_table

CATALOG = open_catalog()


@pytest.fixture(scope="module")
def found() -> dict[Kind, Listing]:
    return {kind: listing(CATALOG, kind) for kind in KINDS}


def by_id(found: Listing) -> dict[str, Row]:
    return {row["id"]: row for row in found.rows}


def text(found: Listing, width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(listing_table(found))
    return captured.get()


class TestEveryKind:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_entry_has_one_row_that_json_can_write(
        self, found: dict[Kind, Listing], kind: Kind
    ) -> None:
        rows = found[kind].rows
        assert sorted(row["id"] for row in rows) == list(CATALOG.names(kind))
        assert json.loads(json.dumps([dict(row) for row in rows], allow_nan=False))

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_id_and_no_number_is_cut_off(self, found: dict[Kind, Listing], kind: Kind) -> None:
        shown = text(found[kind])
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= 120
        for row in found[kind].rows:
            assert f" {row['id']} " in shown

    def test_kinds_are_counted(self) -> None:
        overview = kinds(CATALOG)
        assert [row["kind"] for row in overview.rows] == list(KINDS) == list(ABOUT)
        for row in overview.rows:
            assert row["entries"] == len(CATALOG.names(row["kind"]))
            assert row["about"] in text(overview)


class TestChips:
    def test_the_figures_are_those_of_the_datasheet(self, found: dict[Kind, Listing]) -> None:
        row = by_id(found["accelerators"])["h100_sxm"]
        assert row["bandwidth_bytes_per_s"] == 3.35e12
        assert row["tdp_w"] == 700
        (line,) = [
            line for line in text(found["accelerators"]).splitlines() if " h100_sxm " in line
        ]
        assert line.split()[2:] == ["84.9", "3.35", "989", "1,979", "700", "fitted"]

    def test_a_chip_is_fitted_if_it_has_a_calibration(self, found: dict[Kind, Listing]) -> None:
        for entry_id, row in by_id(found["accelerators"]).items():
            fitted = entry_id in CATALOG.names("calibrations")
            assert (row["calibration"] == "fitted") == fitted
            assert fitted or CATALOG.accelerator(entry_id).family in row["calibration"]

    def test_speculative_chips_are_marked_and_no_others(self, found: dict[Kind, Listing]) -> None:
        marked = 0
        for entry_id, row in by_id(found["accelerators"]).items():
            assert row["speculative"] == CATALOG.accelerator(entry_id).speculative
            marked += row["speculative"]
        shown = text(dataclasses.replace(found["accelerators"], caption=""))
        assert shown.count("speculative") == marked > 0

    def test_chips_of_a_vendor_stand_together_and_families_in_them(
        self, found: dict[Kind, Listing]
    ) -> None:
        for keys in (("vendor",), ("vendor", "family")):
            order = [tuple(row[key] for key in keys) for row in found["accelerators"].rows]
            runs = [
                place
                for place, before in zip(order, [None, *order], strict=False)
                if place != before
            ]
            assert len(runs) == len(set(runs))

    def test_a_format_that_is_not_the_usual_one_is_named(self, found: dict[Kind, Listing]) -> None:
        """A100 has INT8 and no FP8."""
        lines = text(found["accelerators"]).splitlines()
        (line,) = [line for line in lines if " a100_sxm " in line]
        assert "624 int8" in line


class TestSystems:
    def test_what_a_chip_can_send(self, found: dict[Kind, Listing]) -> None:
        """Seven links of 64 GB/s; two neighbours of 50 GB/s along one axis, one along a pair."""
        rows = by_id(found["systems"])
        assert rows["h100_sxm_x8"]["scale_up_bytes_per_s"] == 450e9
        assert rows["mi300x_x8"]["scale_up_bytes_per_s"] == pytest.approx(7 * 64e9)
        assert rows["tpu_v5e_8"]["scale_up_bytes_per_s"] == pytest.approx((2 + 1) * 50e9)
        assert rows["tpu_v5e_256"]["scale_up_bytes_per_s"] == pytest.approx(4 * 50e9)
        assert rows["cs3_x1"]["scale_up_bytes_per_s"] is None

    def test_topologies(self, found: dict[Kind, Listing]) -> None:
        rows = by_id(found["systems"])
        assert rows["tpu_v5e_8"]["scale_up"] == "torus 2x4"
        assert rows["tpu_v5e_256"]["scale_up"] == "torus 16*x16*"
        assert rows["h100_sxm_x8"]["scale_up"] == "switched"
        assert rows["gh200_x1"]["scale_up"] == "none"

    def test_prices_are_those_of_the_book_or_nothing(self, found: dict[Kind, Listing]) -> None:
        book = CATALOG.prices("us_2026_11")
        for entry_id, row in by_id(found["systems"]).items():
            owned = book.purchase_usd_per_system.get(entry_id)
            rents = book.rent_usd_per_chip_hour.get(row["accelerator"], {})
            assert row["purchase_usd"] == (owned.value if owned else None)
            assert set(row["rents"]) == set(rents)
            rent = rents.get("on_demand")
            assert row["rent_usd_per_chip_hour"] == (rent.value if rent else None)


class TestModels:
    def test_llama_by_hand(self, found: dict[Kind, Listing]) -> None:
        """70.6 billion; a key and a value of 128 in 8 heads and 80 layers, 2 bytes each."""
        row = by_id(found["models"])["llama_3_1_70b"]
        assert row["parameters"] == row["active_parameters"] == pytest.approx(70.55e9, rel=1e-3)
        assert row["kv_bytes_per_token"] == 2 * 8 * 128 * 80 * 2
        assert (row["attention"], row["experts"]) == ("GQA", "")

    def test_a_mixture(self, found: dict[Kind, Listing]) -> None:
        """671 billion, 37 of them active; (512 + 64) x 61 elements of 2 bytes."""
        row = by_id(found["models"])["deepseek_r1"]
        assert row["parameters"] == pytest.approx(671e9, rel=0.01)
        assert row["active_parameters"] == pytest.approx(37e9, rel=0.03)
        assert row["kv_bytes_per_token"] == 576 * 61 * 2
        assert (row["attention"], row["experts"]) == ("MLA", "8 of 256")

    def test_estimates_are_marked_and_no_others(self, found: dict[Kind, Listing]) -> None:
        lines = text(found["models"]).splitlines()
        for entry_id in CATALOG.names("models"):
            (line,) = [line for line in lines if line.startswith(f" {entry_id} ")]
            assert ("estimate" in line) == CATALOG.model(entry_id).estimate

    @pytest.mark.parametrize(
        ("model", "words"),
        [
            ("llama_2_7b", "MHA"),
            ("gpt_oss_120b", "GQA + window"),
            ("mistral_7b", "GQA in a window"),
            ("deepseek_v3_2", "sparse MLA"),
            ("qwen3_next_80b_a3b", "linear + GQA"),
        ],
    )
    def test_attention(self, model: str, words: str) -> None:
        assert attention_in_words(CATALOG.model(model)) == words

    def test_a_family_stands_together_small_ones_first(self, found: dict[Kind, Listing]) -> None:
        rows = found["models"].rows
        order = [(row["family"].lower(), row["parameters"]) for row in rows]
        assert order == sorted(order)


class TestStrategies:
    def test_a_case_is_told_what_it_needs(self, found: dict[Kind, Listing]) -> None:
        """By hand: a cascade by score calls a small model and a scorer, and goes by the score."""
        rows = by_id(found["strategies"])
        row = rows["cascade_score"]
        assert (row["kind"], row["other_models"]) == ("cascade", ["small", "verifier"])
        assert row["needs_benchmark"]
        assert not rows["self_consistency_40"]["needs_benchmark"]
        assert rows["direct"]["other_models"] == []
        assert all(entry["source"] and entry["description"] for entry in rows.values())
