"""What charts of several kinds share: heading, colours of the cases, axes and empty panels."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sim.report.caveats import caveats_in_words
from sim.report.data import RunTables
from sim.report.style import (
    LABEL_PT,
    MARGIN_IN,
    SMALL_PT,
    WIDTH_IN,
    CaseStyle,
    Heading,
    LegendEntry,
    Sheet,
    case_style,
    clipped,
    colour,
    line_height_in,
    wrap,
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart before it is turned into bytes."""

    sheet: Sheet
    title: str
    alt: str


def heading_of(tables: RunTables, title: str, subtitle: str) -> Heading:
    """Title, subtitle and the line that says which run a chart is from.

    A chart is passed on alone, so its subtitle also says what is not measured or not published.
    """
    said = " ".join(filter(None, (subtitle, caveats_in_words(tables.summary))))
    source = f"Rackcast {tables.version}, scenario {tables.scenario}, seed {tables.seed}"
    room = WIDTH_IN - 2 * MARGIN_IN - 0.2
    return Heading(title, said, clipped(wrap(source, room, SMALL_PT), 1)[0])


def styles_of(tables: RunTables) -> dict[str, CaseStyle]:
    """Colour and marker of each case, in the order of the summary."""
    return {case: case_style(index) for index, case in enumerate(tables.cases)}


def case_legend(cases: Mapping[str, CaseStyle]) -> list[LegendEntry]:
    """Entries of a legend that names lines by their case."""
    return [
        LegendEntry(case, style.colour, style.marker, style.dash) for case, style in cases.items()
    ]


def case_name(
    sheet: Sheet,
    style: CaseStyle,
    lines: Sequence[str],
    middle_in: float,
    weight: Literal["normal", "bold"] = "normal",
) -> None:
    """Write the name of a case at the left margin, its colour beside the first line.

    Parameters
    ----------
    sheet : Sheet
    style : CaseStyle
    lines : sequence of str
        The name, broken into lines.
    middle_in : float
        Height of the middle of the name.
    weight : str
    """
    for index, line in enumerate(lines):
        line_in = middle_in + ((len(lines) - 1) / 2 - index) * line_height_in(LABEL_PT)
        if index == 0:
            sheet.swatch(LegendEntry("", style.colour, None), MARGIN_IN, line_in)
        look = {"color": "ink", "weight": weight}
        sheet.text(MARGIN_IN + 0.22, line_in - 0.048, line, LABEL_PT, look)


def log_axis(
    axes: Axes, which: Literal["x", "y"], values: Floats, write: Callable[[float], str]
) -> None:
    """Make an axis logarithmic with round ticks, at least a factor of three long.

    Parameters
    ----------
    axes : Axes
    which : str
        The axis.
    values : array, shape (n,)
        What is drawn along it, all positive.
    write : callable
        Writes the number at a tick.
    """
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


def say(axes: Axes, text: str) -> None:
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
