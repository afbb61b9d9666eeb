"""Charts: what is drawn is what the tables say, and no text covers another."""

import dataclasses
import math
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from drawn_texts import assert_nothing_is_covered, texts
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle, StepPatch
from report_fixtures import (
    OWNED,
    coming_and_going,
    eight_cases,
    four_cases,
    hostile,
    nothing_completed,
    one_case,
    only,
    rented,
    several_parts,
)

from sim.report.charts import CHART_NAMES, TASK_PAINTERS, curves, draw_charts, latency
from sim.report.charts.bars import _cost_bar, cost_chart, energy_chart
from sim.report.charts.curves import cost_curve_chart, throughput_chart
from sim.report.charts.drawing import Drawing
from sim.report.charts.latency import latency_chart
from sim.report.charts.timeline import MOST_BINS, REPLICAS_PLACE, _binned, timeline_chart
from sim.report.data import RunTables
from sim.report.style import THEME, case_style, chart_settings, themed, wrap

PAINTERS: dict[str, Callable[[RunTables], Drawing]] = {
    "cost": cost_chart,
    "throughput": throughput_chart,
    "cost_curve": cost_curve_chart,
    "latency": latency_chart,
    "timeline": timeline_chart,
    "energy": energy_chart,
}


def late() -> RunTables:
    """Eight cases with intervals in which few requests met the SLO."""
    tables = eight_cases()
    return dataclasses.replace(tables, summary=tables.summary.assign(slo_attainment_fraction=0.23))


RUNS: dict[str, Callable[[], RunTables]] = {
    "late": late,
    "four": four_cases,
    "one": one_case,
    "nothing": nothing_completed,
    "rented": rented,
    "eight": eight_cases,
    "eight_long": lambda: eight_cases(long_names=True),
    "hostile": hostile,
    "parts": several_parts,
    "replicas": coming_and_going,
}


def drawn(name: str, tables: RunTables) -> Drawing:
    with chart_settings(salt=name):
        drawing = PAINTERS[name](tables)
        drawing.sheet.figure.draw_without_rendering()
    return drawing


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", PAINTERS)
def test_no_text_covers_another_or_leaves_the_sheet(name: str, run: str) -> None:
    tables = RUNS[run]()
    assert_nothing_is_covered(drawn(name, tables))


def test_every_chart_is_made_and_in_order() -> None:
    made = draw_charts(four_cases())
    assert tuple(chart.name for chart in made) == CHART_NAMES[len(TASK_PAINTERS) :]
    for chart in made:
        width, height = struct.unpack(">II", chart.png[16:24])
        assert width == 2000
        assert 500 < height < 4000
        ET.fromstring(chart.svg)  # noqa: S314 - our own bytes
        assert b"<dc:date>" not in chart.svg
        assert b"Software" not in chart.png
        assert chart.title
        assert chart.alt.endswith(".")


def test_without_a_curve_there_are_no_curve_charts() -> None:
    names = [chart.name for chart in draw_charts(one_case())]
    assert names == ["cost", "latency", "timeline", "energy"]


def bars(drawing: Drawing) -> list[Rectangle]:
    return [patch for patch in drawing.sheet.figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_a_stack_is_as_long_as_its_cost_and_split_as_its_bill() -> None:
    tables = four_cases()
    patches = bars(drawn("cost", tables))
    assert len(patches) == len(tables.cases) * len(OWNED)
    for place, usd in enumerate(tables.summary["usd_per_mtok_total"]):
        stack = patches[place * len(OWNED) : (place + 1) * len(OWNED)]
        widths = [patch.get_width() for patch in stack]
        assert math.isclose(sum(widths), usd)
        np.testing.assert_allclose(np.array(widths) / usd, list(OWNED.values()))
        ends = [patch.get_x() + patch.get_width() for patch in stack]
        np.testing.assert_allclose(
            [patch.get_x() for patch in stack], [0.0, *ends[:-1]], atol=1e-12
        )


def test_a_rented_case_is_one_bar() -> None:
    tables = rented()
    widths = [patch.get_width() for patch in bars(drawn("cost", tables))]
    np.testing.assert_allclose(widths, tables.summary["usd_per_mtok_total"])


def test_a_case_without_a_cost_says_so_and_has_no_bar() -> None:
    drawing = drawn("cost", nothing_completed())
    words = [text.get_text() for text in texts(drawing)]
    assert "not defined: no request completed" in words
    assert len(bars(drawing)) == len(OWNED)
    assert "8x H100 not defined: no request completed" in drawing.alt


def test_a_cost_says_beside_its_bar_where_few_requests_met_the_slo() -> None:
    tables = four_cases()
    shares = tables.summary.assign(slo_attainment_fraction=[0.23, 0.9, 0.95, math.nan])
    late = dataclasses.replace(tables, summary=shares)
    drawing = drawn("cost", late)
    said = [text.get_text() for text in texts(drawing) if "SLO met" in text.get_text()]
    assert said == ["SLO met by 23.0 %"]
    assert "(SLO met by 23.0 %)" in drawing.alt
    words = [text.get_text() for text in texts(drawn("energy", late))]
    assert not any("SLO" in word for word in words)


def test_a_case_that_answered_only_in_its_warm_up_has_no_bar() -> None:
    tables = four_cases()
    costs = tables.summary["usd_per_mtok_total"].where(tables.summary.index > 0)
    bare = dataclasses.replace(tables, summary=tables.summary.assign(usd_per_mtok_total=costs))
    drawing = drawn("cost", bare)
    assert len(bars(drawing)) == (len(tables.cases) - 1) * len(OWNED)
    assert "8x H100 not defined: no answer in the time that counts" in drawing.alt


def test_nothing_at_all_is_still_a_chart() -> None:
    tables = only(nothing_completed(), ["8x H100"])
    for name in ("cost", "latency", "energy", "timeline"):
        drawn(name, tables)
    words = [text.get_text() for text in texts(drawn("latency", tables))]
    assert words.count("no request completed") == 2


def test_curves_go_through_the_points_of_the_table() -> None:
    tables = four_cases()
    lines = drawn("throughput", tables).sheet.figure.axes[0].get_lines()
    assert tables.curve is not None
    for line, case in zip(lines, tables.cases, strict=True):
        rows = tables.curve[tables.curve["case"] == case]
        np.testing.assert_allclose(line.get_xdata(), rows["interactivity_tokens_per_s"])
        np.testing.assert_allclose(line.get_ydata(), rows["output_tokens_per_s_per_chip"])
        assert line.get_color() == case_style(tables.cases.index(case)).colour


@pytest.mark.parametrize("run", ["four", "eight_long"])
def test_every_curve_has_its_name(run: str) -> None:
    tables = RUNS[run]()
    words = " ".join(text.get_text() for text in texts(drawn("cost_curve", tables)))
    for case in tables.cases:
        assert case in words


def test_distributions_rise_from_nothing_to_all_and_marks_are_quantiles() -> None:
    tables = one_case()
    steps, marks = drawn("latency", tables).sheet.figure.axes[0].get_lines()
    heights = np.asarray(steps.get_ydata(), dtype=float)
    assert heights[0] == 0.0
    assert heights[-1] == 1.0
    assert (np.diff(heights) >= 0).all()
    row = tables.summary.iloc[0]
    quantiles = [row["ttft_s_p50"], row["ttft_s_p95"], row["ttft_s_p99"]]
    np.testing.assert_allclose(np.asarray(marks.get_xdata(), dtype=float), quantiles)


def test_only_measured_requests_are_in_the_distribution() -> None:
    tables = one_case()
    late = tables.requests["arrival_s"] >= 60
    marked = dataclasses.replace(tables, requests=tables.requests.assign(measured=late))
    _, marks = drawn("latency", marked).sheet.figure.axes[0].get_lines()
    expected = tables.requests.loc[late, "ttft_s"].median()
    assert math.isclose(float(np.asarray(marks.get_xdata(), dtype=float)[0]), expected)


def test_an_slo_is_drawn_once_where_all_cases_share_it() -> None:
    words = [text.get_text() for text in texts(drawn("latency", four_cases()))]
    assert words.count("SLO 500 ms") == 1
    assert words.count("SLO 30 ms") == 1
    assert not [
        w for w in (t.get_text() for t in texts(drawn("latency", one_case()))) if "SLO" in w
    ]


def test_thinning_a_timeline_keeps_its_averages_over_time() -> None:
    rows = four_cases().timeline.query("case == '8x H100'").copy()
    rows["end_s"] = rows["start_s"].shift(-1, fill_value=rows["end_s"].iloc[-1] + 3)
    binned = _binned(rows)
    assert len(binned) == MOST_BINS
    for column in ("power_w", "running_requests", "kv_used_fraction"):
        before = (rows[column] * (rows["end_s"] - rows["start_s"])).sum()
        after = (binned[column] * (binned["end_s"] - binned["start_s"])).sum()
        assert math.isclose(before, after)
    assert binned["start_s"].iloc[0] == rows["start_s"].iloc[0]
    assert binned["end_s"].iloc[-1] == rows["end_s"].iloc[-1]


def test_a_timeline_with_gaps_in_its_values_is_drawn() -> None:
    tables = one_case()
    timeline = tables.timeline.copy()
    timeline.loc[:50, "power_w"] = np.nan
    timeline["offered_requests_per_s"] = np.nan
    drawing = drawn("timeline", dataclasses.replace(tables, timeline=timeline))
    assert "not defined" in [text.get_text() for text in texts(drawing)]


def test_an_empty_timeline_is_drawn() -> None:
    tables = one_case()
    drawn("timeline", dataclasses.replace(tables, timeline=tables.timeline.iloc[:0]))


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21() -> None:
    assert math.isclose(contrast("#000000", "#ffffff"), 21.0)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(theme: int) -> None:
    paper = THEME["paper"][theme]
    for token in ("ink", "muted", *(f"text-{hue}" for hue in range(8))):
        assert contrast(THEME[token][theme], paper) >= 4.5, token
    for line in ("rent", "capital"):
        assert contrast(THEME["on-dark"][theme], THEME[f"line-{line}"][theme]) >= 4.5, line
    for line in ("financing", "network", "operations", "hosting", "power"):
        assert contrast(THEME["on-light"][theme], THEME[f"line-{line}"][theme]) >= 4.5, line


def test_every_colour_of_a_chart_has_a_dark_twin() -> None:
    lights = [light for light, _ in THEME.values()]
    assert len(set(lights)) == len(lights)
    for chart in draw_charts(eight_cases()):
        left = re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", themed(chart.svg.decode()))
        assert not left, chart.name


def test_wrapping_keeps_every_letter_and_the_width() -> None:
    text = "a_very_long_name-without/any.space_" * 3 + " and some words"
    lines = wrap(text, 1.0, 10.0)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    from sim.report.style import text_width_in  # noqa: PLC0415

    assert max(text_width_in(line, 10.0) for line in lines) <= 1.0


def test_charts_do_not_depend_on_the_settings_of_the_user() -> None:
    import matplotlib as mpl  # noqa: PLC0415

    tables = one_case()
    before = [chart.svg for chart in draw_charts(tables)]
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.hashsalt": "x"}):
        after = [chart.svg for chart in draw_charts(tables)]
        assert mpl.rcParams["font.size"] == 30
    assert before == after


def test_a_curve_with_one_point_and_missing_values_is_drawn() -> None:
    tables = one_case()
    full = only(four_cases(), ["8x H200"]).curve
    assert full is not None
    point = full.iloc[[3]]
    for curve in (point, full.assign(usd_per_mtok_total=np.nan)):
        drawing = drawn("cost_curve", dataclasses.replace(tables, curve=pd.DataFrame(curve)))
        assert drawing.alt.startswith("Line chart.")


@pytest.mark.parametrize("name", PAINTERS)
def test_every_chart_says_what_nobody_measured(name: str) -> None:
    tables = four_cases()
    summary = tables.summary.assign(caveats=["", "not calibrated", "", "not calibrated"])
    shown = texts(drawn(name, dataclasses.replace(tables, summary=summary)))
    words = " ".join(" ".join(text.get_text().split()) for text in shown)
    assert "Not calibrated: 8x H200, GB300 NVL72." in words


def test_queues_of_pools_are_lines_of_their_own() -> None:
    """The first case has two pools: a dashed line, a quarter of the queue, is that of decode."""
    tables = several_parts()
    drawing = drawn("timeline", tables)
    panels = [axes for axes in drawing.sheet.figure.axes if len(axes.patches) == 4]
    (panel,) = panels  # running requests filled and outlined, two queues; others have one at most
    prefill, decode = panel.patches[-2:]
    assert (prefill.get_linestyle(), decode.get_linestyle()) == ("-", "--")


def replica_panels(drawing: Drawing) -> list[Axes]:
    """The panels of replicas, a row for each case; none where all have four panels."""
    panels = drawing.sheet.figure.axes
    count = len(drawing.alt.split("; "))
    return panels[REPLICAS_PLACE::5] if len(panels) == 5 * count else []


def test_replicas_have_a_panel_where_their_number_changes() -> None:
    assert not replica_panels(drawn("timeline", several_parts()))
    drawing = drawn("timeline", coming_and_going())
    assert len(replica_panels(drawing)) == 2
    words = [text.get_text() for text in texts(drawing)]
    assert {"Replicas up", "booting", "down"} <= set(words)
    assert "2 to 7 replicas up" in drawing.alt
    assert "0 to 2 replicas up" in drawing.alt


def test_where_the_number_of_replicas_stays_it_is_written() -> None:
    tables = coming_and_going()
    timeline = tables.timeline.copy()
    mine = timeline["case"] == "8x B200"
    timeline.loc[mine, ["replicas_up", "replicas_down"]] = (2.0, 0.0)
    words = [
        text.get_text()
        for text in texts(drawn("timeline", dataclasses.replace(tables, timeline=timeline)))
    ]
    assert "2 throughout" in words
    assert "booting" in words
    assert "down" not in words


def test_what_boots_or_has_failed_stands_on_what_is_up() -> None:
    """Two of two replicas fail; two are up while five boot; the pools are lines of their own."""
    grows, fails = replica_panels(drawn("timeline", coming_and_going()))
    booting, *_, prefill, decode = grows.patches
    assert isinstance(booting, StepPatch)
    values, _, baseline = booting.get_data()
    while_booting = values > baseline
    assert while_booting.any()
    assert set(baseline[while_booting]) == {2.0}
    assert set(values[while_booting]) == {7.0}
    assert (prefill.get_linestyle(), decode.get_linestyle()) == ("-", "--")
    down = fails.patches[0]
    assert isinstance(down, StepPatch)
    values, _, baseline = down.get_data()
    assert {(float(a), float(b)) for a, b in zip(baseline, values, strict=True)} == {
        (2.0, 2.0),
        (0.0, 2.0),
    }


def test_bands_of_curves_go_from_slow_to_fast() -> None:
    """Slow: fewer tokens for each user, fewer from each chip, and dearer ones."""
    tables = four_cases()
    assert tables.curve is not None
    curve = tables.curve.copy()
    for name in (
        "interactivity_tokens_per_s",
        "output_tokens_per_s_per_chip",
        "usd_per_mtok_total",
    ):
        curve[f"{name}_lo"], curve[f"{name}_hi"] = curve[name] * 0.9, curve[name] * 1.2
    for column, slow, fast in (
        ("output_tokens_per_s_per_chip", 0.9, 1.2),
        ("usd_per_mtok_total", 1.2, 0.9),
    ):
        for found in curves._curves(dataclasses.replace(tables, curve=curve), column):
            assert found.band is not None
            count = len(found.points)
            np.testing.assert_allclose(found.band[:count], found.points * [0.9, slow])
            np.testing.assert_allclose(found.band[count:][::-1], found.points * [1.2, fast])
        assert all(found.band is None for found in curves._curves(tables, column))


def test_marked_quantiles_have_the_intervals_of_the_summary() -> None:
    tables = four_cases()
    ttft, tpot = (latency._ranges(tables, wait) for wait in latency.WAITS)
    for _, row in tables.summary.iterrows():
        assert ttft[row["case"]] == [(0.5, row["ttft_s_p50_lo"], row["ttft_s_p50_hi"])]
        assert tpot[row["case"]] == []


def test_a_cost_that_is_known_has_no_whisker() -> None:
    tables = four_cases()
    summary = tables.summary.copy()
    summary["usd_per_mtok_total_lo"] = summary["usd_per_mtok_total_hi"] = summary[
        "usd_per_mtok_total"
    ]
    known = dataclasses.replace(tables, summary=summary)
    for (_, row), (_, case) in zip(summary.iterrows(), tables.summary.iterrows(), strict=True):
        assert _cost_bar(known, row).interval is None
        assert _cost_bar(tables, case).interval is not None
