"""What tasks of test-time compute cost: on average, for each solved one, and in the tail."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from sim.metrics.programs import TAIL_FRACTION, conditional_value_at_risk
from sim.report.charts.drawing import Drawing, Floats, heading_of, log_axis, say, styles_of
from sim.report.charts.names import Named, in_points, numbered_legend, write_names
from sim.report.charts.rows import Mark, Rows, rows_chart
from sim.report.data import RunTables, rows_of
from sim.report.findings import headline
from sim.report.formats import duration, figure, plain, tick_usd
from sim.report.labels import along, around
from sim.report.style import (
    LABEL_PT,
    MARGIN_IN,
    WIDTH_IN,
    CaseStyle,
    LegendEntry,
    Sheet,
    colour,
)
from sim.report.task_findings import (
    PER_SOLVED_TASK,
    PER_TASK,
    answered,
    comparable,
    tasks_of,
    usd_of_task,
)

POINTS = 100
"""Of accuracy in one."""
BASELINE_LETTERS = 90
"""Names of baselines that a subtitle bears."""
MANY_TAILS = 8
"""With more cases than that, curves cannot be told apart: each gets a row instead."""
CURVE_POINTS = 300
TAIL_QUANTILE = 0.99
MARKER_PT = 7.0


def task_cost_chart(tables: RunTables) -> Drawing:
    """Dollars per task, and per solved task where it is known which ones are."""
    cases = tasks_of(tables.summary)
    known = len(answered(tables.summary)) > 0
    title = headline(cases, PER_SOLVED_TASK if known else PER_TASK)
    if len(comparable(cases)) > 1:
        title = "What a task costs, and a solved one"
    each = Mark("usd_per_task", "for each task", "usd_per_task_standard_error")
    solved = Mark(
        "usd_per_solved_task", "for each solved task", "usd_per_solved_task_standard_error"
    )
    rows = Rows(
        title=title,
        subtitle="US dollars per task, idle time, cancelled calls and other models included. Broad "
        "lines: one standard error.",
        axis="US dollars per task",
        marks=(each, solved) if known else (each,),
        write=usd_of_task,
        tick=_tick_usd,
        none="none solved",
    )
    return _of_tasks(tables, rows)


def task_time_chart(tables: RunTables) -> Drawing:
    """Time from question to answer: median and tails."""
    marks = tuple(Mark(f"task_s_{name}", name) for name in ("p50", "p95", "p99"))
    rows = Rows(
        title="How long a task takes",
        subtitle="From question to answer, waits and tools included.",
        axis="Seconds",
        marks=marks,
        write=duration,
        tick=_tick(" s"),
    )
    return _of_tasks(tables, rows)


def task_energy_chart(tables: RunTables) -> Drawing:
    """Joules per task."""
    rows = Rows(
        title="Energy per task",
        subtitle="Joules, of chips and hosts, idle time included.",
        axis="Joules per task",
        marks=(Mark("energy_j_per_task", "J per task"),),
        write=lambda value: f"{figure(value)} J",
        tick=_tick(" J"),
    )
    return _of_tasks(tables, rows)


def compute_multiples_chart(tables: RunTables) -> Drawing:
    """Multiples of the baseline in chip-seconds and tokens."""
    rows = Rows(
        title="Compute of a task, as multiples of its baseline",
        subtitle="Tokens that are generated, and time in which chips are busy. "
        f"{_baselines(tables)}",
        axis="Multiple of the baseline",
        marks=(
            Mark("compute_multiplier", "generated tokens"),
            Mark("compute_multiplier_chip_s", "chip-seconds"),
        ),
        write=_multiple,
        tick=_tick("\N{MULTIPLICATION SIGN}"),
    )
    return _of_tasks(tables, rows)


def compute_efficiency_chart(tables: RunTables) -> Drawing:
    """Gain of accuracy for each further time the baseline's chip-seconds."""
    rows = Rows(
        title="What more compute buys",
        subtitle="Points of accuracy for each time the baseline's chip-seconds that a case spends "
        f"beyond it. {_baselines(tables)}",
        axis="Points of accuracy per multiple",
        marks=(Mark("accuracy_gain_per_multiple", "points per multiple"),),
        write=lambda value: f"{figure(POINTS * value)} points",
        tick=lambda value: plain(round(POINTS * value, 6)),
        none="spends no more",
    )
    return _of_tasks(tables, rows)


def _of_tasks(tables: RunTables, rows: Rows) -> Drawing:
    return rows_chart(tables, tasks_of(tables.summary), rows)


def _tick(unit: str) -> Callable[[float], str]:
    """Write ticks of an axis with a unit behind each."""
    return lambda value: f"{plain(round(value, 9))}{unit}"


def _baselines(tables: RunTables) -> str:
    """Name the baselines, if that is not too long."""
    names = list(dict.fromkeys(tasks_of(tables.summary)["baseline"].astype(str)))
    listed = "; ".join(names)
    if len(listed) > BASELINE_LETTERS:
        return f"There are {len(names)} baselines."
    return f"Baseline{'s' * (len(names) > 1)}: {listed}."


def _multiple(value: float) -> str:
    return f"{figure(value)}\N{MULTIPLICATION SIGN}"


def _tick_usd(value: float) -> str:
    return tick_usd(value) if value > 0 else "0"


@dataclass(frozen=True, slots=True)
class Tail:
    """How the costs of the tasks of one case are distributed."""

    case: str
    style: CaseStyle
    cost_usd: Floats
    """Of the completed tasks, rising."""

    @property
    def dearer(self) -> Floats:
        """Share of tasks that cost more than each of them, so that the median has a half.

        Of the dearest one it is that of one task, for a logarithmic axis.
        """
        size = self.cost_usd.size
        return np.maximum(1.0 - np.arange(size) / max(size - 1, 1), 1.0 / size)

    @property
    def p99_usd(self) -> float:
        """What one of a hundred tasks costs, or more."""
        return float(np.quantile(self.cost_usd, TAIL_QUANTILE))

    @property
    def cvar_usd(self) -> float:
        """Mean of the dearest ones."""
        return conditional_value_at_risk(self.cost_usd)

    def share_above(self, cost_usd: float) -> float:
        """Share of tasks that cost more, between tasks interpolated."""
        return float(np.interp(cost_usd, self.cost_usd, self.dearer))

    @property
    def curve(self) -> Floats:
        """Points to draw, shape (n, 2): dense in the tail."""
        size = self.cost_usd.size
        ranks = np.unique(size - np.geomspace(1, size, min(size, CURVE_POINTS)).round().astype(int))
        return np.column_stack([self.cost_usd[ranks], self.dearer[ranks]])


def task_cost_tail_chart(tables: RunTables) -> Drawing:
    """Share of the tasks that cost more than some money; of many cases, a few points of it."""
    tails = list(_tails(tables))
    if len(tails) > MANY_TAILS:
        return _tail_rows(tables)
    sheet, named = _tail_sheet(tables, tails, ())
    if not named:
        sheet, _ = _tail_sheet(tables, tails, numbered_legend({t.case: t.style for t in tails}))
    words = (
        f"{tail.case} p99 {usd_of_task(tail.p99_usd)}, mean of the dearest "
        f"{_tick_percent(TAIL_FRACTION)} {usd_of_task(tail.cvar_usd)}"
        for tail in tails
    )
    return Drawing(sheet, TAIL_TITLE, f"Line chart. {'; '.join(words)}.")


def _tail_rows(tables: RunTables) -> Drawing:
    rows = Rows(
        title=TAIL_TITLE,
        subtitle="US dollars of the median task, of one in a hundred, and of the dearest "
        f"{_tick_percent(TAIL_FRACTION)} on average (CVaR).",
        axis="US dollars per task",
        marks=(
            Mark("usd_per_task_p50", "p50"),
            Mark("usd_per_task_p99", "p99"),
            Mark("usd_per_task_cvar95", "CVaR"),
        ),
        write=usd_of_task,
        tick=_tick_usd,
    )
    return _of_tasks(tables, rows)


TAIL_TITLE = "How dear a task can get"


def _tails(tables: RunTables) -> Iterator[Tail]:
    if tables.tasks is None:
        return
    styles: Mapping[str, CaseStyle] = styles_of(tables)
    for case in tasks_of(tables.summary)["case"]:
        rows = rows_of(tables.tasks, str(case))
        if "measured" in rows.columns:
            rows = rows[rows["measured"].astype(bool)]
        costs = rows.loc[rows["outcome"] == "completed", "usd"].to_numpy(dtype=np.float64)
        costs = np.sort(costs[costs > 0])
        if costs.size:
            yield Tail(str(case), styles[str(case)], costs)


def _tail_sheet(
    tables: RunTables, tails: Sequence[Tail], legend: Sequence[LegendEntry]
) -> tuple[Sheet, bool]:
    left_in, bottom_in, plot_in, height_in = 0.85, 0.62, WIDTH_IN - 1.15, 4.9
    subtitle = (
        "Both axes logarithmic; further left is better. Filled marks: p99. Hollow marks: mean of "
        f"the dearest {_tick_percent(TAIL_FRACTION)} (CVaR)."
    )
    sheet = Sheet(heading_of(tables, TAIL_TITLE, subtitle), bottom_in + height_in + 0.34, legend)
    axes = sheet.axes(left_in, bottom_in, plot_in, height_in)
    what = "Share of the tasks that cost more"
    sheet.text(MARGIN_IN, bottom_in + height_in + 0.14, what, LABEL_PT, {"color": "muted"})
    axes.set_xlabel("US dollars per task (logarithmic)", labelpad=8)
    if not tails:
        say(axes, "no data")
        return sheet, True
    log_axis(axes, "x", np.concatenate([tail.cost_usd for tail in tails]), tick_usd)
    log_axis(axes, "y", np.concatenate([tail.dearer for tail in tails]), _tick_percent)
    least = min(float(tail.dearer[-1]) for tail in tails) / 1.5
    axes.set_yticks([tick for tick in axes.get_yticks() if least <= tick <= 1.0])
    axes.set_ylim(least, 1.25)
    strokes, names = [], []
    for number, tail in enumerate(tails, 1):
        marks = _draw_tail(axes, tail)
        points = in_points(axes, tail.curve)
        strokes += [along(points), around(in_points(axes, marks), MARKER_PT)]
        text = str(number) if legend else tail.case
        names.append(Named(text, tail.style.text, _anchors(tail), bold=True))
    return sheet, write_names(axes, names, np.vstack(strokes))


def _tick_percent(share: float) -> str:
    return f"{plain(round(100 * share, 6))} %"


def _anchors(tail: Tail) -> Floats:
    """Where on its curve a name may point: in the tail first, where curves are apart."""
    shares = np.array([0.05, 0.02, 0.1, 0.2, 0.035, 0.35, 0.6])
    costs = np.interp(shares, tail.dearer[::-1], tail.cost_usd[::-1])
    return np.column_stack([costs, shares])


def _draw_tail(axes: Axes, tail: Tail) -> Floats:
    """Draw a curve with its marks; return where these are."""
    axes.plot(
        *tail.curve.T,
        color=tail.style.colour,
        linestyle=tail.style.dash,
        linewidth=1.8,
    )
    costs = (tail.p99_usd, tail.cvar_usd)
    marks = np.array([(cost, tail.share_above(cost)) for cost in costs])
    for (cost, share), filled in zip(marks, (True, False), strict=True):
        axes.plot(
            [cost],
            [share],
            linestyle="none",
            marker=tail.style.marker,
            markersize=MARKER_PT,
            markerfacecolor=tail.style.colour if filled else colour("paper"),
            markeredgecolor=tail.style.colour if not filled else colour("paper"),
            markeredgewidth=1.3 if not filled else 0.8,
            zorder=3,
        )
    return marks
