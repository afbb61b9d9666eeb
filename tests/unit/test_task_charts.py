"""Charts of tasks: what is drawn is what the tables say, and every case can be told."""

import dataclasses
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from drawn_texts import assert_nothing_is_covered, texts
from matplotlib.axes import Axes
from report_fixtures import four_cases, hostile, renamed
from task_fixtures import STRATEGIES, strategies, twenty_strategies

from sim.report.charts import TASK_PAINTERS, draw_charts
from sim.report.charts.drawing import Drawing
from sim.report.data import RunTables
from sim.report.style import case_style, chart_settings


def none_solved() -> RunTables:
    tables = strategies("direct", "dynamic")
    lost = tables.summary.assign(
        accuracy_fraction=0.0, accuracy_standard_error=0.0, usd_per_solved_task=math.nan
    )
    return dataclasses.replace(tables, summary=lost)


def strange_names() -> RunTables:
    names = [*hostile().cases, "a rather long name, of which nobody knows why it has to be so long"]
    return renamed(strategies(), dict(zip(STRATEGIES, names, strict=False)))


RUNS: dict[str, Callable[[], RunTables]] = {
    "eight": strategies,
    "twenty": twenty_strategies,
    "one": lambda: strategies("dynamic"),
    "none_solved": none_solved,
    "strange": strange_names,
}


@cache
def drawn(name: str, run: str) -> Drawing:
    return drawing_of(name, RUNS[run]())


def drawing_of(name: str, tables: RunTables) -> Drawing:
    with chart_settings(salt=name):
        drawing = TASK_PAINTERS[name](tables)
        drawing.sheet.figure.draw_without_rendering()
    return drawing


def axes_of(drawing: Drawing) -> Axes:
    (axes,) = drawing.sheet.figure.axes
    return axes


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", TASK_PAINTERS)
def test_no_text_covers_another_or_leaves_the_sheet(name: str, run: str) -> None:
    assert_nothing_is_covered(drawn(name, run))


@pytest.mark.parametrize("run", ["eight", "twenty"])
@pytest.mark.parametrize("name", TASK_PAINTERS)
def test_every_case_is_named(name: str, run: str) -> None:
    """Beside its point or line, or by a number there and a legend."""
    shown = [text.get_text() for text in texts(drawn(name, run))]
    joined = " ".join(shown)
    cases = RUNS[run]().cases
    for number, case in enumerate(cases, 1):
        if case not in joined:
            assert f"{number}: {case}" in joined
    if f"1: {cases[0]}" in joined:
        assert {str(number) for number in range(1, len(cases) + 1)} <= set(shown)
    for case in cases:
        assert case in drawn(name, run).alt


def points(axes: Axes) -> dict[str, tuple[float, float]]:
    """Place of the one point that has each marker and colour."""
    return {
        f"{line.get_marker()} {line.get_markeredgecolor()}": (
            float(line.get_xdata()[0]),
            float(line.get_ydata()[0]),
        )
        for line in axes.get_lines()
        if line.get_linestyle() == "None"
    }


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("accuracy_cost", "usd_per_task", "accuracy_fraction"),
        ("accuracy_latency", "task_s_p50", "accuracy_fraction"),
        ("latency_compute", "compute_multiplier", "latency_multiplier"),
    ],
)
def test_points_are_where_the_summary_has_them(name: str, x: str, y: str) -> None:
    found = points(axes_of(drawn(name, "eight")))
    assert len(found) == len(STRATEGIES)
    for index, (_, row) in enumerate(strategies().summary.iterrows()):
        style = case_style(index)
        assert found[f"{style.marker} {style.colour}"] == pytest.approx((row[x], row[y]))


def test_the_front_is_joined_and_filled() -> None:
    """Of the made-up cases these five: each solves more than all that are cheaper."""
    axes = axes_of(drawn("accuracy_cost", "eight"))
    front = ["direct", "chain_of_thought", "self_refine_4", "dynamic", "best_of_16_prm"]
    rows = strategies().summary.set_index("case").loc[front]
    (stairs,) = [line for line in axes.get_lines() if len(line.get_xdata()) > 2]
    corners = np.column_stack([stairs.get_xdata(), stairs.get_ydata()])[::2]
    np.testing.assert_allclose(corners, rows[["usd_per_task", "accuracy_fraction"]])
    filled = [
        line
        for line in axes.get_lines()
        if line.get_linestyle() == "None" and line.get_markerfacecolor() != "#ffffff"
    ]
    assert len(filled) == len(front)


def test_each_benchmark_has_a_front_of_its_own() -> None:
    """Of two puzzles the dearer is right more often; alone both sums and puzzles have a front."""
    tables = strategies("direct", "chain_of_thought", "self_consistency_8", "dynamic")
    asked = tables.summary.assign(benchmark=["sums", "sums", "puzzles", "puzzles"])
    drawing = drawing_of("accuracy_cost", dataclasses.replace(tables, summary=asked))
    lines = [line for line in axes_of(drawing).get_lines() if line.get_alpha() is None]
    stairs = [line for line in lines if line.get_linestyle() != "None"]
    assert [len(line.get_xdata()) for line in stairs] == [3, 1]  # dynamic beats the vote
    costs = asked["usd_per_task"]
    assert stairs[0].get_xdata()[[0, -1]].tolist() == costs.iloc[[0, 1]].tolist()
    assert "of the same benchmark" in " ".join(text.get_text() for text in texts(drawing))


def test_whiskers_of_latency_go_from_the_median_to_p95() -> None:
    axes = axes_of(drawn("accuracy_latency", "eight"))
    ends = {
        tuple(map(float, line.get_xdata())) for line in axes.get_lines() if line.get_alpha() == 0.55
    }
    rows = strategies().summary
    expected = set(zip(rows["task_s_p50"], rows["task_s_p95"], strict=True))
    assert {(low, high) for low, high in ends if low != high} == expected


def test_whiskers_of_cost_and_accuracy_are_one_standard_error() -> None:
    axes = axes_of(drawn("accuracy_cost", "one"))
    across, upward = [line for line in axes.get_lines() if line.get_alpha() == 0.55]
    row = strategies("dynamic").summary.iloc[0]
    for ends, middle, error in (
        (across.get_xdata(), row["usd_per_task"], row["usd_per_task_standard_error"]),
        (upward.get_ydata(), row["accuracy_fraction"], row["accuracy_standard_error"]),
    ):
        np.testing.assert_allclose(np.asarray(ends, float), [middle - error, middle + error])


def test_the_line_of_proportion_is_one_to_one() -> None:
    axes = axes_of(drawn("latency_compute", "eight"))
    (line,) = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    assert axes.get_xscale() == axes.get_yscale() == "log"


def marks(axes: Axes) -> list[float]:
    """Where the marks of rows stand, row by row."""
    return [
        float(line.get_xdata()[0]) for line in axes.get_lines() if line.get_linestyle() == "None"
    ]


ROWS = {
    "task_cost": ["usd_per_task", "usd_per_solved_task"],
    "task_time": ["task_s_p50", "task_s_p95", "task_s_p99"],
    "task_energy": ["energy_j_per_task"],
    "compute_multiples": ["compute_multiplier", "compute_multiplier_chip_s"],
}


@pytest.mark.parametrize("name", ROWS)
def test_marks_of_rows_are_where_the_summary_has_them(name: str) -> None:
    rows = strategies().summary
    found = marks(axes_of(drawn(name, "eight")))
    np.testing.assert_allclose(found, rows[ROWS[name]].to_numpy().ravel())


def test_costs_that_differ_twentyfold_are_on_a_logarithmic_axis() -> None:
    """Idle and busy servers in one run: on a linear axis those of the busy one are all zero."""
    assert axes_of(drawn("task_cost", "eight")).get_xscale() == "log"
    near = strategies("direct", "chain_of_thought")
    assert axes_of(drawing_of("task_cost", near)).get_xscale() == "linear"


def test_costs_have_their_standard_errors() -> None:
    axes = axes_of(drawn("task_cost", "eight"))
    broad = [line.get_xdata() for line in axes.get_lines() if line.get_alpha() == 0.35]
    rows = strategies().summary
    first = rows.iloc[0]
    cost, error = first["usd_per_task"], first["usd_per_task_standard_error"]
    assert len(broad) == 2 * len(rows)
    np.testing.assert_allclose(np.asarray(broad[0], float), [cost - error, cost + error])


def test_what_buys_nothing_more_is_said_to_spend_no_more() -> None:
    drawing = drawn("compute_efficiency", "eight")
    shown = [text.get_text() for text in texts(drawing)]
    assert shown.count("spends no more") == 1  # the baseline
    assert len(marks(axes_of(drawing))) == len(STRATEGIES) - 1


def test_many_tails_have_a_row_each() -> None:
    """Twenty curves across each other tell nothing."""
    drawing = drawn("task_cost_tail", "twenty")
    assert len(marks(axes_of(drawing))) == 3 * 20
    assert axes_of(drawing).get_ylim() == (19.5, -0.5)


def test_a_case_that_solved_nothing_says_so_and_has_no_second_mark() -> None:
    drawing = drawn("task_cost", "none_solved")
    shown = [text.get_text() for text in texts(drawing)]
    assert sum(text.endswith(" / none solved") for text in shown) == 2
    assert len(marks(axes_of(drawing))) == 2


def test_without_a_benchmark_accuracy_is_not_drawn() -> None:
    tables = strategies("direct", "dynamic", known=False)
    names = [chart.name for chart in draw_charts(tables)]
    assert names[:3] == ["task_cost", "task_cost_tail", "latency_compute"]
    assert not [name for name in names if name.startswith("accuracy")]
    words = [text.get_text() for text in texts(drawing_of("task_cost", tables))]
    assert not [word for word in words if "solved" in word]
    assert "compute_efficiency" not in names


def test_one_case_is_not_compared_with_itself() -> None:
    names = [chart.name for chart in draw_charts(strategies("dynamic"))]
    assert "latency_compute" not in names
    assert names[:4] == ["accuracy_cost", "accuracy_latency", "task_cost", "task_cost_tail"]


def test_latency_is_not_held_against_compute_where_loads_differ_or_compute_does_not() -> None:
    three = strategies("direct", "chain_of_thought", "dynamic")
    lone = dataclasses.replace(three, summary=three.summary.assign(load=["a", "a", "b"]))
    drawing = drawing_of("latency_compute", lone)
    assert "chain_of_thought" in drawing.alt
    assert "dynamic" not in drawing.alt
    none = dataclasses.replace(three, summary=three.summary.assign(latency_growth=""))
    assert "latency_compute" not in [chart.name for chart in draw_charts(none)]


def test_without_tasks_there_is_none_of_these_charts() -> None:
    assert not {chart.name for chart in draw_charts(four_cases())} & set(TASK_PAINTERS)


def test_a_tail_falls_from_all_to_one_task_and_has_p99_at_one_percent() -> None:
    axes = axes_of(drawn("task_cost_tail", "one"))
    curve, p99, cvar = axes.get_lines()
    shares = np.asarray(curve.get_ydata(), dtype=float)
    assert shares[0] == 1.0
    assert shares[-1] == pytest.approx(1 / 240)
    assert (np.diff(shares) <= 0).all()
    row = strategies("dynamic").summary.iloc[0]
    assert float(p99.get_xdata()[0]) == pytest.approx(row["usd_per_task_p99"])
    assert float(p99.get_ydata()[0]) == pytest.approx(0.01)
    assert float(cvar.get_xdata()[0]) == pytest.approx(row["usd_per_task_cvar95"])
    assert float(np.interp(row["usd_per_task_p50"], curve.get_xdata(), shares)) == pytest.approx(
        0.5, abs=0.01
    )


def test_tails_are_those_of_the_tasks_that_count() -> None:
    tables = strategies("dynamic")
    assert tables.tasks is not None
    late = tables.tasks["arrival_s"] >= 60.0
    marked = dataclasses.replace(tables, tasks=tables.tasks.assign(measured=late))
    _, p99, _ = axes_of(drawing_of("task_cost_tail", marked)).get_lines()
    expected = tables.tasks.loc[late, "usd"].quantile(0.99)
    assert float(p99.get_xdata()[0]) == pytest.approx(expected)
