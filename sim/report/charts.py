"""The charts of a run: one function a chart, each a drawing that can stand alone.

A chart is drawn for a reader who sees nothing else of the run: its title says what it shows, its
axes have units, its source line says where it comes from, and a case has the same colour and
marker in all of them. A number that is not defined is said to be so, never drawn as zero.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sim.report.data import BILL_LINES, RunTables, rows_of
from sim.report.findings import COST, ENERGY, Measure, headline, interval
from sim.report.formats import duration, figure, percent, plain, usd
from sim.report.labels import Box, Canvas, Wanted, along, around
from sim.report.style import (
    LABEL_PT,
    MARGIN_IN,
    POINTS_PER_IN,
    SMALL_PT,
    TICK_PT,
    WIDTH_IN,
    CaseStyle,
    Heading,
    LegendEntry,
    Sheet,
    case_style,
    chart_settings,
    clipped,
    colour,
    line_height_in,
    text_width_in,
    wrap,
)
from sim.units import HOUR_S, KW, MICROSECOND_S, MILLISECOND_S, MINUTE_S

Floats = npt.NDArray[np.float64]

PNG_DOTS_PER_IN = 200
"""Two pixels of the PNG for each pixel of a page a thousand wide."""

CHART_NAMES: tuple[str, ...] = (
    "cost",
    "throughput_interactivity",
    "cost_interactivity",
    "latency",
    "timeline",
    "energy",
)
"""Stems of the chart files, in the order of the report."""

QUANTILES = (0.5, 0.95, 0.99)
ECDF_POINTS = 400
TIMELINE_BINS = 150
NAME_IN = 2.1
"""Widest column of case names beside bars."""
PERCENT = 0.01


@dataclass(frozen=True, slots=True)
class Chart:
    """A finished chart."""

    name: str
    """Stem of its files."""
    title: str
    alt: str
    """What the chart shows, in words, for those who cannot see it."""
    svg: bytes
    png: bytes


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart before it is turned into bytes."""

    sheet: Sheet
    title: str
    alt: str


def draw_charts(tables: RunTables) -> tuple[Chart, ...]:
    """Draw every chart the run has data for, in the order of the report."""
    painters = (
        cost_chart,
        throughput_chart,
        cost_curve_chart,
        latency_chart,
        timeline_chart,
        energy_chart,
    )
    has_curve = tables.curve is not None and not tables.curve.empty
    return tuple(
        _render(name, painter, tables)
        for name, painter in zip(CHART_NAMES, painters, strict=True)
        if has_curve or not name.endswith("_interactivity")
    )


def _render(name: str, painter: Callable[[RunTables], Drawing], tables: RunTables) -> Chart:
    with chart_settings(salt=name):
        drawing = painter(tables)
        svg, png = io.BytesIO(), io.BytesIO()
        figure_ = drawing.sheet.figure
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure_.savefig(svg, format="svg", metadata=nothing)
        figure_.savefig(png, format="png", dpi=PNG_DOTS_PER_IN, metadata={"Software": None})
    return Chart(name, drawing.title, drawing.alt, svg.getvalue(), png.getvalue())


def _heading(tables: RunTables, title: str, subtitle: str) -> Heading:
    source = f"Rackcast {tables.version}, scenario {tables.scenario}, seed {tables.seed}"
    room = WIDTH_IN - 2 * MARGIN_IN - 0.2
    return Heading(title, subtitle, clipped(wrap(source, room, SMALL_PT), 1)[0])


def _styles(tables: RunTables) -> dict[str, CaseStyle]:
    return {case: case_style(index) for index, case in enumerate(tables.cases)}


# --- Bars.


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


def cost_chart(tables: RunTables) -> Drawing:
    """Cost per million output tokens, each bar split as the bill of its case is."""
    bars = [_cost_bar(tables, row) for _, row in tables.summary.iterrows()]
    lines = [line for line in BILL_LINES if line in set(tables.bill["line"])]
    legend = [LegendEntry(line, colour(f"line-{line}"), None) for line in lines]
    title = headline(tables.summary, COST)
    subtitle = "US dollars per million output tokens; the parts of a bar are those of the bill"
    sheet = _bar_sheet(_heading(tables, title, subtitle), bars, legend, Scale(usd, _tick_usd))
    return Drawing(sheet, title, _bars_in_words("Cost per million output tokens", bars, usd))


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
    scale = Scale(_joules, lambda energy_j: f"{plain(energy_j)} J")
    sheet = _bar_sheet(_heading(tables, title, subtitle), bars, (), scale)
    return Drawing(sheet, title, _bars_in_words("Energy per output token", bars, _joules))


def _tick_usd(value: float) -> str:
    return f"${plain(value)}"


def _joules(energy_j: float) -> str:
    return f"{figure(energy_j)} J"


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
    return _measure_bar(tables, row, COST, lambda _: segments or plain_bar)


def _measure_bar(
    tables: RunTables,
    row: "pd.Series[float]",
    measure: Measure,
    segments: Callable[[CaseStyle], tuple[Segment, ...]],
) -> Bar:
    case = str(row["case"])
    style = _styles(tables)[case]
    why = "no request completed" if row["completed_requests"] == 0 else "no value"
    return Bar(
        case=case,
        style=style,
        value=float(row[measure.column]),
        interval=interval(row, measure.column),
        segments=segments(style),
        undefined=f"not defined: {why}",
    )


def _bars_in_words(what: str, bars: Sequence[Bar], write: Callable[[float], str]) -> str:
    parts = [
        f"{bar.case} {write(bar.value) if math.isfinite(bar.value) else bar.undefined}"
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
        _bar_name(sheet, bar, name, middle_in)
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


def _bar_name(sheet: Sheet, bar: Bar, lines: Sequence[str], middle_in: float) -> None:
    entry = LegendEntry("", bar.style.colour, None)
    sheet.swatch(entry, MARGIN_IN, middle_in + (len(lines) - 1) / 2 * line_height_in(LABEL_PT))
    for index, line in enumerate(lines):
        offset_in = ((len(lines) - 1) / 2 - index) * line_height_in(LABEL_PT)
        sheet.text(
            MARGIN_IN + 0.22, middle_in + offset_in - 0.048, line, LABEL_PT, {"color": "ink"}
        )


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
    if not math.isfinite(bar.value):
        axes.annotate(
            bar.undefined,
            (0.0, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=LABEL_PT,
            color=colour("muted"),
        )
        return
    lift = 6.0 if bar.interval else 0.0
    end = (_reach(bar), place)
    axes.annotate(
        write(bar.value),
        end,
        xytext=(7, lift),
        textcoords="offset points",
        va="center_baseline",
        fontsize=LABEL_PT,
        weight="bold",
        color=colour("ink"),
    )
    if bar.interval:
        axes.annotate(
            f"{write(bar.interval[0])} to {write(bar.interval[1])}",
            end,
            xytext=(7, -7),
            textcoords="offset points",
            va="center_baseline",
            fontsize=SMALL_PT,
            color=colour("muted"),
        )


# --- Curves of one quantity against another.


@dataclass(frozen=True, slots=True)
class TradeOff:
    """What a curve chart plots against interactivity."""

    column: str
    axis: str
    """Name and unit of the vertical axis."""
    title: str
    subtitle: str
    write: Callable[[float], str]
    write_tick: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one case, by rising concurrency."""

    case: str
    style: CaseStyle
    points: Floats
    """Shape (n, 2): interactivity, and the other quantity."""
    concurrency: tuple[float, ...]


MARKER_PT = 6.5
INTERACTIVITY_AXIS = "Interactivity, output tokens per second for each user"


def throughput_chart(tables: RunTables) -> Drawing:
    """Output tokens per second and chip, against tokens per second for each user."""
    return _trade_off(
        tables,
        TradeOff(
            column="output_tokens_per_s_per_chip",
            axis="Output tokens per second per chip (logarithmic)",
            title="More users at once: more tokens from each chip, fewer for each user",
            subtitle="Up and to the right is better. Small numbers: concurrent requests.",
            write=figure,
            write_tick=plain,
        ),
    )


def cost_curve_chart(tables: RunTables) -> Drawing:
    """Cost per million output tokens, against tokens per second for each user."""
    return _trade_off(
        tables,
        TradeOff(
            column="usd_per_mtok_output",
            axis="US dollars per million output tokens (logarithmic)",
            title="What a faster answer costs",
            subtitle="Down and to the right is better. Small numbers: concurrent requests.",
            write=usd,
            write_tick=_tick_usd,
        ),
    )


def _trade_off(tables: RunTables, plan: TradeOff) -> Drawing:
    curves = list(_curves(tables, plan.column))
    heading = _heading(tables, plan.title, plan.subtitle)
    alt = _curves_in_words(plan, curves)
    sheet, named = _curve_sheet(heading, plan, curves, ())
    if not named:
        legend = [LegendEntry(c.case, c.style.colour, c.style.marker, c.style.dash) for c in curves]
        sheet, _ = _curve_sheet(heading, plan, curves, legend)
    return Drawing(sheet, plan.title, alt)


def _curves(tables: RunTables, column: str) -> Iterator[Curve]:
    if tables.curve is None:
        return
    for case, style in _styles(tables).items():
        rows = rows_of(tables.curve, case).sort_values("concurrency", kind="stable")
        rows = rows[rows["interactivity_tokens_per_s"].gt(0) & rows[column].gt(0)]
        if not rows.empty:
            yield Curve(
                case,
                style,
                rows[["interactivity_tokens_per_s", column]].to_numpy(dtype=np.float64),
                tuple(float(users) for users in rows["concurrency"]),
            )


def _curves_in_words(plan: TradeOff, curves: Sequence[Curve]) -> str:
    parts = [
        f"{c.case} from {plan.write(c.points[0, 1])} at {figure(c.points[0, 0])} tokens per second "
        f"for each user to {plan.write(c.points[-1, 1])} at {figure(c.points[-1, 0])}"
        for c in curves
    ]
    return f"Line chart. {plan.axis} against interactivity: {'; '.join(parts) or 'no data'}."


def _curve_sheet(
    heading: Heading, plan: TradeOff, curves: Sequence[Curve], legend: Sequence[LegendEntry]
) -> tuple[Sheet, bool]:
    """Draw curves; name them directly if there is no legend, and say whether that worked."""
    left_in, bottom_in, plot_in, height_in = 0.85, 0.62, WIDTH_IN - 1.15, 4.7
    sheet = Sheet(heading, bottom_in + height_in + 0.34, legend)
    axes = sheet.axes(left_in, bottom_in, plot_in, height_in)
    sheet.text(MARGIN_IN, bottom_in + height_in + 0.14, plan.axis, LABEL_PT, {"color": "muted"})
    axes.set_xlabel(INTERACTIVITY_AXIS, labelpad=8)
    if not curves:
        _say(axes, "no data")
        return sheet, True
    _curve_limits(axes, plan, np.vstack([c.points for c in curves]))
    for curve in curves:
        axes.plot(
            curve.points[:, 0],
            curve.points[:, 1],
            color=curve.style.colour,
            linestyle=curve.style.dash,
            linewidth=2.2,
            marker=curve.style.marker,
            markersize=MARKER_PT,
            markeredgecolor=colour("paper"),
            markeredgewidth=0.9,
        )
    return sheet, _label_curves(axes, curves, direct=not legend)


def _curve_limits(axes: Axes, plan: TradeOff, points: Floats) -> None:
    axes.set_xlim(0.0, points[:, 0].max() * 1.1)
    axes.xaxis.set_major_locator(MaxNLocator(9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: plain(x)))
    _log_axis(axes, "y", points[:, 1], plan.write_tick)


def _log_axis(axes: Axes, which: str, values: Floats, write: Callable[[float], str]) -> None:
    """Make an axis logarithmic with round ticks, at least a factor of three long."""
    low, high = float(values.min()), float(values.max())
    middle = math.sqrt(low * high)
    low, high = min(low / 1.25, middle / 1.8), max(high * 1.25, middle * 1.8)
    decades = math.log10(high / low)
    steps = next(
        steps
        for most, steps in (
            (1.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
            (1.7, (1.0, 2.0, 5.0)),
            (3.0, (1.0, 3.0)),
            (math.inf, (1.0,)),
        )
        if decades <= most
    )
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _label_curves(axes: Axes, curves: Sequence[Curve], *, direct: bool) -> bool:
    """Write names and concurrencies beside the curves; whether every name found a place."""
    places = [_in_points(axes, curve.points) for curve in curves]
    box = axes.get_window_extent()
    per_point = _pixels_per_point(axes)
    canvas = Canvas(
        box.width / per_point,
        box.height / per_point,
        np.vstack([*(along(p) for p in places), *(around(p, MARKER_PT) for p in places)]),
    )
    named = not direct or all(
        _name_curve(axes, canvas, curve, at) for curve, at in zip(curves, places, strict=True)
    )
    for number in range(max(map(len, places))):
        for curve, at in zip(curves, places, strict=True):
            _label_point(axes, canvas, curve, at, number)
    return named


def _pixels_per_point(axes: Axes) -> float:
    root = axes.get_figure(root=True)
    return (root.dpi if root else POINTS_PER_IN) / POINTS_PER_IN


def _in_points(axes: Axes, points: Floats) -> Floats:
    """Turn data into points of type, from the lower left corner of the axes."""
    per_point = _pixels_per_point(axes)
    corner = axes.get_window_extent().min
    pixels = np.asarray(axes.transData.transform(points), dtype=np.float64)
    return (pixels - corner) / per_point


def _name_curve(axes: Axes, canvas: Canvas, curve: Curve, at: Floats) -> bool:
    lines = wrap(curve.case, 1.75, LABEL_PT, bold=True)
    width_in = max(text_width_in(line, LABEL_PT, bold=True) for line in lines)
    height = len(lines) * line_height_in(LABEL_PT) * POINTS_PER_IN
    # Beside the middle of the curve first: at its ends curves meet and points have labels.
    nearest = np.argsort(np.abs(np.arange(len(at)) - 0.35 * (len(at) - 1)), kind="stable")
    box = canvas.place(Wanted(width_in * POINTS_PER_IN, height, at[nearest], distance=8.0))
    if box is None or len(lines) > 4:
        return False
    for index, line in enumerate(lines):
        lower = Box(box.x, box.y + (len(lines) - 1 - index) * height / len(lines), 0.0, 0.0)
        _write(axes, lower, line, {"size": LABEL_PT, "weight": "bold", "color": curve.style.text})
    return True


def _label_point(axes: Axes, canvas: Canvas, curve: Curve, at: Floats, number: int) -> None:
    if number >= len(at):
        return
    text = plain(curve.concurrency[number])
    wanted = Wanted(
        width=text_width_in(text, SMALL_PT) * POINTS_PER_IN,
        height=SMALL_PT,
        anchors=at[number : number + 1],
        distance=5.5,
    )
    box = canvas.place(wanted)
    if box is not None:
        _write(axes, box, text, {"size": SMALL_PT, "color": curve.style.text})


def _write(axes: Axes, box: Box, text: str, style: dict[str, object]) -> None:
    """Write one line with its lower left corner in points from that of the axes."""
    axes.annotate(
        text,
        xy=(0.0, 0.0),
        xycoords="axes fraction",
        xytext=(box.x, box.y + 1.6),
        textcoords="offset points",
        ha="left",
        va="baseline",
        **style,  # type: ignore[arg-type]
    )


def _say(axes: Axes, text: str) -> None:
    """Write that there is nothing to draw."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=LABEL_PT,
        color=colour("muted"),
    )


# --- Latency.


@dataclass(frozen=True, slots=True)
class Waiting:
    """One of the two times a user waits."""

    column: str
    name: str
    slo: str


WAITS = (
    Waiting("ttft_s", "Time to first token (TTFT)", "slo_ttft_s"),
    Waiting("tpot_s", "Time per output token (TPOT)", "slo_tpot_s"),
)


def latency_chart(tables: RunTables) -> Drawing:
    """Cumulative distributions of TTFT and TPOT over the completed requests."""
    title = "How long users wait: for the first token, and for each one after it"
    subtitle = (
        "Share of completed requests that waited no longer; marks at p50, p95 and p99. "
        "Logarithmic time; further left is better."
    )
    legend = [
        LegendEntry(case, style.colour, style.marker, style.dash)
        for case, style in _styles(tables).items()
    ]
    sheet = Sheet(_heading(tables, title, subtitle), 4.45, legend)
    for place, wait in enumerate(WAITS):
        left_in = 0.75 + place * 4.78
        sheet.text(left_in, 4.26, wait.name, LABEL_PT, {"color": "ink", "weight": "bold"})
        _latency_panel(sheet.axes(left_in, 0.36, 4.2, 3.62), tables, wait)
    return Drawing(sheet, title, _latency_in_words(tables))


def _waits(tables: RunTables, case: str, column: str) -> Floats:
    """Positive times of the measured, completed requests of a case, rising."""
    rows = rows_of(tables.requests, case)
    rows = rows[rows["outcome"] == "completed"]
    if "measured" in rows.columns:
        rows = rows[rows["measured"].astype(bool)]
    values = rows[column].to_numpy(dtype=np.float64)
    return np.sort(values[np.isfinite(values) & (values > 0)])


def _latency_panel(axes: Axes, tables: RunTables, wait: Waiting) -> None:
    waits = {case: _waits(tables, case, wait.column) for case in tables.cases}
    drawn = [values for values in waits.values() if values.size]
    if not drawn:
        _say(axes, "no request completed")
        return
    slos = _slos(tables, wait)
    _log_axis(axes, "x", np.concatenate([*drawn, np.array(slos)]), _tick_duration)
    axes.set_ylim(0.0, 1.02)
    axes.set_yticks([0.0, 0.25, *QUANTILES, 0.75])
    axes.set_yticklabels(["0 %", "25 %", "p50", "p95", "p99", "75 %"])
    for index, slo in enumerate(slos):
        _slo_line(axes, slo, index)
    for case, values in waits.items():
        if values.size:
            _ecdf(axes, values, _styles(tables)[case])


def _slos(tables: RunTables, wait: Waiting) -> list[float]:
    if wait.slo not in tables.summary.columns:
        return []
    return sorted(float(slo) for slo in tables.summary[wait.slo].dropna().unique() if slo > 0)


def _slo_line(axes: Axes, slo_s: float, index: int) -> None:
    axes.axvline(slo_s, color=colour("ink"), linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.5)
    axes.annotate(
        f"SLO {_tick_duration(slo_s)}",
        xy=(slo_s, 1.02),
        xycoords=("data", "data"),
        xytext=(0, 3 + 10 * index),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=SMALL_PT,
        color=colour("ink"),
        annotation_clip=False,
    )


def _ecdf(axes: Axes, values: Floats, style: CaseStyle) -> None:
    share = np.arange(1, values.size + 1) / values.size
    shown = np.unique(np.linspace(0, values.size - 1, min(values.size, ECDF_POINTS)).astype(int))
    axes.step(
        np.concatenate([values[:1], values[shown]]),
        np.concatenate([[0.0], share[shown]]),
        where="post",
        color=style.colour,
        linestyle=style.dash,
        linewidth=2.0,
    )
    axes.plot(
        np.quantile(values, QUANTILES),
        QUANTILES,
        linestyle="none",
        marker=style.marker,
        markersize=6,
        color=style.colour,
        markeredgecolor=colour("paper"),
        markeredgewidth=0.9,
        zorder=3,
    )


def _tick_duration(value_s: float) -> str:
    """Write a round time: 50 ms, 1.5 s.

    >>> [_tick_duration(x) for x in (0.0005, 0.05, 1.5)]
    ['500 µs', '50 ms', '1.5 s']
    """
    if value_s < 0.9995 * MILLISECOND_S:
        return f"{plain(round(value_s / MICROSECOND_S, 3))} µs"
    if value_s < 0.9995:
        return f"{plain(round(value_s / MILLISECOND_S, 3))} ms"
    return f"{plain(round(value_s, 3))} s"


def _latency_in_words(tables: RunTables) -> str:
    parts = [
        f"{row['case']} TTFT {duration(float(row['ttft_s_p50']))} and "
        f"{duration(float(row['ttft_s_p99']))}, TPOT {duration(float(row['tpot_s_p50']))} and "
        f"{duration(float(row['tpot_s_p99']))}"
        for _, row in tables.summary.iterrows()
    ]
    return f"Cumulative distributions. p50 and p99: {'; '.join(parts)}."


# --- Time.


@dataclass(frozen=True, slots=True)
class Panel:
    """One column of the timeline chart."""

    title: str
    columns: tuple[str, ...]
    """The first is filled in the colour of the case, the second a dark line over it."""
    scale: float
    """Divides the values."""


PANELS = (
    Panel("Load, requests per second", ("offered_requests_per_s",), 1.0),
    Panel("Running and waiting requests", ("running_requests", "waiting_requests"), 1.0),
    Panel("KV cache in use, %", ("kv_used_fraction",), PERCENT),
    Panel("Power, kW", ("power_w",), KW),
)
ROW_IN, HEAD_IN, TIME_AXIS_IN, PANEL_IN = 1.62, 0.3, 0.3, 0.95
PANEL_LEFT_IN = 0.42
"""Room for the numbers left of a panel."""


def timeline_chart(tables: RunTables) -> Drawing:
    """Load, requests, KV use and power over time, a row of small panels per case.

    Every row has its own axes: a rack is through in a minute with what a host chews for an hour.
    """
    title = "Load, requests, KV cache and power over time"
    subtitle = "Waiting requests are the dark line. Every case has its own scales."
    content_in = ROW_IN * len(tables.cases) + HEAD_IN
    sheet = Sheet(_heading(tables, title, subtitle), content_in)
    for column, panel in enumerate(PANELS):
        sheet.text(_panel_left_in(column), content_in - 0.16, panel.title, TICK_PT, _MUTED)
    for place, case in enumerate(tables.cases):
        bottom_in = TIME_AXIS_IN + (len(tables.cases) - 1 - place) * ROW_IN
        rows = _binned(rows_of(tables.timeline, case))
        _row_name(sheet, case, place, bottom_in + 1.14)
        for column, panel in enumerate(PANELS):
            width_in = _panel_left_in(1) - _panel_left_in(0) - PANEL_LEFT_IN - 0.14
            axes = sheet.axes(_panel_left_in(column), bottom_in, width_in, PANEL_IN)
            _panel(axes, panel, rows, case_style(place))
    return Drawing(sheet, title, _timeline_in_words(tables))


_MUTED = {"color": "muted"}


def _panel_left_in(column: int) -> float:
    column_in = (WIDTH_IN - 2 * MARGIN_IN) / len(PANELS)
    return MARGIN_IN + column * column_in + PANEL_LEFT_IN


def _row_name(sheet: Sheet, case: str, place: int, baseline_in: float) -> None:
    sheet.swatch(LegendEntry("", case_style(place).colour, None), MARGIN_IN, baseline_in + 0.048)
    name = clipped(wrap(case, WIDTH_IN - 1.0, LABEL_PT, bold=True), 1)[0]
    sheet.text(MARGIN_IN + 0.22, baseline_in, name, LABEL_PT, {"color": "ink", "weight": "bold"})


def _time_unit(until_s: float) -> tuple[str, float]:
    """Choose the unit of a time axis: seconds to ten minutes, minutes to five hours, or hours.

    >>> _time_unit(599.0), _time_unit(3600.0), _time_unit(86400.0)
    (('s', 1.0), ('min', 60.0), ('h', 3600.0))
    """
    if until_s <= 10 * MINUTE_S:
        return "s", 1.0
    return ("min", MINUTE_S) if until_s <= 5 * HOUR_S else ("h", HOUR_S)


def _binned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most `TIMELINE_BINS` intervals: neighbours become their average over time."""
    rows = rows.sort_values("start_s", kind="stable").reset_index(drop=True)
    if len(rows) <= TIMELINE_BINS:
        return rows
    bins = np.arange(len(rows)) * TIMELINE_BINS // len(rows)
    columns = [column for panel in PANELS for column in panel.columns]
    spans_s = rows["end_s"] - rows["start_s"]
    weighted = rows[columns].mul(spans_s, axis=0).groupby(bins).sum(min_count=1)
    averages = weighted.div(spans_s.groupby(bins).sum(), axis=0)
    edges = rows.groupby(bins).agg(start_s=("start_s", "min"), end_s=("end_s", "max"))
    return pd.concat([edges, averages], axis=1)


def _panel(axes: Axes, panel: Panel, rows: pd.DataFrame, style: CaseStyle) -> None:
    """Draw one quantity of one case over time."""
    if rows.empty or rows[list(panel.columns)].isna().all(axis=None):
        _say(axes, "not defined")
        return
    unit, unit_s = _time_unit(float(rows["end_s"].max()))
    edges = np.append(rows["start_s"], rows["end_s"].iloc[-1]) / unit_s
    for column, ink in zip(panel.columns, (style.colour, colour("ink")), strict=False):
        values = rows[column].to_numpy(dtype=np.float64) / panel.scale
        if ink == style.colour:
            axes.stairs(np.nan_to_num(values), edges, fill=True, color=ink, alpha=0.22)
        axes.stairs(values, edges, baseline=None, color=ink, linewidth=1.3)
    axes.set_xlim(0.0, edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{plain(x)} {unit}" if x else "0"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: plain(y)))
    axes.tick_params(labelsize=SMALL_PT, pad=3)
    if panel.scale == PERCENT:
        axes.set_ylim(0.0, 1.04 / PERCENT)
        axes.set_yticks([0.0, 50.0, 100.0])
    else:
        axes.set_ylim(0.0, max(axes.get_ylim()[1], 1e-9))
        axes.yaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2))


def _timeline_in_words(tables: RunTables) -> str:
    parts = []
    for case in tables.cases:
        rows = rows_of(tables.timeline, case)
        if not rows.empty:
            parts.append(
                f"{case} at most {figure(float(rows['running_requests'].max()))} running and "
                f"{figure(float(rows['waiting_requests'].max()))} waiting requests, "
                f"{percent(float(rows['kv_used_fraction'].max()))} of the KV cache and "
                f"{figure(float(rows['power_w'].max()) / KW)} kW"
            )
    return f"Small multiples over time. {'; '.join(parts) or 'No data'}."
