"""What happens over time: load, requests, replicas, KV cache and power, a row for each case."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sim.report.charts.drawing import Drawing, case_name, heading_of, say, styles_of
from sim.report.data import RunTables, rows_of
from sim.report.formats import figure, percent, plain
from sim.report.style import (
    LABEL_PT,
    MARGIN_IN,
    SMALL_PT,
    TICK_PT,
    WIDTH_IN,
    CaseStyle,
    LegendEntry,
    Sheet,
    clipped,
    colour,
    wrap,
)
from sim.units import HOUR_S, KW, MINUTE_S

Floats = npt.NDArray[np.float64]

MOST_BINS = 150
PERCENT = 0.01


@dataclass(frozen=True, slots=True)
class Panel:
    """One column of the timeline chart."""

    title: str
    columns: tuple[str, ...]
    """The first is filled in the colour of the case, the second a dark line over it."""
    scale: float
    """Divides the values."""
    by_pool: str = ""
    """Column of each pool, its role before it, that stands for the second where there are any."""
    on_top: Mapping[str, str] = field(default_factory=dict)
    """Columns that are stacked on the first, with their colours."""
    whole: bool = False
    """Whether it counts things that come in whole numbers."""


PANELS = (
    Panel("Load, requests per second", ("offered_requests_per_s",), 1.0),
    Panel(
        "Requests running, waiting",
        ("running_requests", "waiting_requests"),
        1.0,
        by_pool="waiting_requests",
    ),
    Panel("KV cache in use, %", ("kv_used_fraction",), PERCENT),
    Panel("Power, kW", ("power_w",), KW),
)
REPLICAS = Panel(
    "Replicas up",
    ("replicas_up",),
    1.0,
    by_pool="replicas_up",
    on_top={"replicas_booting": "axis", "replicas_down": "muted"},
    whole=True,
)
"""Drawn where the number changes in some case, beside the queue that it explains."""
REPLICAS_PLACE = 2
ON_TOP_NAMES: Mapping[str, str] = {"replicas_booting": "booting", "replicas_down": "down"}
LEAST_CHANGE = 1e-6
"""Replicas: what times that do not add up to a bin in the last digit may look like."""
POOL_DASHES: Mapping[str, str] = {"encode": ":", "prefill": "-", "decode": "--", "serve": "-"}
"""How the line of each pool is drawn; a case has a serve pool or those that take its place."""
DASH_NAMES: Mapping[str, str] = {":": "dotted", "-": "solid", "--": "dashed"}
ROW_IN, HEAD_IN, TIME_AXIS_IN, PANEL_IN = 1.62, 0.3, 0.3, 0.95
PANEL_LEFT_IN = 0.42
"""Room for the numbers left of a panel."""
NAME_UP_IN = 1.188
"""From the bottom of a panel to the middle of the name over it."""


def timeline_chart(tables: RunTables) -> Drawing:
    """Load, requests, KV use and power over time, a row of small panels per case.

    Every row has its own axes: a rack is through in a minute with what a host chews for an hour.
    """
    moving = [case for case in tables.cases if _comes_and_goes(rows_of(tables.timeline, case))]
    panels = list(PANELS)
    if moving:
        panels.insert(REPLICAS_PLACE, REPLICAS)
    title = f"Load, requests, {'replicas, ' if moving else ''}KV cache and power over time"
    content_in = ROW_IN * len(tables.cases) + HEAD_IN
    head = heading_of(tables, title, _subtitle(tables, replicas=bool(moving)))
    sheet = Sheet(head, content_in, _legend(tables))
    places_in = _panel_places_in(len(panels))
    for panel, left_in in zip(panels, places_in, strict=True):
        sheet.text(left_in, content_in - 0.16, panel.title, TICK_PT, {"color": "muted"})
    width_in = places_in[1] - places_in[0] - PANEL_LEFT_IN - 0.14
    for place, (case, style) in enumerate(styles_of(tables).items()):
        bottom_in = TIME_AXIS_IN + (len(tables.cases) - 1 - place) * ROW_IN
        rows = _binned(rows_of(tables.timeline, case))
        name = clipped(wrap(case, WIDTH_IN - 1.0, LABEL_PT, bold=True), 1)
        case_name(sheet, style, name, bottom_in + NAME_UP_IN, weight="bold")
        for panel, left_in in zip(panels, places_in, strict=True):
            axes = sheet.axes(left_in, bottom_in, width_in, PANEL_IN)
            if panel is REPLICAS and case not in moving and not rows.empty:
                say(axes, f"{_replicas(rows['replicas_up'].max())} throughout")
            else:
                _panel(axes, panel, rows, style, intervals=3 if moving else 4)
    return Drawing(sheet, title, _in_words(tables))


def _subtitle(tables: RunTables, *, replicas: bool) -> str:
    dark = "Waiting requests are the dark line"
    said = [
        f"{role} {DASH_NAMES[dash]}"
        for role, dash in POOL_DASHES.items()
        if any(column.startswith(f"{role}_") for column in tables.timeline.columns)
    ]
    if said:
        both = ", as for replicas" if replicas else ""
        dark += f" ({', '.join(said)}{both})"
    on_top = " On the replicas that are up stand those that boot or are down." if replicas else ""
    return f"{dark}. Every case has its own scales.{on_top}"


def _legend(tables: RunTables) -> list[LegendEntry]:
    """Name what stands on the replicas that are up, where there is any."""
    return [
        LegendEntry(ON_TOP_NAMES[column], colour(token), None)
        for column, token in REPLICAS.on_top.items()
        if (tables.timeline[column] > LEAST_CHANGE).any()
    ]


def _comes_and_goes(rows: pd.DataFrame) -> bool:
    """Tell whether the replicas of a case are ever other than they were."""
    counts = rows[[*REPLICAS.columns, *REPLICAS.on_top]]
    return bool((counts.max() - counts.min() > LEAST_CHANGE).any())


def _panel_places_in(count: int) -> list[float]:
    """Left edges of the panels of a row."""
    column_in = (WIDTH_IN - 2 * MARGIN_IN) / count
    return [MARGIN_IN + column * column_in + PANEL_LEFT_IN for column in range(count)]


def _time_unit(until_s: float) -> tuple[str, float]:
    """Choose the unit of a time axis: seconds to ten minutes, minutes to five hours, or hours.

    >>> _time_unit(599.0), _time_unit(3600.0), _time_unit(86400.0)
    (('s', 1.0), ('min', 60.0), ('h', 3600.0))
    """
    if until_s <= 10 * MINUTE_S:
        return "s", 1.0
    return ("min", MINUTE_S) if until_s <= 5 * HOUR_S else ("h", HOUR_S)


def _binned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most `MOST_BINS` intervals: neighbours become their average over time."""
    rows = rows.sort_values("start_s", kind="stable").reset_index(drop=True)
    if len(rows) <= MOST_BINS:
        return rows
    bins = np.arange(len(rows)) * MOST_BINS // len(rows)
    lines = [column for panel in (*PANELS, REPLICAS) for column, _ in _lines(panel, rows)]
    columns = [*lines, *REPLICAS.on_top]
    spans_s = rows["end_s"] - rows["start_s"]
    weighted = rows[columns].mul(spans_s, axis=0).groupby(bins).sum(min_count=1)
    averages = weighted.div(spans_s.groupby(bins).sum(), axis=0)
    edges = rows.groupby(bins).agg(start_s=("start_s", "min"), end_s=("end_s", "max"))
    return pd.concat([edges, averages], axis=1)


def _lines(panel: Panel, rows: pd.DataFrame) -> list[tuple[str, str]]:
    """List the columns that a panel shows of a case, each with its dash."""
    first = [(panel.columns[0], "-")]
    pools = [
        (f"{role}_{panel.by_pool}", dash)
        for role, dash in POOL_DASHES.items()
        if panel.by_pool and f"{role}_{panel.by_pool}" in rows.dropna(axis=1, how="all")
    ]
    return first + (pools or [(column, "-") for column in panel.columns[1:]])


def _panel(
    axes: Axes, panel: Panel, rows: pd.DataFrame, style: CaseStyle, intervals: int = 4
) -> None:
    """Draw one quantity of one case over time, which its axis cuts into at most so many parts."""
    shown = [column for column, _ in _lines(panel, rows)]
    if rows.empty or rows[shown].isna().all(axis=None):
        say(axes, "not defined")
        return
    unit, unit_s = _time_unit(float(rows["end_s"].max()))
    edges = np.append(rows["start_s"], rows["end_s"].iloc[-1]) / unit_s
    _stack(axes, panel, rows, edges)
    for place, (column, dash) in enumerate(_lines(panel, rows)):
        values = rows[column].to_numpy(dtype=np.float64) / panel.scale
        ink = colour("ink") if place else style.colour
        if not place:
            axes.stairs(np.nan_to_num(values), edges, fill=True, color=ink, alpha=0.22)
        axes.stairs(values, edges, baseline=None, color=ink, linewidth=1.3, linestyle=dash)
    axes.set_xlim(0.0, edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(intervals))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{plain(x)} {unit}" if x else "0"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: plain(y)))
    axes.tick_params(labelsize=SMALL_PT, pad=3)
    if panel.scale == PERCENT:
        axes.set_ylim(0.0, 1.04 / PERCENT)
        axes.set_yticks([0.0, 50.0, 100.0])
    else:
        axes.set_ylim(0.0, max(axes.get_ylim()[1], 1e-9))
        axes.yaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2, integer=panel.whole))


def _stack(axes: Axes, panel: Panel, rows: pd.DataFrame, edges: Floats) -> None:
    """Draw what stands on the first column of a panel."""
    below = np.nan_to_num(rows[panel.columns[0]].to_numpy(dtype=np.float64) / panel.scale)
    for column, token in panel.on_top.items():
        above = below + np.nan_to_num(rows[column].to_numpy(dtype=np.float64) / panel.scale)
        if (above > below).any():
            axes.stairs(above, edges, baseline=below, fill=True, color=colour(token), linewidth=0)
        below = above


def _in_words(tables: RunTables) -> str:
    parts = []
    for case in tables.cases:
        rows = rows_of(tables.timeline, case)
        if not rows.empty:
            parts.append(
                f"{case} at most {figure(float(rows['running_requests'].max()))} running and "
                f"{figure(float(rows['waiting_requests'].max()))} waiting requests, "
                f"{percent(float(rows['kv_used_fraction'].max()))} of the KV cache and "
                f"{figure(float(rows['power_w'].max()) / KW)} kW{_replicas_in_words(rows)}"
            )
    return f"Small multiples over time. {'; '.join(parts) or 'No data'}."


def _replicas_in_words(rows: pd.DataFrame) -> str:
    if not _comes_and_goes(rows):
        return ""
    up = rows["replicas_up"]
    return f", with {_replicas(up.min())} to {_replicas(up.max())} replicas up"


def _replicas(mean: float) -> str:
    """Write a mean number of replicas."""
    return plain(round(float(mean), 1))
