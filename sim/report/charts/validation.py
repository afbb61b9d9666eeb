"""Charts of the validation report: forecasts beside measurements, and how intervals hold."""

import io
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from sim.report.style import LABEL_PT, case_style, chart_settings, colour

_QUANTITIES = (
    ("tpot", "TPOT, ms", 1e3),
    ("ttft", "TTFT, ms", 1e3),
    ("throughput", "output tokens/s", 1.0),
)
_SIZE_IN = (11.0, 4.2)
_LEVELS = np.linspace(0.1, 0.95, 18)
Draw = Callable[[Figure, pd.DataFrame, pd.DataFrame], None]


_FEW = 30
"""Figures of a system of which a share says little."""


def draw(table: pd.DataFrame, seen: pd.DataFrame) -> dict[str, bytes]:
    """Draw all charts.

    Parameters
    ----------
    table : DataFrame
        Forecasts under every scheme, with the ``load`` of `sim.report.validation_text.with_load`.
    seen : DataFrame
        Figures with the interval that was made without them.

    Returns
    -------
    charts : dict
        PNG by name.
    """
    charts: tuple[tuple[str, Draw], ...] = (
        ("validation_forecasts", _forecasts),
        ("validation_regimes", _regimes),
        ("validation_intervals", _intervals),
    )
    return {name: _png(name, each, table, seen) for name, each in charts}


def _png(name: str, drawn: Draw, table: pd.DataFrame, seen: pd.DataFrame) -> bytes:
    with chart_settings(name):
        figure = Figure(figsize=_SIZE_IN, facecolor=colour("paper"), layout="constrained")
        FigureCanvasAgg(figure)
        drawn(figure, table, seen)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _forecasts(figure: Figure, table: pd.DataFrame, _seen: pd.DataFrame) -> None:
    """Forecast against measured, rows of random fifths held out, by engine."""
    rows = table[table["scheme"] == "random"]
    engines = sorted(rows["engine"].unique())
    panels = figure.subplots(1, len(_QUANTITIES))
    for axes, (quantity, label, scale) in zip(panels, _QUANTITIES, strict=True):
        part = rows[rows["quantity"] == quantity]
        for index, engine in enumerate(engines):
            mine, look = part[part["engine"] == engine], case_style(index)
            axes.scatter(
                mine["measured"] * scale,
                mine["forecast"] * scale,
                s=7,
                alpha=0.45,
                color=look.colour,
                marker=look.marker,
                linewidths=0,
                label=engine,
            )
        if len(part):
            _diagonal(axes, part[["measured", "forecast"]].to_numpy() * scale)
        axes.set_xlabel(f"measured {label}", fontsize=LABEL_PT)
        axes.set_ylabel(f"forecast {label}", fontsize=LABEL_PT)
    panels[0].legend(fontsize=LABEL_PT, frameon=False, loc="upper left")
    figure.suptitle(
        "Forecast against measured, random fifths of the runs held out; band: 20 % either way",
        fontsize=LABEL_PT + 2,
    )


def _diagonal(axes: Axes, values: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> None:
    low, high = float(values.min()) / 1.3, float(values.max()) * 1.3
    ends = np.array([low, high])
    axes.fill_between(ends, ends / 1.2, ends * 1.2, color=colour("muted"), alpha=0.18, linewidth=0)
    axes.plot(ends, ends, color=colour("ink"), linewidth=0.8)
    for axis, set_scale, set_limits in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        set_scale("log")
        set_limits(low, high)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_tick_params(labelsize=LABEL_PT - 1)


def _regimes(figure: Figure, table: pd.DataFrame, _seen: pd.DataFrame) -> None:
    """Median and 90th percentile of the error by system and load, for every way of holding out."""
    panels = figure.subplots(1, len(_QUANTITIES), sharey=True)
    regimes = [
        (column, str(name))
        for column in ("load", "system")
        for name in sorted(table[column].unique(), reverse=True)
    ]
    schemes = ("random", "leave_model_out", "leave_system_out")
    for axes, (quantity, label, _) in zip(panels, _QUANTITIES, strict=True):
        part = table[table["quantity"] == quantity]
        for index, scheme in enumerate(schemes):
            look = case_style(index)
            for place, ape in _errors(part[part["scheme"] == scheme], regimes):
                height = place + 0.25 * (1 - index)
                ends = [max(float(each), _LEAST_ERROR) for each in ape.quantile([0.5, 0.9])]
                axes.plot(ends, [height, height], color=look.colour, linewidth=1.2)
                axes.plot(
                    ends[0], height, look.marker, color=look.colour, markersize=4, label=scheme
                )
        axes.set_xlabel(f"error of {label.split(',')[0]}", fontsize=LABEL_PT)
        axes.set_xscale("log")
        axes.set_xticks(_ERRORS)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=LABEL_PT - 1)
        axes.grid(visible=True, axis="x", color=colour("muted"), alpha=0.25, linewidth=0.6)
        loads = sum(column == "load" for column, _ in regimes)
        axes.axhline(loads - 0.5, color=colour("muted"), linewidth=0.8)
    panels[0].set_yticks(range(len(regimes)), [name for _, name in regimes], fontsize=LABEL_PT)
    handles = dict(zip(*reversed(panels[1].get_legend_handles_labels()), strict=True))
    figure.legend(
        [handles[scheme] for scheme in schemes if scheme in handles],
        [scheme.replace("_", " ") for scheme in schemes if scheme in handles],
        fontsize=LABEL_PT,
        frameon=False,
        loc="outside lower center",
        ncols=3,
    )
    figure.suptitle(
        "Error by system and by load: median (mark) to 90th percentile (end of the line)",
        fontsize=LABEL_PT + 2,
    )


_LEAST_ERROR = 0.01
"""Smaller errors are drawn as this one."""
_ERRORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def _errors(
    part: pd.DataFrame, regimes: list[tuple[str, str]]
) -> Iterator[tuple[int, "pd.Series[float]"]]:
    for place, (column, name) in enumerate(regimes):
        mine = part[part[column] == name]
        if len(mine):
            yield place, (mine["forecast"] / mine["measured"] - 1).abs()


def _intervals(figure: Figure, _table: pd.DataFrame, seen: pd.DataFrame) -> None:
    """Share of figures inside intervals of every nominal width, scaled from the 80 % ones."""
    panels = figure.subplots(1, 2)
    systems = sorted(seen["system"].unique(), reverse=True)
    for index, (quantity, label, _) in enumerate(_QUANTITIES):
        part = seen[seen["quantity"] == quantity]
        if part.empty:
            continue
        look, needed = case_style(index), _needed(part)
        shares = [float((needed <= width).mean()) for width in _widths()]
        panels[0].plot(_LEVELS, shares, color=look.colour, label=label.split(",")[0])
        for system, inside in part.groupby("system")["inside"]:
            panels[1].plot(
                inside.mean(),
                systems.index(str(system)) + 0.2 * (1 - index),
                look.marker,
                color=look.colour,
                fillstyle="full" if len(inside) >= _FEW else "none",
                markersize=5,
                clip_on=False,
            )
    panels[1].set_yticks(range(len(systems)), systems, fontsize=LABEL_PT)
    panels[0].plot([0, 1], [0, 1], color=colour("ink"), linewidth=0.8)
    panels[0].set_xlabel("nominal share", fontsize=LABEL_PT)
    panels[0].set_ylabel("figures inside", fontsize=LABEL_PT)
    panels[0].legend(fontsize=LABEL_PT, frameon=False)
    panels[1].axvspan(0.75, 0.88, color=colour("muted"), alpha=0.18, linewidth=0)
    panels[1].set_xlim(0.0, 1.0)
    panels[1].set_xlabel(
        f"inside 80 % intervals (band: wanted; hollow: below {_FEW} figures)",
        fontsize=LABEL_PT,
    )
    figure.suptitle("How intervals hold on figures that they had not seen", fontsize=LABEL_PT + 2)


def _widths() -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Give the widths of intervals of each nominal share, in those of 80 %: those of a normal."""
    from scipy.stats import norm  # noqa: PLC0415 - slow to import, wanted here alone

    widths: np.ndarray[tuple[int], np.dtype[np.float64]] = norm.ppf(0.5 + _LEVELS / 2) / norm.ppf(
        0.9
    )
    return widths


def _needed(part: pd.DataFrame) -> "pd.Series[float]":
    """Give the width, in that of its 80 % interval, at which each figure would be on the edge."""
    off = part["log_ratio"] - part["q50"]
    side = np.where(off > 0, part["high"] - part["q50"], part["q50"] - part["low"])
    needed: pd.Series[float] = off.abs() / np.maximum(side, 1e-9)
    return needed.fillna(0.0)
