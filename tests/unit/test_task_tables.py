"""Tasks in the terminal, on the page and among the files."""

import dataclasses
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from report_fixtures import four_cases, hostile, renamed
from rich.console import Console
from task_fixtures import STRATEGIES, strategies, twenty_strategies

from sim.metrics.baselines import claim_table
from sim.report.charts import TASK_PAINTERS, draw_charts
from sim.report.data import TASK_SUMMARY_COLUMNS, TEXT_COLUMNS, RunTables
from sim.report.document import summary_document
from sim.report.html import report_page
from sim.report.tables import (
    TASK_GROUP,
    console_claim_table,
    console_task_table,
    groups_of,
    summary_frame,
)
from sim.report.task_findings import task_sentences
from sim.report.writer import OUR_FILES, write_run
from sim.routing_policy import Slo


def printed(summary: pd.DataFrame, width: int = 80) -> list[str]:
    table = console_task_table(summary)
    assert table is not None
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return out.getvalue().splitlines()


def strange() -> RunTables:
    return renamed(strategies(), dict(zip(STRATEGIES, hostile().cases, strict=False)))


RUNS = [strategies(), twenty_strategies(), strategies("direct", known=False), strange()]


@pytest.mark.parametrize("tables", RUNS, ids=["eight", "twenty", "unknown", "strange"])
def test_the_table_fits_and_cuts_no_number(tables: RunTables) -> None:
    lines = printed(tables.summary)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "nan" not in text
    assert "1.14/2.10/2.67" in text


def one_row(**columns: object) -> pd.DataFrame:
    return strategies("direct").summary.assign(**columns)


def test_numbers_are_those_of_the_summary() -> None:
    row = one_row(
        accuracy_fraction=0.625,
        accuracy_standard_error=0.0312,
        compute_multiplier=160.0,
        compute_multiplier_chip_s=12.5,
        task_s_p50=1.5,
        task_s_p95=20.0,
        task_s_p99=1234.0,
        usd_per_task=0.25,
        usd_per_task_p99=0.5,
        usd_per_solved_task=0.4,
        energy_j_per_task=54321.0,
    )
    text = "\n".join(printed(row, 100))
    for part in ("62.5±3.1", "160/12.5", "1.50/20.0/1234", "0.250/0.500/0.400", "54,321"):
        assert part in text
    assert "USD/task" in text


def test_cheap_tasks_are_counted_by_the_thousand() -> None:
    text = "\n".join(printed(one_row(usd_per_task=0.0005, usd_per_task_p99=0.001)))
    assert "USD/1000 tasks" in text
    assert "0.500/1.00/" in text


def test_the_strategy_stands_below_a_case_of_another_name() -> None:
    named = renamed(strategies("direct"), {"direct": "plain"})
    lines = printed(named.summary)
    assert [line.split()[0] for line in lines[-2:]] == ["plain", "direct"]
    assert len(printed(strategies("direct").summary)) == len(lines) - 1


def test_what_nobody_knows_is_a_dash() -> None:
    line = printed(strategies("direct", known=False).summary)[-1]
    assert line.split()[1] == "\N{EN DASH}"
    assert "/\N{EN DASH} " in line  # mean and p99 are known, the cost of a solved task is not


def test_without_tasks_there_is_no_table() -> None:
    assert console_task_table(four_cases().summary) is None
    assert TASK_GROUP not in groups_of(four_cases().summary)


def test_the_long_table_has_every_number_of_the_tasks_once() -> None:
    shown = [row.column for row in TASK_GROUP.rows]
    assert sorted(shown) == sorted(set(TASK_SUMMARY_COLUMNS) - TEXT_COLUMNS)
    frame = summary_frame(strategies().summary).set_index("quantity")
    assert frame.loc["Calls per task", "self_consistency_8"] == "8.00"


def test_the_page_has_a_section_of_tasks_with_sentences_table_and_charts() -> None:
    tables = strategies(slo=Slo(ttft_s=1.0, tpot_s=1.0, task_s=5.0))
    page = report_page(tables, draw_charts(tables))
    assert page.startswith("<!DOCTYPE html>")
    section = page.partition('<h2 id="tasks">')[2].partition("</section>")[0]
    assert '<a href="#tasks">' in page
    for name in TASK_PAINTERS:
        assert section.count(f'id="alt-{name}"') == 1
        assert page.count(f'id="alt-{name}"') == 1
    assert section.count("<li>") == len(task_sentences(tables.summary))
    assert "USD per solved task" in section
    rows = section.partition("<tbody>")[2].partition("</tbody>")[0]
    assert rows.count("<tr>") == len(STRATEGIES)
    assert "tasks.csv" in page


def test_the_page_of_a_run_without_tasks_does_not_speak_of_them() -> None:
    page = report_page(four_cases(), draw_charts(four_cases()))
    assert 'id="tasks"' not in page
    assert "tasks.csv" not in page


def test_accuracy_is_no_column_where_nobody_knows_it() -> None:
    tables = strategies("direct", "dynamic", known=False)
    page = report_page(tables, draw_charts(tables))
    section = page.partition('<h2 id="tasks">')[2].partition("</section>")[0]
    assert "Solved" not in section
    assert "USD per task" in section


def test_tasks_and_calls_are_files_of_the_run(tmp_path: Path) -> None:
    write_run(strategies("direct", "dynamic"), tmp_path / "run")
    written = {
        path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*.*")
    }
    assert {"tasks.csv", "calls.parquet", "charts/accuracy_cost.png"} <= written
    assert written <= set(OUR_FILES)
    tasks = pd.read_csv(tmp_path / "run" / "tasks.csv")
    expected = strategies("direct", "dynamic").tasks
    assert expected is not None
    assert tasks["usd"].tolist() == expected["usd"].tolist()
    rows = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["rows"]
    assert [row["strategy"] for row in rows] == ["direct", "dynamic"]
    assert isinstance(rows[0]["tasks"], int)


def test_files_of_tasks_go_when_a_run_without_them_takes_their_place(tmp_path: Path) -> None:
    out = tmp_path / "run"
    write_run(strategies("direct"), out)
    write_run(four_cases(), out)
    assert not (out / "tasks.csv").exists()
    assert not (out / "charts" / "task_cost.png").exists()


def test_names_take_the_room_that_a_wide_terminal_has() -> None:
    """Forty letters more are forty letters for names: none is broken within a word."""
    names = {"dynamic": "10 passes of refinement, busy"}
    tables = renamed(strategies("direct", "dynamic"), names)
    table = console_task_table(tables.summary, 120)
    assert table is not None
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(table)
    text = out.getvalue()
    assert "10 passes of refinement, busy" in text
    assert max(map(len, text.splitlines())) <= 120


def test_claims_stand_beside_the_forecast() -> None:
    """Twice what is forecast, about."""
    tables = strategies("direct", "dynamic")
    told = claim_table(tables.summary, {"direct": ("a table", {"accuracy_fraction": 0.62})})
    assert told is not None
    share = float(tables.summary["accuracy_fraction"].iloc[0])
    assert told["forecast_over_claimed"].tolist() == [pytest.approx(share / 0.62)]
    claimed = dataclasses.replace(tables, claims=told)
    page = report_page(claimed, draw_charts(claimed))
    assert "Claims beside the forecast" in page
    assert "Claimed: a table." in page
    assert '<td class="number">62.0</td>' in page
    assert summary_document(claimed)["claims"] == told.to_dict("records")
    assert "claims" not in summary_document(tables)
    assert "Claims beside" not in report_page(tables, draw_charts(tables))
    table = console_claim_table(told)
    assert table is not None
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(table)
    assert out.getvalue().splitlines()[-1].split()[-3:-1] == ["62.0", f"{100 * share:.1f}"]
