"""How long users wait: distributions of the times of requests, a line for each case."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

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
from sim.report.findings import interval
from sim.report.formats import duration, plain
from sim.report.style import LABEL_PT, SMALL_PT, CaseStyle, Sheet, colour
from sim.units import MICROSECOND_S, MILLISECOND_S

QUANTILES = (0.5, 0.95, 0.99)
ECDF_POINTS = 400
RANGE_PT, RANGE_OPACITY = 5.0, 0.28


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
    if any(found for wait in WAITS for found in _ranges(tables, wait).values()):
        subtitle += " Bars at the marks: 80 % intervals."
    sheet = Sheet(heading_of(tables, title, subtitle), 4.45, case_legend(styles_of(tables)))
    for place, wait in enumerate(WAITS):
        left_in = 0.75 + place * 4.78
        sheet.text(left_in, 4.26, wait.name, LABEL_PT, {"color": "ink", "weight": "bold"})
        _latency_panel(sheet.axes(left_in, 0.36, 4.2, 3.62), tables, wait)
    return Drawing(sheet, title, _in_words(tables))


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
        say(axes, "no request completed")
        return
    slos, ranges = _slos(tables, wait), _ranges(tables, wait)
    ends = np.array([end for found in ranges.values() for _, *pair in found for end in pair])
    log_axis(axes, "x", np.concatenate([*drawn, np.array(slos), ends]), _tick_duration)
    axes.set_ylim(0.0, 1.02)
    axes.set_yticks([0.0, 0.25, *QUANTILES, 0.75])
    axes.set_yticklabels(["0 %", "25 %", "p50", "p95", "p99", "75 %"])
    for index, slo in enumerate(slos):
        _slo_line(axes, slo, index)
    for case, values in waits.items():
        if values.size:
            _ecdf(axes, values, styles_of(tables)[case])
    for case, found in ranges.items():
        for share, low, high in found:
            axes.plot(
                [low, high],
                [share, share],
                color=styles_of(tables)[case].colour,
                linewidth=RANGE_PT,
                alpha=RANGE_OPACITY,
                solid_capstyle="butt",
                zorder=1.8,
            )


def _ranges(tables: RunTables, wait: Waiting) -> dict[str, list[tuple[float, float, float]]]:
    """Intervals of the marked quantiles of each case that has them: share, low and high end."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _, row in tables.summary.iterrows():
        bounds = {
            share: interval(row, f"{wait.column}_p{round(100 * share)}") for share in QUANTILES
        }
        found[str(row["case"])] = [
            (share, *both) for share, both in bounds.items() if both is not None and both[0] > 0
        ]
    return found


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


def _in_words(tables: RunTables) -> str:
    parts = [
        f"{row['case']} TTFT {duration(float(row['ttft_s_p50']))} and "
        f"{duration(float(row['ttft_s_p99']))}, TPOT {duration(float(row['tpot_s_p50']))} and "
        f"{duration(float(row['tpot_s_p99']))}"
        for _, row in tables.summary.iterrows()
    ]
    return f"Cumulative distributions. p50 and p99: {'; '.join(parts)}."
