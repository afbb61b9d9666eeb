"""Charts with a row for each case: marks along one axis, their numbers at the right.

They stay readable with as many cases as a scenario may have, and where costs at an idle server are
a hundred times those at a busy one: the axis is logarithmic then.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from sim.report.charts.drawing import (
    Drawing,
    Floats,
    case_name,
    heading_of,
    log_axis,
    say,
    styles_of,
)
from sim.report.data import RunTables
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

WIDE_RATIO = 20.0
"""From so many times the smallest number on an axis is logarithmic."""
NAME_IN = 2.4
NAME_LINES = 2
ROW_IN = 0.34
AXIS_IN = 0.62
GAP_IN = 0.16
MARKER_PT = 8.0
MARKERS = ("o", "s", "D", "^")
"""Of the marks of a row, in turn."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A number of each case."""

    column: str
    label: str
    error: str = ""
    """Column of its standard error, if it has one."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a chart of rows shows."""

    title: str
    subtitle: str
    axis: str
    marks: tuple[Mark, ...]
    write: Callable[[float], str]
    """Writes a number with its unit."""
    tick: Callable[[float], str]
    none: str = "not defined"
    """Stands where a number is not defined."""


def rows_chart(tables: RunTables, cases: pd.DataFrame, rows: Rows) -> Drawing:
    """Draw a row for each case."""
    legend = [
        LegendEntry(mark.label, colour("ink"), marker)
        for mark, marker in zip(rows.marks, MARKERS, strict=False)
    ] * (len(rows.marks) > 1)
    names = [clipped(wrap(str(case), NAME_IN, LABEL_PT), NAME_LINES) for case in cases["case"]]
    numbers = [_written(case, rows) for _, case in cases.iterrows()]
    left_in = MARGIN_IN + 0.36 + max(text_width_in(x, LABEL_PT) for name in names for x in name)
    right_in = max(text_width_in(text, SMALL_PT) for text in numbers) + MARGIN_IN
    row_in = max(ROW_IN, max(map(len, names)) * line_height_in(LABEL_PT) + 0.08)
    height_in = len(cases) * row_in
    sheet = Sheet(heading_of(tables, rows.title, rows.subtitle), height_in + AXIS_IN, legend)
    axes = sheet.axes(left_in, AXIS_IN, WIDTH_IN - left_in - right_in - GAP_IN, height_in)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())
    drawn = _numbers(cases, rows.marks)
    if not drawn.size:
        say(axes, rows.none)
    else:
        wide = _axis(axes, drawn, rows)
        axes.set_xlabel(f"{rows.axis}{' (logarithmic)' * wide}", labelpad=8)
    styles = styles_of(tables)
    for place, (_, case) in enumerate(cases.iterrows()):
        middle_in = AXIS_IN + (len(cases) - place - 0.5) * row_in
        case_name(sheet, styles[str(case["case"])], names[place], middle_in)
        look = {"color": "ink"}
        at_in = WIDTH_IN - right_in
        sheet.text(at_in, middle_in - 0.045, numbers[place], SMALL_PT, look)
        if drawn.size:
            _draw_row(axes, case, place, rows.marks, styles[str(case["case"])])
    told = (f"{case}: {text}" for case, text in zip(cases["case"], numbers, strict=True))
    what = " / ".join(mark.label for mark in rows.marks)
    return Drawing(sheet, rows.title, f"Chart of rows, {what}. {'; '.join(told)}.")


def _written(case: "pd.Series[float]", rows: Rows) -> str:
    """Write the numbers of a case, with strokes between."""
    values = [float(case[mark.column]) for mark in rows.marks]
    if not any(map(math.isfinite, values)):
        return rows.none
    return " / ".join(rows.write(value) if math.isfinite(value) else rows.none for value in values)


def _numbers(cases: pd.DataFrame, marks: Sequence[Mark]) -> Floats:
    """Give all numbers that are drawn, errors included."""
    found = []
    for mark in marks:
        values = cases[mark.column].to_numpy(float)
        errors = cases[mark.error].fillna(0.0).to_numpy(float) if mark.error else 0.0 * values
        found += [values, values - errors, values + errors]
    together: Floats = np.concatenate(found)
    drawn: Floats = together[np.isfinite(together)]
    return drawn


def _axis(axes: Axes, drawn: Floats, rows: Rows) -> bool:
    """Set the axis up; whether it is logarithmic."""
    positive = drawn[drawn > 0]
    low, high = float(drawn.min()), float(drawn.max())
    if low > 0 and high > WIDE_RATIO * low:
        log_axis(axes, "x", positive, rows.tick)
        return True
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.04 * (high - low) or 1.0
    axes.set_xlim(low - (room if low < 0 else 0.0), high + room)
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low - room < tick < high + room])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: rows.tick(x)))
    if low < 0:
        axes.axvline(0.0, color=colour("axis"), linewidth=1.0, zorder=1.2)
    return False


def _draw_row(
    axes: Axes, case: "pd.Series[float]", place: int, marks: Sequence[Mark], style: CaseStyle
) -> None:
    values = [float(case[mark.column]) for mark in marks]
    known = [value for value in values if math.isfinite(value)]
    if len(known) > 1:
        axes.plot([min(known), max(known)], [place] * 2, color=style.colour, linewidth=1.6)
    for mark, marker, value in zip(marks, MARKERS, values, strict=False):
        if not math.isfinite(value):
            continue
        error = float(case[mark.error]) if mark.error else math.nan
        if error > 0:
            ends = [max(value - error, axes.get_xlim()[0]), value + error]
            axes.plot(ends, [place] * 2, color=style.colour, linewidth=4.5, alpha=0.35)
        axes.plot(
            [value],
            [place],
            linestyle="none",
            marker=marker,
            markersize=MARKER_PT,
            markerfacecolor=style.colour,
            markeredgecolor=colour("paper"),
            markeredgewidth=0.8,
            zorder=3,
        )
