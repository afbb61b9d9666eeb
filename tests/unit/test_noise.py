"""What measurements differ by among themselves, by hand."""

from pathlib import Path

import pandas as pd
import pytest

from sim.calibration.noise import OTHER_RELEASE, REPEATED, floors, pairs
from sim.calibration.runs import MeasuredRun, read_runs
from sim.catalog import open_catalog

COLUMNS = "row_id,hardware,num_chips,tp,model,weight_dtype,engine,scenario,isl,osl,concurrency,"
HEAD = COLUMNS + "ttft_p50_ms,tpot_p50_ms"
SAME = "H100-SXM-80GB,4,4,Llama-3.1-70B,fp8"


def read(folder: Path, *rows: str) -> list[MeasuredRun]:
    path = folder / "runs.csv"
    path.write_text("\n".join([HEAD, *rows]) + "\n", encoding="utf-8")
    found = list(read_runs(path, open_catalog()))
    return [run for run in found if isinstance(run, MeasuredRun)]


@pytest.fixture
def found(tmp_path: Path) -> pd.DataFrame:
    """Three alike, one of them of another release, and two that are not alike."""
    runs = read(
        tmp_path,
        f"a,{SAME},vllm 0.11.0,concurrency,1024,1024,16,100,10",
        f"b,{SAME},vllm 0.11.0,concurrency,1024,1024,16,110,10",
        f"c,{SAME},vllm 0.15.1,concurrency,1024,1024,16,200,9",
        f"d,{SAME},vllm 0.11.0,concurrency,1024,1024,32,400,20",
        f"e,{SAME},trtllm 1.0.0,concurrency,1024,1024,16,400,20",
    )
    assert len(runs) == 5
    return pairs(runs)


def test_only_what_is_alike_makes_a_pair(found: pd.DataFrame) -> None:
    # a and b; c with either: two figures each
    assert found.groupby("kind").size().to_dict() == {REPEATED: 2, OTHER_RELEASE: 4}
    assert set(found["engine"]) == {"vllm"}


def test_differences_are_those_of_the_larger_over_the_smaller(found: pd.DataFrame) -> None:
    table = floors(found).set_index(["quantity", "kind"])
    assert table.loc[("ttft", REPEATED), "median_fraction"] == pytest.approx(0.1)
    assert table.loc[("tpot", REPEATED), "median_fraction"] == pytest.approx(0.0)
    assert table.loc[("tpot", OTHER_RELEASE), "median_fraction"] == pytest.approx(1 / 9)


def test_the_best_single_answer_lies_between(found: pd.DataFrame) -> None:
    """10 and 9 ms are both met within 5.4 % by their geometric mean."""
    table = floors(found).set_index(["quantity", "kind"])
    best = (10 * 9) ** 0.5
    assert table.loc[("tpot", OTHER_RELEASE), "floor_fraction"] == pytest.approx(best / 9 - 1)


def test_nothing_alike_is_an_empty_table(tmp_path: Path) -> None:
    runs = read(tmp_path, f"a,{SAME},vllm 0.11.0,concurrency,1024,1024,16,100,10")
    assert floors(pairs(runs)).empty
