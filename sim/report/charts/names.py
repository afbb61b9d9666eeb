"""Names beside the points and lines of a chart, however many: near if there is room, else led to.

A name that finds no place at all is not written; whoever draws then numbers the cases instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from sim.report.charts.drawing import Floats
from sim.report.labels import Canvas, Wanted, leader
from sim.report.style import (
    LABEL_PT,
    POINTS_PER_IN,
    TICK_PT,
    CaseStyle,
    LegendEntry,
    clipped,
    colour,
    line_height_in,
    text_width_in,
    wrap,
)

NAME_IN = 1.7
NAME_LINES = 2
NEAR_PT = 7.0
"""From a point to its name."""
RINGS_PT = (0.0, 12.0, 24.0, 38.0, 54.0, 72.0, 92.0, 116.0)
"""How far away from a point its name is looked for, nearest first."""
DIRECTIONS = 16
FEW_CASES = 8
"""With more, names are smaller, and stand near or not at all: a long line from a name to its point
would pass others."""
NEAR_RINGS = 4
"""Of `RINGS_PT`, with many cases."""


@dataclass(frozen=True, slots=True)
class Named:
    """Something that wants its name beside it."""

    text: str
    colour: str
    anchors: Floats
    """Where the name may point, best first, in data; shape (n, 2)."""
    bold: bool = False


def write_names(axes: Axes, wanted: Sequence[Named], strokes: Floats) -> bool:
    """Write names so that none covers another; whether all found a place.

    Parameters
    ----------
    axes : Axes
        With its limits set.
    wanted : sequence of Named
        The important ones first.
    strokes : array, shape (n, 2)
        What names must not cover, in points from the lower left corner of the axes.
    """
    box = axes.get_window_extent()
    per_point = _pixels_per_point(axes)
    canvas = Canvas(box.width / per_point, box.height / per_point, strokes)
    size_pt = LABEL_PT if len(wanted) <= FEW_CASES else TICK_PT
    rings = RINGS_PT if len(wanted) <= FEW_CASES else RINGS_PT[:NEAR_RINGS]
    places = [_write_name(axes, canvas, name, size_pt, rings) for name in wanted]  # all that can be
    return all(places)


def in_points(axes: Axes, points: Floats) -> Floats:
    """Turn data into points of type, from the lower left corner of the axes."""
    corner = axes.get_window_extent().min
    pixels = np.asarray(axes.transData.transform(points), dtype=np.float64)
    return (pixels - corner) / _pixels_per_point(axes)


def numbered_legend(cases: Mapping[str, CaseStyle]) -> list[LegendEntry]:
    """Entries of a legend for charts whose points bear the numbers of their cases."""
    return [
        LegendEntry(f"{number}: {case}", style.colour, style.marker, style.dash)
        for number, (case, style) in enumerate(cases.items(), 1)
    ]


def _pixels_per_point(axes: Axes) -> float:
    root = axes.get_figure(root=True)
    return (root.dpi if root else POINTS_PER_IN) / POINTS_PER_IN


def _write_name(
    axes: Axes, canvas: Canvas, name: Named, size_pt: float, rings: Sequence[float]
) -> bool:
    lines = clipped(wrap(name.text, NAME_IN, size_pt, bold=name.bold), NAME_LINES)
    width = max(text_width_in(line, size_pt, bold=name.bold) for line in lines) * POINTS_PER_IN
    leading = line_height_in(size_pt) * POINTS_PER_IN
    at = in_points(axes, name.anchors)
    wanted = Wanted(
        width, len(lines) * leading, np.vstack([*_rings(at, rings)]), NEAR_PT, led_to=at
    )
    box = canvas.place(wanted)
    if box is None:
        return False
    ends = leader(box, wanted)
    if ends is not None:
        _draw_leader(axes, ends)
    for index, line in enumerate(lines):
        axes.annotate(
            line,
            xy=(0.0, 0.0),
            xycoords="axes fraction",
            xytext=(box.x, box.y + (len(lines) - 1 - index) * leading + 2.2),
            textcoords="offset points",
            ha="left",
            va="baseline",
            fontsize=size_pt,
            color=name.colour,
            weight="bold" if name.bold else "normal",
        )
    return True


def _rings(at: Floats, rings: Sequence[float]) -> Iterator[Floats]:
    """Places around the anchors, the nearest first."""
    angles = np.linspace(0.0, 2.0 * np.pi, DIRECTIONS, endpoint=False)
    ways = np.column_stack([np.cos(angles), np.sin(angles)])
    yield at
    for radius in rings[1:]:
        for point in at:
            yield point + radius * ways


def _draw_leader(axes: Axes, ends: Floats) -> None:
    """Draw the line from a name to what it names."""
    axes.annotate(
        "",
        xy=tuple(ends[1]),
        xytext=tuple(ends[0]),
        xycoords="axes points",
        textcoords="axes points",
        arrowprops={"arrowstyle": "-", "color": colour("axis"), "linewidth": 0.8, "shrinkB": 4.0},
        zorder=1.8,
    )
