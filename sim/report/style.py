"""How every chart looks: colours, type, and the sheet a chart is drawn on.

Sizes are inches and points of a sheet ten inches wide, which is a thousand pixels on a page: ten
points of type are fourteen pixels there. The sheet places title, subtitle and source line itself
and gives the rest away in inches, so that nothing overlaps by construction.

Every colour is a token with a light and a dark value. Charts are drawn with the light ones; the
page turns them into CSS variables (`css_variables`, `themed`), so that one drawing serves both.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

FONT = "DejaVu Sans"
"""Comes with matplotlib, so it is there on every machine."""

TITLE_PT = 15.0
SUBTITLE_PT = 10.5
LABEL_PT = 10.0
TICK_PT = 9.0
SMALL_PT = 8.5
LEADING = 1.28

WIDTH_IN = 10.0
MARGIN_IN = 0.25
FOOTER_IN = 0.42
POINTS_PER_IN = 72.0

# Okabe and Ito, "Color universal design" (2008), https://jfly.uni-koeln.de/color/ . Yellow is
# darkened on white and black lightened on black, where they could not be seen.
THEME: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "paper": ("#ffffff", "#14181d"),
        "ink": ("#1b2027", "#e9ecef"),
        "muted": ("#57606a", "#a6b0ba"),
        "axis": ("#98a2ad", "#66707b"),
        "grid": ("#e4e8ec", "#2b323a"),
        "case-0": ("#0072b2", "#4aa3e0"),
        "case-1": ("#d55e00", "#f07f2e"),
        "case-2": ("#009e73", "#1fbd8f"),
        "case-3": ("#cc79a7", "#dd8fbb"),
        "case-4": ("#e69f00", "#f2b632"),
        "case-5": ("#56b4e9", "#8fd4ff"),
        "case-6": ("#000000", "#ced4da"),
        "case-7": ("#b3a300", "#f0e442"),
        "text-0": ("#00639b", "#64b1e6"),
        "text-1": ("#b04e00", "#f48f48"),
        "text-2": ("#007a59", "#35c79b"),
        "text-3": ("#a34a7c", "#e39fc5"),
        "text-4": ("#8f6300", "#f3bb40"),
        "text-5": ("#1f74a8", "#9ad9fe"),
        "text-6": ("#050505", "#d4dade"),
        "text-7": ("#6f6500", "#eee45a"),
        "line-rent": ("#365577", "#7397c0"),
        "line-capital": ("#34506f", "#7094bd"),
        "line-financing": ("#6b8cae", "#a4c0dd"),
        "line-network": ("#a9bfd4", "#d0e0ef"),
        "line-operations": ("#b3a2c7", "#b9a7d1"),
        "line-hosting": ("#dcc797", "#e2cb92"),
        "line-power": ("#c4844a", "#d8935a"),
        "bound-compute": ("#0b5f98", "#4b9fdb"),
        "bound-compute-rest": ("#a9cce4", "#2b506b"),
        "bound-memory": ("#007556", "#2fb58c"),
        "bound-memory-rest": ("#a3d8c7", "#22584a"),
        "bound-network": ("#b45309", "#ea8a3c"),
        "bound-network-rest": ("#e8984e", "#8f5420"),
        "bound-overhead": ("#4f5761", "#aab4be"),
        "bound-overhead-rest": ("#b4bcc5", "#5b646e"),
        "on-dark": ("#fefefe", "#0e1216"),
        "on-light": ("#12161b", "#0f1317"),
    }
)
"""Token to its light and dark colour; no two tokens share a light colour."""

CASE_COLOURS = 8
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


def colour(token: str) -> str:
    """Light colour of a token."""
    return THEME[token][0]


@dataclass(frozen=True, slots=True)
class CaseStyle:
    """How one case looks in every chart."""

    colour: str
    text: str
    """The same hue, dark enough to be read."""
    marker: str
    dash: Literal["-", "--"]


def case_style(index: int) -> CaseStyle:
    """Style of the case at a place of the summary; after eight the lines are dashed.

    >>> case_style(0).colour, case_style(8).colour, case_style(8).dash
    ('#0072b2', '#0072b2', '--')
    """
    hue = index % CASE_COLOURS
    return CaseStyle(
        colour=colour(f"case-{hue}"),
        text=colour(f"text-{hue}"),
        marker=MARKERS[hue],
        dash="-" if index < CASE_COLOURS else "--",
    )


def css_variables(theme: int) -> str:
    """CSS declarations of every token: 0 is the light theme, 1 the dark one."""
    return " ".join(f"--{token}: {values[theme]};" for token, values in THEME.items())


_TOKEN_OF = {values[0]: token for token, values in THEME.items()}


def themed(svg: str) -> str:
    """Replace the light colours of a drawing by CSS variables.

    >>> themed('<path style="fill: #0072b2; stroke: #123456"/>')
    '<path style="fill: var(--case-0); stroke: #123456"/>'
    """

    def variable(match: re.Match[str]) -> str:
        token = _TOKEN_OF.get(match.group(0).lower())
        return match.group(0) if token is None else f"var(--{token})"

    return re.sub(r"#[0-9a-fA-F]{6}\b", variable, svg)


@contextmanager
def chart_settings(salt: str) -> Iterator[None]:
    """Apply the settings a chart is drawn and saved with, whatever the user's own matplotlib says.

    Parameters
    ----------
    salt : str
        Goes into the ids of an SVG, so that two charts on one page share none.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.hashsalt": salt,
                "svg.fonttype": "path",
                "font.family": [FONT],
                "text.parse_math": False,
                "axes.unicode_minus": True,
                "path.simplify": True,
            }
        )
        yield


# --- Text.


@lru_cache(maxsize=4096)
def text_width_in(text: str, size_pt: float, *, bold: bool = False) -> float:
    """Width of a line of text in inches."""
    font = FontProperties(family=FONT, size=size_pt, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / POINTS_PER_IN


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


def drawable(text: str) -> str:
    r"""Put a box in the place of each character that the font of the charts lacks.

    >>> drawable("8x H100\t\u8a08\u7b97")
    '8x H100 \u25a1\u25a1'
    """
    spaced = " ".join(text.split())
    return "".join(letter if ord(letter) in _glyphs() else "\N{WHITE SQUARE}" for letter in spaced)


def wrap(text: str, width_in: float, size_pt: float, *, bold: bool = False) -> list[str]:
    """Break text into lines that fit a width; a word that is too long is broken anywhere.

    >>> wrap("one two three", width_in=0.65, size_pt=10)
    ['one two', 'three']
    """
    lines: list[str] = []
    for word in _pieces(drawable(text), width_in, size_pt, bold=bold):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width_in(longer, size_pt, bold=bold) <= width_in:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def _pieces(text: str, width_in: float, size_pt: float, *, bold: bool) -> Iterator[str]:
    """Words of a text, the long ones cut so that each piece fits."""
    for word in text.split():
        rest = word
        while text_width_in(rest, size_pt, bold=bold) > width_in and len(rest) > 1:
            cut = _cut(rest, width_in, size_pt, bold=bold)
            yield rest[:cut]
            rest = rest[cut:]
        yield rest


def _cut(word: str, width_in: float, size_pt: float, *, bold: bool) -> int:
    """Where to cut a word: after its last _ - / or . that fits, or else at the last letter."""
    fits = 1
    while fits < len(word) and text_width_in(word[: fits + 1], size_pt, bold=bold) <= width_in:
        fits += 1
    joints = [place + 1 for place in range(fits // 2, fits) if word[place] in "_-/."]
    return joints[-1] if joints else fits


def clipped(lines: Sequence[str], most: int) -> list[str]:
    """Keep the first lines only, with dots where some were left out.

    >>> clipped(["a", "b", "c"], 2)
    ['a', 'b…']
    """
    if len(lines) <= most:
        return list(lines)
    return [*lines[: most - 1], lines[most - 1] + "\N{HORIZONTAL ELLIPSIS}"]


def line_height_in(size_pt: float) -> float:
    """Height of one line of text."""
    return size_pt * LEADING / POINTS_PER_IN


# --- The sheet.


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands around a chart."""

    title: str
    subtitle: str
    source: str


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A colour and its meaning."""

    label: str
    colour: str
    marker: str | None
    """None draws a square; otherwise a line with that marker."""
    dash: Literal["-", "--"] = "-"


class Sheet:
    """A figure with heading and source line in place, and inches left to draw in.

    Parameters
    ----------
    heading : Heading
    content_in : float
        Height of what is drawn between heading and source line.
    legend : sequence of LegendEntry
        Drawn in rows under the heading, as many rows as they take.
    """

    def __init__(
        self, heading: Heading, content_in: float, legend: Sequence[LegendEntry] = ()
    ) -> None:
        room = WIDTH_IN - 2 * MARGIN_IN
        title = wrap(heading.title, room, TITLE_PT, bold=True)
        subtitle = wrap(heading.subtitle, room, SUBTITLE_PT)
        rows = _legend_rows(legend, room)
        head = (
            0.16
            + len(title) * line_height_in(TITLE_PT)
            + 0.06
            + len(subtitle) * line_height_in(SUBTITLE_PT)
            + (0.1 + len(rows) * _LEGEND_ROW_IN if rows else 0.0)
            + 0.14
        )
        self.width_in = WIDTH_IN
        self.height_in = head + content_in + FOOTER_IN
        self.content_in = content_in
        self.figure = Figure(
            figsize=(WIDTH_IN, self.height_in), facecolor=colour("paper"), edgecolor="none"
        )
        FigureCanvasAgg(self.figure)
        top = self.height_in - 0.16
        top = self._lines(title, top, TITLE_PT, {"weight": "bold", "color": colour("ink")}) - 0.06
        top = self._lines(subtitle, top, SUBTITLE_PT, {"color": colour("muted")}) - 0.1
        for row in rows:
            self._legend_row(row, top - _LEGEND_ROW_IN / 2)
            top -= _LEGEND_ROW_IN
        self.text(
            MARGIN_IN, 0.13 - FOOTER_IN, drawable(heading.source), SMALL_PT, {"color": "muted"}
        )

    def text(
        self, x_in: float, y_in: float, text: str, size_pt: float, style: Mapping[str, Any]
    ) -> None:
        """Write one line; inches from the lower left corner of the content.

        ``style`` goes to matplotlib, its ``color`` being a token or a colour.
        """
        given = {"va": "baseline", "ha": "left", **style}
        given["color"] = colour(given["color"]) if given["color"] in THEME else given["color"]
        self.figure.text(
            x_in / self.width_in,
            (y_in + FOOTER_IN) / self.height_in,
            text,
            fontsize=size_pt,
            **given,
        )

    def axes(self, left_in: float, bottom_in: float, width_in: float, height_in: float) -> Axes:
        """Axes at a place of the content, in the house style."""
        axes = self.figure.add_axes(
            (
                left_in / self.width_in,
                (bottom_in + FOOTER_IN) / self.height_in,
                width_in / self.width_in,
                height_in / self.height_in,
            )
        )
        axes.set_facecolor("none")
        axes.set_axisbelow(True)
        axes.grid(visible=True, color=colour("grid"), linewidth=0.8)
        axes.tick_params(
            which="both",
            length=0,
            labelsize=TICK_PT,
            labelcolor=colour("muted"),
            pad=5,
        )
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(colour("axis"))
            spine.set_linewidth(0.9)
        axes.xaxis.label.set(fontsize=LABEL_PT, color=colour("muted"))
        axes.yaxis.label.set(fontsize=LABEL_PT, color=colour("muted"))
        return axes

    def swatch(self, entry: LegendEntry, x_in: float, y_in: float) -> None:
        """Draw the sign of a legend entry, its left edge and middle at a place of the content."""
        to_x = 1 / self.width_in
        middle = (y_in + FOOTER_IN) / self.height_in
        if entry.marker is None:
            side = 0.13
            self.figure.add_artist(
                Rectangle(
                    (x_in * to_x, middle - side / 2 / self.height_in),
                    side * to_x,
                    side / self.height_in,
                    facecolor=entry.colour,
                    edgecolor="none",
                    transform=self.figure.transFigure,
                )
            )
            return
        self.figure.add_artist(
            Line2D(
                [x_in * to_x, (x_in + 0.15) * to_x, (x_in + 0.3) * to_x],
                [middle] * 3,
                color=entry.colour,
                linestyle=entry.dash,
                linewidth=2.2,
                marker=entry.marker,
                markevery=[1],
                markersize=6,
                transform=self.figure.transFigure,
            )
        )

    def _lines(
        self, lines: Sequence[str], top_in: float, size_pt: float, style: Mapping[str, Any]
    ) -> float:
        """Write lines downward from a height of the figure; return the height below them."""
        for line in lines:
            self.text(MARGIN_IN, top_in - size_pt / POINTS_PER_IN - FOOTER_IN, line, size_pt, style)
            top_in -= line_height_in(size_pt)
        return top_in

    def _legend_row(self, row: Sequence[LegendEntry], middle_in: float) -> None:
        left = MARGIN_IN
        for entry in row:
            self.swatch(entry, left, middle_in - FOOTER_IN)
            self.text(
                left + _sign_in(entry),
                middle_in - FOOTER_IN - 0.045,
                entry.label,
                LABEL_PT,
                {"color": "ink"},
            )
            left += _entry_in(entry)


_LEGEND_ROW_IN = 0.26


def _sign_in(entry: LegendEntry) -> float:
    """Width of the sign of a legend entry with the gap after it."""
    return 0.2 if entry.marker is None else 0.38


def _entry_in(entry: LegendEntry) -> float:
    return _sign_in(entry) + text_width_in(entry.label, LABEL_PT) + 0.28


def _legend_rows(entries: Sequence[LegendEntry], room_in: float) -> list[list[LegendEntry]]:
    """Deal legend entries out to rows that fit; a label longer than a row is cut."""
    rows: list[list[LegendEntry]] = []
    used = 0.0
    for entry in entries:
        label = clipped(wrap(entry.label, room_in - 0.8, LABEL_PT), 1)[0]
        fitted = LegendEntry(label, entry.colour, entry.marker, entry.dash)
        if rows and used + _entry_in(fitted) <= room_in + 0.28:
            rows[-1].append(fitted)
            used += _entry_in(fitted)
        else:
            rows.append([fitted])
            used = _entry_in(fitted)
    return rows
