"""The short table of the terminal and the long one of the page."""

import dataclasses
import io
import math

import pandas as pd
import pytest
from report_fixtures import eight_cases, four_cases, hostile, nothing_completed, one_case, renamed
from rich.console import Console

from sim.report.data import (
    COUNT_COLUMNS,
    SUMMARY_COLUMNS,
    TASK_SUMMARY_COLUMNS,
    TEXT_COLUMNS,
    RunTables,
)
from sim.report.tables import GROUPS, console_table, summary_cell, summary_frame


def printed(summary: pd.DataFrame, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(console_table(summary))
    return out.getvalue().splitlines()


RUNS = [four_cases(), one_case(), nothing_completed(), eight_cases(long_names=True), hostile()]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("tables", RUNS, ids=["four", "one", "nothing", "eight", "hostile"])
def test_the_table_fits_and_cuts_no_number(tables: RunTables, width: int) -> None:
    lines = printed(tables.summary, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "nan" not in text
    assert text.count("172/355/468") == text.count("14.0/17.1/18.6")


def test_numbers_are_those_of_the_summary_in_the_unit_of_the_head() -> None:
    summary = (
        four_cases()
        .summary.iloc[:1]
        .assign(ttft_s_p50=0.1, ttft_s_p95=0.25, ttft_s_p99=1.5, tpot_s_p50=0.02, tpot_s_p95=0.03)
    )
    summary = summary.assign(tpot_s_p99=0.04, utilization_fraction=0.5, usd_per_mtok_total=1.25)
    text = "\n".join(printed(summary, 120))
    for part in ("TTFT ms", "100/250/1500", "TPOT ms", "20.0/30.0/40.0", "50.0", "1.25"):
        assert part in text


def test_long_waits_are_in_seconds() -> None:
    summary = four_cases().summary.assign(ttft_s_p99=123.4)
    text = "\n".join(printed(summary, 120))
    assert "TTFT s" in text
    assert "/123" in text


def test_a_case_that_completed_nothing_is_dashes() -> None:
    row = next(line for line in printed(nothing_completed().summary, 120) if "H100" in line)
    assert row.split()[2:] == ["\N{EN DASH}"] * 7


def test_markup_in_a_name_is_text() -> None:
    tables = renamed(four_cases(), {"8x H100": "[red]x[/red] [/]"})
    assert any("[red]x[/red] [/]" in line for line in printed(tables.summary, 120))


def test_the_table_is_the_same_each_time() -> None:
    summary = four_cases().summary
    assert printed(summary, 100) == printed(summary.copy(), 100)


def test_the_long_table_has_every_number_of_the_summary() -> None:
    shown = [row.column for group in GROUPS for row in group.rows]
    assert sorted(shown) == sorted(set(SUMMARY_COLUMNS) - TEXT_COLUMNS)
    assert len(shown) == len(set(shown))
    assert set(shown) >= COUNT_COLUMNS - set(TASK_SUMMARY_COLUMNS)


def test_the_long_table_as_a_frame() -> None:
    tables = four_cases()
    summary = tables.summary.assign(power_w_mean=12_500.0, utilization_fraction=math.nan)
    frame = summary_frame(dataclasses.replace(tables, summary=summary).summary)
    assert list(frame.columns) == ["quantity", "unit", *tables.cases]
    assert frame.loc[
        frame["quantity"] == "Power, mean", ["unit", "8x H100"]
    ].to_numpy().tolist() == [["kW", "12.5"]]
    assert frame.loc[frame["quantity"] == "Utilisation", "8x H100"].tolist() == ["\N{EN DASH}"]


def test_what_nobody_measured_stands_below_the_name_of_its_case() -> None:
    summary = four_cases().summary
    summary = summary[[name for name in summary if not str(name).endswith(("_lo", "_hi"))]]
    said = ["", "not calibrated", "not calibrated, speculative chip", "estimated model"]
    for width in (80, 120):
        lines = printed(summary.assign(caveats=said), width)
        assert max(map(len, lines)) <= width
        at = next(place for place, line in enumerate(lines) if line.startswith("8x H200"))
        assert lines[at + 1].startswith("not")
    assert len(lines) == len(printed(summary, 120)) + 3


def test_the_terminal_shows_intervals_below_their_numbers() -> None:
    """Of three digits and of two; nothing below a number that is known."""
    summary = (
        four_cases()
        .summary.iloc[:1]
        .assign(
            usd_per_mtok_total=1.25,
            usd_per_mtok_total_lo=1.04,
            usd_per_mtok_total_hi=1.76,
            output_tokens_per_s_per_chip=1234.0,
            output_tokens_per_s_per_chip_lo=1234.0,
            output_tokens_per_s_per_chip_hi=1234.0,
            slo_attainment_fraction=0.97,
            slo_probability=0.624,
        )
    )
    text = "\n".join(printed(summary, 120))
    assert "1.0-1.8" in text
    assert "1234-1234" not in text
    (below,) = [line for line in text.splitlines() if "1.0-1.8" in line]
    assert below.rstrip().endswith("62")
    assert "80 % interval" in text


def test_the_chance_of_an_slo_has_a_line_where_it_is_known() -> None:
    summary = four_cases().summary
    assert "Chance that the SLO is met" not in set(summary_frame(summary)["quantity"])
    frame = summary_frame(summary.assign(slo_probability=[0.999, 0.5, 0.001, math.nan]))
    (row,) = frame[frame["quantity"] == "Chance that the SLO is met"].to_dict("records")
    assert list(row.values())[1:] == ["%", ">99", "50", "<1", "\N{EN DASH}"]


def test_a_number_that_is_known_has_no_interval() -> None:
    (row,) = [row for group in GROUPS for row in group.rows if row.column == "usd_per_mtok_total"]
    case = pd.Series({row.column: 2.0, f"{row.column}_lo": 2.0, f"{row.column}_hi": 2.001})
    assert summary_cell(case, row).interval == ""
