"""Power of measured runs: what is forecast of it, and what is compared."""

from pathlib import Path

import pytest
from test_validate_files import read

from sim.calibration.replay import replay, replay_with_power
from sim.calibration.runs import MeasuredRun
from sim.calibration.validate import POWER, document, error_table, validate_runs
from sim.catalog import open_catalog
from sim.scenario import PriceChoice

CATALOG = open_catalog()
CHIP = CATALOG.accelerator("h100_sxm").power


def one(folder: Path, **changes: str) -> MeasuredRun:
    (run,) = read(folder, changes)
    assert isinstance(run, MeasuredRun)
    return run


def power_w(run: MeasuredRun) -> float:
    return replay_with_power(run.case, CATALOG, seed=1).chip_power_w


def test_more_clients_take_more_power_and_never_more_than_the_board_allows(tmp_path: Path) -> None:
    powers = [power_w(one(tmp_path, concurrency=str(clients))) for clients in (1, 16, 128)]
    assert CHIP.idle_w.value < powers[0] < powers[1] < powers[2] <= CHIP.tdp_w.value


def test_the_run_itself_is_the_same(tmp_path: Path) -> None:
    case = one(tmp_path).case
    assert replay_with_power(case, CATALOG, seed=1).statistics == replay(case, CATALOG, seed=1)


def test_chips_beside_the_replicas_are_left_out_whoever_pays_for_them(tmp_path: Path) -> None:
    """A replica of four chips in a host of eight: the meter of a run sees the four."""
    case = one(tmp_path).case
    by_charge = [
        replay_with_power(
            case.model_copy(update={"prices": PriceChoice(book="us_2026_11", charge=charge)}),
            CATALOG,
            seed=1,
        ).chip_power_w
        for charge in ("systems", "chips")
    ]
    assert by_charge[0] == pytest.approx(by_charge[1])


def test_it_is_compared_per_chip_beside_the_other_figures(tmp_path: Path) -> None:
    found = validate_runs(read(tmp_path, {"power_w": "1200"}, {}), CATALOG)
    (row,) = found.rows[found.rows["quantity"] == POWER].to_dict("records")
    assert (row["row_id"], row["measured"]) == ("r1", 300.0)
    assert row["forecast"] == pytest.approx(power_w(one(tmp_path)))
    assert document(found)[POWER]["runs"] == 1
    assert found.notes == ()


def test_more_than_the_chips_can_draw_is_that_of_others_too(tmp_path: Path) -> None:
    """Four H100 draw 2,800 W at most."""
    found = validate_runs(read(tmp_path, {"power_w": "2801"}, {"power_w": "2799"}), CATALOG)
    assert found.rows.loc[found.rows["quantity"] == POWER, "row_id"].tolist() == ["r2"]
    assert "power of 1 run not compared" in error_table(found)
