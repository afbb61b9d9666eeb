"""The tables of a finished run, as every report reads them.

The names of the columns are promises to users: they are the keys of ``summary.json`` and the
headers of the CSV files. The tables here are complete; what a case does not define (the cost of a
token where there was none) is NaN, never zero and never left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd

from sim.errors import InternalError

SUMMARY_COLUMNS: tuple[str, ...] = (
    "case",
    "system",
    "model",
    "chips",
    "replicas",
    "offered_requests_per_s",
    "completed_requests",
    "failed_requests",
    "duration_s",
    "output_tokens_per_s",
    "output_tokens_per_s_per_chip",
    "total_tokens_per_s_per_chip",
    "ttft_s_mean",
    "ttft_s_p50",
    "ttft_s_p95",
    "ttft_s_p99",
    "tpot_s_mean",
    "tpot_s_p50",
    "tpot_s_p95",
    "tpot_s_p99",
    "e2e_s_p50",
    "e2e_s_p99",
    "encode_s_mean",
    "encode_s_p50",
    "encode_s_p95",
    "handover_wait_s_mean",
    "handover_wait_s_p50",
    "handover_wait_s_p95",
    "interactivity_tokens_per_s",
    "slo_attainment_fraction",
    "goodput_requests_per_s",
    "utilization_fraction",
    "mfu_fraction",
    "mbu_fraction",
    "power_w_mean",
    "energy_j_per_output_token",
    "usd_per_hour",
    "usd_per_mtok_input",
    "usd_per_mtok_output",
    "usd_per_mtok_total",
    "cached_input_fraction",
    "preemptions",
    "rejected_requests",
    "timed_out_requests",
    "shed_requests",
    "lost_requests",
    "cancelled_requests",
    "unfinished_requests",
    "kv_transfer_bytes",
    "embedding_transfer_bytes",
    "recomputed_tokens",
    "lost_input_tokens",
    "lost_output_tokens",
    "timed_out_lost_tokens",
    "failure_lost_tokens",
    "shed_lost_tokens",
    "cancelled_lost_tokens",
    "other_lost_tokens",
    "lost_work_fraction",
    "lost_work_usd_per_hour",
)
"""Columns every summary has, in the order they are written."""

TEXT_COLUMNS = frozenset(
    {"case", "system", "model", "strategy", "benchmark", "load", "baseline", "latency_growth"}
)
COUNT_COLUMNS = frozenset(
    {
        "chips",
        "replicas",
        "completed_requests",
        "failed_requests",
        "preemptions",
        "rejected_requests",
        "timed_out_requests",
        "shed_requests",
        "lost_requests",
        "unfinished_requests",
        "recomputed_tokens",
        "lost_input_tokens",
        "lost_output_tokens",
        "timed_out_lost_tokens",
        "failure_lost_tokens",
        "shed_lost_tokens",
        "other_lost_tokens",
        "cancelled_lost_tokens",
        "cancelled_requests",
        "tasks",
        "failed_tasks",
    }
)
INTERVAL_SUFFIXES = ("_lo", "_hi")

REQUEST_COLUMNS: tuple[str, ...] = (
    "case",
    "request_id",
    "tenant",
    "arrival_s",
    "admit_s",
    "first_token_s",
    "done_s",
    "input_tokens",
    "output_tokens",
    "replica",
    "preemptions",
    "outcome",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "session",
    "turn",
    "attempts",
    "cached_tokens",
    "recomputed_tokens",
    "prefill_replica",
    "queue_s",
    "encode_s",
    "prefill_s",
    "decode_s",
    "handover_wait_s",
    "transfer_s",
    "preempted_s",
)
TIMELINE_COLUMNS: tuple[str, ...] = (
    "case",
    "start_s",
    "end_s",
    "offered_requests_per_s",
    "output_tokens_per_s",
    "running_requests",
    "waiting_requests",
    "kv_used_fraction",
    "utilization_fraction",
    "power_w",
    "replicas_up",
    "replicas_booting",
    "replicas_down",
    "preemptions",
    "cached_input_fraction",
    "kv_transfer_bytes_per_s",
    "kv_offload_bytes_per_s",
    "embedding_transfer_bytes_per_s",
)
BILL_COLUMNS: tuple[str, ...] = (
    "case",
    "line",
    "usd_per_hour",
    "usd",
    "share_fraction",
    "source",
)
POOL_COLUMNS: tuple[str, ...] = (
    "case",
    "pool",
    "system",
    "chips",
    "replicas",
    "chips_per_replica",
    "replicas_mean",
    "utilization_fraction",
    "kv_used_fraction",
    "running_requests",
    "waiting_requests",
    "chip_power_w",
    "usd_per_hour",
)
TENANT_COLUMNS: tuple[str, ...] = (
    "case",
    "tenant",
    "requests",
    "completed_requests",
    "rejected_requests",
    "timed_out_requests",
    "shed_requests",
    "lost_requests",
    "cancelled_requests",
    "unfinished_requests",
    "input_tokens",
    "output_tokens",
    "cached_input_fraction",
    "ttft_s_p50",
    "ttft_s_p95",
    "ttft_s_p99",
    "tpot_s_p50",
    "tpot_s_p95",
    "tpot_s_p99",
    "e2e_s_p50",
    "e2e_s_p95",
    "e2e_s_p99",
    "slo_attainment_fraction",
    "goodput_requests_per_s",
    "usd_per_hour",
    "share_fraction",
)
TASK_COLUMNS: tuple[str, ...] = (
    "case",
    "task",
    "tenant",
    "arrival_s",
    "done_s",
    "task_s",
    "critical_s",
    "tool_s",
    "outcome",
    "solved",
    "calls",
    "cancelled_calls",
    "critical_calls",
    "input_tokens",
    "cached_tokens",
    "prefilled_tokens",
    "output_tokens",
    "discarded_tokens",
    "usd",
    "energy_j",
    "chip_s",
)
CALL_COLUMNS: tuple[str, ...] = (
    "case",
    "task",
    "call",
    "request_id",
    "label",
    "model",
    "after",
    "outcome",
    "prefilled_tokens",
    "produced_tokens",
)
TASK_SUMMARY_COLUMNS: tuple[str, ...] = (
    "strategy",
    "benchmark",
    "load",
    "baseline",
    "tasks",
    "failed_tasks",
    "accuracy_fraction",
    "accuracy_standard_error",
    "compute_multiplier",
    "compute_multiplier_chip_s",
    "latency_multiplier",
    "linear_latency_ratio",
    "latency_growth",
    "accuracy_gain_per_multiple",
    "tokens_per_task",
    "input_tokens_per_task",
    "cached_tokens_per_task",
    "prefilled_tokens_per_task",
    "output_tokens_per_task",
    "discarded_tokens_per_task",
    "calls_per_task",
    "cancelled_calls_per_task",
    "critical_calls_per_task",
    "task_s_mean",
    "task_s_p50",
    "task_s_p95",
    "task_s_p99",
    "usd_per_task",
    "usd_per_task_standard_error",
    "usd_per_task_p50",
    "usd_per_task_p95",
    "usd_per_task_p99",
    "usd_per_task_cvar95",
    "usd_per_solved_task",
    "usd_per_solved_task_standard_error",
    "energy_j_per_task",
    "chip_s_per_task",
    "task_slo_attainment_fraction",
    "slo_task_s",
    "slo_usd_per_task",
)
"""Columns of the summary where a strategy of test-time compute works on tasks, after the others."""
COMPARING_COLUMNS = frozenset(
    {
        "baseline",
        "compute_multiplier",
        "compute_multiplier_chip_s",
        "latency_multiplier",
        "linear_latency_ratio",
        "latency_growth",
        "accuracy_gain_per_multiple",
    }
)
"""Those of them that compare a case with its baseline."""
TENANT_TASK_COLUMNS: tuple[str, ...] = tuple(
    name for name in TASK_SUMMARY_COLUMNS if name not in COMPARING_COLUMNS
)
"""Columns of the tenants then: those of them that compare no cases."""
CURVE_COLUMNS: tuple[str, ...] = (
    "case",
    "system",
    "concurrency",
    "interactivity_tokens_per_s",
    "output_tokens_per_s_per_chip",
    "usd_per_mtok_output",
    "usd_per_mtok_total",
    "ttft_s_p50",
    "tpot_s_p50",
    "energy_j_per_output_token",
)
CURVE_TASK_COLUMNS: tuple[str, ...] = (
    "tasks_per_s",
    "task_s_p50",
    "task_s_p95",
    "usd_per_task",
    "usd_per_solved_task",
)
"""Columns of a curve of programs, after the others."""
PROVENANCE_COLUMNS: tuple[str, ...] = ("case", "item", "value", "source")
CLAIM_COLUMNS: tuple[str, ...] = (
    "case",
    "column",
    "claimed",
    "forecast",
    "forecast_over_claimed",
    "source",
)

BILL_LINES: tuple[str, ...] = (
    "rent",
    "capital",
    "financing",
    "network",
    "operations",
    "hosting",
    "power",
)
"""Lines of a bill, in the order they are stacked: a bill has rent alone, or the others."""


@dataclass(frozen=True, slots=True)
class RunTables:
    """Everything a report of one run may say.

    Raises InternalError if a table lacks a column, if two cases share a name, or if a table
    speaks of a case that the summary does not have. Columns beyond the required ones are kept and
    written after them.
    """

    scenario: str
    """Name of the scenario."""
    question: str
    """What the scenario asks, as its author wrote it."""
    seed: int
    version: str
    """Version of Rackcast."""
    summary: pd.DataFrame
    """One row per case, `SUMMARY_COLUMNS`; NaN where not defined. ``X_lo`` and ``X_hi`` beside a
    forecast ``X`` that has an interval; ``slo_ttft_s`` and ``slo_tpot_s`` where there is an SLO."""
    requests: pd.DataFrame
    """One row per request, `REQUEST_COLUMNS`. Where there is a column ``measured``, the latency
    charts show only the requests for which it is true."""
    timeline: pd.DataFrame
    """One row per case and interval of time, `TIMELINE_COLUMNS`."""
    bill: pd.DataFrame
    """One row per case and cost line, `BILL_COLUMNS`."""
    pools: pd.DataFrame
    """One row per case and pool, `POOL_COLUMNS`."""
    tenants: pd.DataFrame
    """One row per case and tenant, `TENANT_COLUMNS`, and `TENANT_TASK_COLUMNS` where there are
    tasks."""
    curve: pd.DataFrame | None
    """One row per case and concurrency, `CURVE_COLUMNS`; None if none was asked for."""
    provenance: pd.DataFrame
    """What each case rests on and who says so, `PROVENANCE_COLUMNS`."""
    tasks: pd.DataFrame | None = field(default=None, kw_only=True)
    """One row per task of test-time compute, `TASK_COLUMNS`; None if there were none. The summary
    then has `TASK_SUMMARY_COLUMNS` too."""
    calls: pd.DataFrame | None = field(default=None, kw_only=True)
    """One row per call of those, `CALL_COLUMNS`."""
    claims: pd.DataFrame | None = field(default=None, kw_only=True)
    """What the scenario says that others claim, a number a row, `CLAIM_COLUMNS`."""
    notes: tuple[str, ...]
    """Sentences that no reader may miss."""
    manifest: Mapping[str, object]
    """Goes to ``manifest.json``; the only place for wall time. The report shows ``command`` (the
    command line) and ``inputs`` (file to hash) if they are there."""

    def __post_init__(self) -> None:
        problems = [*self._missing_columns(), *self._bad_cases()]
        if problems:
            raise InternalError("the tables of the run do not fit: " + "; ".join(problems))

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the compared cases, in the order of the summary."""
        return tuple(str(name) for name in self.summary["case"])

    def tables(self) -> Iterator[tuple[str, pd.DataFrame, tuple[str, ...]]]:
        """Name, rows and required columns of every table that is there."""
        yield "summary", self.summary, SUMMARY_COLUMNS
        yield "requests", self.requests, REQUEST_COLUMNS
        yield "timeline", self.timeline, TIMELINE_COLUMNS
        yield "bill", self.bill, BILL_COLUMNS
        yield "pools", self.pools, POOL_COLUMNS
        yield "tenants", self.tenants, TENANT_COLUMNS
        yield "provenance", self.provenance, PROVENANCE_COLUMNS
        if self.curve is not None:
            yield "curve", self.curve, CURVE_COLUMNS
        if self.tasks is not None:
            yield "tasks", self.tasks, TASK_COLUMNS
            yield "summary", self.summary, TASK_SUMMARY_COLUMNS
        if self.calls is not None:
            yield "calls", self.calls, CALL_COLUMNS
        if self.claims is not None:
            yield "claims", self.claims, CLAIM_COLUMNS

    def _missing_columns(self) -> Iterator[str]:
        for name, frame, required in self.tables():
            missing = [column for column in required if column not in frame.columns]
            if missing:
                yield f"{name} lacks {', '.join(missing)}"

    def _bad_cases(self) -> Iterator[str]:
        if "case" not in self.summary.columns:
            return
        if self.summary.empty:
            yield "the summary has no case"
        known = self.summary["case"]
        for twin in known[known.duplicated()].unique():
            yield f"two cases are called {twin!r}"
        for name, frame, _ in self.tables():
            if "case" in frame.columns:
                for stranger in frame.loc[~frame["case"].isin(known), "case"].unique():
                    yield f"{name} speaks of an unknown case {stranger!r}"


def rows_of(frame: pd.DataFrame, case: str) -> pd.DataFrame:
    """Rows of one case, in their order."""
    return frame.loc[frame["case"] == case]


def ordered(frame: pd.DataFrame, required: Iterable[str]) -> pd.DataFrame:
    """Columns in their written order: the required ones, then others by name, intervals beside.

    >>> frame = pd.DataFrame(columns=["b", "a_hi", "z", "y", "a", "a_lo"])
    >>> list(ordered(frame, ["a", "b"]).columns)
    ['a', 'a_lo', 'a_hi', 'b', 'y', 'z']
    """
    present = list(frame.columns)
    first = [column for column in required if column in present]
    bounds = {base + suffix for base in present for suffix in INTERVAL_SUFFIXES}
    rest = sorted(column for column in present if column not in first and column not in bounds)
    names = [
        name
        for base in (*first, *rest)
        for name in (base, *(base + suffix for suffix in INTERVAL_SUFFIXES))
        if name in present
    ]
    return frame[names]


def ordered_summary(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the summary as it is written: columns in order, counts as whole numbers.

    A column of counts in which one case has none is held as floats by pandas; here it becomes
    ``Int64``, so that eight chips are written as 8 and not as 8.0.
    """
    columns = (*SUMMARY_COLUMNS, *(name for name in TASK_SUMMARY_COLUMNS if name in summary))
    frame = ordered(summary, columns)
    kinds = {
        column: "Int64" if column in COUNT_COLUMNS else "float64"
        for column in columns
        if column not in TEXT_COLUMNS
    }
    return frame.astype(kinds).reset_index(drop=True)
