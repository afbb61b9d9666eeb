"""The summary as people read it: a short table for a terminal, a long one for the page."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from sim.report.caveats import caveats_of
from sim.report.findings import interval
from sim.report.formats import UNDEFINED, figure, percent, usd
from sim.units import GB, KW, MILLISECOND_S

TERMINAL_QUANTILES = ("p50", "p95", "p99")


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


_percent, _usd = _bare(percent), _bare(usd)

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


def summary_cell(case: "pd.Series[float]", row: Row) -> Cell:
    """Write one number of the summary of a case.

    >>> case = pd.Series({"ttft_s_p50": 0.25, "ttft_s_p50_lo": 0.2, "ttft_s_p50_hi": 0.31})
    >>> summary_cell(case, Row("ttft_s_p50", "TTFT, p50", "ms", _ms))
    Cell(text='250', interval='200 to 310')
    """
    bounds = interval(case, row.column)
    return Cell(
        text=row.write(_number(case[row.column])),
        interval=f"{row.write(bounds[0])} to {row.write(bounds[1])}" if bounds else "",
    )


def summary_frame(summary: pd.DataFrame) -> pd.DataFrame:
    """Write the long summary as text: a row per quantity with its unit, a column per case."""
    rows = [row for group in GROUPS for row in group.rows]
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
            figure(_number(case["output_tokens_per_s_per_chip"])),
            ttft.quantiles(case, "ttft_s"),
            tpot.quantiles(case, "tpot_s"),
            _percent(_number(case["utilization_fraction"])),
            _usd(_number(case["usd_per_mtok_total"])),
            figure(_number(case["energy_j_per_output_token"])),
            _percent(_number(case["slo_attainment_fraction"])),
        )
    return table


def _case_name(case: "pd.Series[str]") -> Text:
    """Write the name of a case, and below it what it rests on that nobody measured."""
    said = caveats_of(case)
    return Text(str(case["case"])).append(f"\n{said}" if said else "", style="dim")


@dataclass(frozen=True, slots=True)
class _TimeUnit:
    """Unit of a column of times: all its numbers have the same."""

    name: str
    seconds: float

    @classmethod
    def of(cls, summary: pd.DataFrame, column: str) -> "_TimeUnit":
        """Milliseconds unless a time is ten seconds or more."""
        times = summary[[f"{column}_{quantile}" for quantile in TERMINAL_QUANTILES]]
        longest = _number(times.max(axis=None))
        return cls("s", 1.0) if longest >= 10 else cls("ms", MILLISECOND_S)

    def quantiles(self, case: "pd.Series[float]", column: str) -> str:
        """Write the quantiles of a case; one dash if it has none."""
        values = [_number(case[f"{column}_{quantile}"]) for quantile in TERMINAL_QUANTILES]
        if not any(math.isfinite(value) for value in values):
            return UNDEFINED
        return "/".join(figure(value / self.seconds).replace(",", "") for value in values)


def _number(value: object) -> float:
    """Read a cell as a float; NaN for what pandas calls missing."""
    return math.nan if pd.isna(value) else float(value)  # type: ignore[arg-type, call-overload]
