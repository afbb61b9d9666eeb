"""What strategies of test-time compute buy: accuracy against money and time, time against compute.

Every point is a case. Its name stands beside it; should one find no place, all get numbers instead,
and a legend.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sim.report.charts.drawing import Drawing, Floats, heading_of, log_axis, say, styles_of
from sim.report.charts.names import Named, in_points, numbered_legend, write_names
from sim.report.data import RunTables
from sim.report.formats import brief, duration, percent, plain, tick_usd
from sim.report.labels import along, around
from sim.report.style import (
    LABEL_PT,
    MARGIN_IN,
    WIDTH_IN,
    CaseStyle,
    LegendEntry,
    Sheet,
    colour,
)
from sim.report.task_findings import answered, comparable, front, tasks_of, usd_of_task

MARKER_PT = 8.0


@dataclass(frozen=True, slots=True)
class Point:
    """One case of a chart of points."""

    case: str
    style: CaseStyle
    x: float
    y: float
    x_start: float
    """End of the whisker to the left; `x` where there is none."""
    x_end: float
    """End of the whisker to the right; `x` where there is none."""
    y_error: float
    """Half of the whisker upward and downward."""
    ahead: bool
    """Whether no other case beats it: its marker is filled and its name bold."""
    group: str
    """Cases of one benchmark and load are compared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a chart of points shows."""

    title: str
    subtitle: str
    x_axis: str
    y_axis: str
    write_x: Callable[[float], str]
    scale: Callable[[Axes, Sequence[Point]], Sequence[Floats]]
    """Sets the axes up, draws what stands behind the points, gives lines to keep clear of."""


def accuracy_cost_chart(tables: RunTables) -> Drawing:
    """Share of tasks that are solved against what a task costs."""
    points = _accuracies(tables, "usd_per_task", _one_error)
    plan = Plan(
        title="What it costs to solve more tasks",
        subtitle="Up and to the left is better. Filled and joined: no other case solves as many "
        f"{_of_the_benchmark(tables)}for less. Whiskers: one standard error.",
        x_axis="US dollars per task, mean (logarithmic)",
        y_axis="Tasks solved",
        write_x=tick_usd,
        scale=_accuracy_scale(tick_usd),
    )
    words = (f"{p.case} {percent(p.y)} at {usd_of_task(p.x)}" for p in points)
    return _drawing(tables, plan, points, f"Tasks solved and dollars per task: {'; '.join(words)}.")


def accuracy_latency_chart(tables: RunTables) -> Drawing:
    """Share of tasks that are solved against how long a task takes."""
    points = _accuracies(tables, "task_s_p50", _to_p95)
    plan = Plan(
        title="How long it takes to solve more tasks",
        subtitle="Up and to the left is better. Markers at the median, whiskers to p95. Filled and "
        "joined: no other case solves as many "
        f"{_of_the_benchmark(tables)}in less.",
        x_axis="Time from question to answer, p50 to p95 (logarithmic)",
        y_axis="Tasks solved",
        write_x=_tick_duration,
        scale=_accuracy_scale(_tick_duration),
    )
    words = (f"{p.case} {percent(p.y)} in {duration(p.x)}, p95 {duration(p.x_end)}" for p in points)
    return _drawing(tables, plan, points, f"Tasks solved and time of a task: {'; '.join(words)}.")


def latency_compute_chart(tables: RunTables) -> Drawing:
    """How many times longer tasks take, against how many times the tokens they generate.

    Cases that have another load than their baseline are left out: their times do not compare.
    """
    everything = tasks_of(tables.summary)
    loads = dict(zip(everything["case"], everything["load"], strict=True))
    cases = everything[everything["baseline"].map(loads) == everything["load"]]
    styles = styles_of(tables)
    points = [
        Point(
            case=str(row["case"]),
            style=styles[str(row["case"])],
            x=float(row["compute_multiplier"]),
            y=float(row["latency_multiplier"]),
            x_start=float(row["compute_multiplier"]),
            x_end=float(row["compute_multiplier"]),
            y_error=0.0,
            ahead=row["baseline"] == row["case"],
            group="",
        )
        for _, row in cases.iterrows()
        if row["compute_multiplier"] > 0 and row["latency_multiplier"] > 0
    ]
    base = ", ".join(dict.fromkeys(cases["baseline"].astype(str)))
    plan = Plan(
        title="Does latency grow with compute?",
        subtitle="Multiples of the filled cases, each of its own baseline. On the line time grows "
        "as tokens do; below it more slowly, as where calls run side by side.",
        x_axis="Generated tokens per task, multiple of the baseline (logarithmic)",
        y_axis="Mean time of a task, multiple of the baseline (logarithmic)",
        write_x=_tick_multiple,
        scale=_proportion_scale,
    )
    words = (
        f"{p.case} {brief(p.y)} times the time for {brief(p.x)} times the tokens" for p in points
    )
    return _drawing(tables, plan, points, f"Multiples of {base}: {'; '.join(words)}.")


def _of_the_benchmark(tables: RunTables) -> str:
    groups = comparable(tables.summary)
    if len(groups) < 2:
        return ""
    loads = any(" at " in name for name in groups)
    return f"of the same benchmark{' and load' * loads} "


def _one_error(row: "pd.Series[float]") -> tuple[float, float]:
    """Give the ends of a standard error of the mean cost."""
    cost, error = float(row["usd_per_task"]), float(row["usd_per_task_standard_error"])
    return (max(cost - error, cost / 2), cost + error) if error > 0 else (cost, cost)


def _to_p95(row: "pd.Series[float]") -> tuple[float, float]:
    return float(row["task_s_p50"]), float(row["task_s_p95"])


def _accuracies(
    tables: RunTables, column: str, whisker: Callable[["pd.Series[float]"], tuple[float, float]]
) -> list[Point]:
    styles = styles_of(tables)
    known = tables.summary[answered(tables.summary)[column].reindex(tables.summary.index) > 0]
    groups = comparable(known)
    ahead = {case for cases in groups.values() for case in front(cases, column)}
    return [
        Point(
            case=str(row["case"]),
            style=styles[str(row["case"])],
            x=float(row[column]),
            y=float(row["accuracy_fraction"]),
            x_start=whisker(row)[0],
            x_end=whisker(row)[1],
            y_error=float(row["accuracy_standard_error"]),
            ahead=str(row["case"]) in ahead,
            group=group,
        )
        for group, cases in groups.items()
        for _, row in cases.iterrows()
    ]


def _accuracy_scale(
    write_x: Callable[[float], str],
) -> Callable[[Axes, Sequence[Point]], Sequence[Floats]]:
    def scale(axes: Axes, points: Sequence[Point]) -> Sequence[Floats]:
        ends = np.array([(p.x_start, p.x_end) for p in points])
        log_axis(axes, "x", ends.ravel(), write_x)
        low = min(p.y - p.y_error for p in points)
        high = max(p.y + p.y_error for p in points)
        room = max(0.08 * (high - low), 0.03)
        axes.set_ylim(max(low - room, -0.01), min(high + room, 1.01))
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{plain(round(100 * y, 6))} %"))
        fronts = [
            _steps(sorted((p.x, p.y) for p in points if p.ahead and p.group == group))
            for group in dict.fromkeys(p.group for p in points)
        ]
        for steps in fronts:
            axes.plot(*steps.T, color=colour("axis"), linewidth=1.4, zorder=1.6)
        return fronts

    return scale


def _steps(corners: Sequence[tuple[float, float]]) -> Floats:
    """Join points by stairs: up at the cost from which on more is to be had."""
    stairs = [corners[0]]
    for x, y in corners[1:]:
        stairs += [(x, stairs[-1][1]), (x, y)]
    return np.array(stairs)


def _proportion_scale(axes: Axes, points: Sequence[Point]) -> Sequence[Floats]:
    log_axis(axes, "x", np.array([p.x for p in points]), _tick_multiple)
    log_axis(axes, "y", np.array([p.y for p in points]), _tick_multiple)
    low = max(axes.get_xlim()[0], axes.get_ylim()[0])
    high = min(axes.get_xlim()[1], axes.get_ylim()[1])
    if low >= high:
        return []
    line = np.array([[low, low], [high, high]])
    axes.plot(*line.T, color=colour("axis"), linewidth=1.4, zorder=1.6)
    return [line]


def _tick_multiple(value: float) -> str:
    """Write a multiple: 1.5x.

    >>> _tick_multiple(1.5)
    '1.5×'
    """
    return f"{plain(round(value, 9))}\N{MULTIPLICATION SIGN}"


def _tick_duration(value_s: float) -> str:
    """Write a round time: 0.5 s.

    >>> _tick_duration(0.5)
    '0.5 s'
    """
    return f"{plain(round(value_s, 9))} s"


def _drawing(tables: RunTables, plan: Plan, points: Sequence[Point], words: str) -> Drawing:
    sheet, named = _sheet(tables, plan, points, ())
    if not named:
        numbers = {p.case: p.style for p in points}
        sheet, _ = _sheet(tables, plan, points, numbered_legend(numbers))
    return Drawing(sheet, plan.title, f"Chart of points. {words}")


def _sheet(
    tables: RunTables, plan: Plan, points: Sequence[Point], legend: Sequence[LegendEntry]
) -> tuple[Sheet, bool]:
    """Draw points; name them, or number them if there is a legend; say if names found a place."""
    left_in, bottom_in, plot_in, height_in = 0.85, 0.62, WIDTH_IN - 1.15, 4.9
    heading = heading_of(tables, plan.title, plan.subtitle)
    sheet = Sheet(heading, bottom_in + height_in + 0.34, legend)
    axes = sheet.axes(left_in, bottom_in, plot_in, height_in)
    sheet.text(MARGIN_IN, bottom_in + height_in + 0.14, plan.y_axis, LABEL_PT, {"color": "muted"})
    axes.set_xlabel(plan.x_axis, labelpad=8)
    if not points:
        say(axes, "no data")
        return sheet, True
    lines = [*plan.scale(axes, points)]
    for point in points:
        _mark(axes, point)
        lines += _whiskers(point)
    at = in_points(axes, np.array([(p.x, p.y) for p in points]))
    strokes = [along(in_points(axes, line)) for line in lines]
    numbers = {p.case: str(number) for number, p in enumerate(points, 1)}
    names = [
        Named(
            numbers[p.case] if legend else p.case,
            p.style.text,
            np.array([(p.x, p.y)]),
            bold=p.ahead,
        )
        for p in sorted(points, key=lambda p: not p.ahead)
    ]
    return sheet, write_names(axes, names, np.vstack([around(at, MARKER_PT), at, *strokes]))


def _mark(axes: Axes, point: Point) -> None:
    """Draw a point with its whiskers; one that another beats is hollow."""
    for line in _whiskers(point):
        axes.plot(*line.T, color=point.style.colour, linewidth=1.2, alpha=0.55, zorder=2)
    axes.plot(
        [point.x],
        [point.y],
        linestyle="none",
        marker=point.style.marker,
        markersize=MARKER_PT,
        markerfacecolor=point.style.colour if point.ahead else colour("paper"),
        markeredgecolor=point.style.colour,
        markeredgewidth=1.5,
        zorder=3,
    )


def _whiskers(point: Point) -> list[Floats]:
    lines = []
    if point.x_end > point.x_start:
        lines.append(np.array([[point.x_start, point.y], [point.x_end, point.y]]))
    if point.y_error > 0:
        low, high = point.y - point.y_error, point.y + point.y_error
        lines.append(np.array([[point.x, low], [point.x, high]]))
    return lines
