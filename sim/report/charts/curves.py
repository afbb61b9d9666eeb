"""Curves of throughput and of cost against interactivity, a line for each case.

Every curve is named beside its line if all names find a place there, and by a legend if not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sim.report.charts.drawing import (
    Drawing,
    Floats,
    case_legend,
    heading_of,
    log_axis,
    say,
    styles_of,
)
from sim.report.data import RunTables, rows_of
from sim.report.findings import COST, THROUGHPUT, Measure
from sim.report.formats import figure, plain, tick_usd
from sim.report.labels import Box, Canvas, Wanted, along, around
from sim.report.style import (
    LABEL_PT,
    MARGIN_IN,
    POINTS_PER_IN,
    SMALL_PT,
    WIDTH_IN,
    CaseStyle,
    Heading,
    LegendEntry,
    Sheet,
    colour,
    line_height_in,
    text_width_in,
    wrap,
)

MARKER_PT = 6.5
BAND_OPACITY = 0.13
BANDS = " Bands: 80 % intervals."
INTERACTIVITY_AXIS = "Interactivity, output tokens per second for each user"


@dataclass(frozen=True, slots=True)
class TradeOff:
    """What a curve chart plots against interactivity."""

    measure: Measure
    axis: str
    """Name and unit of the vertical axis."""
    title: str
    subtitle: str
    write_tick: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one case, by rising concurrency."""

    case: str
    style: CaseStyle
    points: Floats
    """Shape (n, 2): interactivity, and the other quantity."""
    concurrency: tuple[float, ...]
    band: Floats | None = None
    """Outline of the intervals of its points, shape (2 n, 2); None if it has none."""


def throughput_chart(tables: RunTables) -> Drawing:
    """Output tokens per second and chip, against tokens per second for each user."""
    return _trade_off(
        tables,
        TradeOff(
            measure=THROUGHPUT,
            axis="Output tokens per second per chip (logarithmic)",
            title="More users at once: more tokens from each chip, fewer for each user",
            subtitle="Up and to the right is better. Small numbers: concurrent requests.",
            write_tick=plain,
        ),
    )


def cost_curve_chart(tables: RunTables) -> Drawing:
    """Cost per million tokens, against tokens per second for each user."""
    return _trade_off(
        tables,
        TradeOff(
            measure=COST,
            axis="US dollars per million tokens, input and output (logarithmic)",
            title="What a faster answer costs",
            subtitle="Down and to the right is better. Small numbers: concurrent requests.",
            write_tick=tick_usd,
        ),
    )


def _trade_off(tables: RunTables, plan: TradeOff) -> Drawing:
    curves = list(_curves(tables, plan.measure.column))
    bands = BANDS if any(curve.band is not None for curve in curves) else ""
    head = heading_of(tables, plan.title, plan.subtitle + bands)
    sheet, named = _curve_sheet(head, plan, curves, ())
    if not named:
        legend = case_legend({curve.case: curve.style for curve in curves})
        sheet, _ = _curve_sheet(head, plan, curves, legend)
    return Drawing(sheet, plan.title, _in_words(plan, curves))


def _curves(tables: RunTables, column: str) -> Iterator[Curve]:
    if tables.curve is None:
        return
    for case, style in styles_of(tables).items():
        rows = rows_of(tables.curve, case).sort_values("concurrency", kind="stable")
        rows = rows[rows["interactivity_tokens_per_s"].gt(0) & rows[column].gt(0)]
        if not rows.empty:
            yield Curve(
                case,
                style,
                rows[["interactivity_tokens_per_s", column]].to_numpy(dtype=np.float64),
                tuple(float(users) for users in rows["concurrency"]),
                _band(rows, column),
            )


def _band(rows: pd.DataFrame, column: str) -> Floats | None:
    """Outline where a curve may lie: along its slow ends, and back along its fast ones.

    What makes the server slower takes from each user and from all of them together, and makes
    tokens dearer: the intervals of the two axes are those of one error.
    """
    dear = ("hi", "lo") if column == COST.column else ("lo", "hi")
    names = [
        [f"interactivity_tokens_per_s_{speed}", f"{column}_{other}"]
        for speed, other in zip(("lo", "hi"), dear, strict=True)
    ]
    if not {name for pair in names for name in pair} <= set(rows.columns):
        return None
    slow, fast = (rows[pair].to_numpy(dtype=np.float64) for pair in names)
    outline = np.vstack([slow, fast[::-1]])
    return outline if np.all(np.isfinite(outline) & (outline > 0)) else None


def _in_words(plan: TradeOff, curves: Sequence[Curve]) -> str:
    write = plan.measure.write_briefly
    parts = [
        f"{c.case} from {write(c.points[0, 1])} at {figure(c.points[0, 0])} tokens per second "
        f"for each user to {write(c.points[-1, 1])} at {figure(c.points[-1, 0])}"
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
        say(axes, "no data")
        return sheet, True
    _curve_limits(
        axes, plan, np.vstack([p for c in curves for p in (c.points, c.band) if p is not None])
    )
    for curve in curves:
        if curve.band is not None:
            axes.fill(
                curve.band[:, 0],
                curve.band[:, 1],
                facecolor=curve.style.colour,
                alpha=BAND_OPACITY,
                linewidth=0.0,
                zorder=0.9,
            )
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
    log_axis(axes, "y", points[:, 1], plan.write_tick)


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
