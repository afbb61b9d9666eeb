"""The parts of a service as people read them: its pools and its tenants, where it has several."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import pandas as pd

from sim.metrics.cells import number
from sim.report.data import RunTables
from sim.report.formats import UNDEFINED, figure, percent, usd
from sim.report.tables import claim_cells
from sim.report.task_findings import tasks_of
from sim.units import KW, MILLISECOND_S


@dataclass(frozen=True, slots=True)
class PartsTable:
    """A table that is ready to be laid out."""

    title: str
    name: str
    """Anchor of its heading."""
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The first two cells of a row are words, the others numbers."""


Column = tuple[str, str, Callable[[float], str]]


def _count(value: float) -> str:
    return f"{value:,.0f}" if isfinite(value) else UNDEFINED


def _ms(value_s: float) -> str:
    return figure(value_s / MILLISECOND_S)


def _kw(value_w: float) -> str:
    return figure(value_w / KW)


POOLS: tuple[Column, ...] = (
    ("chips", "Chips", _count),
    ("replicas", "Replicas", _count),
    ("replicas_mean", "Paid for, mean", figure),
    ("utilization_fraction", "Utilisation", percent),
    ("kv_used_fraction", "KV cache in use", percent),
    ("running_requests", "Running requests", figure),
    ("waiting_requests", "Waiting requests", figure),
    ("chip_power_w", "Power of the chips, kW", _kw),
    ("usd_per_hour", "USD/hour", usd),
)
TENANTS: tuple[Column, ...] = (
    ("requests", "Requests", _count),
    ("completed_requests", "Completed", _count),
    ("cached_input_fraction", "Input from cache", percent),
    ("ttft_s_p50", "TTFT p50, ms", _ms),
    ("ttft_s_p99", "TTFT p99, ms", _ms),
    ("tpot_s_p50", "TPOT p50, ms", _ms),
    ("tpot_s_p99", "TPOT p99, ms", _ms),
    ("slo_attainment_fraction", "Met the SLO", percent),
    ("goodput_requests_per_s", "Goodput, requests/s", figure),
    ("share_fraction", "Share of the cost", percent),
)
TASKS_OF_TENANTS: tuple[Column, ...] = (
    ("tasks", "Tasks", _count),
    ("task_s_p50", "Task p50, s", figure),
    ("task_s_p95", "Task p95, s", figure),
    ("usd_per_task", "USD per task", usd),
    ("task_slo_attainment_fraction", "Tasks met the SLO", percent),
)
"""Further ones where some of them have tasks of test-time compute."""

TASKS: tuple[Column, ...] = (
    ("tasks", "Tasks", _count),
    ("accuracy_fraction", "Solved", percent),
    ("accuracy_standard_error", "Standard error", percent),
    ("compute_multiplier", "Tokens, multiple", figure),
    ("compute_multiplier_chip_s", "Chip-seconds, multiple", figure),
    ("latency_multiplier", "Time, multiple", figure),
    ("linear_latency_ratio", "Time over tokens", figure),
    ("task_s_p50", "Time p50, s", figure),
    ("task_s_p95", "Time p95, s", figure),
    ("task_s_p99", "Time p99, s", figure),
    ("usd_per_task", "USD per task", usd),
    ("usd_per_task_standard_error", "Standard error", usd),
    ("usd_per_task_p99", "USD p99", usd),
    ("usd_per_solved_task", "USD per solved task", usd),
    ("usd_per_solved_task_standard_error", "Standard error", usd),
    ("accuracy_gain_per_multiple", "Solved more per multiple", percent),
    ("energy_j_per_task", "J per task", figure),
)


def task_parts(tables: RunTables) -> PartsTable | None:
    """Give the table of strategies of test-time compute; None where there are no tasks."""
    rows = tasks_of(tables.summary)
    if rows.empty:
        return None
    shown = [column for column in TASKS if rows[column[0]].notna().any()]
    heads = ("Case", "Strategy, load, baseline", *(label for _, label, _ in shown))
    parts = [rows[name].fillna("").astype(str) for name in ("strategy", "load")]
    said = parts[0] + ", " + parts[1] + ", against " + rows["baseline"].astype(str)
    said = said.where(rows["baseline"] != rows["case"], parts[0] + ", " + parts[1])
    named = rows.assign(told=said)
    return PartsTable("Tasks", "tasks", heads, tuple(_rows(named, "told", shown)))


def claim_parts(tables: RunTables) -> PartsTable | None:
    """Give the table of what is claimed beside what is forecast; None where nothing is claimed."""
    if tables.claims is None:
        return None
    heads = ("Case", "Quantity", "Claimed", "Forecast", "Forecast over claimed")
    rows = tuple(claim_cells(row) for row in tables.claims.to_dict("records"))
    return PartsTable("Claims", "claims", heads, rows)


def parts_tables(tables: RunTables) -> Iterator[PartsTable]:
    """Yield the tables that say more than the summary does."""
    asked = tables.tenants.reindex(columns=[name for name, *_ in TASKS_OF_TENANTS])
    tenants = TENANTS + tuple(one for one in TASKS_OF_TENANTS if asked[one[0]].notna().any())
    for title, name, key, frame, columns in (
        ("Pools", "pools", "pool", tables.pools, POOLS),
        ("Tenants", "tenants", "tenant", tables.tenants, tenants),
    ):
        several = frame[frame.groupby("case")[key].transform("size") > 1]
        if not several.empty:
            heads = ("Case", key.capitalize(), *(label for _, label, _ in columns))
            yield PartsTable(title, name, heads, tuple(_rows(several, key, columns)))


def _rows(frame: pd.DataFrame, key: str, columns: Sequence[Column]) -> Iterator[tuple[str, ...]]:
    for row in frame.to_dict("records"):
        numbers = (write(number(row[column])) for column, _, write in columns)
        yield (str(row["case"]), str(row[key]), *numbers)
