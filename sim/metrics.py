"""From the columns of a run to the tables that people read: pure functions, no clock, no queue.

Rates, energy and money are counted over a window of the run: from the end of the warm-up to the
last arrival, when the system is loaded as the workload says. Latencies are those of the requests
that arrive in the window, however late they finish.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.cost.table import StepTable
from sim.cost.work import StepShape
from sim.deployment import Deployment
from sim.economics import (
    BillLine,
    Terms,
    TokenCost,
    Usage,
    bill,
    chips_charged,
    total_usd,
    usd_per_hour,
    usd_per_mtok,
)
from sim.engine.cluster import RunRecord
from sim.engine.records import Columns
from sim.overhead import EngineOverhead

Floats = npt.NDArray[np.float64]

TIMELINE_BINS = 120
WARMUP_ROUNDS = 2
"""Requests of each closed-loop client until the clients are out of step."""
TOGETHER_FRACTION = 0.01
"""Arrivals within a smaller part of the run than this are a batch that comes all at once."""


@dataclass(frozen=True)
class Window:
    """The part of a run that counts."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s

    @property
    def edges(self) -> Floats:
        """Both ends."""
        return np.array([self.start_s, self.end_s])


@dataclass(frozen=True)
class Activity:
    """What the chips of a deployment did, stretch by stretch."""

    stretches: Columns
    prefill_share: Floats
    """Part of each stretch's time that its prompts caused."""
    energy_j: Floats
    """Of all chips of the replica."""
    flop: Floats
    memory_s: Floats
    """Memory traffic as seconds at peak bandwidth, of one chip."""

    @property
    def busy_s(self) -> Floats:
        """Duration of each stretch."""
        stretches = self.stretches
        return (stretches["end_s"] - stretches["start_s"]).astype(float)

    @property
    def output_tokens(self) -> Floats:
        """Tokens that each stretch produced."""
        stretches = self.stretches
        decoded = stretches["steps"] * stretches["decode_sequences"]
        return (decoded + stretches["first_tokens"]).astype(float)

    def per_bin(self, values: Floats, edges: Floats) -> Floats:
        """Spread a quantity of each stretch evenly over its time and sum it up between edges.

        Stretches of one replica follow each other without overlap, so the sum up to any time is a
        piecewise linear function of it.
        """
        total = np.zeros(edges.size - 1)
        for replica in np.unique(self.stretches["replica"]):
            mine = self.stretches["replica"] == replica
            start = self.stretches["start_s"][mine].astype(float)
            end = self.stretches["end_s"][mine].astype(float)
            times = np.column_stack([start, end]).ravel()
            sums = np.cumsum(values[mine])
            heights = np.column_stack([sums - values[mine], sums]).ravel()
            total += np.diff(np.interp(edges, times, heights))
        return total


def activity(deployment: Deployment, record: RunRecord) -> Activity:
    """Price every stretch of a run: whose time, energy, arithmetic, memory traffic."""
    stretches = record.stretches
    shape, steps = _shape(stretches), stretches["steps"].astype(float)
    chips = deployment.chips_per_replica
    return Activity(
        stretches=stretches,
        prefill_share=_prefill_share(deployment.seconds, shape),
        energy_j=chips * _total(deployment.joules, shape, steps),
        flop=chips * _total(deployment.flop, shape, steps),
        memory_s=_total(deployment.memory_seconds, shape, steps),
    )


def request_table(record: RunRecord, overhead: EngineOverhead) -> pd.DataFrame:
    """One row per request, in order of arrival, with its latencies; NaN where there is none.

    Times are those that a client sees: every token of a request comes later than it leaves the
    engine by the time outside the engine, ``frontend_s``.

    Parameters
    ----------
    record : RunRecord
    overhead : EngineOverhead
        Says how long requests spend outside the engine.
    """
    frame = pd.DataFrame(record.requests).sort_values("request_id", ignore_index=True)
    frame["first_token_s"] += overhead.frontend_s
    frame["done_s"] += overhead.frontend_s
    frame["ttft_s"] = frame["first_token_s"] - frame["arrival_s"]
    frame["e2e_s"] = frame["done_s"] - frame["arrival_s"]
    later_tokens = (frame["output_tokens"] - 1).where(frame["output_tokens"] > 1)
    frame["tpot_s"] = (frame["done_s"] - frame["first_token_s"]) / later_tokens
    return frame


def measured_window(requests: pd.DataFrame, warmup_fraction: float, clients: int = 0) -> Window:
    """Find the part of the run that counts; all of it when everything arrives at once.

    Parameters
    ----------
    requests : DataFrame
        In order of arrival.
    warmup_fraction : float
        Leading share of the arrivals that does not count.
    clients : int
        Of a closed loop: they all start at once, so at least `WARMUP_ROUNDS` requests of each are
        left out too, if the run is long enough for that.
    """
    arrivals = requests["arrival_s"].to_numpy()
    end = float(np.nanmax(requests["done_s"].fillna(0.0).to_numpy(), initial=0.0))
    if end <= 0.0:  # nothing completed: any length will do, as long as rates are defined
        return Window(0.0, float(arrivals.max(initial=0.0)) + 1.0)
    warmup = int(warmup_fraction * arrivals.size)
    if WARMUP_ROUNDS * clients < arrivals.size // 2:
        warmup = max(warmup, WARMUP_ROUNDS * clients)
    start = float(arrivals[warmup])
    last = float(arrivals[-1])
    together = last - start < TOGETHER_FRACTION * (end - start)
    return Window(float(arrivals[0]), end) if together else Window(start, last)


def timeline(
    deployment: Deployment, requests: pd.DataFrame, work: Activity, bins: int = TIMELINE_BINS
) -> pd.DataFrame:
    """Load, queue, KV use and power over the time of the run, in equal bins."""
    end = float(np.nanmax(requests["done_s"].fillna(0.0).to_numpy(), initial=0.0))
    edges = np.linspace(0.0, end or 1.0, bins + 1)
    width = float(edges[1])
    stretches, busy_s = work.stretches, work.busy_s
    running = (stretches["decode_sequences"] + stretches["prefill_sequences"]).astype(float)
    used = stretches["kv_used_blocks"] / deployment.kv_blocks
    fleet = deployment.replicas * width
    busy = work.per_bin(busy_s, edges)
    arrived, _ = np.histogram(requests["arrival_s"], edges)
    chip_j = work.per_bin(work.energy_j, edges)
    return pd.DataFrame(
        {
            "start_s": edges[:-1],
            "end_s": edges[1:],
            "offered_requests_per_s": arrived / width,
            "output_tokens_per_s": work.per_bin(work.output_tokens, edges) / width,
            "running_requests": work.per_bin(running * busy_s, edges) / width,
            "waiting_requests": _request_seconds(requests, "arrival_s", "admit_s", edges) / width,
            "kv_used_fraction": work.per_bin(used * busy_s, edges) / fleet,
            "utilization_fraction": busy / fleet,
            "power_w": _fleet_power_w(deployment, chip_j, busy, width),
        }
    )


def _request_seconds(requests: pd.DataFrame, begin: str, end: str, edges: Floats) -> Floats:
    """Add up the time that admitted requests spend between two events, from edge to edge."""
    admitted = requests[requests["admit_s"].notna()]
    begun, ended = (_seconds_since(admitted[name].to_numpy(float), edges) for name in (begin, end))
    return np.maximum(np.diff(begun - ended), 0.0)


def _seconds_since(events_s: Floats, edges: Floats) -> Floats:
    """Seconds that have passed since each event, added up over all events before each edge."""
    events_s = np.sort(events_s)
    before = np.searchsorted(events_s, edges, side="right")
    sums = np.concatenate([[0.0], np.cumsum(events_s)])
    return np.asarray(before * edges - sums[before])


@dataclass(frozen=True)
class Accounts:
    """What a run cost and bought inside its window."""

    window: Window
    utilization_fraction: float
    mfu_fraction: float
    mbu_fraction: float
    power_w: float
    """Of everything that is charged, before PUE."""
    output_tokens: float
    input_tokens: float
    bill: tuple[BillLine, ...]
    token_cost: TokenCost


def accounts(
    deployment: Deployment, window: Window, requests: pd.DataFrame, work: Activity, terms: Terms
) -> Accounts:
    """Add up work, energy and money over the window of a run."""
    case = deployment.case
    span, edges = window.duration_s, window.edges
    busy_s = float(work.per_bin(work.busy_s, edges)[0])
    prefill_s = float(work.per_bin(work.busy_s * work.prefill_share, edges)[0])
    fleet_s = deployment.replicas * span
    flop_s = float(work.per_bin(work.flop, edges)[0]) / deployment.peak_flop_per_s
    chip_j = work.per_bin(work.energy_j, edges)
    power_w = float(_fleet_power_w(deployment, chip_j, np.array([busy_s]), span)[0])
    usage = Usage(span, deployment.chips, case.systems, power_w * span)
    charged = chips_charged(case.prices.charge, usage, deployment.system.chips)
    lines = bill(terms, usage, charged)
    output_tokens = float(work.per_bin(work.output_tokens, edges)[0])
    first = requests["first_token_s"].between(window.start_s, window.end_s, inclusive="right")
    input_tokens = float(requests.loc[first, "input_tokens"].sum())
    share = prefill_s / busy_s if busy_s > 0 else 0.0
    return Accounts(
        window=window,
        utilization_fraction=busy_s / fleet_s,
        mfu_fraction=flop_s / (fleet_s * deployment.chips_per_replica),
        mbu_fraction=float(work.per_bin(work.memory_s, edges)[0]) / fleet_s,
        power_w=power_w,
        output_tokens=output_tokens,
        input_tokens=input_tokens,
        bill=lines,
        token_cost=usd_per_mtok(total_usd(lines), share, input_tokens, output_tokens),
    )


def summary_row(
    deployment: Deployment, requests: pd.DataFrame, books: Accounts
) -> dict[str, object]:
    """One row of the summary: what a case does and what it costs."""
    case, window = deployment.case, books.window
    span = window.duration_s
    counted = requests[requests["arrival_s"].between(window.start_s, window.end_s)]
    completed = counted[counted["outcome"] == "completed"]
    met = _meets_slo(completed, case.slo.ttft_s, case.slo.tpot_s)
    output_rate = books.output_tokens / span
    total_rate = (books.output_tokens + books.input_tokens) / span
    cost = books.token_cost
    tpot = completed["tpot_s"].dropna()
    row: dict[str, object] = {
        "case": case.name,
        "system": case.system,
        "model": case.model,
        "chips": deployment.chips,
        "replicas": deployment.replicas,
        "offered_requests_per_s": len(counted) / span,
        "completed_requests": int((requests["outcome"] == "completed").sum()),
        "failed_requests": int((requests["outcome"] != "completed").sum()),
        "duration_s": span,
        "output_tokens_per_s": output_rate,
        "output_tokens_per_s_per_chip": output_rate / deployment.chips,
        "total_tokens_per_s_per_chip": total_rate / deployment.chips,
        **_statistics("ttft_s", completed["ttft_s"], ("mean", "p50", "p95", "p99")),
        **_statistics("tpot_s", tpot, ("mean", "p50", "p95", "p99")),
        **_statistics("e2e_s", completed["e2e_s"], ("p50", "p99")),
        "interactivity_tokens_per_s": 1.0 / float(tpot.median()) if len(tpot) else np.nan,
        "slo_attainment_fraction": float(met.sum()) / len(counted) if len(counted) else np.nan,
        "goodput_requests_per_s": float(met.sum()) / span,
        "utilization_fraction": books.utilization_fraction,
        "mfu_fraction": books.mfu_fraction,
        "mbu_fraction": books.mbu_fraction,
        "power_w_mean": books.power_w,
        "energy_j_per_output_token": books.power_w * span / books.output_tokens
        if books.output_tokens
        else np.nan,
        "usd_per_hour": usd_per_hour(books.bill),
        "usd_per_mtok_input": _or_nan(cost.usd_per_mtok_input),
        "usd_per_mtok_output": _or_nan(cost.usd_per_mtok_output),
        "usd_per_mtok_total": _or_nan(cost.usd_per_mtok_total),
    }
    return row


def _shape(stretches: Columns) -> StepShape:
    """Gather counts of one step of each stretch, and attention sums over all its steps."""
    return StepShape(
        decode_sequences=stretches["decode_sequences"],
        decode_context_tokens=stretches["decode_context_tokens"].astype(float),
        decode_window_tokens=stretches["decode_window_tokens"].astype(float),
        prefill_sequences=stretches["prefill_sequences"],
        prefill_tokens=stretches["prefill_tokens"],
        prefill_pairs=stretches["prefill_pairs"].astype(float),
        prefill_window_pairs=stretches["prefill_window_pairs"].astype(float),
    )


def _total(table: StepTable, shape: StepShape, steps: Floats) -> Floats:
    return steps * table.fixed(shape) + table.attended(shape)


def _prefill_share(table: StepTable, shape: StepShape) -> Floats:
    """Split the time of mixed steps in proportion to what each part would take alone."""
    prefill = StepShape(
        prefill_sequences=shape.prefill_sequences,
        prefill_tokens=shape.prefill_tokens,
        prefill_pairs=shape.prefill_pairs,
        prefill_window_pairs=shape.prefill_window_pairs,
    )
    decode = StepShape(
        decode_sequences=shape.decode_sequences,
        decode_context_tokens=shape.decode_context_tokens,
        decode_window_tokens=shape.decode_window_tokens,
    )
    # in a stretch of many steps there are no prompts, and the share is 0 whatever the divisor
    alone = table.fixed(prefill) + table.attended(prefill)
    other = table.fixed(decode) + table.attended(decode)
    return np.divide(alone, alone + other, out=np.zeros_like(alone), where=alone + other > 0)


def _fleet_power_w(
    deployment: Deployment, chip_j: Floats, busy_s: Floats, width_s: float
) -> Floats:
    """Mean power of busy chips, idle chips and hosts: of everything that is charged."""
    case, system = deployment.case, deployment.system
    idle_w = deployment.accelerator.power.idle_w.value
    replica_idle_s = deployment.replicas * width_s - busy_s
    idle_j = idle_w * deployment.chips_per_replica * np.maximum(replica_idle_s, 0.0)
    installed = system.chips * case.systems
    if case.prices.charge == "systems":
        idle_j = idle_j + idle_w * (installed - deployment.chips) * width_s
        host_w = system.host_power_w.value * case.systems
    else:
        host_w = system.host_power_w.value * case.systems * deployment.chips / installed
    return (chip_j + idle_j) / width_s + host_w


def _or_nan(value: float | None) -> float:
    """Write what is not defined as tables do."""
    return np.nan if value is None else value


def _statistics(name: str, values: "pd.Series[float]", which: tuple[str, ...]) -> dict[str, float]:
    found = {"mean": float(values.mean()) if len(values) else np.nan}
    for label in which:
        if label.startswith("p"):
            found[label] = float(np.percentile(values, float(label[1:]))) if len(values) else np.nan
    return {f"{name}_{label}": found[label] for label in which}


def _meets_slo(completed: pd.DataFrame, ttft_s: float, tpot_s: float) -> "pd.Series[bool]":
    """Tell which requests met both targets; an answer of one token has no TPOT to miss."""
    return (completed["ttft_s"] <= ttft_s) & ~(completed["tpot_s"] > tpot_s)
