"""The summary as people read it: a short table for a terminal, a long one for the page."""

import math
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from sim.metrics.cells import number
from sim.report.caveats import caveats_of
from sim.report.findings import interval
from sim.report.formats import UNDEFINED, chance, figure, percent, usd
from sim.report.task_findings import tasks_of
from sim.units import GB, KW, MILLISECOND_S

TERMINAL_QUANTILES = ("p50", "p95", "p99")
NAME_LETTERS = 12
"""Of a name in the table of tasks, a line, where the terminal has no room for more."""
NARROW = 80
"""Letters of a terminal of which nobody says how wide it is."""
CENT_USD = 0.01
RANGE_DIGITS = 2
"""Of the ends of an interval in a terminal."""
RANGED = (
    "output_tokens_per_s_per_chip",
    "ttft_s_p50",
    "tpot_s_p50",
    "usd_per_mtok_total",
    "energy_j_per_output_token",
)
"""Numbers of a terminal that have their intervals below them."""
RANGES = (
    "Below a number its 80 % interval, of TTFT and TPOT that of the median; below the share of "
    "requests that met the SLO the chance that enough do, in percent."
)
MANY_TASKS = 1000
"""What cheap tasks are counted by."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the long summary table."""

    column: str
    label: str
    unit: str
    write: Callable[[float], str]
    only_if_any: bool = False
    """Left out where it is zero in all cases."""


@dataclass(frozen=True, slots=True)
class Group:
    """Lines of the long summary table that belong together."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A written number and its interval, empty if it has none."""

    text: str
    interval: str


def _ms(value_s: float) -> str:
    return figure(value_s / MILLISECOND_S)


def _kw(value_w: float) -> str:
    return figure(value_w / KW)


def _gb(value_bytes: float) -> str:
    return figure(value_bytes / GB)


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else UNDEFINED


def _bare(write: Callable[[float], str]) -> Callable[[float], str]:
    """Leave the unit away: it stands in its own column."""
    return lambda value: write(value).replace("$", "").replace(" %", "")


_percent, _usd, _chance_percent = _bare(percent), _bare(usd), _bare(chance)

GROUPS: tuple[Group, ...] = (
    Group(
        "Fleet and load",
        (
            Row("chips", "Chips", "", _count),
            Row("replicas", "Replicas", "", _count),
            Row("offered_requests_per_s", "Offered load", "requests/s", figure),
            Row("duration_s", "Measured time", "s", figure),
            Row("completed_requests", "Completed requests", "", _count),
            Row("failed_requests", "Failed or unfinished requests", "", _count),
            Row("rejected_requests", "of these too long", "", _count, only_if_any=True),
            Row("timed_out_requests", "of these given up by clients", "", _count, only_if_any=True),
            Row("shed_requests", "of these turned away", "", _count, only_if_any=True),
            Row("lost_requests", "of these lost in failures", "", _count, only_if_any=True),
            Row("unfinished_requests", "of these unfinished", "", _count, only_if_any=True),
            Row("cancelled_requests", "Cancelled calls of tasks", "", _count, only_if_any=True),
        ),
    ),
    Group(
        "Throughput",
        (
            Row("output_tokens_per_s", "Output tokens", "tokens/s", figure),
            Row("output_tokens_per_s_per_chip", "Output tokens per chip", "tokens/s", figure),
            Row("total_tokens_per_s_per_chip", "All tokens per chip", "tokens/s", figure),
            Row("utilization_fraction", "Utilisation", "%", _percent),
            Row("mfu_fraction", "MFU", "%", _percent),
            Row("mbu_fraction", "MBU", "%", _percent),
            Row("cached_input_fraction", "Input from cache", "%", _percent, only_if_any=True),
            Row("preemptions", "Preemptions", "", _count, only_if_any=True),
            Row("recomputed_tokens", "Tokens computed again", "", _count, only_if_any=True),
            Row("lost_input_tokens", "Prompt tokens thrown away", "", _count, only_if_any=True),
            Row("lost_output_tokens", "Answer tokens thrown away", "", _count, only_if_any=True),
            Row("timed_out_lost_tokens", "of these by clients", "", _count, only_if_any=True),
            Row("failure_lost_tokens", "of these by failures", "", _count, only_if_any=True),
            Row("shed_lost_tokens", "of these turned away", "", _count, only_if_any=True),
            Row("cancelled_lost_tokens", "of these cancelled", "", _count, only_if_any=True),
            Row("other_lost_tokens", "of these otherwise", "", _count, only_if_any=True),
            Row("kv_transfer_bytes", "KV between pools", "GB", _gb, only_if_any=True),
            Row("embedding_transfer_bytes", "Embeddings sent", "GB", _gb, only_if_any=True),
        ),
    ),
    Group(
        "Speed",
        (
            Row("ttft_s_mean", "TTFT, mean", "ms", _ms),
            Row("ttft_s_p50", "TTFT, p50", "ms", _ms),
            Row("ttft_s_p95", "TTFT, p95", "ms", _ms),
            Row("ttft_s_p99", "TTFT, p99", "ms", _ms),
            Row("tpot_s_mean", "TPOT, mean", "ms", _ms),
            Row("tpot_s_p50", "TPOT, p50", "ms", _ms),
            Row("tpot_s_p95", "TPOT, p95", "ms", _ms),
            Row("tpot_s_p99", "TPOT, p99", "ms", _ms),
            Row("e2e_s_p50", "End to end, p50", "s", figure),
            Row("e2e_s_p99", "End to end, p99", "s", figure),
            Row("encode_s_mean", "In encoders, mean", "ms", _ms, only_if_any=True),
            Row("encode_s_p50", "In encoders, p50", "ms", _ms, only_if_any=True),
            Row("encode_s_p95", "In encoders, p95", "ms", _ms, only_if_any=True),
            Row("handover_wait_s_mean", "Between pools, mean", "ms", _ms, only_if_any=True),
            Row("handover_wait_s_p50", "Between pools, p50", "ms", _ms, only_if_any=True),
            Row("handover_wait_s_p95", "Between pools, p95", "ms", _ms, only_if_any=True),
            Row("interactivity_tokens_per_s", "Interactivity", "tokens/s per user", figure),
            Row("slo_attainment_fraction", "Requests that met the SLO", "%", _percent),
            Row("goodput_requests_per_s", "Goodput", "requests/s", figure),
        ),
    ),
    Group(
        "Cost",
        (
            Row("usd_per_hour", "Cost of the fleet", "USD/hour", _usd),
            Row("usd_per_mtok_input", "Input tokens", "USD/million", _usd),
            Row("usd_per_mtok_output", "Output tokens", "USD/million", _usd),
            Row("usd_per_mtok_total", "All tokens together", "USD/million", _usd),
            Row("lost_work_fraction", "Share of work lost", "%", _percent, only_if_any=True),
            Row("lost_work_usd_per_hour", "Work thrown away", "USD/hour", _usd, only_if_any=True),
        ),
    ),
    Group(
        "Energy",
        (
            Row("power_w_mean", "Power, mean", "kW", _kw),
            Row("energy_j_per_output_token", "Energy per output token", "J", figure),
        ),
    ),
)
"""The long summary table: every number of the summary once."""

TASK_GROUP = Group(
    "Tasks",
    (
        Row("tasks", "Tasks", "", _count),
        Row("failed_tasks", "Failed tasks", "", _count, only_if_any=True),
        Row("accuracy_fraction", "Solved", "%", _percent),
        Row("accuracy_standard_error", "standard error of it", "%", _percent),
        Row("compute_multiplier", "Generated tokens, multiple", "", figure),
        Row("compute_multiplier_chip_s", "Chip-seconds, multiple", "", figure),
        Row("latency_multiplier", "Time of a task, multiple", "", figure),
        Row("linear_latency_ratio", "Time over tokens, multiples", "", figure),
        Row("accuracy_gain_per_multiple", "Solved more per multiple", "%", _percent),
        Row("tokens_per_task", "All tokens per task", "", figure),
        Row("input_tokens_per_task", "Prompt tokens per task", "", figure),
        Row("cached_tokens_per_task", "of these from cache", "", figure, only_if_any=True),
        Row("prefilled_tokens_per_task", "Prompt tokens computed per task", "", figure),
        Row("output_tokens_per_task", "Generated tokens per task", "", figure),
        Row("discarded_tokens_per_task", "of these thrown away", "", figure, only_if_any=True),
        Row("calls_per_task", "Calls per task", "", figure),
        Row("cancelled_calls_per_task", "of these cancelled", "", figure, only_if_any=True),
        Row("critical_calls_per_task", "Calls one after the other", "", figure),
        Row("task_s_mean", "Time of a task, mean", "s", figure),
        Row("task_s_p50", "Time of a task, p50", "s", figure),
        Row("task_s_p95", "Time of a task, p95", "s", figure),
        Row("task_s_p99", "Time of a task, p99", "s", figure),
        Row("usd_per_task", "Cost per task, mean", "USD", _usd),
        Row("usd_per_task_standard_error", "standard error of it", "USD", _usd),
        Row("usd_per_task_p50", "Cost per task, p50", "USD", _usd),
        Row("usd_per_task_p95", "Cost per task, p95", "USD", _usd),
        Row("usd_per_task_p99", "Cost per task, p99", "USD", _usd),
        Row("usd_per_task_cvar95", "Cost per task, mean of the dearest 5 %", "USD", _usd),
        Row("usd_per_solved_task", "Cost per solved task", "USD", _usd),
        Row("usd_per_solved_task_standard_error", "standard error of it", "USD", _usd),
        Row("energy_j_per_task", "Energy per task", "J", figure),
        Row("chip_s_per_task", "Chip-seconds per task", "s", figure),
        Row("slo_task_s", "Deadline", "s", figure),
        Row("slo_usd_per_task", "Budget per task", "USD", _usd),
        Row("task_slo_attainment_fraction", "Tasks within both", "%", _percent),
    ),
)
"""Further lines of it where there are tasks of test-time compute."""


CHANCE = Row("slo_probability", "Chance that the SLO is met", "%", _chance_percent)
"""A further line of it where forecasts have intervals."""


def groups_of(summary: pd.DataFrame) -> tuple[Group, ...]:
    """Give the groups that a summary has numbers for."""
    found = GROUPS if tasks_of(summary).empty else (GROUPS[0], TASK_GROUP, *GROUPS[1:])
    if CHANCE.column not in summary:
        return found
    return tuple(
        Group(group.title, (*group.rows, CHANCE)) if group.title == "Speed" else group
        for group in found
    )


def summary_cell(case: "pd.Series[float]", row: Row) -> Cell:
    """Write one number of the summary of a case.

    >>> case = pd.Series({"ttft_s_p50": 0.25, "ttft_s_p50_lo": 0.2, "ttft_s_p50_hi": 0.31})
    >>> summary_cell(case, Row("ttft_s_p50", "TTFT, p50", "ms", _ms))
    Cell(text='250', interval='200 to 310')
    """
    bounds = interval(case, row.column)
    text = row.write(number(case[row.column]))
    ends = tuple(row.write(bound) for bound in bounds) if bounds else ()
    known = all(end == text for end in ends)  # such as a rate that is given by the arrivals
    return Cell(text=text, interval="" if known else " to ".join(ends))


def summary_frame(summary: pd.DataFrame) -> pd.DataFrame:
    """Write the long summary as text: a row per quantity with its unit, a column per case."""
    rows = [row for group in groups_of(summary) for row in group.rows]
    frame = pd.DataFrame(
        {
            str(case["case"]): [summary_cell(case, row).text for row in rows]
            for _, case in summary.iterrows()
        }
    )
    frame.insert(0, "quantity", [row.label for row in rows])
    frame.insert(1, "unit", [row.unit for row in rows])
    return frame


def console_table(summary: pd.DataFrame) -> Table:
    """Write the short summary for a terminal: 120 columns wide, or 80 with case names folded.

    Parameters
    ----------
    summary : DataFrame
        One row per case, `sim.report.data.SUMMARY_COLUMNS`.
    """
    ttft, tpot = _TimeUnit.of(summary, "ttft_s"), _TimeUnit.of(summary, "tpot_s")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    if any(_range(case, name) for _, case in summary.iterrows() for name in RANGED):
        table.caption, table.caption_justify = RANGES, "left"
    table.add_column("case", overflow="fold", min_width=8, max_width=36)
    for title in (
        "out tok/s\nper chip",
        f"TTFT {ttft.name}\np50/p95/p99",
        f"TPOT {tpot.name}\np50/p95/p99",
        "util\n%",
        "USD/Mtok\nin + out",
        "J/tok\noutput",
        "SLO\n%",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for _, case in summary.iterrows():
        table.add_row(
            _case_name(case),
            _with_range(case, "output_tokens_per_s_per_chip", figure),
            _below(ttft.quantiles(case, "ttft_s"), _range(case, "ttft_s_p50", ttft.seconds)),
            _below(tpot.quantiles(case, "tpot_s"), _range(case, "tpot_s_p50", tpot.seconds)),
            _percent(number(case["utilization_fraction"])),
            _with_range(case, "usd_per_mtok_total", _usd),
            _with_range(case, "energy_j_per_output_token", figure),
            _below(_percent(number(case["slo_attainment_fraction"])), _chance(case)),
        )
    return table


def _with_range(case: "pd.Series[float]", column: str, write: Callable[[float], str]) -> Text:
    """Write a number, and below it its interval if it has one."""
    return _below(write(number(case[column])), _range(case, column))


def _below(text: str, quiet: str) -> Text:
    return Text(text).append(f"\n{quiet}" if quiet else "", style="dim")


def _range(case: "pd.Series[float]", column: str, unit: float = 1.0) -> str:
    """Write an interval briefly; empty where there is none, or nothing is unsure."""
    bounds = interval(case, column)
    if bounds is None or bounds[0] == bounds[1]:
        return ""
    low, high = (figure(bound / unit, RANGE_DIGITS).replace(",", "") for bound in bounds)
    return f"{low}-{high}"


def _chance(case: "pd.Series[float]") -> str:
    """Write the chance that the SLO is met, if it is known."""
    value = number(case.get(CHANCE.column))
    return _chance_percent(value) if math.isfinite(value) else ""


def _case_name(case: "pd.Series[str]") -> Text:
    """Write the name of a case, and below it what it rests on that nobody measured."""
    said = caveats_of(case)
    return Text(str(case["case"])).append(f"\n{said}" if said else "", style="dim")


def console_task_table(summary: pd.DataFrame, width: int = NARROW) -> Table | None:
    """Write what tasks of test-time compute buy and cost; None if there are none.

    Parameters
    ----------
    summary : DataFrame
        One row per case.
    width : int
        Of the terminal, letters. What numbers leave of it is for names, which are broken between
        words where they are longer.
    """
    tasks = tasks_of(summary)
    if tasks.empty:
        return None
    unit = _MoneyUnit.of(tasks)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    titles = (
        "solved\n%",
        "compute x\ntok/chip-s",
        "task s\np50/p95/p99",
        f"{unit.name}\nmean/p99/solved",
        "J per\ntask",
    )
    rows = [
        (
            _share_with_error(case),
            _joined(case, ("compute_multiplier", "compute_multiplier_chip_s")),
            _joined(case, tuple(f"task_s_{quantile}" for quantile in TERMINAL_QUANTILES)),
            _joined(case, _MoneyUnit.columns, unit.tasks),
            figure(number(case["energy_j_per_task"])),
        )
        for _, case in tasks.iterrows()
    ]
    columns = zip(titles, *rows, strict=True)
    used = sum(
        1 + max(len(line) for cell in cells for line in cell.split("\n")) for cells in columns
    )
    letters = max(width - used - 1, NAME_LETTERS)
    table.add_column("case\nstrategy", overflow="fold", min_width=8)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for (_, case), cells in zip(tasks.iterrows(), rows, strict=True):
        table.add_row(_strategy_name(case, letters), *cells)
    return table


def _strategy_name(case: "pd.Series[str]", letters: int) -> Text:
    """Write the name of a case, and below it that of its strategy unless it is the same."""
    name, strategy = str(case["case"]), str(case["strategy"])
    below = "" if strategy == name else f"\n{broken(strategy, letters)}"
    return Text(broken(name, letters)).append(below, style="dim")


def console_claim_table(claims: pd.DataFrame | None) -> Table | None:
    """Write what is claimed of cases beside what is forecast; None if nothing is claimed.

    Parameters
    ----------
    claims : DataFrame, optional
        `sim.report.data.CLAIM_COLUMNS`.
    """
    if claims is None:
        return None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("case", overflow="fold", max_width=36)
    table.add_column("quantity", overflow="fold")
    for title in ("claimed", "forecast", "ratio"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in claims.to_dict("records"):
        table.add_row(*claim_cells(row))
    return table


def claim_cells(row: Mapping[Hashable, object]) -> tuple[str, ...]:
    """Write a claim beside its forecast: case, quantity, both numbers and their ratio."""
    known = {line.column: line for line in TASK_GROUP.rows}[str(row["column"])]
    unit = f", {known.unit}" if known.unit else ""
    numbers = (known.write(number(row[name])) for name in ("claimed", "forecast"))
    ratio = figure(number(row["forecast_over_claimed"]))
    return (str(row["case"]), f"{known.label}{unit}", *numbers, ratio)


def broken(name: str, letters: int) -> str:
    r"""Break a name into lines, if it can be, after a space or one of ``_-/,``.

    >>> broken("self_consistency_40, 70B", 13)
    'self_\nconsistency_\n40, 70B'
    """
    lines = [""]
    for part in re.findall(r"[^ _/,-]*[ _/,-]*", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _share_with_error(case: "pd.Series[float]") -> str:
    """Write an accuracy and its standard error in percent."""
    share, error = (number(case[f"accuracy_{part}"]) for part in ("fraction", "standard_error"))
    if not math.isfinite(share):
        return UNDEFINED
    return f"{100 * share:.1f}\N{PLUS-MINUS SIGN}{100 * error:.1f}"


def _joined(case: "pd.Series[float]", columns: tuple[str, ...], times: float = 1.0) -> str:
    """Write numbers with strokes between, briefly; one dash if none is defined."""
    values = [number(case[column]) * times for column in columns]
    if not any(math.isfinite(value) for value in values):
        return UNDEFINED
    return "/".join(figure(value).replace(",", "") for value in values)


@dataclass(frozen=True, slots=True)
class _MoneyUnit:
    """How many tasks a column of costs is for: all its numbers have the same."""

    name: str
    tasks: int
    columns: ClassVar[tuple[str, ...]] = ("usd_per_task", "usd_per_task_p99", "usd_per_solved_task")

    @classmethod
    def of(cls, tasks: pd.DataFrame) -> "_MoneyUnit":
        """One task, or a thousand if most of them cost less than a cent."""
        if tasks["usd_per_task"].median() >= CENT_USD:
            return cls("USD/task", 1)
        return cls(f"USD/{MANY_TASKS} tasks", MANY_TASKS)


@dataclass(frozen=True, slots=True)
class _TimeUnit:
    """Unit of a column of times: all its numbers have the same."""

    name: str
    seconds: float

    @classmethod
    def of(cls, summary: pd.DataFrame, column: str) -> "_TimeUnit":
        """Milliseconds unless a time is ten seconds or more."""
        times = summary[[f"{column}_{quantile}" for quantile in TERMINAL_QUANTILES]]
        longest = number(times.max(axis=None))
        return cls("s", 1.0) if longest >= 10 else cls("ms", MILLISECOND_S)

    def quantiles(self, case: "pd.Series[float]", column: str) -> str:
        """Write the quantiles of a case; one dash if it has none."""
        values = [number(case[f"{column}_{quantile}"]) for quantile in TERMINAL_QUANTILES]
        if not any(math.isfinite(value) for value in values):
            return UNDEFINED
        return "/".join(figure(value / self.seconds).replace(",", "") for value in values)
