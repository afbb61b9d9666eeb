"""The charts of a run, each a drawing that can stand alone; a module for each kind.

A chart is drawn for a reader who sees nothing else of the run: its title says what it shows, its
axes have units, its source line says where it comes from, and a case has the same colour and
marker in all of them. A number that is not defined is said to be so, never drawn as zero.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from sim.pools import Pools
from sim.report.charts.bars import cost_chart, energy_chart
from sim.report.charts.curves import cost_curve_chart, throughput_chart
from sim.report.charts.drawing import Drawing
from sim.report.charts.latency import latency_chart
from sim.report.charts.task_costs import (
    compute_efficiency_chart,
    compute_multiples_chart,
    task_cost_chart,
    task_cost_tail_chart,
    task_energy_chart,
    task_time_chart,
)
from sim.report.charts.tasks import (
    accuracy_cost_chart,
    accuracy_latency_chart,
    latency_compute_chart,
)
from sim.report.charts.timeline import timeline_chart
from sim.report.charts.waterfall import waterfall_chart
from sim.report.data import RunTables
from sim.report.explanation import ExplainedStep
from sim.report.style import chart_settings
from sim.report.task_findings import answered, tasks_of

PNG_DOTS_PER_IN = 200
"""Two pixels of the PNG for each pixel of a page a thousand wide."""

Painter = Callable[[RunTables], Drawing]

TASK_PAINTERS: Mapping[str, Painter] = MappingProxyType(
    {
        "accuracy_cost": accuracy_cost_chart,
        "accuracy_latency": accuracy_latency_chart,
        "task_cost": task_cost_chart,
        "task_cost_tail": task_cost_tail_chart,
        "latency_compute": latency_compute_chart,
        "task_time": task_time_chart,
        "compute_multiples": compute_multiples_chart,
        "compute_efficiency": compute_efficiency_chart,
        "task_energy": task_energy_chart,
    }
)
"""What draws the charts of tasks of test-time compute."""

PAINTERS: Mapping[str, Painter] = MappingProxyType(
    {
        **TASK_PAINTERS,
        "cost": cost_chart,
        "throughput_interactivity": throughput_chart,
        "cost_interactivity": cost_curve_chart,
        "latency": latency_chart,
        "timeline": timeline_chart,
        "energy": energy_chart,
    }
)
"""What draws each chart, in the order of the report."""

CHART_NAMES: tuple[str, ...] = tuple(PAINTERS)
"""Stems of the chart files, in the order of the report."""


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


def draw_charts(tables: RunTables) -> tuple[Chart, ...]:
    """Draw every chart the run has data for, in the order of the report."""
    return tuple(
        _render(name, partial(painter, tables))
        for name, painter in PAINTERS.items()
        if _has_data(name, tables)
    )


def _has_data(name: str, tables: RunTables) -> bool:
    """Tell whether a chart would show anything."""
    if name.endswith("_interactivity"):
        return tables.curve is not None and not tables.curve.empty
    if name.startswith("accuracy_"):
        return not answered(tables.summary).empty
    tasks = tasks_of(tables.summary)
    if name == "latency_compute":
        return len(tasks) > 1 and bool(tasks["latency_growth"].fillna("").ne("").any())
    if name == "compute_multiples":
        return len(tasks) > 1
    if name == "compute_efficiency":
        return len(tasks) > 1 and bool(tasks["accuracy_gain_per_multiple"].notna().any())
    return name not in TASK_PAINTERS or not tasks.empty


def draw_steps(steps: Sequence[ExplainedStep], version: str) -> tuple[Chart, ...]:
    """Draw where the time of explained steps goes, a chart for each, named after its kind.

    Of a further model its name stands behind it.
    """
    return tuple(_render(_name(step), partial(waterfall_chart, step, version)) for step in steps)


def _name(step: ExplainedStep) -> str:
    return step.kind if step.pool in Pools.model_fields else f"{step.kind}_{step.pool}"


def _render(name: str, paint: Callable[[], Drawing]) -> Chart:
    with chart_settings(salt=name):
        drawing = paint()
        svg, png = io.BytesIO(), io.BytesIO()
        figure = drawing.sheet.figure
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(svg, format="svg", metadata=nothing)
        figure.savefig(png, format="png", dpi=PNG_DOTS_PER_IN, metadata={"Software": None})
    return Chart(name, drawing.title, drawing.alt, svg.getvalue(), png.getvalue())
