"""What tasks of test-time compute cost: on average, for each solved one, and in the tail."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from sim.metrics.programs import TAIL_FRACTION, conditional_value_at_risk
from sim.report.charts.drawing import (
    Drawing,
    Floats,
    case_name,
    heading_of,
    log_axis,
    say,
    styles_of,
)
from sim.report.charts.names import Named, in_points, numbered_legend, write_names
from sim.report.data import RunTables, rows_of
from sim.report.findings import headline
from sim.report.formats import plain, tick_usd
from sim.report.labels import along, around
from sim.report.style import (
    LABEL_PT,
    MARGIN_IN,
    SMALL_PT,
    WIDTH_IN,
    CaseStyle,
    LegendEntry,
    Sheet,
    clipped,
    colour,
    line_height_in,
    text_width_in,
    wrap,
)
from sim.report.task_findings import (
    PER_SOLVED_TASK,
    PER_TASK,
    answered,
    by_benchmark,
    tasks_of,
    usd_of_task,
)

NAME_IN = 2.4
NAME_LINES = 3
BAR_IN = 0.2
VALUE_IN = 1.0
"""Room for the value beside a bar."""
CURVE_POINTS = 300
TAIL_QUANTILE = 0.99
MARKER_PT = 7.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the two costs of a case."""

    column: str
    label: str
    token: str


KINDS = (
    Kind("usd_per_task", "for each task", "line-network"),
    Kind("usd_per_solved_task", "for each solved task", "line-rent"),
)


def task_cost_chart(tables: RunTables) -> Drawing:
    """Dollars per task, and per solved task where it is known which ones are."""
    cases = tasks_of(tables.summary)
    known = len(answered(tables.summary)) > 0
    kinds = KINDS if known else KINDS[:1]
    title = headline(cases, PER_SOLVED_TASK if known else PER_TASK)
    if len(by_benchmark(cases)) > 1:
        title = "What a task costs, and a solved one"
    subtitle = "US dollars per task, idle time, cancelled calls and other models included"
    legend = [LegendEntry(kind.label, colour(kind.token), None) for kind in kinds] * known
    names = [clipped(wrap(str(case), NAME_IN, LABEL_PT), NAME_LINES) for case in cases["case"]]
    tall = max(map(len, names)) * line_height_in(LABEL_PT)
    row_in = max(len(kinds) * BAR_IN, tall) + 0.16
    left_in = MARGIN_IN + 0.36 + max(text_width_in(x, LABEL_PT) for name in names for x in name)
    plot_in, axis_in = WIDTH_IN - MARGIN_IN - left_in, 0.36
    sheet = Sheet(heading_of(tables, title, subtitle), len(cases) * row_in + axis_in, legend)
    axes = sheet.axes(left_in, axis_in, plot_in, len(cases) * row_in)
    _cost_axes(axes, cases, kinds, plot_in, row_in)
    for place, ((_, case), name) in enumerate(zip(cases.iterrows(), names, strict=True)):
        middle_in = axis_in + (len(cases) - place - 0.5) * row_in
        case_name(sheet, styles_of(tables)[str(case["case"])], name, middle_in)
        for which, kind in enumerate(kinds):
            at = place * row_in + (which - (len(kinds) - 1) / 2) * BAR_IN
            _bar(axes, float(case[kind.column]), at, kind)
    return Drawing(sheet, title, f"Bar chart. {'; '.join(_costs_in_words(cases, kinds))}.")


def _costs_in_words(cases: pd.DataFrame, kinds: Sequence[Kind]) -> Iterator[str]:
    for _, case in cases.iterrows():
        parts = (f"{usd_of_task(float(case[kind.column]))} {kind.label}" for kind in kinds)
        yield f"{case['case']} {', '.join(parts)}"


def _cost_axes(
    axes: Axes, cases: pd.DataFrame, kinds: Sequence[Kind], plot_in: float, row_in: float
) -> None:
    """Set limits in dollars across and inches downward, with room for the values."""
    known = [kind.column for kind in kinds if cases[kind.column].any()]
    longest = max((float(cases[column].max()) for column in known), default=0.0)
    limit = longest * plot_in / (plot_in - VALUE_IN) if longest > 0 else 1.0
    axes.set_xlim(0.0, limit)
    axes.set_ylim((len(cases) - 0.5) * row_in, -0.5 * row_in)
    axes.yaxis.set_major_locator(NullLocator())
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(0.0, longest)
    axes.set_xticks([tick for tick in ticks if longest > 0 and 0 <= tick <= longest * 1.04])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick_usd(x) if x > 0 else "0"))


def _bar(axes: Axes, cost_usd: float, at: float, kind: Kind) -> None:
    defined = math.isfinite(cost_usd)
    if defined:
        axes.barh(at, cost_usd, height=BAR_IN - 0.03, color=colour(kind.token), linewidth=0)
    axes.annotate(
        usd_of_task(cost_usd) if defined else "none solved",
        (cost_usd if defined else 0.0, at),
        xytext=(5, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=SMALL_PT,
        color=colour("ink" if defined else "muted"),
    )


@dataclass(frozen=True, slots=True)
class Tail:
    """How the costs of the tasks of one case are distributed."""

    case: str
    style: CaseStyle
    cost_usd: Floats
    """Of the completed tasks, rising."""

    @property
    def dearer(self) -> Floats:
        """Share of tasks that cost more than each of them, so that the median has a half.

        Of the dearest one it is that of one task, for a logarithmic axis.
        """
        size = self.cost_usd.size
        return np.maximum(1.0 - np.arange(size) / max(size - 1, 1), 1.0 / size)

    @property
    def p99_usd(self) -> float:
        """What one of a hundred tasks costs, or more."""
        return float(np.quantile(self.cost_usd, TAIL_QUANTILE))

    @property
    def cvar_usd(self) -> float:
        """Mean of the dearest ones."""
        return conditional_value_at_risk(self.cost_usd)

    def share_above(self, cost_usd: float) -> float:
        """Share of tasks that cost more, between tasks interpolated."""
        return float(np.interp(cost_usd, self.cost_usd, self.dearer))

    @property
    def curve(self) -> Floats:
        """Points to draw, shape (n, 2): dense in the tail."""
        size = self.cost_usd.size
        ranks = np.unique(size - np.geomspace(1, size, min(size, CURVE_POINTS)).round().astype(int))
        return np.column_stack([self.cost_usd[ranks], self.dearer[ranks]])


def task_cost_tail_chart(tables: RunTables) -> Drawing:
    """Share of the tasks that cost more than some money."""
    tails = list(_tails(tables))
    sheet, named = _tail_sheet(tables, tails, ())
    if not named:
        sheet, _ = _tail_sheet(tables, tails, numbered_legend({t.case: t.style for t in tails}))
    words = (
        f"{tail.case} p99 {usd_of_task(tail.p99_usd)}, mean of the dearest "
        f"{_tick_percent(TAIL_FRACTION)} {usd_of_task(tail.cvar_usd)}"
        for tail in tails
    )
    return Drawing(sheet, TAIL_TITLE, f"Line chart. {'; '.join(words)}.")


TAIL_TITLE = "How dear a task can get"


def _tails(tables: RunTables) -> Iterator[Tail]:
    if tables.tasks is None:
        return
    styles: Mapping[str, CaseStyle] = styles_of(tables)
    for case in tasks_of(tables.summary)["case"]:
        rows = rows_of(tables.tasks, str(case))
        if "measured" in rows.columns:
            rows = rows[rows["measured"].astype(bool)]
        costs = rows.loc[rows["outcome"] == "completed", "usd"].to_numpy(dtype=np.float64)
        costs = np.sort(costs[costs > 0])
        if costs.size:
            yield Tail(str(case), styles[str(case)], costs)


def _tail_sheet(
    tables: RunTables, tails: Sequence[Tail], legend: Sequence[LegendEntry]
) -> tuple[Sheet, bool]:
    left_in, bottom_in, plot_in, height_in = 0.85, 0.62, WIDTH_IN - 1.15, 4.9
    subtitle = (
        "Both axes logarithmic; further left is better. Filled marks: p99. Hollow marks: mean of "
        f"the dearest {_tick_percent(TAIL_FRACTION)} (CVaR)."
    )
    sheet = Sheet(heading_of(tables, TAIL_TITLE, subtitle), bottom_in + height_in + 0.34, legend)
    axes = sheet.axes(left_in, bottom_in, plot_in, height_in)
    what = "Share of the tasks that cost more"
    sheet.text(MARGIN_IN, bottom_in + height_in + 0.14, what, LABEL_PT, {"color": "muted"})
    axes.set_xlabel("US dollars per task (logarithmic)", labelpad=8)
    if not tails:
        say(axes, "no data")
        return sheet, True
    log_axis(axes, "x", np.concatenate([tail.cost_usd for tail in tails]), tick_usd)
    log_axis(axes, "y", np.concatenate([tail.dearer for tail in tails]), _tick_percent)
    least = min(float(tail.dearer[-1]) for tail in tails) / 1.5
    axes.set_yticks([tick for tick in axes.get_yticks() if least <= tick <= 1.0])
    axes.set_ylim(least, 1.25)
    strokes, names = [], []
    for number, tail in enumerate(tails, 1):
        marks = _draw_tail(axes, tail)
        points = in_points(axes, tail.curve)
        strokes += [along(points), around(in_points(axes, marks), MARKER_PT)]
        text = str(number) if legend else tail.case
        names.append(Named(text, tail.style.text, _anchors(tail), bold=True))
    return sheet, write_names(axes, names, np.vstack(strokes))


def _tick_percent(share: float) -> str:
    return f"{plain(round(100 * share, 6))} %"


def _anchors(tail: Tail) -> Floats:
    """Where on its curve a name may point: in the tail first, where curves are apart."""
    shares = np.array([0.05, 0.02, 0.1, 0.2, 0.035, 0.35, 0.6])
    costs = np.interp(shares, tail.dearer[::-1], tail.cost_usd[::-1])
    return np.column_stack([costs, shares])


def _draw_tail(axes: Axes, tail: Tail) -> Floats:
    """Draw a curve with its marks; return where these are."""
    axes.plot(
        *tail.curve.T,
        color=tail.style.colour,
        linestyle=tail.style.dash,
        linewidth=1.8,
    )
    costs = (tail.p99_usd, tail.cvar_usd)
    marks = np.array([(cost, tail.share_above(cost)) for cost in costs])
    for (cost, share), filled in zip(marks, (True, False), strict=True):
        axes.plot(
            [cost],
            [share],
            linestyle="none",
            marker=tail.style.marker,
            markersize=MARKER_PT,
            markerfacecolor=tail.style.colour if filled else colour("paper"),
            markeredgecolor=tail.style.colour if not filled else colour("paper"),
            markeredgewidth=1.3 if not filled else 0.8,
            zorder=3,
        )
    return marks
