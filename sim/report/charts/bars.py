"""Bar charts: what a token costs and what energy it takes, a bar for each case."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from sim.report.charts.drawing import Drawing, case_name, heading_of, styles_of
from sim.report.data import BILL_LINES, RunTables, rows_of
from sim.report.findings import COST, ENERGY, Measure, headline, interval, low_slo
from sim.report.formats import percent, plain, tick_usd
from sim.report.style import (
    LABEL_PT,
    MARGIN_IN,
    SMALL_PT,
    WIDTH_IN,
    CaseStyle,
    Heading,
    LegendEntry,
    Sheet,
    clipped,
    colour,
    line_height_in,
    text_width_in,
    wrap,
)

NAME_IN = 2.1
"""Widest column of case names beside bars."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a bar."""

    share_fraction: float
    colour: str
    ink: str


@dataclass(frozen=True, slots=True)
class Scale:
    """How the numbers of a bar chart are written."""

    value: Callable[[float], str]
    tick: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Bar:
    """One case in a chart of bars; a value of NaN is said to be undefined."""

    case: str
    style: CaseStyle
    value: float
    interval: tuple[float, float] | None
    segments: tuple[Segment, ...]
    undefined: str
    """What is written in the place of a bar that has no value."""
    remark: str = ""
    """What is said beside its value."""


def cost_chart(tables: RunTables) -> Drawing:
    """Cost per million tokens, each bar split as the bill of its case is."""
    bars = [_cost_bar(tables, row) for _, row in tables.summary.iterrows()]
    lines = [line for line in BILL_LINES if line in set(tables.bill["line"])]
    legend = [LegendEntry(line, colour(f"line-{line}"), None) for line in lines]
    title = headline(tables.summary, COST)
    subtitle = "US dollars per million tokens, input and output; parts of a bar as in the bill"
    scale = Scale(COST.write_briefly, tick_usd)
    sheet = _bar_sheet(heading_of(tables, title, subtitle), bars, legend, scale)
    return Drawing(sheet, title, _in_words("Cost per million tokens", bars, scale))


def energy_chart(tables: RunTables) -> Drawing:
    """Energy per output token, in the colour of each case."""
    bars = [
        _measure_bar(
            tables, row, ENERGY, lambda style: (Segment(1.0, style.colour, colour("on-dark")),)
        )
        for _, row in tables.summary.iterrows()
    ]
    title = headline(tables.summary, ENERGY)
    subtitle = "Joules per output token, whole systems with their hosts"
    scale = Scale(ENERGY.write_briefly, lambda energy_j: f"{plain(energy_j)} J")
    sheet = _bar_sheet(heading_of(tables, title, subtitle), bars, (), scale)
    return Drawing(sheet, title, _in_words("Energy per output token", bars, scale))


def _cost_bar(tables: RunTables, row: "pd.Series[float]") -> Bar:
    bill = rows_of(tables.bill, str(row["case"])).set_index("line")["share_fraction"]
    shares = [(line, float(bill[line])) for line in BILL_LINES if line in bill.index]
    segments = tuple(
        Segment(
            share,
            colour(f"line-{line}"),
            colour("on-dark" if line in {"rent", "capital"} else "on-light"),
        )
        for line, share in shares
        if share > 0
    )
    plain_bar = (Segment(1.0, colour("axis"), colour("on-light")),)
    bar = _measure_bar(tables, row, COST, lambda _: segments or plain_bar)
    share = low_slo(row)
    return bar if share is None else replace(bar, remark=f"SLO met by {percent(share)}")


def _measure_bar(
    tables: RunTables,
    row: "pd.Series[float]",
    measure: Measure,
    segments: Callable[[CaseStyle], tuple[Segment, ...]],
) -> Bar:
    case = str(row["case"])
    style = styles_of(tables)[case]
    nobody = row["completed_requests"] == 0
    bounds = interval(row, measure.column)
    known = bounds is not None and bounds[0] == bounds[1]  # given by the arrivals
    why = "no request completed" if nobody else "no answer in the time that counts"
    return Bar(
        case=case,
        style=style,
        value=float(row[measure.column]),
        interval=None if known else bounds,
        segments=segments(style),
        undefined=f"not defined: {why}",
    )


def _in_words(what: str, bars: Sequence[Bar], scale: Scale) -> str:
    parts = [
        f"{bar.case} {scale.value(bar.value)}{f' ({bar.remark})' if bar.remark else ''}"
        if math.isfinite(bar.value)
        else f"{bar.case} {bar.undefined}"
        for bar in bars
    ]
    return f"Bar chart. {what}: {'; '.join(parts)}."


def _bar_sheet(
    heading: Heading,
    bars: Sequence[Bar],
    legend: Sequence[LegendEntry],
    scale: Scale,
) -> Sheet:
    """Draw bars, their names on the left and their values on the right."""
    names = [clipped(wrap(bar.case, NAME_IN, LABEL_PT), 4) for bar in bars]
    row_in = max(0.58, 0.2 + max(map(len, names)) * line_height_in(LABEL_PT))
    axis_in, labels_in = 0.36, 1.35
    left_in = MARGIN_IN + 0.36 + max(text_width_in(x, LABEL_PT) for name in names for x in name)
    plot_in = WIDTH_IN - MARGIN_IN - left_in
    sheet = Sheet(heading, len(bars) * row_in + axis_in, legend)
    axes = sheet.axes(left_in, axis_in, plot_in, len(bars) * row_in)
    longest = max((_reach(bar) for bar in bars if math.isfinite(bar.value)), default=0.0)
    limit = longest * plot_in / (plot_in - labels_in) if longest > 0 else 1.0
    axes.set_xlim(0.0, limit)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())
    _bar_ticks(axes, longest, scale.tick)
    for place, (bar, name) in enumerate(zip(bars, names, strict=True)):
        middle_in = axis_in + (len(bars) - place - 0.5) * row_in
        case_name(sheet, bar.style, name, middle_in)
        _draw_bar(axes, bar, place, plot_in / limit)
        _bar_value(axes, bar, place, scale.value)
    return sheet


def _bar_ticks(axes: Axes, longest: float, write: Callable[[float], str]) -> None:
    """Ticks as far as the bars go: right of them stand their values."""
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(0.0, longest)
    axes.set_xticks([tick for tick in ticks if longest > 0 and 0 <= tick <= longest * 1.04])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: write(x) if x > 0 else "0"))


def _reach(bar: Bar) -> float:
    """How far a bar goes to the right, its whisker included."""
    return max(bar.value, bar.interval[1]) if bar.interval else bar.value


def _draw_bar(axes: Axes, bar: Bar, place: int, in_per_unit: float) -> None:
    if not math.isfinite(bar.value):
        return
    start = 0.0
    for segment in bar.segments:
        width = bar.value * segment.share_fraction
        axes.barh(
            place,
            width,
            left=start,
            height=0.56,
            color=segment.colour,
            edgecolor=colour("paper"),
            linewidth=0.8,
        )
        label = f"{segment.share_fraction * 100:.0f} %"
        room_in = text_width_in(label, SMALL_PT) + 0.12
        if len(bar.segments) > 1 and width * in_per_unit >= room_in:
            axes.text(
                start + width / 2,
                place,
                label,
                ha="center",
                va="center_baseline",
                fontsize=SMALL_PT,
                color=segment.ink,
            )
        start += width
    if bar.interval:
        axes.errorbar(
            bar.value,
            place + 0.37,
            xerr=[[max(0.0, bar.value - bar.interval[0])], [max(0.0, bar.interval[1] - bar.value)]],
            fmt="none",
            color=colour("ink"),
            ecolor=colour("ink"),
            elinewidth=1.3,
            capsize=3,
            capthick=1.3,
        )


def _bar_value(axes: Axes, bar: Bar, place: int, write: Callable[[float], str]) -> None:
    quiet = {"color": colour("muted")}
    if not math.isfinite(bar.value):
        _beside(axes, (0.0, place), (6, 0), bar.undefined, {"fontsize": LABEL_PT, **quiet})
        return
    end = (_reach(bar), place)
    strong = {"fontsize": LABEL_PT, "weight": "bold", "color": colour("ink")}
    within = f"{write(bar.interval[0])} to {write(bar.interval[1])}" if bar.interval else ""
    below = [text for text in (within, bar.remark) if text]
    lift_pt = 6.0 * len(below)
    _beside(axes, end, (7, lift_pt), write(bar.value), strong)
    for line, text in enumerate(below, 1):
        look = {"fontsize": SMALL_PT, **quiet}
        _beside(axes, end, (7, lift_pt - (13.0 if len(below) == 1 else 12.0) * line), text, look)


def _beside(
    axes: Axes,
    at: tuple[float, float],
    offset_pt: tuple[float, float],
    text: str,
    look: Mapping[str, Any],
) -> None:
    """Write some points away from a place of the axes."""
    axes.annotate(
        text, at, xytext=offset_pt, textcoords="offset points", va="center_baseline", **look
    )
