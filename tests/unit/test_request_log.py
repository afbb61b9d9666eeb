"""Forecasts of single requests beside an engine's own log of them."""

from pathlib import Path

import pandas as pd
import pytest

from sim.calibration.request_log import compare, read_log, table
from sim.errors import InputError

LOG = """arrival_s,input_tokens,output_tokens,ttft_s,tpot_s
2.0,30,3,0.4,0.02
0.0,10,1,0.1,
1.0,20,2,0.2,0.01
"""


def log_of(folder: Path, text: str = LOG) -> pd.DataFrame:
    path = folder / "log.csv"
    path.write_text(text, encoding="utf-8")
    return read_log(path)


def run_of(log: pd.DataFrame, **columns: list[float]) -> pd.DataFrame:
    return log.assign(outcome="completed", **columns)


def test_by_arrival(tmp_path: Path) -> None:
    assert log_of(tmp_path)["input_tokens"].tolist() == [10, 20, 30]


def test_errors_by_hand(tmp_path: Path) -> None:
    """TTFT 10, 50 and 0 % off: mean 20, median 10; of the means 0.61 / 0.7 - 1.

    TPOT of the two answers that have one: 10 and 20 % off; of the means 0.035 / 0.03 - 1.
    """
    log = log_of(tmp_path)
    found = compare(
        log, run_of(log, ttft_s=[0.11, 0.10, 0.40], tpot_s=[float("nan"), 0.011, 0.024])
    )
    ttft, tpot = found.to_dict("records")
    assert (ttft["quantity"], ttft["requests"]) == ("ttft_s", 3)
    assert ttft["mean_error"] == pytest.approx(0.61 / 0.7 - 1)
    assert ttft["mean_ape"] == pytest.approx(0.2)
    assert ttft["median_ape"] == pytest.approx(0.1)
    assert (tpot["quantity"], tpot["requests"]) == ("tpot_s", 2)
    assert tpot["mean_error"] == pytest.approx(0.035 / 0.03 - 1)
    assert tpot["mean_ape"] == pytest.approx(0.15)
    assert "-12.9%" in table(found)


def test_requests_without_an_answer_do_not_count(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    run = run_of(log, ttft_s=[9.0, 0.2, 0.4], tpot_s=[0.01, 0.01, 0.02])
    run["outcome"] = ["rejected", "completed", "completed"]
    ttft = compare(log, run).iloc[0]
    assert (ttft["requests"], ttft["mean_ape"]) == (2, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,output_tokens,ttft_s\n0,1,1\n", "columns are missing: input_tokens"),
        ("arrival_s,input_tokens,output_tokens\n0,1,1\n", "give ttft_s or tpot_s"),
        (LOG.replace("0.4,", "slow,"), "ttft_s: something is not a number"),
        (LOG.replace("0.4,", "-0.4,"), "ttft_s: something is below 0"),
        ("", "cannot be read as CSV"),
    ],
)
def test_a_log_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        log_of(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_log(tmp_path / "none.csv")


def test_a_run_of_another_log(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    with pytest.raises(InputError, match="3 requests and the run 2"):
        compare(log, run_of(log).iloc[:2])
    with pytest.raises(InputError, match="request 1 in order of arrival has 2 output_tokens"):
        compare(log, run_of(log, output_tokens=[1, 9, 3]))


def test_nothing_to_compare(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    with pytest.raises(InputError, match="no request has both"):
        compare(log, run_of(log).assign(outcome="rejected"))
