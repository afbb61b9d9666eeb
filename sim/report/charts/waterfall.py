"""Where a step's time goes: operators one after the other, each with its speed-of-light part."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from sim.cost.timer import Bound
from sim.report.charts.drawing import Drawing
from sim.report.explanation import ExplainedStep
from sim.report.formats import duration, percent, plain
from sim.report.style import (
    LABEL_PT,
    MARGIN_IN,
    SMALL_PT,
    WIDTH_IN,
    Heading,
    LegendEntry,
    Sheet,
    clipped,
    colour,
    text_width_in,
    wrap,
)
from sim.units import MICROSECOND_S, MILLISECOND_S

ROW_IN = 0.34
AXIS_IN = 0.36
BAR = 0.62
"""Height of a bar as a share of its row."""
NAME_IN = 2.6
SMALL_FRACTION = 0.004
"""Operators below this share of the step stand together in one bar."""
BOUNDS: tuple[Bound, ...] = ("compute", "memory", "network", "overhead")
WORDS: Mapping[Bound, str] = {
    "compute": "bound by arithmetic",
    "memory": "bound by memory",
    "network": "messages between chips",
    "overhead": "overhead: launches, waiting, the engine",
}
_MAIN: Mapping[Bound, str] = {
    "compute": "bound-compute",
    "memory": "bound-memory",
    "network": "bound-network-rest",
    "overhead": "bound-overhead-rest",
}
"""What a legend shows: messages have no dark part, overhead hardly any."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One bar: an operator, or several small ones."""

    name: str
    bound: Bound
    start_s: float
    seconds: float
    light_s: float

    @property
    def end_s(self) -> float:
        """Where the bar ends and the next one starts."""
        return self.start_s + self.seconds


def waterfall_chart(step: ExplainedStep, version: str) -> Drawing:
    """Draw the operators of a step as cumulative bars.

    Parameters
    ----------
    step : ExplainedStep
    version : str
        Of Rackcast, for the source line.
    """
    pieces = tuple(_pieces(step))
    title = (
        f"{step.step.partition(', ')[0].capitalize()}: {duration(step.seconds)}, "
        f"at datasheet peaks {duration(step.light_s)}"
    )
    known = f" ({step.caveats})" if step.caveats else ""
    subtitle = (
        f"{step.step.capitalize()}. {step.model} on {step.accelerator}{known}, {step.cut}. "
        "Operators run one after the other; the dark part of a bar is what its arithmetic or its "
        "memory traffic would take at the datasheet peaks."
    )
    source = f"Rackcast {version}, case {step.case}, system {step.system}"
    room_in = WIDTH_IN - 2 * MARGIN_IN - 0.2
    heading = Heading(title, subtitle, clipped(wrap(source, room_in, SMALL_PT), 1)[0])
    rows = len(pieces) + 1
    sheet = Sheet(heading, rows * ROW_IN + AXIS_IN, _legend(pieces))
    names = [clipped(wrap(piece.name, NAME_IN, LABEL_PT), 1)[0] for piece in pieces] + [
        "whole step"
    ]
    left_in = MARGIN_IN + 0.14 + max(text_width_in(name, LABEL_PT, bold=True) for name in names)
    axes = sheet.axes(left_in, AXIS_IN, WIDTH_IN - MARGIN_IN - left_in, rows * ROW_IN)
    _time_axis(axes, step.seconds, rows)
    for place, name in enumerate(names):
        look: dict[str, Any] = {"color": "ink"}
        if place == len(pieces):
            look["weight"] = "bold"
        middle_in = AXIS_IN + (rows - place - 0.5) * ROW_IN
        sheet.text(MARGIN_IN, middle_in - 0.048, name, LABEL_PT, look)
    for place, piece in enumerate(pieces):
        _draw_piece(axes, piece, place, step.seconds)
    _draw_whole(axes, step, len(pieces))
    return Drawing(sheet, title, _in_words(step, pieces))


def _pieces(step: ExplainedStep) -> Iterator[Piece]:
    """Lay the operators end to end; the tiny ones come last, together."""
    tiny = [row for row in step.operators if row.share_fraction < SMALL_FRACTION]
    shown = step.operators
    if len(tiny) > 1:
        shown = tuple(row for row in shown if row.share_fraction >= SMALL_FRACTION)
    else:
        tiny = []
    start_s = 0.0
    for row in shown:
        yield Piece(row.name, row.bound, start_s, row.seconds, row.light_s)
        start_s += row.seconds
    if tiny:
        seconds, light_s = sum(row.seconds for row in tiny), sum(row.light_s for row in tiny)
        longest = max(tiny, key=lambda row: row.seconds)
        yield Piece(f"{len(tiny)} small operators", longest.bound, start_s, seconds, light_s)


def _legend(pieces: Iterable[Piece]) -> list[LegendEntry]:
    present = {piece.bound for piece in pieces}
    return [
        LegendEntry(WORDS[bound], colour(_MAIN[bound]), None)
        for bound in BOUNDS
        if bound in present
    ]


def _time_axis(axes: Axes, seconds: float, rows: int) -> None:
    """Prepare an axis of time that leaves room for the label of the last bar."""
    axes.set_xlim(0.0, seconds * 1.2)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(visible=False, axis="y")
    unit_s, unit = (MILLISECOND_S, "ms") if seconds >= MILLISECOND_S else (MICROSECOND_S, "µs")
    ticks = MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(0.0, seconds / unit_s)
    axes.set_xticks([tick * unit_s for tick in ticks if 0 <= tick * unit_s <= seconds * 1.02])
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{plain(round(x / unit_s, 6))} {unit}")
    )


def _draw_piece(axes: Axes, piece: Piece, place: int, step_s: float) -> None:
    _bar(axes, place, (piece.start_s, piece.seconds), f"bound-{piece.bound}-rest")
    _bar(axes, place, (piece.start_s, min(piece.light_s, piece.seconds)), f"bound-{piece.bound}")
    axes.plot(
        [piece.end_s] * 2, [place + BAR / 2, place + 1 - BAR / 2], color=colour("axis"), lw=0.8
    )
    _label(
        axes, (piece.end_s, place), f"{duration(piece.seconds)}, {percent(piece.seconds / step_s)}"
    )


def _draw_whole(axes: Axes, step: ExplainedStep, place: int) -> None:
    """Draw the step as one bar: its ideal, marked over all rows, and what is lost, by bound."""
    _bar(axes, place, (0.0, step.light_s), "ink")
    start_s = step.light_s
    for bound in BOUNDS:
        lost_s = sum(row.seconds - row.light_s for row in step.operators if row.bound == bound)
        _bar(axes, place, (start_s, lost_s), f"bound-{bound}-rest")
        start_s += max(0.0, lost_s)
    axes.axvline(step.light_s, color=colour("muted"), lw=1.0, ls=(0, (4, 3)), zorder=0.5)
    ideal = f"ideal {duration(step.light_s)}"
    _label(axes, (step.seconds, place), duration(step.seconds), weight="bold")
    bar_in = step.light_s / axes.get_xlim()[1] * float(axes.get_position().width) * WIDTH_IN
    inside = bar_in > text_width_in(ideal, SMALL_PT) + 0.15
    axes.annotate(
        ideal,
        (step.light_s, place),
        xytext=(-4 if inside else 4, 0),
        textcoords="offset points",
        ha="right" if inside else "left",
        va="center_baseline",
        fontsize=SMALL_PT,
        color=colour("on-dark" if inside else "on-light"),
    )


def _bar(axes: Axes, place: int, span: tuple[float, float], token: str) -> None:
    start, width = span
    if width > 0:
        axes.barh(place, width, left=start, height=BAR, color=colour(token), linewidth=0)


def _label(axes: Axes, at: tuple[float, float], text: str, weight: str = "normal") -> None:
    axes.annotate(
        text,
        at,
        xytext=(5, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=SMALL_PT,
        weight=weight,
        color=colour("ink"),
        bbox={"facecolor": colour("paper"), "edgecolor": "none", "pad": 0.6},
    )


def _in_words(step: ExplainedStep, pieces: Sequence[Piece]) -> str:
    parts = [f"{piece.name} {duration(piece.seconds)} ({WORDS[piece.bound]})" for piece in pieces]
    return (
        f"Waterfall chart. {step.step} on {step.accelerator}: {'; '.join(parts)}; together "
        f"{duration(step.seconds)}, at the datasheet peaks {duration(step.light_s)}."
    )
