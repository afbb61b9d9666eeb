"""The tables of a run: what they must hold, and the order they are written in."""

import dataclasses
import math

import pandas as pd
import pytest
from report_fixtures import four_cases, nothing_completed

from sim.errors import InternalError
from sim.report.data import SUMMARY_COLUMNS, ordered, ordered_summary


def test_cases_keep_the_order_of_the_summary() -> None:
    assert four_cases().cases == ("8x H100", "8x H200", "8x B200", "GB300 NVL72")


def test_a_missing_column_is_named_with_its_table() -> None:
    tables = four_cases()
    with pytest.raises(InternalError, match="timeline lacks power_w"):
        dataclasses.replace(tables, timeline=tables.timeline.drop(columns="power_w"))


def test_all_problems_are_reported_at_once() -> None:
    tables = four_cases()
    with pytest.raises(InternalError, match=r"summary lacks model; .*bill lacks usd"):
        dataclasses.replace(
            tables,
            summary=tables.summary.drop(columns="model"),
            bill=tables.bill.drop(columns="usd"),
        )


def test_two_cases_of_one_name_are_refused() -> None:
    tables = four_cases()
    with pytest.raises(InternalError, match="two cases are called '8x H100'"):
        dataclasses.replace(tables, summary=pd.concat([tables.summary, tables.summary.iloc[:1]]))


def test_a_table_may_not_speak_of_an_unknown_case() -> None:
    tables = four_cases()
    with pytest.raises(InternalError, match="bill speaks of an unknown case 'TPU'"):
        dataclasses.replace(tables, bill=tables.bill.assign(case="TPU"))


def test_a_run_without_cases_is_refused() -> None:
    tables = four_cases()
    with pytest.raises(InternalError, match="the summary has no case"):
        dataclasses.replace(tables, summary=tables.summary.iloc[:0])


def test_summary_columns_come_in_their_order_with_intervals_beside() -> None:
    columns = list(ordered_summary(four_cases().summary).columns)
    assert [column for column in columns if column in SUMMARY_COLUMNS] == list(SUMMARY_COLUMNS)
    place = columns.index("usd_per_mtok_total")
    assert columns[place + 1 : place + 3] == ["usd_per_mtok_total_lo", "usd_per_mtok_total_hi"]
    assert columns[-2:] == ["slo_tpot_s", "slo_ttft_s"]


def test_the_written_order_does_not_depend_on_the_given_one() -> None:
    summary = four_cases().summary
    backwards = summary[list(summary.columns)[::-1]]
    assert list(ordered_summary(backwards).columns) == list(ordered_summary(summary).columns)


def test_an_interval_without_its_forecast_is_kept() -> None:
    assert list(ordered(pd.DataFrame(columns=["x_lo", "b", "a"]), ["a"]).columns) == [
        "a",
        "b",
        "x_lo",
    ]


def test_counts_stay_whole_where_one_is_missing() -> None:
    summary = nothing_completed().summary
    summary["replicas"] = [2.0, math.nan]
    replicas = ordered_summary(summary)["replicas"]
    assert str(replicas.dtype) == "Int64"
    assert replicas[0] == 2
    assert replicas.isna().tolist() == [False, True]


def test_a_column_of_nothing_but_none_becomes_numbers() -> None:
    summary = four_cases().summary.assign(usd_per_mtok_output=None)
    assert ordered_summary(summary)["usd_per_mtok_output"].dtype == "float64"
